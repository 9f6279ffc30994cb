"""Matmuls of many tokens in tiles (shaders/matmul.wgsl): how they are dispatched, and those of experts.

Of experts, the token slots are first grouped by expert on the device (moe_sort), so that a tile's tokens share weights.
"""

from __future__ import annotations

import math
from dataclasses import replace

from ..gpu import Device, Kernel, Plan, Tensor
from . import tiles
from .choice import Problem, candidates_for, choose
from .moe_sort import moe_sort
from .variant import Variant, is_packed


def size_of(variant: Variant) -> tiles.Size:
    return variant.lanes, variant.rows, variant.tokens, variant.workgroup


def variants(sizes: list[tiles.Size]) -> list[Variant]:
    return [Variant("matmul", lanes, rows, tokens, threads) for lanes, rows, tokens, threads in sizes]


def tiled_params(variant: Variant, packed: bool, kind: str, d: int) -> dict[str, int | bool | str]:
    """What matmul.wgsl wants to know beside the shapes."""
    sides = {"SIDE_F": variant.lanes, "SIDE_T": variant.workgroup // variant.lanes}
    sides |= {"ROWS": variant.rows, "TOKENS": variant.tokens, "DEPTH": tiles.depth(packed, kind, d)}
    return {**sides, "PAIRS": tiles.in_pairs(kind, d)}


def tiled_grid(variant: Variant, rows: int, n: int, glu: bool = False) -> tuple[int, int, int]:
    """Workgroups for `rows` rows of the weight (of y with glu) and n tokens."""
    f, t = tiles.extent(size_of(variant))
    return math.ceil(rows / (f // 2 if glu else f)), math.ceil(n / t), 1


@candidates_for("moe_grouped")
def _candidates(device: Device, problem: Problem) -> list[Variant]:
    """Tiles of slots grouped by expert, or one slot at a time ("matvec")."""
    apart = Variant("matvec")
    found = variants(tiles.grouped(device, problem))
    # Below one slot an expert most tiles would have one token. A CPU has no use for tiles in workgroup memory.
    if device.info.software or problem["n"] <= problem["e"]:
        return [apart, *found]
    return [*found, apart]


def grouping(plan: Plan, w: Tensor, slots: int, e: int) -> Variant:
    """How to multiply so many token slots with e experts' matrices w [.., F, D]."""
    _, f, d = w.shape
    problem = Problem.of("moe_grouped", type=w.dtype, packed=is_packed(plan, w), n=slots, e=e, f=f, d=d)
    return choose(plan.device, problem)


def grouped_into(
    plan: Plan, op: str, inputs: list[Tensor], w: Tensor, ids: Tensor, y: Tensor, variant: Variant, *,
    per_x: int, glu: bool = False, gate: Tensor | None = None,
) -> int:  # fmt: skip
    """Rows of x times the experts chosen for them: y [N * K, F]; the number of its first step.

    inputs: x, or its quants, scales and sums; `per_x` slots read the same row of x. glu: w is [2 E, F, D], all gates
    first, and in one part. gate [N * K, F]: y = silu(gate) * (w x).
    """
    if glu:
        variant = replace(variant, rows=max(2, variant.rows))
    (n, k), (e, f, d) = ids.shape, w.shape
    e = e // 2 if glu else e
    slots, experts = moe_sort(plan, ids, e, tiles.extent(size_of(variant))[1])
    packed = is_packed(plan, w)
    params = {"WEIGHT": w.dtype, "PACKED": packed, "D": d, "F": f, "GLU": glu, "EXPERTS": True, "BIAS": False}
    params |= {"ACT": "none", "GATED": gate is not None, "SLOTS_PER_X": per_x, "UPS": e * f}
    kernel = Kernel.of("matmul.wgsl", **params, **tiled_params(variant, packed, w.dtype, d))
    more = [gate] if gate is not None else []
    grid = (tiled_grid(variant, f, 1, glu)[0], slots.shape[0], 1)
    touched = min(1.0, n * k / e)
    first = len(plan.steps)
    for part in w.parts:
        count = (part.stop - part.start) // (2 if glu else 1)
        plan.add(
            op,
            kernel,
            [(w, part), *inputs, plan.state, slots, experts, *more],
            [y],
            grid,
            immediates=(part.start, count, n * k),
            nbytes=int(part.nbytes * touched) + 4 * n * k * (d // per_x + f),
            flops=2 * n * k * f * d * count // e * (2 if glu else 1),
        )
    return first
