"""Mixture of experts in as few dispatches as one or two tokens allow: both matrices and SwiGLU; down and the sum."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gpu import Part, Plan, Tensor
from ..reference import matmul as reference
from ..reference.elementwise import swiglu as swiglu_twin
from .elementwise import swiglu
from .fused import fits, fused_into
from .guard import WEIGHTS, expect, require
from .matmul import moe_matmul
from .variant import TOLERANCE, TOLERANCE_Q8, Variant, is_packed


def moe_swiglu(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], ids: Tensor, *, variant: Variant | None = None
) -> Tensor:
    """silu(x Gate_e^T) * (x Up_e^T) of the experts chosen for each token: x [N, D], ids uint32 [N, K] -> [N * K, F].

    weights: Gate and Up [E, F, D] of all experts, two tensors, or one [2 E, F, D] with all gates first. One dispatch
    for one or two tokens where they are one tensor that a binding can show; else two of moe_matmul and one of swiglu.
    """
    op = "moe_swiglu"
    for w in weights:
        expect(op, w, (None, *weights[0].shape[1:]), WEIGHTS)
        expect(op, w, (None, None, None), WEIGHTS)
    expect(op, ids, (None, None), ("u32",))
    (n, k), (_, f, d) = ids.shape, weights[0].shape
    expect(op, x, (n, d))
    require(op, d % 32 == 0, f"{weights[0].name} has rows of {d}, not a multiple of 32")
    w, e = weights[0], sum(w.shape[0] for w in weights) // 2
    require(op, sum(w.shape[0] for w in weights) == 2 * e, f"{w.name} {list(w.shape)} is not as many gates as ups")
    if len(weights) > 1 or len(w.parts) > 1 or not fits(plan, x, weights, variant):
        halves = weights if len(weights) > 1 else (_slice(plan, w, 0, e), _slice(plan, w, e, 2 * e))
        gate, up = (moe_matmul(plan, x, half, ids) for half in halves)
        return swiglu(plan, gate, up, k)
    y = plan.empty((n * k, f), "f32", f"{w.name}.swiglu")
    fused_into(plan, op, x, w, y, 0, variant, glu=True, ids=ids)
    packed = is_packed(plan, w)

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
        ids = ids[:n_tokens]
        x = reference.quantize_dequantize_q8(x[: len(ids)]) if packed else x[: len(ids)]
        return [swiglu_twin(*(reference.moe_matmul(x, half, ids) for half in (w[:e], w[e:])))]

    plan.check(twin, [x, w, ids], [y], TOLERANCE_Q8 if packed else TOLERANCE)
    return y


def _slice(plan: Plan, w: Tensor, start: int, stop: int) -> Tensor:
    """Experts `start` to `stop` of w, on the same bytes."""
    row = w.nbytes // w.shape[0]
    parts = []
    for part in w.parts:
        first, last = max(start, part.start), min(stop, part.stop)
        if first < last:
            offset = part.offset + (first - part.start) * row
            parts.append(Part(part.storage, offset, (last - first) * row, first - start, last - start))
    unit = plan.device.limits["min-storage-buffer-offset-alignment"]
    aligned = all(part.offset % unit == 0 for part in parts)
    require("moe_swiglu", aligned, f"{w.name} has experts of {row} bytes, not to be bound apart; load two tensors")
    return Tensor(w.device, (stop - start, *w.shape[1:]), w.dtype, parts, w.name)
