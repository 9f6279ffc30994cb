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


def mix_blocks(x: np.ndarray) -> np.ndarray:
    """Every 32 neighbouring values of the last axis times a Hadamard matrix / sqrt(32), which is its own inverse.

    Dot products of two such arrays stay what they were. A "kv_q8" cache keeps keys like this, where a block's few
    large values do not cost the others their digits.
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < 32:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.reshape(-1, 32) @ (matrix / np.float32(np.sqrt(32)))).reshape(x.shape)


def to_cache_bytes(rows: np.ndarray) -> np.ndarray:
    """Rows [S, W] of a KV cache as "kv_q8" keeps them: uint8 [S, W / 32 * 34], W a multiple of 64.

    First a byte a value, its integer (-127 to 127) + 128, then a half a block of 32 values, its scale: the largest
    value / 127, and never so small that a half would keep it as a denormal number.
    """
    blocks = rows.astype(np.float32).reshape(len(rows), -1, 32)
    scales = np.maximum(np.abs(blocks).max(axis=2) / np.float32(127), np.float32(2**-14)).astype(np.float16)
    integers = np.clip(np.rint(blocks / scales.astype(np.float32)[:, :, None]), -127, 127)
    bytes_of = (integers + 128).astype(np.uint8).reshape(rows.shape)
    return np.concatenate([bytes_of, scales.view(np.uint8)], axis=1)


def from_cache_bytes(raw: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The values of `to_cache_bytes`: uint8 [S, W / 32 * 34] -> float32 [S, W]."""
    s, width = shape
    raw = raw.reshape(s, -1)
    scales = np.ascontiguousarray(raw[:, width:]).view(np.float16).astype(np.float32)
    integers = raw[:, :width].astype(np.float32) - 128
    return (integers.reshape(s, -1, 32) * scales[:, :, None]).reshape(s, width)
