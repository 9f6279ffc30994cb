"""Causal attention over a KV cache, and appending to it."""

from __future__ import annotations

import numpy as np

from ..gpu import Device, Kernel, Plan, Tensor
from ..reference import attention as reference
from .attention_ways import DIRECT, FEW, Way, problem_of
from .choice import candidates, choose
from .flash_decode import add_split
from .flash_prefill import add_tiled
from .guard import expect, require
from .rope import TOLERANCE_F16, expect_cache

# exp (WGSL: 3 + 2 |x| ulp) and sums over all keys in another order; outputs are means of values of order 1.
TOLERANCE = 3e-5


def most_keys(device: Device, heads: int, kv_heads: int, hd: int) -> int:
    """How many cached keys the kernels can walk through before a driver that counts loops would stop them."""
    problems = [problem_of(n, heads, kv_heads, hd, "f16", 1 << 30, 0) for n in (1, FEW + 1)]
    group = heads // kv_heads
    return min(max(way.most_keys(device, group, hd) for way in candidates(device, problem)) for problem in problems)


def store_rows(plan: Plan, x: Tensor, cache: Tensor) -> Tensor:
    """cache[n_past + t] = x[t]: x [N, W], cache [S, W] float32 or float16. Returns the cache."""
    expect("store_rows", x, (None, None))
    n, width = x.shape
    expect("store_rows", cache, (None, width), ("f32", "f16"))
    require("store_rows", width % 2 == 0, f"{x.name} has rows of {width}, an odd number")
    kernel = Kernel.of("store_rows.wgsl", D=width, WG=64, TO=cache.dtype)
    threads = width // (2 if cache.dtype == "f16" else 1)
    plan.add("store_rows", kernel, [x, plan.state], [cache], (-(-threads // 64), n, 1), nbytes=8 * n * width)

    def twin(n_past: int, n_tokens: int, x: np.ndarray, cache: np.ndarray) -> list[np.ndarray]:
        rows, whole = x[:n_tokens], cache.copy()
        whole[n_past : n_past + len(rows)] = rows
        return [whole]

    plan.check(twin, [x, cache], [cache], TOLERANCE_F16 if cache.dtype == "f16" else 0.0)
    return cache


def attention(
    plan: Plan, q: Tensor, keys: Tensor, values: Tensor, heads: int, kv_heads: int, scale: float, window: int = 0,
    *, way: Way | None = None,
) -> Tensor:  # fmt: skip
    """softmax(q k^T * scale) v: q [N, H * HD], keys and values [S, KV * HD] (a KV cache) -> [N, H * HD].

    Token t of the step sees keys 0 .. n_past + t, with a window only the last `window` of them; query head j reads
    key/value head j / (H / KV). With values of 8-bit blocks all three come mixed (as `rope_qkv` leaves them) and the
    result is not. `way`: the kernels, if not the rule's or the tuner's choice.
    Source: Vaswani et al. 2017; Ainslie et al. 2023 (grouped heads); Milakov and Gimelshein 2018 (online softmax).
    """
    expect("attention", q, (None, None))
    n, width = q.shape
    require("attention", heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} key/value heads evenly")
    require("attention", width % heads == 0, f"{q.name} has rows of {width} for {heads} heads")
    hd = width // heads
    require("attention", hd % 4 == 0, f"heads of {hd} are not a multiple of 4")
    expect_cache("attention", keys, values, kv_heads, hd)
    require("attention", heads // kv_heads <= DIRECT, f"{heads // kv_heads} heads a key/value head, at most {DIRECT}")
    shape, seen = (n, heads, kv_heads, hd), min(window or keys.shape[0], keys.shape[0])
    chosen = way or choose(plan.device, problem_of(*shape, values.dtype, keys.shape[0], window))
    most = chosen.most_keys(plan.device, heads // kv_heads, hd)
    require("attention", seen <= most, f"{keys.name} has {seen} rows, this device can do {most}")
    steps = 1
    if chosen.kernel == "split":
        y, steps = add_split(plan, "attention", chosen, [q], keys, values, shape, scale)
    elif chosen.kernel == "tiled":
        y = add_tiled(plan, chosen, q, keys, values, shape, scale)
    else:
        y = _direct(plan, q, keys, values, shape, scale, window)

    values_type = values.dtype

    def twin(n_past: int, n_tokens: int, q: np.ndarray, keys: np.ndarray, values: np.ndarray) -> list[np.ndarray]:
        rows = q[:n_tokens].reshape(-1, heads, hd)
        seen = n_past + len(rows)
        k, v = (cache[:seen].reshape(-1, kv_heads, hd) for cache in (keys, values))
        result = reference.attention(rows, k, v, n_past, scale, window).reshape(-1, width)
        return [reference.mix_blocks(result) if values_type == "kv_q8" else result]

    plan.check(twin, [q, keys, values], [y], TOLERANCE, steps=steps)
    return y


def _direct(
    plan: Plan, q: Tensor, keys: Tensor, values: Tensor, shape: tuple[int, int, int, int], scale: float, window: int
) -> Tensor:
    n, heads, kv_heads, hd = shape
    y = plan.empty((n, heads * hd), "f32", f"{q.name}.attention")
    params = {"H": heads, "KV": kv_heads, "HD": hd, "WINDOW": window}
    kernel = Kernel.of("attention.wgsl", WG=DIRECT, SCALE=float(scale), FROM=keys.dtype, **params)
    # Cost for a full cache; the loop runs to the count of cached keys.
    seen = min(window or keys.shape[0], keys.shape[0])
    nbytes, flops = keys.nbytes + values.nbytes + 2 * q.nbytes, 4 * n * heads * hd * seen
    plan.add("attention", kernel, [q, keys, values, plan.state], [y], (kv_heads, n, 1), nbytes=nbytes, flops=flops)
    return y
