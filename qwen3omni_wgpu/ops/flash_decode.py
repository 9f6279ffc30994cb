"""Attention of one or two tokens over a long cache: parts of the keys side by side, then one softmax of the parts."""

from __future__ import annotations

from collections.abc import Mapping

from ..gpu import Kernel, Plan, Tensor
from ..gpu.kernel import Param
from .attention_ways import Way


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
) -> tuple[Tensor, int]:
    """shape: N, H, KV, HD -> [N, H * HD], and how many dispatches it took.

    Without `turn` (the parameters of lib/turn.wgsl) inputs are the queries [N, H * HD], and the cache has the step's
    keys and values; else x of one token, positions, freqs and perhaps norms, and the dispatch writes the cache, too.
    """
    n, heads, kv_heads, hd = shape
    group = heads // kv_heads
    together = way.heads(group)
    y = plan.empty((n, heads * hd), "f32", f"{inputs[0].name}.attention")
    parts = way.splits * (hd + 4) * n * heads
    if way.last:  # the counters before the parts are 0 between dispatches
        scratch = plan.lasting((-(-n * heads // together // 4) * 4 + parts,), "f32", "attention.parts")
    else:
        scratch = plan.empty((parts,), "f32", f"{y.name}.parts")
    params: dict[str, Param] = {"N": n, "H": heads, "KV": kv_heads, "HD": hd, "CACHED": values.dtype}
    params |= {"SPLITS": way.splits, "KEYS": way.keys, "LAST": way.last}
    mine = params | {**(turn or {}), "WG": way.workgroup, "LANES": way.lanes, "HEADS": together, "WIDE": True}
    mine |= {"AT_ONCE": way.at_once(hd), "SCALE": float(scale), "FUSED": turn is not None}
    kernel = Kernel.of("flash_decode.wgsl", **mine)
    grid = (kv_heads * group // together, n, way.splits)
    nbytes, flops = keys.nbytes + values.nbytes + 4 * parts, 4 * n * heads * hd * keys.shape[0]
    inputs = [*inputs, plan.state] if turn is not None else [*inputs, keys, values, plan.state]
    outputs = [scratch, *([keys, values] if turn is not None else []), *([y] if way.last else [])]
    plan.add(op, kernel, inputs, outputs, grid, nbytes=nbytes, flops=flops)
    if way.last:
        return y, 1
    kernel = Kernel.of("flash_combine.wgsl", WG=max(32, hd // 4), HEADS=1, **params)
    plan.add(f"{op}.combine", kernel, [scratch, plan.state], [y], (heads, n, 1), nbytes=4 * parts)
    return y, 2

