"""Twin of ops/attention.py."""

import numpy as np

from .elementwise import softmax


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_past: int, scale: float, window: int = 0) -> np.ndarray:
    """Causal grouped-query attention of N new tokens over a cache that already holds their keys and values.

    q [N, H, HD], k and v [S, KV, HD] with S >= n_past + N -> [N, H, HD]. Token i sees keys 0 .. n_past + i, with a
    window only the last `window` of them; head h reads key/value head h // (H / KV). `scale` multiplies the dot
    products (1 / sqrt(HD)).
    Source: transformers, eager_attention_forward with a causal mask.
    """
    group = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    for i in range(q.shape[0]):
        end = n_past + i + 1
        seen = slice(max(0, end - window) if window else 0, end)
        for h in range(q.shape[1]):
            scores = k[seen, h // group] @ q[i, h] * np.float32(scale)
            out[i, h] = softmax(scores) @ v[seen, h // group]
    return out


def window_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, tiles: np.ndarray, scale: float) -> np.ndarray:
    """Attention without a causal mask inside windows: q [N, H, HD], k and v [S, H, HD] -> [N, H, HD].

    A tile (first query, count, first key, end of keys) lets its queries see its keys; rows past N are left out. Rows
    that are in no tile become 0.
    Source: transformers, eager_attention_forward under cu_seqlens.
    """
    out = np.zeros_like(q)
    for first, count, start, stop in tiles.astype(np.int64):
        rows = slice(first, min(first + count, len(q)))
        for h in range(q.shape[1]):
            scores = q[rows, h] @ k[start:stop, h].T * np.float32(scale)
            if len(scores):
                out[rows, h] = softmax(scores) @ v[start:stop, h]
    return out
