"""From the logits of a step to the next token: recorded plans, and the small GPU buffers that they read."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import ops
from .gpu import Plan, ReadBack, Tensor
from .ops.pick import SETTINGS
from .sampler import Sampler

# A plan and what is read back of its results.
Last = tuple[Plan, ReadBack]


class Draws:
    """Plans behind logits [1, V]; a token that one of them chooses is written to ids[0], where the next step reads it.

    state: the step's, as Plan has it. most: tokens that the penalties may look back at.
    """

    def __init__(self, logits: Tensor, ids: Tensor, state: Tensor, most: int) -> None:
        self.device = logits.device
        self._logits = logits
        self._id = ids.first(1)
        self._state = state
        self._most = most
        self._vocabulary = logits.shape[1]
        self._numbers = Tensor.empty(self.device, (SETTINGS,), "f32", "draw")
        self._options = Tensor.empty(self.device, (4,), "f32", "penalties")
        self._seen: Tensor | None = None
        self._recent: Tensor | None = None
        self._plans: dict[str, Last] = {}

    def chosen(self, sampler: Sampler) -> Last:
        """What chooses the token on the GPU; the counts of the penalties' window become those of the sampler."""
        if sampler.greedy and not sampler.penalising:
            return self._last("sample argmax", lambda plan: [ops.argmax(plan, self._logits, out=self._id)])
        seen, k = self._counts(sampler), self._wanted(sampler)

        def record(plan: Plan) -> list[Tensor]:
            return [ops.pick(plan, self._logits, self._numbers, k, seen=seen, out=self._id)]

        return self._last(f"sample pick {k}" + (" penalised" if seen else ""), record)

    def write(self, sampler: Sampler, leaving: int | None = None) -> None:
        """What the next choice needs to know. leaving: the token that left the penalties' window since the last one."""
        if not sampler.greedy or sampler.penalising:
            self._numbers.write(sampler.numbers(self._vocabulary if leaving is None else leaving))

    def candidates(self, sampler: Sampler) -> Last:
        """What finds the candidates that the host draws from: ids [K], and values [K + 1] as ops.top_k has them."""
        recent, k = self._penalties(sampler), self._wanted(sampler)

        def record(plan: Plan) -> list[Tensor]:
            if recent is not None:
                ops.penalize(plan, self._logits, recent, self._options)
            return list(ops.top_k(plan, self._logits, k))

        return self._last(f"sample {k}" + (" penalised" if recent else ""), record)

    def _wanted(self, sampler: Sampler) -> int:
        return min(max(1, sampler.wanted), self._vocabulary)

    def _counts(self, sampler: Sampler) -> Tensor | None:
        """How often each token is in the penalties' window; None without penalties."""
        if not sampler.penalising:
            return None
        counts = np.zeros(self._vocabulary, np.uint32)
        ids, times = sampler.penalties()
        counts[ids] = times
        if self._seen is None:
            self._seen = Tensor.empty(self.device, counts.shape, "u32", "seen")
        self._seen.write(counts)
        return self._seen

    def _penalties(self, sampler: Sampler) -> Tensor | None:
        """The tokens in the penalties' window with their counts; None without penalties."""
        if not sampler.penalising:
            return None
        ids, counts = sampler.penalties()
        if self._recent is None:
            self._recent = Tensor.empty(self.device, (self._most, 2), "u32", "recent tokens")
        if len(ids):
            self._recent.write(np.stack([ids, counts], axis=1))
        self._options.write(np.array([len(ids), *sampler.penalty_options], np.float32))
        return self._recent

    def _last(self, name: str, record: Callable[[Plan], list[Tensor]]) -> Last:
        """What `record` returns is read back."""
        if name not in self._plans:
            plan = Plan(self.device, name, self._state)
            outputs = record(plan)
            self._plans[name] = plan.finish(keep=outputs), ReadBack(self.device, outputs)
        return self._plans[name]

    def free(self) -> None:
        """Release the plans and the buffers that are not shared."""
        for plan, read in self._plans.values():
            plan.free()
            read.free()
        for tensor in (self._numbers, self._options, self._seen, self._recent):
            if tensor is not None:
                tensor.free()
        self._plans = {}
