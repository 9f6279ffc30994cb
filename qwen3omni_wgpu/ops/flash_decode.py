"""Attention of one or two tokens over a long cache: parts of the keys side by side, then one softmax of the parts."""

from __future__ import annotations

from collections.abc import Mapping

from ..gpu import Kernel, Plan, Tensor
from ..gpu.kernel import Param
from .attention_ways import Way


def split_params(way: Way, n: int, heads: int, kv_heads: int, hd: int, cached: str) -> dict[str, Param]:
    """What both kernels need to know."""
    shape: dict[str, Param] = {"N": n, "H": heads, "KV": kv_heads, "HD": hd, "CACHED": cached, "WIDE": True}
    return shape | {"SPLITS": way.splits, "KEYS": way.keys}


def add_split(
    plan: Plan,
    op: str,
    way: Way,
    inputs: list[Tensor],
    keys: Tensor,
    values: Tensor,
    shape: tuple[int, int, int, int],
    scale: float,
    turn: Mapping[str, Param] | None = None,
) -> Tensor:
    """The first dispatch, shape: N, H, KV, HD. -> what `add_combine` reads.

    Without `turn` (the parameters of lib/turn.wgsl) inputs are the queries [N, H * HD], and the cache has the step's
    keys and values; else x, positions, freqs and perhaps norms, and the dispatch writes the cache, too.
    """
    n, heads, kv_heads, hd = shape
    group = heads // kv_heads
    together = way.heads(group)
    scratch = plan.empty(((way.splits * (hd + 4) + hd) * n * heads,), "f32", f"{inputs[0].name}.parts")
    params = split_params(way, n, heads, kv_heads, hd, values.dtype)
    params |= {**(turn or {}), "WG": way.workgroup, "LANES": way.lanes, "HEADS": together}
    params |= {"AT_ONCE": way.at_once(hd), "SCALE": float(scale), "FUSED": turn is not None}
    kernel = Kernel.of("flash_decode.wgsl", **params)
    grid = (kv_heads * group // together, n, way.splits)
    nbytes, flops = keys.nbytes + values.nbytes + scratch.nbytes, 4 * n * heads * hd * keys.shape[0]
    if turn is not None:
        plan.add(op, kernel, [*inputs, plan.state], [scratch, keys, values], grid, nbytes=nbytes, flops=flops)
    else:
        plan.add(op, kernel, [*inputs, keys, values, plan.state], [scratch], grid, nbytes=nbytes, flops=flops)
    return scratch


def add_combine(
    plan: Plan, op: str, way: Way, scratch: Tensor, keys: Tensor, values: Tensor, shape: tuple[int, int, int, int]
) -> Tensor:
    """The second dispatch: [N, H * HD]."""
    n, heads, kv_heads, hd = shape
    y = plan.empty((n, heads * hd), "f32", f"{scratch.name}.attention")
    params = split_params(way, n, heads, kv_heads, hd, values.dtype)
    # A thread for four dimensions, twice and more where there are parts to read.
    side = max(1, min(8, way.splits, 256 // (hd // 4)))
    kernel = Kernel.of("flash_combine.wgsl", WG=hd // 4 * side, AT_ONCE=min(4, -(-way.splits // side)), **params)
    plan.add(f"{op}.combine", kernel, [scratch, keys, values, plan.state], [y], (heads, n, 1), nbytes=scratch.nbytes)
    return y
