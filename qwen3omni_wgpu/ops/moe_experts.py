"""Mixture of experts in as few dispatches as one or two tokens allow: both matrices and SwiGLU; down and the sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from ..gpu import Kernel, Part, Plan, Tensor
from ..reference import matmul as reference
from ..reference.elementwise import swiglu as swiglu_twin
from ..reference.moe import moe_combine as moe_combine_twin
from .elementwise import add, swiglu
from .fused import MOST_TOKENS, fits, fused_into, has_room
from .guard import WEIGHTS, expect, require
from .matmul import moe_matmul
from .moe import moe_combine
from .moe_grouped import grouped_swiglu
from .pair_matvec import Around, pair_matvec
from .tiled import grouping
from .variant import TOLERANCE, TOLERANCE_Q8, Variant, is_packed, variant_for, weight_type


def moe_swiglu(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], ids: Tensor, *, variant: Variant | None = None
) -> Tensor:
    """silu(x Gate_e^T) * (x Up_e^T) of the experts chosen for each token: x [N, D], ids uint32 [N, K] -> [N * K, F].

    weights: Gate and Up [E, F, D] of all experts, two tensors, or one [2 E, F, D] with all gates first. One dispatch
    for one or two tokens where they are one tensor that a binding can show; else two of moe_matmul and one of swiglu,
    or two or three that go through the tokens expert by expert (moe_grouped.py).
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
    if n > MOST_TOKENS and (many := variant or grouping(plan, w, n * k, e)).shader == "matmul":
        if len(weights) == 1 and len(w.parts) > 1:
            weights = (_slice(plan, w, 0, e), _slice(plan, w, e, 2 * e))
        return grouped_swiglu(plan, x, weights, ids, many)
    if n <= MOST_TOKENS and variant is None:
        variant = variant_for(plan, op, w, 1, 2 * f * k, d, k=k)
    if len(weights) > 1 or len(w.parts) > 1 or not fits(plan, x, weights, variant):
        halves = weights if len(weights) > 1 else (_slice(plan, w, 0, e), _slice(plan, w, e, 2 * e))
        gate, up = (moe_matmul(plan, x, half, ids) for half in halves)
        return swiglu(plan, gate, up, k)
    y = plan.empty((n * k, f), "f32", f"{w.name}.swiglu")
    fused_into(plan, op, x, w, y, 0, variant, glu=True, ids=ids)
    packed = is_packed(plan, w)

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
        return [few_swiglu_twin(x, w, ids[:n_tokens], packed)]

    plan.check(twin, [x, w, ids], [y], TOLERANCE_Q8 if packed else TOLERANCE)
    return y


def few_swiglu_twin(x: np.ndarray, w: np.ndarray, ids: np.ndarray, packed: bool) -> np.ndarray:
    """Of w [2 E, F, D] and the tokens that ids [N, K] has: [N * K, F]."""
    x, e = x[: len(ids)], len(w) // 2
    x = reference.quantize_dequantize_q8(x) if packed else x
    return swiglu_twin(*(reference.moe_matmul(x, half, ids) for half in (w[:e], w[e:])))


def moe_down(
    plan: Plan, x: Tensor, w: Tensor, ids: Tensor, weights: Tensor, *, residual: Tensor | None = None,
    variant: Variant | None = None,
) -> Tensor:  # fmt: skip
    """sum over k of weights[t, k] * x[t, k] Down_ids[t, k]^T, + residual: x [N * K, F], w [E, D, F] -> [N, D].

    ids uint32 and weights [N, K] of the router; residual [N, D]. One dispatch for one or two tokens, else moe_matmul,
    moe_combine and add.
    """
    op = "moe_down"
    expect(op, w, (None, None, None), WEIGHTS)
    expect(op, ids, (None, None), ("u32",))
    (n, k), (_, d, f) = ids.shape, w.shape
    expect(op, weights, (n, k))
    expect(op, x, (n * k, f))
    require(op, f % 32 == 0, f"{w.name} has rows of {f}, not a multiple of 32")
    require(op, d % 4 == 0, f"{w.name} has {d} rows an expert, not a multiple of 4")
    if residual is not None:
        expect(op, residual, (n, d))
    variant = replace(variant or variant_for(plan, "moe_down", w, 1, d, k * f, k=k), tokens=1)
    if n > MOST_TOKENS or len(w.parts) > 1 or not has_room(plan, is_packed(plan, w), 1, k * f, variant):
        y = moe_combine(plan, moe_matmul(plan, x, w, ids), weights)
        return y if residual is None else add(plan, y, residual)
    y = plan.empty((n, d), "f32", f"{w.name}.out")
    packed = is_packed(plan, w)
    rest = [residual] if residual is not None else []
    if variant.around:
        pair_matvec(plan, op, x, w, y, 0, variant, Around(ids=ids, shares=weights, residual=residual))
    else:
        _down_into(plan, x, w, ids, weights, rest, y, variant)

    def twin(
        _: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray, weights: np.ndarray, *rest: np.ndarray
    ) -> list[np.ndarray]:
        ids = ids[:n_tokens]
        x = x[: len(ids) * k]
        x = (reference.quantize_dequantize_q8(x) if packed else x).reshape(-1, k, f)
        y = moe_combine_twin(reference.moe_matmul(x, w, ids), weights[: len(ids)])
        return [y + sum(array[: len(ids)] for array in rest)]

    # Of the weights at most 2 or 3 in sum.
    plan.check(twin, [x, w, ids, weights, *rest], [y], 2 * (TOLERANCE_Q8 if packed else TOLERANCE))
    return y


def _down_into(
    plan: Plan, x: Tensor, w: Tensor, ids: Tensor, weights: Tensor, rest: list[Tensor], y: Tensor, variant: Variant
) -> None:
    (n, k), (e, d, f) = ids.shape, w.shape
    packed = is_packed(plan, w)
    params = {"WEIGHT": weight_type(plan, w, variant), "PACKED": packed, "D": d, "E": e, "F": f, "K": k}
    params |= {"STAGED": packed, "RESIDUAL": bool(rest), "ROWS": variant.rows, "WG": variant.workgroup}
    inputs = [w, x, ids, weights, plan.state, *rest]
    grid = (-(-d // (variant.workgroup * variant.rows)), n, 1)
    nbytes = int(w.nbytes * min(1.0, n * k / e)) + 4 * n * (k * f + d)
    kernel = Kernel.of("moe_down.wgsl", **params)
    plan.add("moe_down", kernel, inputs, [y], grid, nbytes=nbytes, flops=2 * n * k * f * d)


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
