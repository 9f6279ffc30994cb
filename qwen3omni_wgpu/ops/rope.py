"""Rotary position embedding, with QK-norm before it and the KV cache after it where the model wants them."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import norm as norm_reference
from ..reference import rope as reference
from ..reference.attention import mix_blocks
from ..reference.rope import Sections
from .attention_ways import CACHES, Q8_HEADS
from .guard import expect, require, workgroup_for

# The angle is one float32 product as in the twin; sin and cos come from polynomials good to about 1e-7, with the
# argument reduction's error growing with the angle: 1e-6 at 30,000 rad. Values of order 4.
TOLERANCE = 2e-5
# float16 keeps 11 bits: half a step is 2^-11 = 4.9e-4 relative.
TOLERANCE_F16 = 6e-4
# By the type of values. Blocks of 8-bit integers: half a step is 1/254 of the block's largest value.
TOLERANCES = {"f32": TOLERANCE, "f16": TOLERANCE_F16, "kv_q8": 4.5e-3}


def rope(
    plan: Plan,
    x: Tensor,
    positions: Tensor,
    freqs: Tensor,
    heads: int,
    *,
    style: str,
    sections: Sections = None,
    norm: Tensor | None = None,
    eps: float = 0.0,
    cache: Tensor | None = None,
) -> Tensor:
    """Turn the heads of x [N, H * HD] by positions [N, 3] (t, h, w) -> [N, H * HD].

    `freqs` [PAIRS] are radians per position; `style` "neox" or "interleaved"; `sections` (t, h, w) interleaves three
    axes (Qwen3-Omni M-RoPE), "halves" turns half of the pairs by h and the rest by w (its vision tower). `norm` [HD]:
    RMS norm of every head first. With `cache` [S, H * HD] (float32 or float16) the result is written to its rows
    n_past, n_past + 1, ... instead, and the cache is returned.
    Source: Su et al. 2021; transformers apply_rotary_pos_emb, apply_interleaved_mrope.
    """
    expect("rope", x, (None, None))
    n, width = x.shape
    require("rope", width % heads == 0, f"{x.name} has rows of {width} for {heads} heads")
    hd = width // heads
    expect_turn("rope", n, hd, positions, freqs, style, sections)
    if norm is not None:
        expect("rope", norm, (hd,))
    if cache is not None:
        expect("rope", cache, (None, width), ("f32", "f16"))
    y = cache or plan.empty((n, width), "f32", f"{x.name}.rope")
    turn = turn_params(plan, hd, freqs, style, sections, norm, eps)
    kernel = Kernel.of("rope.wgsl", H=heads, CACHE=cache is not None, TO=y.dtype, **turn)
    inputs = [x, positions, freqs, *([norm] if norm is not None else []), plan.state]
    plan.add("rope", kernel, inputs, [y], (heads, n, 1), nbytes=8 * n * width, flops=6 * n * width)

    def twin(n_past: int, n_tokens: int, x: np.ndarray, *rest: np.ndarray) -> list[np.ndarray]:
        rows, weight = x[:n_tokens].reshape(-1, heads, hd), rest[2] if norm is not None else None
        result = turned(rows, rest[0], rest[1], weight, eps, style, sections)
        if cache is None:
            return [result]
        whole = rest[-1].copy()
        whole[n_past : n_past + len(rows)] = result
        return [whole]

    read = [x, positions, freqs, *([norm] if norm is not None else []), *([cache] if cache is not None else [])]
    plan.check(twin, read, [y], TOLERANCE_F16 if y.dtype == "f16" else TOLERANCE)
    return y


def rope_qkv(
    plan: Plan,
    x: Tensor,
    positions: Tensor,
    freqs: Tensor,
    heads: int,
    kv_heads: int,
    keys: Tensor,
    values: Tensor,
    *,
    style: str,
    sections: Sections = None,
    norms: Tensor | None = None,
    eps: float = 0.0,
) -> Tensor:
    """Queries, keys and values of one matmul, x [N, (H + 2 KV) * HD], made ready for attention -> q [N, H * HD].

    q and k are turned as by `rope` (after an RMS norm with `norms` [2 * HD], first half for q, if given); k and v go to
    rows n_past, n_past + 1, ... of the caches [S, KV * HD], of types as in CACHES.
    For caches of 8-bit blocks all three are mixed (reference.attention.mix_blocks), as `attention` needs them.
    """
    expect("rope_qkv", x, (None, None))
    n, width = x.shape
    slots = heads + 2 * kv_heads
    require("rope_qkv", width % slots == 0, f"{x.name} has rows of {width} for {heads} + 2 x {kv_heads} heads")
    hd = width // slots
    expect_turn("rope_qkv", n, hd, positions, freqs, style, sections)
    expect_cache("rope_qkv", keys, values, kv_heads, hd)
    if norms is not None:
        expect("rope_qkv", norms, (2 * hd,))
    q = plan.empty((n, heads * hd), "f32", f"{x.name}.q")
    turn = turn_params(plan, hd, freqs, style, sections, norms, eps)
    kernel = Kernel.of("rope_qkv.wgsl", H=heads, KV=kv_heads, CACHED=values.dtype, WIDE=hd % 8 == 0, **turn)
    inputs = [x, positions, freqs, *([norms] if norms is not None else []), plan.state]
    grid = (slots, n, 1)
    plan.add("rope_qkv", kernel, inputs, [q, keys, values], grid, nbytes=8 * n * width, flops=6 * n * width)

    mixed = values.dtype == "kv_q8"

    def twin(
        n_past: int, n_tokens: int, x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, keys: np.ndarray,
        values: np.ndarray, *norms: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = x[:n_tokens].reshape(-1, slots, hd)
        turn = (positions, freqs, eps, style, sections)
        of_q, of_k = (norms[0][:hd], norms[0][hd:]) if norms else (None, None)
        new_keys, new_values = grown(rows[:, heads:], n_past, keys, values, of_k, turn, mixed)
        return [turned(rows[:, :heads], positions, freqs, of_q, eps, style, sections, mixed), new_keys, new_values]

    read = [x, positions, freqs, keys, values, *([norms] if norms is not None else [])]
    plan.check(twin, read, [q, keys, values], TOLERANCES[values.dtype])
    return q


def grown(
    rows: np.ndarray, n_past: int, keys: np.ndarray, values: np.ndarray, norm: np.ndarray | None,
    turn: tuple[np.ndarray, np.ndarray, float, str, Sections], mixed: bool,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """The twin of what is put into a cache: rows [N, 2 KV, HD], keys to be turned and then values -> both caches."""
    positions, freqs, eps, style, sections = turn
    kv_heads = rows.shape[1] // 2
    keys, values = keys.copy(), values.copy()
    new = slice(n_past, n_past + len(rows))
    keys[new] = turned(rows[:, :kv_heads], positions, freqs, norm, eps, style, sections, mixed)
    fresh = rows[:, kv_heads:].reshape(len(rows), -1)
    values[new] = mix_blocks(fresh) if mixed else fresh
    return keys, values


def expect_cache(op: str, keys: Tensor, values: Tensor, kv_heads: int, hd: int) -> None:
    """Keys and values [S, KV * HD] of types that belong together."""
    expect(op, keys, (None, kv_heads * hd), tuple(CACHES))
    expect(op, values, keys.shape, (CACHES[keys.dtype],))
    fits = values.dtype != "kv_q8" or hd in Q8_HEADS
    require(op, fits, f"{keys.name} is {keys.dtype}, which is for heads of 64 and 128, not {hd}")


def expect_turn(op: str, n: int, hd: int, positions: Tensor, freqs: Tensor, style: str, sections: Sections) -> None:
    """What every rotation of N tokens' heads of HD values needs."""
    expect(op, positions, (None, 3))
    expect(op, freqs, (None,))
    pairs = freqs.shape[0]
    require(op, positions.shape[0] >= n, f"{positions.shape[0]} positions for {n} tokens")
    require(op, style in ("neox", "interleaved"), f"unknown style {style!r}")
    require(op, 2 * pairs <= hd and hd % 2 == 0, f"{pairs} pairs do not fit heads of {hd}")
    require(op, sections != "halves" or pairs % 2 == 0, f"{pairs} pairs have no halves")


