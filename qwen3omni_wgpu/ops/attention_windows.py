"""Attention without a causal mask inside windows: the audio tower's seconds, the vision tower's pictures."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..gpu import Device, Kernel, Plan, Tensor
from ..reference import attention as reference
from .guard import expect, require

# exp2 (WGSL: 3 + 2 |x| ulp) and sums over all keys in another order; outputs are means of values of order 1.
TOLERANCE = 3e-5
# Queries of a tile, and keys that the kernel takes at a time.
QUERIES = 64
KEYS = 32
LONGEST_HEAD = 128  # its sums fit the registers of a thread


def most_window_keys(device: Device, hd: int) -> int:
    """How many keys a window may have before a driver that counts loops would stop the kernel."""
    # Of KEYS keys: the dot products, 8 rounds of sums, 1 around them (measured: 1 or 2 more).
    rounds = hd // 4 + 12
    return device.max_rounds // rounds * KEYS


def window_tiles(spans: Iterable[tuple[int, int, int, int]], capacity: int) -> np.ndarray:
    """Windows cut into tiles of at most QUERIES queries: uint32 [capacity, 4], what `window_attention` takes.

    A span is (first query row, end of queries, first key row, end of keys); all of its queries see all of its keys.
    Tiles that are left over stay 0 and cost nothing. ValueError for a window without keys, and for too many tiles.
    """
    rows = []
    for start, stop, first_key, end_key in spans:
        if not 0 <= start <= stop or not 0 <= first_key < end_key:
            raise ValueError(f"queries {start} to {stop} with keys {first_key} to {end_key} are no window")
        rows += [(at, min(QUERIES, stop - at), first_key, end_key) for at in range(start, stop, QUERIES)]
    if len(rows) > capacity:
        raise ValueError(f"{len(rows)} tiles, room for {capacity}")
    tiles = np.zeros((capacity, 4), np.uint32)
    tiles[: len(rows)] = np.array(rows, np.uint32).reshape(-1, 4)
    return tiles


def window_attention(
    plan: Plan, q: Tensor, keys: Tensor, values: Tensor, tiles: Tensor, heads: int, scale: float
) -> Tensor:
    """softmax(q k^T * scale) v inside windows: q [N, H * HD], keys and values [S, H * HD] -> [N, H * HD].

    `tiles` uint32 [M, 4] on the device (see `window_tiles`) may change between replays: queries first .. first + count
    see keys first key .. end of keys, and no others. Every valid row of q belongs in one tile; count 0 is no work. Keys
    and values are float32 or float16, HD is a multiple of 4, at most 128.
    Source: transformers, eager_attention_forward under cu_seqlens; Milakov and Gimelshein 2018 (online softmax).
    """
    op = "window_attention"
    expect(op, q, (None, None))
    n, width = q.shape
    require(op, width % heads == 0, f"{q.name} has rows of {width} for {heads} heads")
    hd = width // heads
    require(op, hd % 4 == 0 and hd <= LONGEST_HEAD, f"heads of {hd} are no multiple of 4 up to {LONGEST_HEAD}")
    expect(op, keys, (None, width), ("f32", "f16"))
    expect(op, values, keys.shape, (keys.dtype,))
    expect(op, tiles, (None, 4), ("u32",))
    most, rows = most_window_keys(plan.device, hd), keys.shape[0]
    require(op, rows <= most, f"{keys.name} has {rows} rows, this device can do {most}")
    y = plan.empty((n, width), "f32", f"{q.name}.attention")
    # Four queries a thread fit 128 registers; eight load less, which is what costs on a software adapter.
    shape = {"QUERIES": QUERIES, "ROWS": 8 if plan.device.info.software else 4, "EACH": -(-hd // 32)}
    kernel = Kernel.of("window_attention.wgsl", H=heads, HD=hd, SCALE=float(scale), FROM=keys.dtype, **shape)
    # Cost as if every query saw every key, which is true of one window.
    plan.add(
        op,
        kernel,
        [q, keys, values, tiles, plan.state],
        [y],
        (tiles.shape[0], heads, 1),
        nbytes=keys.nbytes + values.nbytes + 8 * n * width,
        flops=4 * n * width * rows,
    )

    def twin(
        _: int, n_tokens: int, q: np.ndarray, keys: np.ndarray, values: np.ndarray, tiles: np.ndarray
    ) -> list[np.ndarray]:
        used, k, v = (array.reshape(-1, heads, hd) for array in (q[:n_tokens], keys, values))
        return [reference.window_attention(used, k, v, tiles, scale).reshape(-1, width)]

    plan.check(twin, [q, keys, values, tiles], [y], TOLERANCE)
    return y
