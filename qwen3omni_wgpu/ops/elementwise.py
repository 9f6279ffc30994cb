"""Ops on values one by one, and softmax over rows."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import elementwise as reference
from .guard import expect, require, workgroup_for

# exp is good to 3 + 2 |x| ulp in WGSL; arguments here stay within a few tens.
TOLERANCE = 1e-5


def swiglu(plan: Plan, gate: Tensor, up: Tensor, per_token: int = 1) -> Tensor:
    """silu(gate) * up: both [N * per_token, F] -> the same. Source: Shazeer 2020."""
    return _binary(plan, "swiglu", gate, up, per_token, reference.swiglu, 6)


def swiglu_joined(plan: Plan, x: Tensor) -> Tensor:
    """silu(gate) * up of one matmul's [gate | up]: x [N, 2 F] -> [N, F]."""
    expect("swiglu_joined", x, (None, None))
    n, width = x.shape
    require("swiglu_joined", width % 8 == 0, f"{x.name} {list(x.shape)} is not two halves in fours")
    f = width // 2
    y = plan.empty((n, f), "f32", f"{x.name}.swiglu")
    kernel = Kernel.of("elementwise.wgsl", OP="swiglu_joined", COUNT=f, WG=64)
    plan.add("swiglu_joined", kernel, [x, plan.state], [y], (-(-f // 256), n, 1), nbytes=12 * n * f, flops=6 * n * f)

    def twin(_: int, n_tokens: int, x: np.ndarray) -> list[np.ndarray]:
        return [reference.swiglu(x[:n_tokens, :f], x[:n_tokens, f:])]

    plan.check(twin, [x], [y], TOLERANCE)
    return y


def add(plan: Plan, a: Tensor, b: Tensor, per_token: int = 1) -> Tensor:
    """a + b: both [N * per_token, F] -> the same."""
    return _binary(plan, "add", a, b, per_token, reference.add, 1)


def _binary(
    plan: Plan, op: str, a: Tensor, b: Tensor, per_token: int, twin_of: Callable[..., np.ndarray], cost: int
) -> Tensor:
    expect(op, a, (None, None))
    expect(op, b, a.shape)
    rows, f = a.shape
    n, count = rows // per_token, f * per_token
    require(op, count % 4 == 0 and rows % per_token == 0, f"{a.name} {list(a.shape)} is not in fours a token")
    y = plan.empty(a.shape, "f32", f"{a.name}.{op}")
    kernel = Kernel.of("elementwise.wgsl", OP=op, COUNT=count, WG=64)
    grid = (-(-count // 256), n, 1)
    plan.add(op, kernel, [a, b, plan.state], [y], grid, nbytes=12 * rows * f, flops=cost * rows * f)

    def twin(_: int, n_tokens: int, a: np.ndarray, b: np.ndarray) -> list[np.ndarray]:
        return [twin_of(a[: n_tokens * per_token], b[: n_tokens * per_token])]

    plan.check(twin, [a, b], [y], TOLERANCE)
    return y


def replace_rows(plan: Plan, x: Tensor, rows: Tensor, flags: Tensor) -> Tensor:
    """rows[t] where flags[t] is not 0, else x[t]: x and rows [N, D], flags uint32 [N] -> [N, D]."""
    expect("replace_rows", x, (None, None))
    expect("replace_rows", rows, x.shape)
    n, d = x.shape
    expect("replace_rows", flags, (n,), ("u32",))
    require("replace_rows", d % 4 == 0, f"{x.name} has rows of {d}, not a multiple of 4")
    y = plan.empty((n, d), "f32", f"{x.name}.replaced")
    kernel = Kernel.of("replace_rows.wgsl", D=d, WG=64)
    plan.add("replace_rows", kernel, [x, rows, flags, plan.state], [y], (-(-d // 256), n, 1), nbytes=8 * n * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, rows: np.ndarray, flags: np.ndarray) -> list[np.ndarray]:
        return [reference.replace_rows(x[:n_tokens], rows[:n_tokens], flags[:n_tokens])]

    plan.check(twin, [x, rows, flags], [y], 0.0)  # values are only copied
    return y


def softmax(plan: Plan, x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last axis: [N, D] -> [N, D]."""
    expect("softmax", x, (None, None))
    n, d = x.shape
    y = plan.empty((n, d), "f32", f"{x.name}.softmax")
    kernel = Kernel.of("softmax.wgsl", D=d, WG=workgroup_for(plan.device, d))
    plan.add("softmax", kernel, [x, plan.state], [y], (n, 1, 1), nbytes=16 * n * d, flops=5 * n * d)
    plan.check(lambda _, n_tokens, x: [reference.softmax(x[:n_tokens])], [x], [y], TOLERANCE)
    return y
