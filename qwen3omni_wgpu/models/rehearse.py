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
    short, few = _without_repeats(model, cache)

    def record() -> None:
        for n in buckets:
            plan = Plan(model.device, f"rehearsal {n}", activations=model.activations, dry=True)
            ids, positions = plan.empty((n,), "u32", "ids"), plan.empty((n, 3), "f32", "positions")
            logits(plan, short, ids, positions, few, "last")

    return asked_by(model.device, record)


def _without_repeats(model: TextModel, cache: KVCache) -> tuple[TextModel, KVCache]:
    """The model with one layer of each kind and their caches: layers of the same shapes and types ask the same."""
    layers: dict[int, dict[str, Tensor]] = defaultdict(dict)
    weights = {}
    for name, tensor in model.weights.items():
        if name.startswith("blk."):
            _, i, leaf = name.split(".", 2)
            layers[int(i)][leaf] = tensor
        else:
            weights[name] = tensor
    kinds = {}
    for i in layers:
        shapes = frozenset((leaf, w.shape, w.dtype, len(w.parts)) for leaf, w in layers[i].items())
        kinds[shapes, cache.keys[i].dtype] = i
    kept = sorted(kinds.values())
    for number, i in enumerate(kept):
        weights |= {f"blk.{number}.{leaf}": tensor for leaf, tensor in layers[i].items()}
    norms = [model.qk_norms[i] for i in kept] if model.qk_norms else []
    short = replace(model, config=replace(model.config, n_layers=len(kept)), weights=weights, qk_norms=norms)
    return short, KVCache([cache.keys[i] for i in kept], [cache.values[i] for i in kept])
