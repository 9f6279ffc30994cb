"""Rows out of a larger buffer, so that one recorded plan serves every piece of it; `store_rows` puts them back."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from .guard import expect, require


def load_rows(plan: Plan, source: Tensor, n: int) -> Tensor:
    """source[n_past + t] for the valid rows t of n: source [S, D] -> [n, D]. D a multiple of 4."""
    expect("load_rows", source, (None, None))
    d = source.shape[1]
    require("load_rows", d % 4 == 0, f"{source.name} has rows of {d}, not a multiple of 4")
    y = plan.empty((n, d), "f32", f"{source.name}.loaded")
    kernel = Kernel.of("load_rows.wgsl", D=d, WG=64)
    plan.add("load_rows", kernel, [source, plan.state], [y], (-(-d // 256), n, 1), nbytes=8 * n * d)

    def twin(n_past: int, n_tokens: int, source: np.ndarray) -> list[np.ndarray]:
        return [source[n_past : n_past + min(n, n_tokens)]]

    plan.check(twin, [source], [y], 0.0)
    return y
