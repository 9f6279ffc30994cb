"""What a stream remembers from one step to the next: the rows before a convolution's first, and the last keys."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..gpu import Part, Plan, Tensor
from ..gpu.kernel import Kernel
from .guard import expect, require

# Every device can bind a buffer from a multiple of this many bytes on.
ALIGNMENT = 256


@dataclass(frozen=True)
class Rows:
    """Rows of a step behind those of the steps before it, in one buffer.

    whole [lead + N, C] is what a convolution reads, body [N, C] what its producer writes.
    """

    whole: Tensor
    body: Tensor

    @property
    def lead(self) -> int:
        return self.whole.shape[0] - self.body.shape[0]


def lead_rows(count: int, channels: int) -> int:
    """`count` or more rows of float32, so many that the rows behind them can be bound."""
    while count * channels * 4 % ALIGNMENT:
        count += 1
    return count


def empty_rows(plan: Plan, n: int, channels: int, before: int, name: str = "") -> Rows:
    """An intermediate result of n rows with room for at least `before` rows in front of them."""
    lead = lead_rows(before, channels)
    whole = plan.empty((lead + n, channels), "f32", name)
    part = Part(whole.storage, lead * channels * 4, n * channels * 4, 0, n)
    return Rows(whole, Tensor(plan.device, (n, channels), "f32", [part], name))


def carry_rows(plan: Plan, x: Rows, kept: Tensor, per_token: int = 1) -> Rows:
    """Put the rows of the steps before in front of this step's, and keep its last ones for the next. Returns x.

    kept [x.lead, C] lives as long as the stream and starts as zeros; x.body has per_token rows a token.
    """
    expect("carry_rows", x.whole, (None, None))
    lead, c = x.lead, x.whole.shape[1]
    expect("carry_rows", kept, (lead, c))
    require("carry_rows", lead > 0, f"{x.whole.name} has no rows in front")
    require("carry_rows", c % 4 == 0, f"{x.whole.name} has rows of {c}, not a multiple of 4")
    kernel = Kernel.of("carry_rows.wgsl", RATE=per_token)
    grid = (-(-c // 32), 1, 1)
    outputs = [x.whole, kept]
    plan.add("carry_rows", kernel, [plan.state], outputs, grid, immediates=(c // 4, lead), nbytes=16 * lead * c)

    def twin(_: int, n_tokens: int, whole: np.ndarray, kept: np.ndarray) -> list[np.ndarray]:
        used = min(n_tokens * per_token, len(whole) - lead)
        return [kept, np.concatenate([kept, whole[lead:]])[used : used + lead]]

    plan.check(twin, outputs, outputs, 0.0)  # values are only copied
    return x


def shift_rows(plan: Plan, cache: Tensor, count: int) -> Tensor:
    """cache[i] = cache[n_past - count + i] for i < count: cache [S, W], n_past at least count. Returns the cache."""
    expect("shift_rows", cache, (None, None))
    rows, width = cache.shape
    require("shift_rows", 0 < count <= rows, f"{count} rows of {cache.name}, which has {rows}")
    require("shift_rows", width % 4 == 0, f"{cache.name} has rows of {width}, not a multiple of 4")
    kernel = Kernel.of("shift_rows.wgsl")
    grid, cost = (-(-width // 32), 1, 1), 8 * count * width
    plan.add("shift_rows", kernel, [plan.state], [cache], grid, immediates=(width // 4, count), nbytes=cost)

    def twin(n_past: int, _: int, cache: np.ndarray) -> list[np.ndarray]:
        return [np.concatenate([cache[n_past - count : n_past], cache[count:]])]

    plan.check(twin, [cache], [cache], 0.0)
    return cache
