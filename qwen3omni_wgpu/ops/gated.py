"""The sum of two results, the second weighted by a gate of its own (the talker's shared expert)."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import gated as reference
from .guard import expect, workgroup_for

# A sum of D products like a matmul's, behind a sigmoid whose slope is 1/4, times values of order 1.
TOLERANCE = 1e-5


def add_gated(plan: Plan, x: Tensor, extra: Tensor, h: Tensor, gate: Tensor) -> Tensor:
    """x + sigmoid(h gate^T) * extra: x, extra and h [N, D], gate [1, D] -> [N, D].

    Source: transformers Qwen3OmniMoeTalkerTextSparseMoeBlock.
    """
    expect("add_gated", x, (None, None))
    n, d = x.shape
    expect("add_gated", extra, (n, d))
    expect("add_gated", h, (n, d))
    expect("add_gated", gate, (1, d))
    y = plan.empty((n, d), "f32", f"{x.name}.gated")
    kernel = Kernel.of("add_gated.wgsl", D=d, WG=workgroup_for(plan.device, d))
    inputs = [x, extra, h, gate, plan.state]
    plan.add("add_gated", kernel, inputs, [y], (n, 1, 1), nbytes=16 * n * d + 4 * d, flops=4 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, extra: np.ndarray, h: np.ndarray, gate: np.ndarray) -> list:
        return [reference.add_gated(x[:n_tokens], extra[:n_tokens], h[:n_tokens], gate)]

    plan.check(twin, [x, extra, h, gate], [y], TOLERANCE)
    return y
