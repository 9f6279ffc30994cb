"""Plans of text models recorded dry, for what they ask of a device (ops/choice.py): nothing runs or is compiled."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from ..gpu import Plan, Tensor
from ..ops.choice import Problem, asked_by
from .text import KVCache, TextModel, logits


def rehearse(model: TextModel, cache: KVCache, buckets: Sequence[int]) -> list[Problem]:
    """The problems of steps of so many tokens each, with the logits of the last. `device.asked` stays as it was."""
    short = _without_repeats(model)

    def record() -> None:
        for n in buckets:
            plan = Plan(model.device, f"rehearsal {n}", activations=model.activations, dry=True)
            ids, positions = plan.empty((n,), "u32", "ids"), plan.empty((n, 3), "f32", "positions")
            logits(plan, short, ids, positions, cache, "last")

    return asked_by(model.device, record)


def _without_repeats(model: TextModel) -> TextModel:
    """The model with one layer of each kind: layers of the same shapes and types ask the same."""
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    weights = {}
    for name, tensor in model.weights.items():
        if name.startswith("blk."):
            _, i, leaf = name.split(".", 2)
            layers[int(i)][leaf] = tensor
        else:
            weights[name] = tensor
    kinds = {frozenset((leaf, w.shape, w.dtype, len(w.parts)) for leaf, w in layers[i].items()): i for i in layers}
    kept = sorted(kinds.values())
    for number, i in enumerate(kept):
        weights |= {f"blk.{number}.{leaf}": tensor for leaf, tensor in layers[i].items()}
    norms = [model.qk_norms[i] for i in kept] if model.qk_norms else []
    return replace(model, config=replace(model.config, n_layers=len(kept)), weights=weights, qk_norms=norms)
