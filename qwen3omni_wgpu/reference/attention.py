"""Twin of ops/attention.py."""

import numpy as np

from .elementwise import softmax


def attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_past: int, scale: float) -> np.ndarray:
    """Causal grouped-query attention of N new tokens over a cache that already holds their keys and values.

    q [N, H, HD], k and v [S, KV, HD] with S >= n_past + N -> [N, H, HD]. Token i sees keys 0 .. n_past + i; head h
    reads key/value head h // (H / KV). `scale` multiplies the dot products (1 / sqrt(HD)).
    Source: transformers, eager_attention_forward with a causal mask.
    """
    group = q.shape[1] // k.shape[1]
    out = np.empty_like(q)
    for i in range(q.shape[0]):
        seen = n_past + i + 1
        for h in range(q.shape[1]):
            scores = k[:seen, h // group] @ q[i, h] * np.float32(scale)
            out[i, h] = softmax(scores) @ v[:seen, h // group]
    return out
