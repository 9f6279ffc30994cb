"""y = x w^T in every weight format, for one token or many, and for experts chosen by id."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import matmul as reference
from ..reference.elementwise import gelu, gelu_tanh, swiglu
from ..reference.norm import rms_norm
from .elementwise import add, swiglu_joined
from .fused import Norm, expect_around, fits, fused_into, normed
from .guard import QUANTISED, WEIGHTS, expect, grid_1d, require
from .pair_matvec import Around, pair_matvec
from .quants import Quants, empty_quants, judge_quants, keep_quants, known_quants
from .tiled import grouped_into, grouping, tiled_grid, tiled_params
from .variant import TOLERANCE, TOLERANCE_Q8, Variant, is_packed, variant_for, weight_type

# What a matmul may apply to its outputs before it writes them, and the twin. Their slope is 1.13 at most.
ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}
_SLOPE = 1.13


def quantize_q8(plan: Plan, x: Tensor, per_token: int = 1) -> Quants:
    """Activations [N, D] to int8 in groups of 8: (quants uint32 [N, D/4], scales [N, D/8], sums [N, D/32]).

    `per_token` rows of x belong to one token (experts). Shared by all matmuls of the plan that read x.
    """
    if (made := known_quants(plan, x)) is not None:
        return made
    expect("quantize_q8", x, (None, None))
    n, d = x.shape
    require("quantize_q8", d % 32 == 0, f"{x.name} has rows of {d}, not a multiple of 32")
    quants, scales, sums = empty_quants(plan, x)
    kernel = Kernel.of("quantize_q8.wgsl", N=n, D=d, WG=64, PER_TOKEN=per_token)
    grid = grid_1d(plan, n * d // 32, 64)
    outputs = [quants, scales, sums]
    plan.add("quantize_q8", kernel, [x, plan.state], outputs, grid, nbytes=n * d * 45 // 8, flops=4 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray) -> list[np.ndarray]:
        return judge_quants("quantize_q8", quants, x[: n_tokens * per_token])

    plan.check(twin, [x], [scales, sums], 1e-5)
    keep_quants(plan, x, (quants, scales, sums))
    return quants, scales, sums


def matmul(
    plan: Plan,
    x: Tensor,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    act: str | None = None,
    norm: Norm | None = None,
    residual: Tensor | None = None,
    variant: Variant | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """act(norm(x) w^T + bias) + residual: x [N, D], w [F, D] of any weight type, bias [F], residual [N, F] -> [N, F].

    D a multiple of 32, of 4 where w is not quantised, F of 4 with a residual; w may be in parts of rows. act: "gelu"
    (the exact one, by erf), "gelu_tanh" or None. norm: (weight [D], eps) of an RMS norm before. All of it is one
    dispatch for one or two tokens without bias and act, else norm and addition have their own. `out` [N, F] goes with
    no residual.
    """
    expect("matmul", w, (None, None), WEIGHTS)
    n, f = x.shape[0], w.shape[0]
    if out is not None:
        expect("matmul", out, (n, f))
    if bias is not None:
        expect("matmul", bias, (f,))
    require("matmul", residual is None or f % 4 == 0, f"{w.name} has {f} rows, with a residual not a multiple of 4")
    require("matmul", out is None or residual is None, "a result with a residual goes to a tensor of its own")
    known = " or ".join(ACTIVATIONS)
    require("matmul", act is None or act in ACTIVATIONS, f"no activation {act!r}, expected {known}")
    _expect("matmul", x, w)
    expect_around("matmul", x, norm, residual, f)
    y = out or plan.empty((n, f), "f32", f"{w.name}.out")
    around = norm is not None or residual is not None
    if around and bias is None and act is None and fits(plan, x, [w], variant):
        first = fused_into(plan, "matmul", x, w, y, 0, variant, norm=norm, residual=residual)
        _check(plan, x, [w], y, first, norm=norm, residual=residual)
        return y
    x = normed(plan, x, norm)
    first = _matmul_into(plan, "matmul", x, w, y, 0, variant, bias=bias, act=act)
    _check(plan, x, [w], y, first, bias, act)
    return y if residual is None else add(plan, y, residual)


def _matmul_into(
    plan: Plan, op: str, x: Tensor, w: Tensor, y: Tensor, column: int, variant: Variant | None, glu: bool = False,
    bias: Tensor | None = None, act: str | None = None,
) -> int:  # fmt: skip
    """x [N, D] times w [F, D] into columns `column` to `column + F` of y [N, WIDTH]; the number of its first step.

    bias [WIDTH].
    """
    _expect(op, x, w)
    f, d = w.shape
    n, width = y.shape
    variant = variant or variant_for(plan, "matmul", w, n, f, d)
    if glu:  # half of the rows are gates
        variant = replace(variant, rows=max(2, variant.rows))
    packed = is_packed(plan, w)
    if variant.around:
        around = Around(bias=bias, act=act, glu=glu)
        return pair_matvec(plan, op, quantize_q8(plan, x) if packed else x, w, y, column, variant, around)
    inputs = [*(quantize_q8(plan, x) if packed else (x,)), plan.state, *([bias] if bias is not None else [])]
    params = {"WEIGHT": weight_type(plan, w, variant), "PACKED": packed, "D": d, "F": width, "GLU": glu}
    params |= {"BIAS": bias is not None, "ACT": act or "none"}
    if variant.shader == "matvec":
        params |= {
            "EXPERTS": False,
            "LANES": variant.lanes,
            "ROWS": variant.rows,
            "TOKENS": variant.tokens,
            "WG": variant.workgroup,
        }
    if variant.shader == "matmul":
        params |= {"EXPERTS": False, "GATED": False, "UPS": width, **tiled_params(variant, packed, w.dtype, d)}
    kernel = Kernel.of(f"{variant.shader}.wgsl", **params)
    first = len(plan.steps)
    for part in w.parts:
        rows = part.stop - part.start
        plan.add(
            op,
            kernel,
            [(w, part), *inputs],
            [y],
            _grid(plan, variant, rows, n, glu),
            immediates=(column + part.start, rows, n),
            nbytes=part.nbytes + n * (d + rows) * 4,
            flops=2 * n * rows * d,
        )

    return first


def _expect(op: str, x: Tensor, w: Tensor) -> None:
    expect(op, w, (None, None), WEIGHTS)
    d = w.shape[1]
    expect(op, x, (None, d))
    unit = 32 if w.dtype in QUANTISED else 4
    require(op, d % unit == 0, f"{w.name} has rows of {d}, not a multiple of {unit}")


def _check(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], y: Tensor, first: int, bias: Tensor | None = None,
    act: str | None = None, norm: Norm | None = None, residual: Tensor | None = None,
) -> None:  # fmt: skip
    """The twin of all steps from number `first` on: the matrices side by side, the bias, the activation; the rest."""
    packed = [is_packed(plan, w) for w in weights]
    count = len(weights)

    def twin(_: int, n_tokens: int, x: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
        rest = list(arrays[count:])
        x = x[:n_tokens]
        kinds = _inputs(x, (rest.pop(0), norm[1]) if norm is not None else None)
        results = [reference.matmul(kinds[quantised](), w) for quantised, w in zip(packed, arrays[:count], strict=True)]
        result = sum((array[: len(x)] if array.ndim == 2 else array for array in rest), np.concatenate(results, axis=1))
        return [ACTIVATIONS[act](result) if act else result]

    tolerance = (TOLERANCE_Q8 if any(packed) else TOLERANCE) * (_SLOPE if act else 1)
    inputs = [x, *weights, *([norm[0]] if norm is not None else [])]
    inputs += [tensor for tensor in (bias, residual) if tensor is not None]
    plan.check(twin, inputs, [y], tolerance, steps=len(plan.steps) - first)


def _inputs(x: np.ndarray, norm: tuple[np.ndarray, float] | None) -> tuple[Callable[[], np.ndarray], ...]:
    """What a matmul multiplies, in float32 and in 8 bits."""
    if norm is None:
        return lambda: x, lambda: reference.quantize_dequantize_q8(x)
    return lambda: rms_norm(x, *norm), lambda: reference.rms_norm_q8(x, *norm)


def matmul_joined(plan: Plan, x: Tensor, weights: Sequence[Tensor], *, norm: Norm | None = None) -> Tensor:
    """norm(x) [N, D] times several matrices [F_i, D], side by side: -> [N, sum of F_i].

    One dispatch where they are one tensor (weights.py joins those of one type), else one for each. norm: (weight [D],
    eps) of an RMS norm before, in the same dispatches for one or two tokens.
    """
    width = sum(w.shape[0] for w in weights)
    y = plan.empty((x.shape[0], width), "f32", f"{weights[0].name}.joined")
    for w in weights:
        _expect("matmul_joined", x, w)  # before the first one is recorded
    expect_around("matmul_joined", x, norm, None, width)
    pairs = list(zip(weights, accumulate((w.shape[0] for w in weights), initial=0), strict=False))
    if norm is not None and fits(plan, x, weights, None):
        steps = [fused_into(plan, "matmul_joined", x, w, y, column, norm=norm) for w, column in pairs]
        _check(plan, x, weights, y, steps[0], norm=norm)
        return y
    x = normed(plan, x, norm)
    steps = [_matmul_into(plan, "matmul_joined", x, w, y, column, None) for w, column in pairs]
    _check(plan, x, weights, y, steps[0])
    return y


def matmul_swiglu(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], *, norm: Norm | None = None, variant: Variant | None = None
) -> Tensor:
    """silu(h Gate^T) * (h Up^T) with h = norm(x), Gate and Up [F, D] one above the other or two tensors:
    x [N, D] -> [N, F].

    One dispatch where they are one tensor that a binding can show, else a matmul and swiglu_joined. norm: (weight [D],
    eps) of an RMS norm before, in the same dispatch for one or two tokens.
    """
    if len(weights) > 1 or len(weights[0].parts) > 1:
        return swiglu_joined(plan, matmul_joined(plan, x, weights, norm=norm))
    w = weights[0]
    _expect("matmul_swiglu", x, w)
    require("matmul_swiglu", w.shape[0] % 2 == 0, f"{w.name} {list(w.shape)} is not two halves")
    expect_around("matmul_swiglu", x, norm, None, 0)
    y = plan.empty((x.shape[0], w.shape[0] // 2), "f32", f"{w.name}.swiglu")
    if norm is not None and fits(plan, x, [w], variant):
        fused_into(plan, "matmul_swiglu", x, w, y, 0, variant, norm=norm, glu=True)
    else:
        x, norm = normed(plan, x, norm), None
        _matmul_into(plan, "matmul_swiglu", x, w, y, 0, variant, glu=True)
    packed, f = is_packed(plan, w), w.shape[0] // 2

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray, *weight: np.ndarray) -> list[np.ndarray]:
        kinds = _inputs(x[:n_tokens], (weight[0], norm[1]) if norm is not None else None)
        both = reference.matmul(kinds[packed](), w)
        return [swiglu(both[:, :f], both[:, f:])]

    inputs = [x, w, *([norm[0]] if norm is not None else [])]
    plan.check(twin, inputs, [y], TOLERANCE_Q8 if packed else TOLERANCE)
    return y


def moe_matmul(plan: Plan, x: Tensor, w: Tensor, ids: Tensor, *, variant: Variant | None = None) -> Tensor:
    """Rows of x times the experts chosen for them: w [E, F, D], ids uint32 [N, K] -> [N * K, F].

    x is [N, D] (all K experts of a token read the same row: gate, up) or [N * K, D] (one row each: down).
    The ids stay on the device. w may be in parts of experts; each part's dispatch serves the experts it holds.
    """
    expect("moe_matmul", w, (None, None, None), WEIGHTS)
    e, f, d = w.shape
    expect("moe_matmul", ids, (None, None), ("u32",))
    n, k = ids.shape
    expect("moe_matmul", x, (None, d))
    shared = x.shape[0] == n and k > 1
    require("moe_matmul", x.shape[0] in (n, n * k), f"{x.name} has {x.shape[0]} rows for {n} tokens, {k} experts each")
    require("moe_matmul", d % 32 == 0, f"{w.name} has rows of {d}, not a multiple of 32")
    y = plan.empty((n * k, f), "f32", f"{w.name}.out")
    packed = is_packed(plan, w)
    inputs = [*(quantize_q8(plan, x, 1 if shared else k) if packed else (x,))]

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
        ids = ids[:n_tokens]
        x = x if shared else x.reshape(-1, k, d)
        x = reference.quantize_dequantize_q8(x[: len(ids)]) if packed else x[: len(ids)]
        return [reference.moe_matmul(x, w, ids)]

    tolerance = TOLERANCE_Q8 if packed else TOLERANCE
    many = variant or grouping(plan, w, n * k, e)
    if many.shader == "matmul":
        grouped_into(plan, "moe_matmul", inputs, w, ids, y, many, per_x=k if shared else 1)
        plan.check(twin, [x, w, ids], [y], tolerance, steps=len(w.parts))
        return y
    variant = replace(variant or variant_for(plan, "moe_matmul", w, n * k, f, d, k=k), tokens=1)
    if variant.around:
        around = Around(ids=ids, per_x=k if shared else 1)
        pair_matvec(plan, "moe_matmul", tuple(inputs) if packed else x, w, y, 0, variant, around)
        plan.check(twin, [x, w, ids], [y], tolerance, steps=len(w.parts))
        return y
    inputs += [plan.state, ids]
    params = {"WEIGHT": weight_type(plan, w, variant), "PACKED": packed, "D": d, "F": f, "EXPERTS": True}
    params |= {"BIAS": False, "ACT": "none"}
    params |= {"GLU": False, "TOKENS": 1, "LANES": variant.lanes, "ROWS": variant.rows, "WG": variant.workgroup}
    params |= {"SLOTS": k, "SLOTS_PER_X": k if shared else 1}
    kernel = Kernel.of("matvec.wgsl", **params)
    grid = _grid(plan, variant, f, n * k)
    # Of E experts a step reads at most min(E, N * K) different ones.
    touched = min(1.0, n * k / e)
    for part in w.parts:
        experts = part.stop - part.start
        plan.add(
            "moe_matmul",
            kernel,
            [(w, part), *inputs],
            [y],
            grid,
            immediates=(part.start, experts, n * k),
            nbytes=int(part.nbytes * touched) + n * k * (d + f) * 4,
            flops=2 * n * k * f * d * experts // e,
        )

    plan.check(twin, [x, w, ids], [y], tolerance, steps=len(w.parts))
    return y


def _grid(plan: Plan, variant: Variant, rows: int, n: int, glu: bool = False) -> tuple[int, int, int]:
    if variant.shader == "matmul":
        return tiled_grid(variant, rows // 2 if glu else rows, n, glu)
    if glu:  # a thread's rows are half gates, half ups
        pairs = variant.rows // 2
        rows = math.ceil(rows / 2 / pairs) * pairs * 2
    groups = math.ceil(rows / (variant.workgroup // variant.lanes * variant.rows))
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    tokens, slices = math.ceil(n / variant.tokens), math.ceil(groups / limit)
    # One thread a row is for software adapters, and there tokens lie along x (shaders/matvec.wgsl).
    return (tokens, min(groups, limit), slices) if variant.lanes == 1 else (min(groups, limit), tokens, slices)
