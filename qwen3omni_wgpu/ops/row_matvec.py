"""Matrix times vector for drivers that run shaders on a CPU, with what stands around it in a decoder layer.

Such a driver (llvmpipe) pays for each load and each lane, hardly for a load's width; shaders/row_matvec.wgsl loads 32
bytes at once and knows at compile time where in them every weight lies.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from ..gpu import Kernel, Plan, Tensor
from .row_chunks import LANES, chunks, runs_on

if TYPE_CHECKING:
    from .pair_matvec import Around
    from .variant import Variant


def row_matvec(
    plan: Plan, op: str, x: Tensor, w: Tensor, y: Tensor, column: int, variant: Variant, around: Around
) -> int:
    """x [N, D] times w [F, D], or experts' [E, F, D], into columns of y; the number of its first step."""
    ids, glu = around.ids, around.glu
    gather, slots = around.shares is not None, ids.shape[1] if ids is not None else 1
    rows, width = y.shape
    params = {"WEIGHT": w.dtype, "F": w.shape[-2], "WIDTH": width, "GLU": glu, "GATHER": gather}
    params |= {"EXPERTS": ids is not None and not gather, "NORM": around.norm is not None}
    params |= {"RESIDUAL": around.residual is not None, "BIAS": around.bias is not None, "ACT": around.act or "none"}
    params |= {"SLOTS": slots, "SLOTS_PER_X": around.per_x, "E": w.shape[0] // (2 if glu else 1)}  # E of experts
    params |= {"ROWS": max(2, variant.rows) if glu else variant.rows, **chunks(w.dtype, w.shape[-1])}
    params["WIDE"] = variant.wide and runs_on(plan.device)
    if around.norm is not None:
        params["EPS"] = float(around.norm[1])
    kernel = Kernel.of("row_matvec.wgsl", **params)
    inputs = _inputs(plan, x, around)
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    first = len(plan.steps)
    for part in w.parts:
        count = part.stop - part.start
        experts = ids is not None and not glu and not gather
        outputs = w.shape[-2] if ids is not None else (width if glu else count)
        start = part.start if experts or not glu else 0
        numbers = (start if experts else column + start, count if experts else outputs, rows)
        groups = math.ceil(outputs / (LANES * (params["ROWS"] // 2 if glu else params["ROWS"])))
        grid = (rows, min(groups, limit), math.ceil(groups / limit))
        used = rows * (slots if gather else 1)
        touched = min(1.0, used / params["E"]) if ids is not None else 1.0
        here = count / w.shape[0] if ids is not None else 1.0
        nbytes = int(part.nbytes * touched) + 4 * (used // around.per_x * w.shape[-1] + rows * outputs)
        flops = int(2 * used * outputs * w.shape[-1] * here) * (2 if glu else 1)
        plan.add(op, kernel, [(w, part), *inputs], [y], grid, immediates=numbers, nbytes=nbytes, flops=flops)
    return first


def _inputs(plan: Plan, x: Tensor, around: Around) -> list[Tensor]:
    """The kernel's bindings 1 to 5; the state stands for those that it has not."""
    norm = around.norm[0] if around.norm is not None else None
    last = around.residual if around.residual is not None else around.bias
    if around.shares is None and around.ids is not None:
        last = around.ids
    third = norm if around.shares is None else around.ids
    return [plan.state if tensor is None else tensor for tensor in (x, plan.state, third, around.shares, last)]
