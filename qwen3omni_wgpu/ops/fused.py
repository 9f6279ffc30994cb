"""Matmuls of one or two tokens together with the norm before them and the residual addition after them.

One dispatch where a decoder layer would take three; with more tokens the norm is worth a dispatch of its own, which all
matmuls that read it share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from ..gpu import Device, Kernel, Plan, Tensor
from .choice import Problem, candidates_for
from .guard import expect
from .norm import rms_norm
from .variant import Variant, is_packed, variant_for, weight_type

# RMS norm: weight [D] and what is added to the mean of the squares.
Norm = tuple[Tensor, float]
MOST_TOKENS = 2


def _by_rule(device: Device, n: int, f: int, d: int) -> Variant:
    """The variant for N tokens, F rows of the matrix and D inputs."""
    if device.info.software:
        return Variant("fused_matvec", lanes=1, rows=8 // n, tokens=n, workgroup=8, wide=True)
    blocks = d // 32
    # Few rows keep all 40 units of the largest APU busy only if more threads share each.
    few = f * 16 < 80 * 2 * 128
    lanes = next((size for size in ((32, 16, 8, 4) if few else (16, 8, 4)) if blocks % size == 0), 16)
    # Large workgroups stage x less often, but there should be two for each unit.
    threads = next((size for size in (256, 128) if f * lanes >= 80 * 2 * size), 64)
    return Variant("fused_matvec", lanes=lanes, rows=2, tokens=n, workgroup=threads)


@candidates_for("fused")
@candidates_for("moe_swiglu")
@candidates_for("moe_down")
def _candidates(device: Device, problem: Problem) -> list[Variant]:
    """The rule's choice, then its like with other numbers of threads and rows that have the memory."""
    n, f, d = problem["n"], problem["f"], problem["d"]
    rule = _by_rule(device, n, f, d)
    if device.info.software:
        sizes = [(1, rows, threads) for rows in (4, 8) for threads in (8, 16)]
    else:
        sizes = [(lanes, rows, threads) for lanes in (4, 8, 16, 32) for rows in (2, 4) for threads in (64, 128, 256)]
    others = [replace(rule, lanes=lanes, rows=rows, workgroup=threads) for lanes, rows, threads in sizes]
    limit = device.limits["max-compute-workgroup-storage-size"]
    others = [v for v in others if workgroup_bytes(problem["packed"], n * d, v) <= limit]
    return list(dict.fromkeys([rule, *others]))


def fits(plan: Plan, x: Tensor, weights: Sequence[Tensor], variant: Variant | None) -> bool:
    """Whether one dispatch a matrix will do: few tokens, and x in the memory of a workgroup."""
    n, d = x.shape
    if n > MOST_TOKENS or d % 32 or (variant is not None and variant.shader != "fused_matvec"):
        return False
    limit = plan.device.limits["max-compute-workgroup-storage-size"]
    chosen = [variant or variant_for(plan, "fused", w, n, w.shape[-2], d) for w in weights]
    pairs = zip(weights, chosen, strict=True)
    return all(workgroup_bytes(is_packed(plan, w), n * d, v) <= limit for w, v in pairs)


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
    if variant is None and ids is not None:
        variant = variant_for(plan, "moe_swiglu", w, 1, 2 * w.shape[1] * ids.shape[1], d)
    variant = variant or variant_for(plan, "fused", w, n, w.shape[-2], d)
    tokens = 1 if ids is not None else variant.tokens
    params = {"WEIGHT": weight_type(plan, w, variant), "PACKED": is_packed(plan, w), "D": d, "F": width, "GLU": glu}
    params |= {"NORM": norm is not None, "RESIDUAL": residual is not None, "EXPERTS": ids is not None}
    params |= {"LANES": variant.lanes, "TOKENS": tokens, "WG": variant.workgroup}
    params["STAGED"] = params["PACKED"] or params["NORM"] or variant.lanes > 1
    params["ROWS"] = max(2, variant.rows) if glu else variant.rows  # half of the rows are gates
    params["SLOTS"] = 1
    if norm is not None:
        params["EPS"] = float(norm[1])
    if ids is not None:
        params |= {"SLOTS": ids.shape[1], "E": w.shape[0] // 2}
    inputs = [x, plan.state, *([ids] if ids is not None else []), *([norm[0]] if norm is not None else [])]
    inputs += [residual] if residual is not None else []
    kernel = Kernel.of("fused_matvec.wgsl", **params)
    each = variant.workgroup // variant.lanes * (params["ROWS"] // 2 if glu else params["ROWS"])
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
