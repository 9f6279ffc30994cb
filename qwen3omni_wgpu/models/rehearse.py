"""What a text model will ask of a device (ops/choice.py): its plans are recorded dry, nothing runs or is compiled."""

from __future__ import annotations

from collections.abc import Sequence

from ..gpu import Plan
from ..ops.choice import Problem
from .text import KVCache, TextModel, logits


def rehearse(model: TextModel, cache: KVCache, buckets: Sequence[int]) -> list[Problem]:
    """The problems of steps of so many tokens each, with the logits of the last. `device.asked` stays as it was."""
    asked = model.device.asked
    before = dict(asked)
    asked.clear()
    try:
        for n in buckets:
            plan = Plan(model.device, f"rehearsal {n}", activations=model.activations, dry=True)
            ids, positions = plan.empty((n,), "u32", "ids"), plan.empty((n, 3), "f32", "positions")
            logits(plan, model, ids, positions, cache, "last")
        return list(asked.values())
    finally:
        asked.clear()
        asked.update(before)
