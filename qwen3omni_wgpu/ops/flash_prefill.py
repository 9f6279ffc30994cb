"""Causal attention of many tokens: tiles of queries walk through the cache together."""

from __future__ import annotations

from ..gpu import Kernel, Plan, Tensor
from .attention_ways import QUERIES, Way


def add_tiled(
    plan: Plan, way: Way, q: Tensor, keys: Tensor, values: Tensor, shape: tuple[int, int, int, int], scale: float
) -> Tensor:
    """One dispatch, shape: N, H, KV, HD -> [N, H * HD]."""
    n, heads, kv_heads, hd = shape
    group = heads // kv_heads
    together = way.heads(group)
    y = plan.empty((n, heads * hd), "f32", f"{q.name}.attention")
    across = plan.device.info.software
    kernel = Kernel.of(
        "flash_prefill.wgsl",
        H=heads,
        KV=kv_heads,
        HD=hd,
        HEADS=together,
        CACHED=values.dtype,
        WIDE=True,
        SCALE=float(scale),
        QUERIES=QUERIES,
        TILE_ROWS=way.rows,
        EACH=-(-hd // 64),
        STAGED=way.staged,
        TOKENS_FIRST=across,
    )
    parts, tiles = kv_heads * group // together, -(-n // (QUERIES // together))
    grid = (tiles, parts, 1) if across else (parts, tiles, 1)
    # Cost for a full cache, which the tiles of tokens read together.
    nbytes = keys.nbytes + values.nbytes + 2 * q.nbytes
    flops = 4 * n * heads * hd * keys.shape[0]
    plan.add("attention", kernel, [q, keys, values, plan.state], [y], grid, nbytes=nbytes, flops=flops)
    return y
