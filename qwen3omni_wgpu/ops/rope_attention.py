"""Everything between a layer's qkv matmul and its output matmul: one dispatch for one token, or few with few keys."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import attention as reference
from ..reference.attention import mix_blocks
from ..reference.rope import Sections
from .attention import TOLERANCE, attention
from .attention_ways import Way, problem_of
from .choice import choose
from .flash_decode import add_split
from .guard import expect, require, workgroup_for
from .guard import values as read_values
from .rope import TOLERANCES, expect_cache, expect_turn, grown, rope_qkv, turn_params, turned

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

    One dispatch for one or two tokens with a cache [S, KV * HD] of at most 32 rows and for one token with a longer one;
    else those two. `way`: see `attention`.
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
    turn = {"style": style, "sections": sections, "norms": norms, "eps": eps}
    params = turn_params(plan, hd, freqs, style, sections, norms, eps)
    inputs = [x, positions, freqs, *([norms] if norms is not None else [])]
    if n > MOST_TOKENS or rows > MOST_KEYS or not fits or values.dtype == "kv_q8":
        chosen = way or choose(plan.device, problem_of(n, heads, kv_heads, hd, values.dtype, rows, 0))
        if chosen.kernel != "split" or n > 1:
            q = rope_qkv(plan, x, positions, freqs, heads, kv_heads, keys, values, **turn)
            return attention(plan, q, keys, values, heads, kv_heads, scale, way=chosen)
        most = chosen.most_keys(plan.device, group, hd)
        require(op, rows <= most, f"{keys.name} has {rows} rows, this device can do {most}")
        y, steps = add_split(plan, op, chosen, inputs, keys, values, (n, heads, kv_heads, hd), scale, params)
    else:
        y, steps = plan.empty((n, heads * hd), "f32", f"{x.name}.attention"), 1
        params |= {"WG": workgroup_for(plan.device, max(hd, 2 * rows), 128), "N": n, "S": rows, "SCALE": float(scale)}
        kernel = Kernel.of("rope_attention.wgsl", H=heads, KV=kv_heads, TO=keys.dtype, **params)
        nbytes, flops = keys.nbytes + values.nbytes + 8 * n * width, 4 * n * heads * hd * rows
        outputs = [y, keys, values]
        plan.add(op, kernel, [*inputs, plan.state], outputs, (kv_heads, 1, 1), nbytes=nbytes, flops=flops)
    _check(plan, steps, x, positions, freqs, heads, kv_heads, keys, values, scale, y, **turn)
    return y


def _check(
    plan: Plan, steps: int, x: Tensor, positions: Tensor, freqs: Tensor, heads: int, kv_heads: int, keys: Tensor,
    values: Tensor, scale: float, y: Tensor, *, style: str, sections: Sections, norms: Tensor | None, eps: float,
) -> None:  # fmt: skip
    """The last `steps` dispatches against their twin."""
    slots = heads + 2 * kv_heads
    mixed = values.dtype == "kv_q8"

    def twin(
        n_past: int, n_tokens: int, x: np.ndarray, positions: np.ndarray, freqs: np.ndarray, old_keys: np.ndarray,
        old_values: np.ndarray, *norms: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = x[:n_tokens].reshape(len(x[:n_tokens]), slots, -1)
        of_q, of_k = (norms[0][: rows.shape[2]], norms[0][rows.shape[2] :]) if norms else (None, None)
        turn = (positions, freqs, eps, style, sections)
        caches = grown(rows[:, heads:], n_past, old_keys, old_values, of_k, turn, mixed)
        q = turned(rows[:, :heads], positions, freqs, of_q, eps, style, sections, mixed).reshape(len(rows), heads, -1)
        # A key on the border between two steps may round the other way: keys are judged, then used as they are.
        stored = (read_values(cache)[: n_past + len(rows)] for cache in (keys, values))
        k, v = (cache.reshape(-1, kv_heads, rows.shape[2]) for cache in stored)
        result = reference.attention(q, k, v, n_past, scale).reshape(len(rows), -1)
        return [mix_blocks(result) if mixed else result, *caches]

    read = [x, positions, freqs, keys, values, *([norms] if norms is not None else [])]
    # Scores off by the rotation's 1e-6 or so move the shares by as much.
    of_caches = TOLERANCES[values.dtype]
    plan.check(twin, read, [y, keys, values], (2 * TOLERANCE, of_caches, of_caches), steps)
