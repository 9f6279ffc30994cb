"""Plans of text models recorded dry, for what they ask of a device (ops/choice.py): nothing runs or is compiled."""

from __future__ import annotations

from collections.abc import Sequence

from ..gpu import Plan
from ..ops.choice import Problem, asked_by
from .text import KVCache, TextModel, logits


def rehearse(model: TextModel, cache: KVCache, buckets: Sequence[int]) -> list[Problem]:
    """The problems of steps of so many tokens each, with the logits of the last. `device.asked` stays as it was."""

    def record() -> None:
        for n in buckets:
            plan = Plan(model.device, f"rehearsal {n}", activations=model.activations, dry=True)
            ids, positions = plan.empty((n,), "u32", "ids"), plan.empty((n, 3), "f32", "positions")
            logits(plan, model, ids, positions, cache, "last")

    return asked_by(model.device, record)
