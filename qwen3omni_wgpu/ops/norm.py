"""RMS and layer normalisation, alone and together with the residual addition before them."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import norm as reference
from .guard import expect, grid_1d, require, workgroup_for
from .quants import Quants, empty_quants, judge_quants, keep_quants

# One reciprocal square root (2 ulp in WGSL) of a mean over D squares.
TOLERANCE = 1e-5


def rms_norm(plan: Plan, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis: x [N, D], weight [D] -> [N, D].

    In a plan of 8-bit activations the same dispatch quantises the result, for the matmuls that read it.
    Source: Zhang and Sennrich 2019; transformers Qwen3RMSNorm.
    """
    n, d = _shapes("rms_norm", x, weight)
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    made = _quants_of(plan, y, bindings=7)
    kernel = _kernel(plan, d, eps, residual=False, quants=bool(made))
    nbytes, flops = 8 * n * d + 4 * d + _bytes(made), (8 if made else 4) * n * d
    plan.add("rms_norm", kernel, [x, weight, plan.state], [y, *made], (n, 1, 1), nbytes=nbytes, flops=flops)

    def twin(_: int, n_tokens: int, x: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        result = reference.rms_norm(x[:n_tokens], weight, eps)
        return [result, *(judge_quants("rms_norm", made[0], result) if made else [])]

    plan.check(twin, [x, weight], [y, *made[1:]], TOLERANCE)
    return y


def add_rms_norm(
    plan: Plan, x: Tensor, residual: Tensor, weight: Tensor, eps: float, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(s, rms_norm(s)) with s = x + residual, or factors * x + residual: all [N, D], weight and factors [D].

    The norm is quantised as in rms_norm.
    """
    n, d = _shapes("add_rms_norm", x, weight)
    expect("add_rms_norm", residual, (n, d))
    scales = [factors] if factors is not None else []
    for tensor in scales:
        expect("add_rms_norm", tensor, (d,))
    total = plan.empty((n, d), "f32", f"{weight.name}.sum")
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    made = () if scales else _quants_of(plan, y, bindings=9)
    kernel = _kernel(plan, d, eps, residual=True, scaled=bool(scales), quants=bool(made))
    inputs, outputs = [x, residual, *scales, weight, plan.state], [total, y, *made]
    nbytes, flops = 16 * n * d + 4 * d + _bytes(made), (9 if made else 5) * n * d
    plan.add("add_rms_norm", kernel, inputs, outputs, (n, 1, 1), nbytes=nbytes, flops=flops)

    def twin(
        _: int, n_tokens: int, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, *factors: np.ndarray
    ) -> list[np.ndarray]:
        update = x[:n_tokens] * factors[0] if factors else x[:n_tokens]
        both = reference.add_rms_norm(update, residual[:n_tokens], weight, eps)
        return [*both, *(judge_quants("add_rms_norm", made[0], both[1]) if made else [])]

    plan.check(twin, [x, residual, weight, *scales], [total, y, *made[1:]], TOLERANCE)
    return total, y


def layer_norm(plan: Plan, x: Tensor, weight: Tensor, bias: Tensor, eps: float, per_token: int = 1) -> Tensor:
    """weight * (x - mean) / sqrt(variance + eps) + bias over the last axis: x [N * per_token, D] -> the same.

    weight and bias [D]. Source: Ba, Kiros and Hinton 2016; torch.nn.LayerNorm.
    """
    rows, d = _shapes("layer_norm", x, weight)
    expect("layer_norm", bias, (d,))
    require("layer_norm", rows % per_token == 0, f"{x.name} has {rows} rows, not {per_token} a token")
    y = plan.empty((rows, d), "f32", f"{weight.name}.out")
    kernel = _layer_kernel(plan, rows, d, eps, per_token, residual=False)
    inputs = [x, weight, bias, plan.state]
    grid = grid_1d(plan, rows, 1)
    plan.add("layer_norm", kernel, inputs, [y], grid, nbytes=8 * rows * d + 8 * d, flops=7 * rows * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> list[np.ndarray]:
        return [reference.layer_norm(x[: n_tokens * per_token], weight, bias, eps)]

    plan.check(twin, [x, weight, bias], [y], TOLERANCE)
    return y


def add_layer_norm(
    plan: Plan, x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """(s, layer_norm(s)) with s = x + residual: all [N, D]."""
    n, d = _shapes("add_layer_norm", x, weight)
    expect("add_layer_norm", residual, (n, d))
    expect("add_layer_norm", bias, (d,))
    total = plan.empty((n, d), "f32", f"{weight.name}.sum")
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    kernel = _layer_kernel(plan, n, d, eps, 1, residual=True)
    inputs, outputs = [x, residual, weight, bias, plan.state], [total, y]
    plan.add("add_layer_norm", kernel, inputs, outputs, grid_1d(plan, n, 1), nbytes=16 * n * d + 8 * d, flops=8 * n * d)

    def twin(
        _: int, n_tokens: int, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> list[np.ndarray]:
        return list(reference.add_layer_norm(x[:n_tokens], residual[:n_tokens], weight, bias, eps))

    plan.check(twin, [x, residual, weight, bias], outputs, TOLERANCE)
    return total, y


def _layer_kernel(plan: Plan, rows: int, d: int, eps: float, per_token: int, *, residual: bool) -> Kernel:
    params = {"D": d, "WG": workgroup_for(plan.device, d), "EPS": float(eps), "RESIDUAL": residual}
    return Kernel.of("layer_norm.wgsl", ROWS=rows, PER_TOKEN=per_token, **params)


def _kernel(plan: Plan, d: int, eps: float, *, residual: bool, scaled: bool = False, quants: bool = False) -> Kernel:
    if quants:
        wg = workgroup_for(plan.device, d // 8)
        return Kernel.of("rms_norm_q8.wgsl", D=d, WG=wg, EPS=float(eps), RESIDUAL=residual)
    params = {"D": d, "WG": workgroup_for(plan.device, d), "EPS": float(eps), "RESIDUAL": residual}
    return Kernel.of("rms_norm.wgsl", SCALED=scaled, **params)


def _quants_of(plan: Plan, y: Tensor, bindings: int) -> Quants | tuple[()]:
    """Where a norm leaves its result in 8 bits: nowhere if no matmul wants it, or a shader binds too few buffers."""
    allowed = plan.device.limits["max-storage-buffers-per-shader-stage"]
    if plan.activations != "q8" or y.shape[1] % 32 or bindings > allowed:
        return ()
    made = empty_quants(plan, y)
    keep_quants(plan, y, made)
    return made


def _bytes(made: Quants | tuple[()]) -> int:
    return sum(tensor.nbytes for tensor in made)


def _shapes(op: str, x: Tensor, weight: Tensor) -> tuple[int, int]:
    expect(op, weight, (None,))
    expect(op, x, (None, weight.shape[0]))
    return x.shape[0], x.shape[1]
