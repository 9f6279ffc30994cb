"""RMS normalisation, alone and together with the residual addition before it."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import norm as reference
from .guard import expect, workgroup_for

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


def add_rms_norm(plan: Plan, x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(s, rms_norm(s)) with s = x + residual: all [N, D]."""
    n, d = _shapes("add_rms_norm", x, weight)
    expect("add_rms_norm", residual, (n, d))
    total = plan.empty((n, d), "f32", f"{weight.name}.sum")
    y = plan.empty((n, d), "f32", f"{weight.name}.out")
    kernel = _kernel(plan, d, eps, residual=True)
    inputs = [x, residual, weight, plan.state]
    plan.add("add_rms_norm", kernel, inputs, [total, y], (n, 1, 1), nbytes=16 * n * d + 4 * d, flops=5 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, residual: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        return list(reference.add_rms_norm(x[:n_tokens], residual[:n_tokens], weight, eps))

    plan.check(twin, [x, residual, weight], [total, y], TOLERANCE)
    return total, y


def _kernel(plan: Plan, d: int, eps: float, *, residual: bool) -> Kernel:
    return Kernel.of("rms_norm.wgsl", D=d, WG=workgroup_for(plan.device, d), EPS=float(eps), RESIDUAL=residual)


def _shapes(op: str, x: Tensor, weight: Tensor) -> tuple[int, int]:
    expect(op, weight, (None,))
    expect(op, x, (None, weight.shape[0]))
    return x.shape[0], x.shape[1]
