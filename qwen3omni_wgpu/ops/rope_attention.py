"""Everything between a layer's qkv matmul and its output matmul: one dispatch where few tokens see few keys."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import attention as reference
from ..reference.attention import mix_blocks
from ..reference.rope import Sections
from .attention import TOLERANCE, attention
from .attention_ways import Way, problem_of
from .choice import choose
from .flash_decode import add_combine, add_split
from .guard import expect, require, workgroup_for
from .rope import TOLERANCE_F16, TOLERANCES, expect_cache, expect_turn, grown, rope_qkv, turn_params, turned

# Keys a workgroup has scores for, and tokens.
MOST_KEYS = 32
MOST_TOKENS = 2


def rope_attention(
    plan: Plan,
    x: Tensor,
    positions: Tensor,
    freqs: Tensor,
    heads: int,
    kv_heads: int,
    keys: Tensor,
    values: Tensor,
    scale: float,
    *,
    style: str,
    sections: Sections = None,
    norms: Tensor | None = None,
    eps: float = 0.0,
    way: Way | None = None,
) -> Tensor:
    """rope_qkv, then attention over the cache: x [N, (H + 2 KV) * HD] -> [N, H * HD]; arguments as those two have them.

    One dispatch for one or two tokens with a cache [S, KV * HD] of at most 32 rows; for one or two tokens with a longer
    one also two, parts of the keys side by side and then their sum; else those two. `way`: see `attention`.
    """
    op = "rope_attention"
    expect(op, x, (None, None))
    n, width = x.shape
    slots = heads + 2 * kv_heads
    require(op, width % slots == 0, f"{x.name} has rows of {width} for {heads} + 2 x {kv_heads} heads")
    require(op, heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} key/value heads evenly")
    hd = width // slots
    expect_turn(op, n, hd, positions, freqs, style, sections)
    expect_cache(op, keys, values, kv_heads, hd)
    if norms is not None:
        expect(op, norms, (2 * hd,))
    rows, group = keys.shape[0], heads // kv_heads
    floats = n * ((group + 2) * hd + 2 * group * rows + 8 * (group + 1))  # of workgroup memory
    fits = 4 * floats + 1024 <= plan.device.limits["max-compute-workgroup-storage-size"]
    if n > MOST_TOKENS or rows > MOST_KEYS or not fits or values.dtype == "kv_q8":
        chosen = way or choose(plan.device, problem_of(n, heads, kv_heads, hd, values.dtype, rows, 0))
        turn = {"style": style, "sections": sections, "norms": norms, "eps": eps}
        if chosen.kernel == "split":
            return _split(plan, chosen, x, positions, freqs, heads, kv_heads, keys, values, scale, **turn)
        q = rope_qkv(plan, x, positions, freqs, heads, kv_heads, keys, values, **turn)
        return attention(plan, q, keys, values, heads, kv_heads, scale, way=chosen)
    y = plan.empty((n, heads * hd), "f32", f"{x.name}.attention")
    params = turn_params(plan, hd, freqs, style, sections, norms, eps)
    params |= {"WG": workgroup_for(plan.device, max(hd, 2 * rows), 128), "N": n, "S": rows, "SCALE": float(scale)}
    kernel = Kernel.of("rope_attention.wgsl", H=heads, KV=kv_heads, TO=keys.dtype, **params)
    inputs = [x, positions, freqs, *([norms] if norms is not None else []), plan.state]
    nbytes = keys.nbytes + values.nbytes + 8 * n * width
    plan.add(op, kernel, inputs, [y, keys, values], (kv_heads, 1, 1), nbytes=nbytes, flops=4 * n * heads * hd * rows)

    def twin(
        n_past: int, n_tokens: int, x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, old_keys: np.ndarray,
        old_values: np.ndarray, *norms: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = x[:n_tokens].reshape(-1, slots, hd)
        of_q, of_k = (norms[0][:hd], norms[0][hd:]) if norms else (None, None)
        new_keys, new_values = old_keys.copy(), old_values.copy()
        new = slice(n_past, n_past + len(rows))
        new_keys[new] = turned(rows[:, heads : heads + kv_heads], positions, freqs, of_k, eps, style, sections)
        new_values[new] = rows[:, heads + kv_heads :].reshape(len(rows), -1)
        q = turned(rows[:, :heads], positions, freqs, of_q, eps, style, sections).reshape(-1, heads, hd)
        # A key on the border between two halves may round the other way: keys are judged, then used as they are.
        k, v = (cache.numpy()[: new.stop].astype(np.float32).reshape(-1, kv_heads, hd) for cache in (keys, values))
        return [reference.attention(q, k, v, n_past, scale).reshape(len(rows), -1), new_keys, new_values]

    read = [x, positions, freqs, keys, values, *([norms] if norms is not None else [])]
    # Scores off by the rotation's 1e-6 or so move the shares by as much.
    plan.check(twin, read, [y, keys, values], TOLERANCE_F16 if keys.dtype == "f16" else 2 * TOLERANCE)
    return y


def _split(
    plan: Plan, way: Way, x: Tensor, positions: Tensor, freqs: Tensor, heads: int, kv_heads: int, keys: Tensor,
    values: Tensor, scale: float, *, style: str, sections: Sections, norms: Tensor | None, eps: float,
) -> Tensor:  # fmt: skip
    """One or two tokens over a long cache: turning and parts of the sums in one dispatch, then one for the whole."""
    n, width = x.shape
    slots = heads + 2 * kv_heads
    hd = width // slots
    shape = (n, heads, kv_heads, hd)
    most = way.most_keys(plan.device, heads // kv_heads, hd)
    require("rope_attention", keys.shape[0] <= most, f"{keys.name} has {keys.shape[0]} rows, this device can do {most}")
    inputs = [x, positions, freqs, *([norms] if norms is not None else [])]
    params = turn_params(plan, hd, freqs, style, sections, norms, eps)
    scratch = add_split(plan, "rope_attention", way, inputs, keys, values, shape, scale, params)

    mixed = values.dtype == "kv_q8"

    def cache_twin(
        n_past: int, n_tokens: int, x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, old_keys: np.ndarray,
        old_values: np.ndarray, *norms: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = x[:n_tokens].reshape(-1, slots, hd)[:, heads:]
        of_k = norms[0][hd:] if norms else None
        return list(grown(rows, n_past, old_keys, old_values, of_k, (positions, freqs, eps, style, sections), mixed))

    read = [x, positions, freqs, keys, values, *([norms] if norms is not None else [])]
    plan.check(cache_twin, read, [keys, values], TOLERANCES[values.dtype])
    y = add_combine(plan, "rope_attention", way, scratch, keys, values, shape)

    def twin(
        n_past: int, n_tokens: int, x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, keys: np.ndarray,
        values: np.ndarray, *norms: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = x[:n_tokens].reshape(-1, slots, hd)
        of_q = norms[0][:hd] if norms else None
        q = turned(rows[:, :heads], positions, freqs, of_q, eps, style, sections, mixed).reshape(-1, heads, hd)
        k, v = (cache[: n_past + len(rows)].reshape(-1, kv_heads, hd) for cache in (keys, values))
        result = reference.attention(q, k, v, n_past, scale).reshape(len(rows), -1)
        return [mix_blocks(result) if mixed else result]

    # Scores off by the rotation's 1e-6 or so move the shares by as much. Keys and values are judged above.
    plan.check(twin, read, [y], 2 * TOLERANCE)
    return y
