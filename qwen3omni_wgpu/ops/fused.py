"""Matmuls of one or two tokens together with the norm before them and the residual addition after them.

One dispatch where a decoder layer would take three; with more tokens the norm is worth a dispatch of its own, which all
matmuls that read it share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..gpu import Device, Kernel, Plan, Tensor
from . import pairs, row_chunks
from .choice import Problem, candidates_for
from .guard import expect
from .norm import rms_norm
from .pair_matvec import Around, Norm, pair_matvec
from .variant import Variant, is_packed, pair_variants, row_variants, variant_for, weight_type

MOST_TOKENS = 2
APART = Variant("matvec")  # instead of one dispatch: the norm, the matmul and the addition have their own


@candidates_for("fused")
@candidates_for("moe_swiglu")
@candidates_for("moe_down")
def _candidates(device: Device, problem: Problem) -> list[Variant]:
    """The rule's choice, then its like with other numbers of threads and rows that have the memory."""
    n, f, d = problem["n"], problem["f"], problem["d"]
    if not device.info.software:
        piece = d // problem["k"] if problem.op == "moe_down" else d
        return (pair_variants(device, problem["packed"], n, f, d, n) if pairs.in_pairs(piece) else []) or [APART]
    rule = Variant("fused_matvec", lanes=1, rows=8 // n, tokens=n, workgroup=8, wide=True)
    others = [replace(rule, rows=rows, workgroup=threads) for rows in (4, 8) for threads in (8, 16)]
    limit = device.limits["max-compute-workgroup-storage-size"]
    others = [v for v in others if workgroup_bytes(problem["packed"], n * d, v) <= limit]
    return list(dict.fromkeys([*row_variants(device, problem), rule, *others]))


def fits(plan: Plan, x: Tensor, weights: Sequence[Tensor], variant: Variant | None) -> bool:
    """Whether one dispatch a matrix will do: few tokens, and x in the memory of a workgroup."""
    n, d = x.shape
    if n > MOST_TOKENS or d % 32:
        return False
    chosen = [variant or variant_for(plan, "fused", w, n, w.shape[-2], d) for w in weights]
    pairs_of = zip(weights, chosen, strict=True)
    return all(has_room(plan, is_packed(plan, w), n, d, v) for w, v in pairs_of)


def has_room(plan: Plan, packed: bool, n: int, d: int, v: Variant) -> bool:
    """Whether a workgroup's memory holds n rows of x for the variant, and the variant is for that."""
    limit = plan.device.limits["max-compute-workgroup-storage-size"]
    if v.shader == row_chunks.SHADER:
        return d % 32 == 0
    if v.shader == pairs.SHADER:
        size = v.lanes, v.rows, v.tokens, v.workgroup
        return pairs.in_pairs(d) and pairs.workgroup_bytes(size, packed, d, n) <= limit
    return v.shader == "fused_matvec" and workgroup_bytes(packed, n * d, v) <= limit


def workgroup_bytes(packed: bool, values: int, v: Variant) -> int:
    """What lib/activations.wgsl takes for so many values, and the reduction over the threads of a row."""
    # int8, a scale and a sum for every 8; or floats, 9 for every 8
    staged = values * 2 if packed else values * 9 // 2
    reduced = v.rows * v.tokens * (v.workgroup // v.lanes) * (v.lanes + 1) * 4 if v.lanes > 1 else 0
    return staged + reduced + v.workgroup * 4


def normed(plan: Plan, x: Tensor, norm: Norm | None) -> Tensor:
    """rms_norm of x, recorded once for all that ask for it; x itself without a norm."""
    if norm is None:
        return x
    key = ("norm", id(x), id(norm[0]), norm[1])
    if key not in plan.memo:
        plan.memo[key] = (x, norm, rms_norm(plan, x, *norm))  # x and the norm are kept: their ids must not be reused
    return plan.memo[key][2]


def expect_around(op: str, x: Tensor, norm: Norm | None, residual: Tensor | None, width: int) -> None:
    if norm is not None:
        expect(op, norm[0], (x.shape[1],))
    if residual is not None:
        expect(op, residual, (x.shape[0], width))


def fused_into(
    plan: Plan, op: str, x: Tensor, w: Tensor, y: Tensor, column: int = 0, variant: Variant | None = None, *,
    norm: Norm | None = None, residual: Tensor | None = None, glu: bool = False, ids: Tensor | None = None,
) -> int:  # fmt: skip
    """norm(x) [N, D] times w [F, D] into columns of y [rows, WIDTH] + residual; the number of its first step.

    glu: w is [gate; up]; with ids [N, K] it is [2 E, F, D], all gates before all ups, and y has N * K rows.
    """
    n, d = x.shape
    rows, width = y.shape
    variant = variant or variant_for(plan, "fused", w, n, w.shape[-2], d)
    if variant.around:
        per_x = ids.shape[1] if ids is not None else 1
        around = Around(norm=norm, residual=residual, glu=glu, ids=ids, per_x=per_x)
        return pair_matvec(plan, op, x, w, y, column, variant, around)
    tokens = 1 if ids is not None else variant.tokens
    params = {"WEIGHT": weight_type(plan, w, variant), "PACKED": is_packed(plan, w), "D": d, "F": width, "GLU": glu}
    params |= {"NORM": norm is not None, "RESIDUAL": residual is not None, "EXPERTS": ids is not None}
    params |= {"TOKENS": tokens, "WG": variant.workgroup, "STAGED": params["PACKED"] or params["NORM"]}
    params["ROWS"] = max(2, variant.rows) if glu else variant.rows  # half of the rows are gates
    params["SLOTS"] = 1
    if norm is not None:
        params["EPS"] = float(norm[1])
    if ids is not None:
        params |= {"SLOTS": ids.shape[1], "E": w.shape[0] // 2}
    inputs = [x, plan.state, *([ids] if ids is not None else []), *([norm[0]] if norm is not None else [])]
    inputs += [residual] if residual is not None else []
    kernel = Kernel.of("fused_matvec.wgsl", **params)
    each = variant.workgroup * (params["ROWS"] // 2 if glu else params["ROWS"])
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    first = len(plan.steps)
    touched = min(1.0, rows / (w.shape[0] // 2)) if ids is not None else 1.0  # of the experts
    for part in w.parts:
        outputs = width if glu else part.stop - part.start
        groups = math.ceil(outputs / each)
        grid = (min(groups, limit), math.ceil(rows / tokens), math.ceil(groups / limit))
        numbers = (column if glu else column + part.start, outputs, rows)
        nbytes = int(part.nbytes * touched) + 4 * (n * d + rows * outputs)
        flops = 2 * rows * outputs * d * (2 if glu else 1)
        plan.add(op, kernel, [(w, part), *inputs], [y], grid, immediates=numbers, nbytes=nbytes, flops=flops)
    return first