def turn_params(
    plan: Plan, hd: int, freqs: Tensor, style: str, sections: Sections, norm: Tensor | None, eps: float
) -> dict[str, int | float | bool]:
    """The parameters of lib/turn.wgsl."""
    halves = sections == "halves"
    _, section_h, section_w = (0, 0, 0) if sections is None or sections == "halves" else sections
    params: dict[str, int | float | bool] = {"HD": hd, "PAIRS": freqs.shape[0], "INTERLEAVED": style == "interleaved"}
    params |= {"SECTION_H": int(section_h), "SECTION_W": int(section_w), "HALVES": halves, "NORM": norm is not None}
    if norm is not None:
        params["EPS"] = float(eps)
    return params | {"WG": workgroup_for(plan.device, hd // 2, 64)}


def turned(
    x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, weight: np.ndarray | None, eps: float, style: str,
    sections: Sections, mixed: bool = False,
) -> np.ndarray:  # fmt: skip
    """The twin of lib/turn.wgsl, and with `mixed` of lib/mix.wgsl: x [N, H, HD] -> [N, H * HD]."""
    if weight is not None:
        x = norm_reference.rms_norm(x.reshape(-1, x.shape[-1]), weight, eps).reshape(x.shape)
    result = reference.rope(x, positions[: len(x)], freqs, style, sections).reshape(len(x), -1)
    return mix_blocks(result) if mixed else result
