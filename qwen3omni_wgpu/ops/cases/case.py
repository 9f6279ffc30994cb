"""An op with concrete shapes: recorded with random inputs, checked against its twin, timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ...gpu import Device, Plan, Tensor
from ..guard import values

# Records one op with random inputs, returns its outputs.
Builder = Callable[..., list[Tensor]]
# By name of the op; filled by the modules of this package.
BUILDERS: dict[str, Builder] = {}


@dataclass(frozen=True)
class CaseResult:
    """Outcome of one case. `max_error` is relative to max(1, largest expected value); seconds are the median replay."""

    max_error: float
    tolerance: float
    seconds: float
    bytes: int
    flops: int
    dispatches: int

    @property
    def ok(self) -> bool:
        return self.max_error <= self.tolerance


@dataclass(frozen=True)
class Case:
    """An op with concrete shapes. `large` cases are for benchmarks: real sizes whose twin takes long."""

    op: str
    params: dict[str, Any] = field(hash=False)
    large: bool = False

    @property
    def name(self) -> str:
        shown = (f"{key}={value}" for key, value in self.params.items() if value is not None)
        return f"{self.op}({', '.join(shown)})"

    def plan(self, device: Device, seed: int | None = None) -> Plan:
        """A finished plan with fresh random inputs."""
        plan = Plan(device, self.op)
        outputs = BUILDERS[self.op](plan, np.random.default_rng(seed), **self.params)
        return plan.finish(keep=outputs)

    def dry(self, device: Device) -> Plan:
        """A plan to look at: its steps with kernels, grids, bytes and FLOPs, but no memory and nothing compiled."""
        plan = Plan(device, self.op, dry=True)
        BUILDERS[self.op](plan, np.random.default_rng(0), **self.params)
        return plan

    def run(self, device: Device, *, seed: int | None = None, repeat: int = 0, check: bool = True) -> CaseResult:
        """Check the case against its twin, then time `repeat` replays. NumericalError when it differs."""
        plan = self.plan(device, seed)
        try:
            results = plan.run_debug(values) if check else []
            error, tolerance = max(((error, tol) for _, error, tol in results), default=(0.0, 0.0))
            seconds = timed(plan, repeat) if repeat else 0.0
            return CaseResult(error, tolerance, seconds, plan.nbytes, plan.flops, len(plan.steps))
        finally:
            plan.free()


def case(op: str, large: bool = False, **params: Any) -> Case:
    return Case(op, params, large)


def timed(plan: Plan, repeat: int) -> float:
    """Seconds of one replay, the median of `repeat` measurements."""
    times = []
    plan.run()
    plan.device.wait()
    # Short kernels are replayed several times a measurement, so that the wait does not hide them.
    start = time.perf_counter()
    plan.run()
    plan.device.wait()
    inner = int(min(50, max(1, 0.02 / (time.perf_counter() - start))))
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(inner):
            plan.run()
        plan.device.wait()
        times.append((time.perf_counter() - start) / inner)
    return float(np.median(times))
