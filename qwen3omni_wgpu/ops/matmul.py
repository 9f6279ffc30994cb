"""y = x w^T in every weight format, for one token or many, and for experts chosen by id."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

import numpy as np

from ..gpu import Device, Kernel, NumericalError, Plan, Tensor
from ..reference import matmul as reference
from ..reference.elementwise import gelu, gelu_tanh, swiglu
from .elementwise import swiglu_joined
from .guard import QUANTISED, WEIGHTS, expect, grid_1d, require

# Sums of D products in another order than NumPy's: the error grows like sqrt(D) * 2^-24 of the terms' size. Terms here
# are of order 1 and D up to 4096: 64 * 6e-8 = 4e-6 of sqrt(D), relative to the largest output. 2e-5 leaves room.
TOLERANCE = 2e-5
# An activation on the border between two integers may round the other way: one step (1/127 of its group's maximum, 3 at
# most) of one term out of D, times a weight of order 1/sqrt(D), D at least 64.
TOLERANCE_Q8 = 3e-3
# What a matmul may apply to its outputs before it writes them, and the twin. Their slope is 1.13 at most.
ACTIVATIONS = {"gelu": gelu, "gelu_tanh": gelu_tanh}
_SLOPE = 1.13
# Weights of a matrix that is not worth the largest kernel on a software adapter.
SMALL = 1 << 17


@dataclass(frozen=True)
class Variant:
    """One way to run a matmul: shader, threads a row, rows and tokens a thread, threads a workgroup."""

    shader: str  # "matvec" or "matmul"
    lanes: int = 1
    rows: int = 4
    tokens: int = 1
    workgroup: int = 32
    wide: bool = False  # 64-bit loads of the weights, where the type and the device have them (matvec)


def choose(device: Device, n: int, f: int, d: int, experts: bool = False) -> Variant:
    """The variant for N tokens, F outputs and D inputs; by rule, until the tuner knows the device better."""
    if device.info.software:
        # One thread a row, several rows and tokens a thread: on a CPU loads cost most and reductions gain nothing.
        if experts or n == 1:
            return Variant("matvec", lanes=1, rows=8, tokens=1, workgroup=8, wide=True)
        # Where there is little to do, compiling 8 x 8 sums a thread (seconds) would take longer than they save.
        most = 4 if f * d <= SMALL else 8
        tokens = min(most, 1 << (n - 1).bit_length())
        return Variant("matvec", lanes=1, rows=most if n > 4 else 4, tokens=tokens, workgroup=16, wide=True)
    if n > 8 and not experts:
        return Variant("matmul", workgroup=256)
    blocks = -(-d // 32)
    lanes = next((size for size in (32, 16, 8) if blocks % size == 0), 16)
    tokens = 1 if experts else min(8, 1 << (n - 1).bit_length())
    return Variant("matvec", lanes=lanes, rows=2 if tokens <= 4 else 1, tokens=tokens, workgroup=64)


def _type(plan: Plan, w: Tensor, variant: Variant) -> str:
    """The weight type as the shader knows it."""
    wide = variant.wide and variant.shader == "matvec" and w.dtype == "q8_0"
    return "q8_0_wide" if wide and "shader-int64" in plan.device.features else w.dtype


def quantize_q8(plan: Plan, x: Tensor, per_token: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Activations [N, D] to int8 in groups of 8: (quants uint32 [N, D/4], scales [N, D/8], sums [N, D/32]).

    `per_token` rows of x belong to one token (experts). Shared by all matmuls of the plan that read x.
    """
    if ("q8", id(x)) in plan.memo:
        return plan.memo["q8", id(x)][1]
    expect("quantize_q8", x, (None, None))
    n, d = x.shape
    require("quantize_q8", d % 32 == 0, f"{x.name} has rows of {d}, not a multiple of 32")
    quants = plan.empty((n, d // 4), "u32", f"{x.name}.quants")
    scales = plan.empty((n, d // 8), "f32", f"{x.name}.scales")
    sums = plan.empty((n, d // 32), "f32", f"{x.name}.sums")
    kernel = Kernel.of("quantize_q8.wgsl", N=n, D=d, WG=64, PER_TOKEN=per_token)
    grid = grid_1d(plan, n * d // 32, 64)
    outputs = [quants, scales, sums]
    plan.add("quantize_q8", kernel, [x, plan.state], outputs, grid, nbytes=n * d * 45 // 8, flops=4 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray) -> list[np.ndarray]:
        q, scale, _sums = reference.quantize_q8(x[: n_tokens * per_token])
        # A quant on a rounding border may go the other way, once in 100,000; so the sums are those of the quants found.
        found = quants.numpy().view(np.int8)[: len(q)]
        off = np.abs(found.astype(np.int32) - q)
        if off.max(initial=0) > 1 or np.count_nonzero(off) > 2 + off.size // 1000:
            wrong = np.count_nonzero(off)
            raise NumericalError(f"quantize_q8: {wrong} of {off.size} quants differ, most by {off.max()}")
        return [scale, reference.dequantize_q8(found, scale).reshape(len(q), d // 32, 32).sum(axis=-1)]

    plan.check(twin, [x], [scales, sums], 1e-5)
    plan.memo["q8", id(x)] = (x, (quants, scales, sums))  # x is kept: its id must not be reused
    return quants, scales, sums


def matmul(
    plan: Plan,
    x: Tensor,
    w: Tensor,
    *,
    bias: Tensor | None = None,
    act: str | None = None,
    variant: Variant | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """act(x w^T + bias): x [N, D], w [F, D] of any weight type, bias [F] -> [N, F].

    D a multiple of 32, of 4 where w is not quantised; w may be in parts of rows. act: "gelu" (the exact one, by erf),
    "gelu_tanh" or None.
    """
    expect("matmul", w, (None, None), WEIGHTS)
    n, f = x.shape[0], w.shape[0]
    if out is not None:
        expect("matmul", out, (n, f))
    if bias is not None:
        expect("matmul", bias, (f,))
    known = " or ".join(ACTIVATIONS)
    require("matmul", act is None or act in ACTIVATIONS, f"no activation {act!r}, expected {known}")
    y = out or plan.empty((n, f), "f32", f"{w.name}.out")
    first = _matmul_into(plan, "matmul", x, w, y, 0, variant, bias=bias, act=act)
    _check(plan, x, [w], y, first, bias, act)
    return y


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
    variant = variant or choose(plan.device, n, f, d)
    if glu:  # half of the rows are gates
        variant = replace(variant, rows=max(2, variant.rows))
    packed = _packed(plan, w)
    inputs = [*(quantize_q8(plan, x) if packed else (x,)), plan.state, *([bias] if bias is not None else [])]
    params = {"WEIGHT": _type(plan, w, variant), "PACKED": packed, "D": d, "F": width, "GLU": glu}
    params |= {"BIAS": bias is not None, "ACT": act or "none"}
    if variant.shader == "matvec":
        params |= {
            "EXPERTS": False,
            "LANES": variant.lanes,
            "ROWS": variant.rows,
            "TOKENS": variant.tokens,
            "WG": variant.workgroup,
        }
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


def _packed(plan: Plan, w: Tensor) -> bool:
    return plan.activations == "q8" and w.dtype in QUANTISED


def _check(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], y: Tensor, first: int, bias: Tensor | None = None,
    act: str | None = None,
) -> None:  # fmt: skip
    """The twin of all steps from number `first` on: the matrices side by side, the bias, the activation."""
    packed = [_packed(plan, w) for w in weights]
    count = len(weights)

    def twin(_: int, n_tokens: int, x: np.ndarray, *arrays: np.ndarray) -> list[np.ndarray]:
        results = [
            (reference.matmul_q8 if quantised else reference.matmul)(x[:n_tokens], w)
            for quantised, w in zip(packed, arrays[:count], strict=True)
        ]
        result = sum(arrays[count:], np.concatenate(results, axis=1))
        return [ACTIVATIONS[act](result) if act else result]

    tolerance = (TOLERANCE_Q8 if any(packed) else TOLERANCE) * (_SLOPE if act else 1)
    inputs = [x, *weights, *([bias] if bias is not None else [])]
    plan.check(twin, inputs, [y], tolerance, steps=len(plan.steps) - first)


def matmul_joined(plan: Plan, x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """x [N, D] times several matrices [F_i, D], side by side: -> [N, sum of F_i].

    One dispatch where they are one tensor (weights.py joins those of one type), else one for each.
    """
    width = sum(w.shape[0] for w in weights)
    y = plan.empty((x.shape[0], width), "f32", f"{weights[0].name}.joined")
    for w in weights:
        _expect("matmul_joined", x, w)  # before the first one is recorded
    columns = accumulate((w.shape[0] for w in weights), initial=0)
    pairs = zip(weights, columns, strict=False)
    steps = [_matmul_into(plan, "matmul_joined", x, w, y, column, None) for w, column in pairs]
    _check(plan, x, weights, y, steps[0])
    return y


def matmul_swiglu(
    plan: Plan, x: Tensor, weights: Sequence[Tensor], *, variant: Variant | None = None
) -> Tensor:
    """silu(x Gate^T) * (x Up^T) with Gate and Up [F, D], one above the other or two tensors: x [N, D] -> [N, F].

    One dispatch where they are one tensor that a binding can show, else a matmul and swiglu_joined.
    """
    if len(weights) > 1 or len(weights[0].parts) > 1:
        return swiglu_joined(plan, matmul_joined(plan, x, weights))
    w = weights[0]
    _expect("matmul_swiglu", x, w)
    require("matmul_swiglu", w.shape[0] % 2 == 0, f"{w.name} {list(w.shape)} is not two halves")
    y = plan.empty((x.shape[0], w.shape[0] // 2), "f32", f"{w.name}.swiglu")
    _matmul_into(plan, "matmul_swiglu", x, w, y, 0, variant, glu=True)
    packed, f = _packed(plan, w), w.shape[0] // 2

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray) -> list[np.ndarray]:
        both = (reference.matmul_q8 if packed else reference.matmul)(x[:n_tokens], w)
        return [swiglu(both[:, :f], both[:, f:])]

    plan.check(twin, [x, w], [y], TOLERANCE_Q8 if packed else TOLERANCE)
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
    variant = replace(variant or choose(plan.device, n, f, d, experts=True), tokens=1)
    y = plan.empty((n * k, f), "f32", f"{w.name}.out")
    packed = _packed(plan, w)
    inputs = [*(quantize_q8(plan, x, 1 if shared else k) if packed else (x,)), plan.state, ids]
    params = {"WEIGHT": _type(plan, w, variant), "PACKED": packed, "D": d, "F": f, "EXPERTS": True}
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

    def twin(_: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
        ids = ids[:n_tokens]
        x = x if shared else x.reshape(-1, k, d)
        x = reference.quantize_dequantize_q8(x[: len(ids)]) if packed else x[: len(ids)]
        return [reference.moe_matmul(x, w, ids)]

    plan.check(twin, [x, w, ids], [y], TOLERANCE_Q8 if packed else TOLERANCE, steps=len(w.parts))
    return y


def _grid(plan: Plan, variant: Variant, rows: int, n: int, glu: bool = False) -> tuple[int, int, int]:
    if glu:  # a thread's or a tile's rows are half gates, half ups
        pairs = variant.rows // 2 if variant.shader == "matvec" else 32
        rows = math.ceil(rows / 2 / pairs) * pairs * 2
    if variant.shader == "matmul":
        return math.ceil(rows / 64), math.ceil(n / 64), 1
    groups = math.ceil(rows / (variant.workgroup // variant.lanes * variant.rows))
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    return min(groups, limit), math.ceil(n / variant.tokens), math.ceil(groups / limit)
