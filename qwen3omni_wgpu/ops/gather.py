"""Rows by index: token embeddings, rows of a table added to others, and the last row of a step."""

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


def embed_mean(plan: Plan, table: Tensor, ids: Tensor) -> Tensor:
    """The mean of K rows of a table [V, D] of any weight type: ids uint32 [N, K] -> [N, D]. D a multiple of 32."""
    expect("embed_mean", table, (None, None), WEIGHTS)
    expect("embed_mean", ids, (None, None), ("u32",))
    (n, k), d = ids.shape, table.shape[1]
    require("embed_mean", d % 32 == 0, f"{table.name} has rows of {d}, not a multiple of 32")
    require("embed_mean", len(table.parts) == 1, f"{table.name} is too large for one binding of this device")
    y = plan.empty((n, d), "f32", f"{table.name}.mean")
    kernel = Kernel.of("embed_mean.wgsl", WEIGHT=table.dtype, D=d, K=k, WG=32)
    read = n * k * table.nbytes // table.shape[0]
    inputs, grid = [table, ids, plan.state], (-(-d // 1024), n, 1)
    plan.add("embed_mean", kernel, inputs, [y], grid, nbytes=n * d * 4 + read, flops=n * d * k)

    def twin(_: int, n_tokens: int, table: np.ndarray, ids: np.ndarray) -> list[np.ndarray]:
        return [reference.embed_mean(table, ids[:n_tokens])]

    # Sums in another order, of K values that are dequantised as in the twin.
    plan.check(twin, [table, ids], [y], 1e-6)
    return y


def add_rows(plan: Plan, x: Tensor, table: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    """x + sum_k weights[:, k] * table[ids[:, k]]: x [N, D], table [V, D], ids uint32 [N, K], weights [N, K] -> [N, D].

    Position tables: K = 1 with weight 1 looks up, K = 4 interpolates in two directions.
    """
    expect("add_rows", table, (None, None))
    d = table.shape[1]
    expect("add_rows", x, (None, d))
    n = x.shape[0]
    expect("add_rows", ids, (n, None), ("u32",))
    k = ids.shape[1]
    expect("add_rows", weights, (n, k))
    require("add_rows", d % 4 == 0, f"{table.name} has rows of {d}, not a multiple of 4")
    y = plan.empty((n, d), "f32", f"{x.name}.with_rows")
    kernel = Kernel.of("add_rows.wgsl", D=d, K=k, WG=64)
    inputs, grid = [x, table, ids, weights, plan.state], (-(-d // 256), n, 1)
    plan.add("add_rows", kernel, inputs, [y], grid, nbytes=4 * n * (d * (k + 2) + 2 * k), flops=2 * n * k * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
        table, ids, weights = rest
        return [reference.add_rows(x[:n_tokens], table, ids[:n_tokens], weights[:n_tokens])]

    # A few products summed in another order.
    plan.check(twin, [x, table, ids, weights], [y], 1e-6)
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
