"""How recorded plans run: plainly, timed dispatch by dispatch, or checked against their NumPy twins."""

from __future__ import annotations

from . import env, ops
from .gpu import Device, Pending, Plan, Profiler, ReadBack


class Runner:
    """Runs the plans of every part of a model on one device; `profiler` collects the times of all of them."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.profiler: Profiler | None = None
        self._debug = bool(env.get("QWEN3OMNI_DEBUG"))

    def run(self, plan: Plan) -> None:
        """Submit a plan; waits for it only when it is timed or checked."""
        if self._debug:
            plan.run_debug(ops.values)
        elif self.profiler:
            with self.profiler.span(plan.name):
                self.profiler.run(plan)
        else:
            plan.run()

    def start(self, plans: list[Plan], read: ReadBack) -> Pending:
        """Submit plans and the copies of their results; `result()` of what comes back waits for the values."""
        if self.profiler or self._debug:
            for plan in plans:
                self.run(plan)
            return read.submit([])
        return read.submit(plans)
