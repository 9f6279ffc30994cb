"""RMS and layer normalisation, alone and together with the residual addition before them."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import norm as reference
from .guard import expect, grid_1d, require, workgroup_for

# One reciprocal square root (2 ulp in WGSL) of a mean over D squares.
TOLERANCE = 1e-5


def rms_norm(plan: Plan, x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """weight * x / sqrt(mean(x^2) + eps) over the last axis: x [N, D], weight [D] -> [N, D].

    Source: Zhang and Sennrich 2019; transformers Qwen3RMSNorm.
    """
    n, d = _shapes("rms_norm", x, weight)
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    kernel = _kernel(plan, d, eps, residual=False)
    plan.add("rms_norm", kernel, [x, weight, plan.state], [y], (n, 1, 1), nbytes=8 * n * d + 4 * d, flops=4 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        return [reference.rms_norm(x[:n_tokens], weight, eps)]

    plan.check(twin, [x, weight], [y], TOLERANCE)
    return y


def add_rms_norm(
    plan: Plan, x: Tensor, residual: Tensor, weight: Tensor, eps: float, factors: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(s, rms_norm(s)) with s = x + residual, or factors * x + residual: all [N, D], weight and factors [D]."""
    n, d = _shapes("add_rms_norm", x, weight)
    expect("add_rms_norm", residual, (n, d))
    scales = [factors] if factors is not None else []
    for tensor in scales:
        expect("add_rms_norm", tensor, (d,))
    total = plan.empty((n, d), "f32", f"{weight.name}.sum")
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    kernel = _kernel(plan, d, eps, residual=True, scaled=bool(scales))
    inputs = [x, residual, *scales, weight, plan.state]
    plan.add("add_rms_norm", kernel, inputs, [total, y], (n, 1, 1), nbytes=16 * n * d + 4 * d, flops=5 * n * d)

    def twin(
        _: int, n_tokens: int, x: np.ndarray, residual: np.ndarray, weight: np.ndarray, *factors: np.ndarray
    ) -> list[np.ndarray]:
        update = x[:n_tokens] * factors[0] if factors else x[:n_tokens]
        return list(reference.add_rms_norm(update, residual[:n_tokens], weight, eps))

    plan.check(twin, [x, residual, weight, *scales], [total, y], TOLERANCE)
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


def _kernel(plan: Plan, d: int, eps: float, *, residual: bool, scaled: bool = False) -> Kernel:
    params = {"D": d, "WG": workgroup_for(plan.device, d), "EPS": float(eps)}
    return Kernel.of("rms_norm.wgsl", RESIDUAL=residual, SCALED=scaled, **params)


def _shapes(op: str, x: Tensor, weight: Tensor) -> tuple[int, int]:
    expect(op, weight, (None,))
    expect(op, x, (None, weight.shape[0]))
    return x.shape[0], x.shape[1]
