"""From logits to a token, or to the few candidates that the host draws from."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import sample as reference
from .guard import expect, require


def argmax(plan: Plan, logits: Tensor, out: Tensor | None = None) -> Tensor:
    """Index of the largest logit of every row (ties to the lower): [N, V] -> uint32 [N], or into out[:N]."""
    expect("argmax", logits, (None, None))
    n, v = logits.shape
    ids = out or plan.empty((n,), "u32", f"{logits.name}.argmax")
    expect("argmax", ids, (None,), ("u32",))
    require("argmax", ids.shape[0] >= n, f"{ids.name} has {ids.shape[0]} rows for {n} of {logits.name}")
    plan.add("argmax", Kernel.of("argmax.wgsl", V=v, WG=256), [logits], [ids], (n, 1, 1), nbytes=4 * n * v)
    plan.check(lambda _p, _n, logits: [reference.argmax(logits)], [logits], [ids], 0.0)
    return ids


def top_k(plan: Plan, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K largest of logits [1, V] -> (ids uint32 [K], values [K + 1]); unordered.

    values[K] is the log of the sum of exp over all V, so that the host can turn candidates into probabilities.
    """
    expect("top_k", logits, (1, None))
    v = logits.shape[1]
    require("top_k", 0 < k <= v, f"the {k} largest of {v} logits")
    ids = plan.empty((k,), "u32", f"{logits.name}.ids")
    values = plan.empty((k + 1,), "f32", f"{logits.name}.values")
    plan.add("top_k", Kernel.of("top_k.wgsl", V=v, K=k, WG=256), [logits], [ids, values], (1, 1, 1), nbytes=28 * v)

    def twin(_p: int, _n: int, logits: np.ndarray) -> list[np.ndarray]:
        # Unordered on the device: what can be compared here without sorting is the log-sum-exp; ops/cases.py and the
        # tests compare the sorted candidates.
        return []

    plan.check(twin, [logits], [], 0.0)
    return ids, values


def penalize(plan: Plan, logits: Tensor, recent: Tensor, options: Tensor) -> None:
    """Apply repeat, presence and frequency penalties to logits [1, V] in place.

    recent uint32 [M, 2] = (id, count) pairs; options [4] = (pairs in use, repeat, presence, frequency).
    Source: llama.cpp llama_sampler_penalties.
    """
    expect("penalize", logits, (1, None))
    expect("penalize", recent, (None, 2), ("u32",))
    expect("penalize", options, (4,))
    kernel = Kernel.of("penalize.wgsl", WG=64)
    plan.add("penalize", kernel, [recent, options], [logits], (-(-recent.shape[0] // 64), 1, 1))

    def twin(_p: int, _n: int, logits: np.ndarray, recent: np.ndarray, options: np.ndarray) -> list[np.ndarray]:
        used = recent[: int(options[0])]
        return [reference.penalize(logits[0], used[:, 0], used[:, 1], *map(float, options[1:]))[None]]

    plan.check(twin, [logits, recent, options], [logits], 1e-6)
