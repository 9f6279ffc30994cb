"""Rows by index: token embeddings, and the last row of a step."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import gather as reference
from .guard import WEIGHTS, expect, require


def embed(plan: Plan, table: Tensor, ids: Tensor) -> Tensor:
    """Rows of a table [V, D] of any weight type: ids uint32 [N] -> [N, D]. D a multiple of 32."""
    expect("embed", table, (None, None), WEIGHTS)
    expect("embed", ids, (None,), ("u32",))
    n, d = ids.shape[0], table.shape[1]
    require("embed", d % 32 == 0, f"{table.name} has rows of {d}, not a multiple of 32")
    y = plan.empty((n, d), "f32", f"{table.name}.rows")
    kernel = Kernel.of("embed.wgsl", WEIGHT=table.dtype, D=d, WG=32)
    for part in table.parts:
        plan.add(
            "embed",
            kernel,
            [(table, part), ids, plan.state],
            [y],
            (-(-d // 1024), n, 1),
            immediates=(part.start, part.stop - part.start),
            nbytes=n * d * 4 + n * table.nbytes // table.shape[0],
        )
    # Dequantising is one multiplication and one addition, both rounded as in the twin.
    plan.check(
        lambda _, n_tokens, table, ids: [reference.embed(table, ids[:n_tokens])],
        [table, ids], [y], 1e-6, steps=len(table.parts),
    )  # fmt: skip
    return y


def select_row(plan: Plan, x: Tensor) -> Tensor:
    """The last valid row, number n_tokens - 1: x [N, D] -> [1, D]."""
    expect("select_row", x, (None, None))
    d = x.shape[1]
    y = plan.empty((1, d), "f32", f"{x.name}.last")
    kernel = Kernel.of("select_row.wgsl", D=d, WG=64)
    plan.add("select_row", kernel, [x, plan.state], [y], (-(-d // 64), 1, 1), nbytes=8 * d)

    def twin(_: int, n_tokens: int, x: np.ndarray) -> list[np.ndarray]:
        return [x[n_tokens - 1 : n_tokens]]

    plan.check(twin, [x], [y], 0.0)
    return y
