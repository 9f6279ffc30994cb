"""Matmuls of up to eight tokens on a GPU, with what stands around them in a decoder layer: one kernel for all of it."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..gpu import Kernel, Plan, Tensor
from . import pairs, row_chunks
from .guard import require
from .row_matvec import row_matvec
from .variant import Variant, is_packed

# RMS norm: weight [D] and what is added to the mean of the squares.
Norm = tuple[Tensor, float]


@dataclass(frozen=True)
class Around:
    """What a dispatch does besides y = x w^T; the kernel's own comment says how."""

    norm: Norm | None = None
    residual: Tensor | None = None
    bias: Tensor | None = None
    act: str | None = None
    glu: bool = False
    ids: Tensor | None = None  # [N, K]: experts chosen for each token
    shares: Tensor | None = None  # [N, K]: their weights, where their outputs are to be added
    per_x: int = 1  # rows of y that read the same row of x
    keep: Tensor | None = None  # [N, D], with a norm: where its result goes, for others that read it
    # [N, E], or [N, E + 1] with `always` experts more: of these ids and shares are made first, as moe_gate has them
    logits: Tensor | None = None
    always: int = 0

    @property
    def gather(self) -> bool:
        return self.shares is not None and self.logits is None


def pair_matvec(
    plan: Plan, op: str, x: Tensor | tuple[Tensor, ...], w: Tensor, y: Tensor, column: int, variant: Variant,
    around: Around,
) -> int:  # fmt: skip
    """x [N, D] times w [F, D], or experts' [E, F, D], into columns of y; the number of its first step.

    x is float32, then quantised on the way if the plan asks for it, or what quantize_q8 made of it.
    """
    if variant.shader == row_chunks.SHADER:
        assert isinstance(x, Tensor)  # it takes float32 alone
        return row_matvec(plan, op, x, w, y, column, variant, around)
    ids, glu, gather = around.ids, around.glu, around.gather
    apart = ids is not None and not glu and not gather  # parts of the weight hold some of the experts each
    require(op, pairs.in_pairs(w.shape[-1]), f"{w.name} has rows of {w.shape[-1]}, not a multiple of 64")
    rows, width = y.shape
    params = _params(w, y, is_packed(plan, w), isinstance(x, Tensor), variant, around)
    parted = len(w.parts) > 1
    inputs = _inputs(plan, x, around)
    params["Y_AT"] = 1 + len(inputs)
    made = [around.keep] if around.logits is None else [ids, around.shares]
    outputs_to = [y, *(tensor for tensor in made if tensor is not None)]
    each = variant.workgroup // variant.lanes * (int(params["ROWS"]) // (2 if glu else 1))
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    # Of E experts a step reads at most as many different ones as it has slots.
    used = rows * (ids.shape[1] if ids is not None and gather else 1)
    touched = min(1.0, used / int(params["E"])) if ids is not None else 1.0
    first = len(plan.steps)
    for part in w.parts:
        count = part.stop - part.start
        outputs = w.shape[-2] if ids is not None else (width if glu else count)
        start = 0 if glu else part.start
        numbers = (start, count, 0) if apart else (column + start, outputs, 0 if ids is not None else rows)
        groups = math.ceil(outputs / each)
        grid = (min(groups, limit), math.ceil(rows / int(params["TOKENS"])), math.ceil(groups / limit))
        nbytes = int(part.nbytes * touched) + 4 * (used // around.per_x * w.shape[-1] + rows * outputs)
        flops = 2 * used * outputs * w.shape[-1] * (2 if glu else 1)
        flops = flops * count // w.shape[0] if apart else flops
        # Of a weight in one piece they are constants: to set them takes a host a fifth of a dispatch's time.
        constants = {} if parted else dict(zip(("FIRST", "COUNT", "N"), numbers, strict=True))
        kernel = Kernel.of("pair_matvec.wgsl", **params, **constants, PARTS=parted)
        numbers = numbers if parted else ()
        plan.add(op, kernel, [(w, part), *inputs], outputs_to, grid, immediates=numbers, nbytes=nbytes, flops=flops)
    return first


def _params(
    w: Tensor, y: Tensor, packed: bool, floats: bool, variant: Variant, around: Around
) -> dict[str, int | float | bool | str]:
    """The kernel's constants; `floats`: x comes as such."""
    ids, gather = around.ids, around.gather
    slots = ids.shape[1] if ids is not None else 1
    params: dict[str, int | float | bool | str] = {"WEIGHT": w.dtype, "PACKED": packed, "WIDTH": y.shape[1]}
    params["STAGED"] = floats and (packed or around.norm is not None or gather)
    params["D"] = w.shape[-1] * (slots if gather else 1)
    params |= {"F": w.shape[-2], "E": w.shape[0] // (2 if around.glu else 1)}
    params |= {"GLU": around.glu, "GATHER": gather, "EXPERTS": ids is not None and not gather}
    params |= {"SLOTS": slots, "SLOTS_PER_X": around.per_x, "ACT": around.act or "none"}
    params |= {"NORM": around.norm is not None, "BIAS": around.bias is not None}
    params |= {"RESIDUAL": around.residual is not None, "KEEP": around.keep is not None}
    params |= {"TOKENS": 1 if ids is not None else variant.tokens, "LANES": variant.lanes, "WG": variant.workgroup}
    params["ROWS"] = max(2, variant.rows) if around.glu else variant.rows  # half of the rows are gates
    if around.norm is not None:
        params["EPS"] = float(around.norm[1])
    params["RANK"] = around.logits is not None
    if around.logits is not None:
        params |= {"ALWAYS": around.always, "CHOICES": around.logits.shape[1] - (around.always > 0)}
    if ids is None:  # one kernel for all parts of a matrix
        params |= {"F": 0, "E": 0}
    return params


def _inputs(plan: Plan, x: Tensor | tuple[Tensor, ...], around: Around) -> list[Tensor]:
    """The kernel's bindings between the weight and y."""
    first, *more = x if isinstance(x, tuple) else (x,)
    norm = around.norm[0] if around.norm is not None else None
    found = [first, plan.state, *more, norm, around.logits]
    if around.gather:
        found += [around.ids, around.shares]
    found += [around.residual, around.bias]
    if not around.gather and around.logits is None:
        found.append(around.ids)
    return [tensor for tensor in found if tensor is not None]
