"""Everything between a layer's qkv matmul and its output matmul: one dispatch where few tokens see few keys."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import attention as reference
from ..reference.rope import Sections
from .attention import TOLERANCE, attention
from .guard import expect, require, workgroup_for
from .rope import TOLERANCE_F16, expect_turn, rope_qkv, turn_params, turned

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
) -> Tensor:
    """rope_qkv, then attention over the cache: x [N, (H + 2 KV) * HD] -> [N, H * HD]; arguments as those two have them.

    One dispatch for one or two tokens with a cache [S, KV * HD] of at most 32 rows, else those two.
    """
    op = "rope_attention"
    expect(op, x, (None, None))
    n, width = x.shape
    slots = heads + 2 * kv_heads
    require(op, width % slots == 0, f"{x.name} has rows of {width} for {heads} + 2 x {kv_heads} heads")
    require(op, heads % kv_heads == 0, f"{heads} heads do not share {kv_heads} key/value heads evenly")
    hd = width // slots
    expect_turn(op, n, hd, positions, freqs, style, sections)
    expect(op, keys, (None, kv_heads * hd), ("f32", "f16"))
    expect(op, values, keys.shape, (keys.dtype,))
    if norms is not None:
        expect(op, norms, (2 * hd,))
    rows, group = keys.shape[0], heads // kv_heads
    floats = n * ((group + 2) * hd + 2 * group * rows + 8 * (group + 1))  # of workgroup memory
    fits = 4 * floats + 1024 <= plan.device.limits["max-compute-workgroup-storage-size"]
    if n > MOST_TOKENS or rows > MOST_KEYS or not fits:
        turn = {"style": style, "sections": sections, "norms": norms, "eps": eps}
        q = rope_qkv(plan, x, positions, freqs, heads, kv_heads, keys, values, **turn)
        return attention(plan, q, keys, values, heads, kv_heads, scale)
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
