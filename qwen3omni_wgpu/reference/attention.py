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

    Dot products of two such arrays stay what they were. A cache of integers keeps keys and values like this, so that
    a block's few large values do not cost the others their digits. Source: QuaRot (Ashkboos et al. 2024).
    """
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < 32:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return (x.reshape(-1, 32) @ (matrix / np.float32(np.sqrt(32)))).reshape(x.shape)


# Types of cached values -> bits of their integers.
CACHE_BITS = {"kv_q8": 8, "kv_q10": 10}


def to_cache_bytes(rows: np.ndarray, bits: int = 8) -> np.ndarray:
    """Rows [S, W] of a KV cache as CACHE_BITS' types keep them: uint8 [S, W / 32 * (4 * bits + 2)], W a multiple of 64.

    Integers from -(2^(bits-1) - 1) to that, + 2^(bits-1): first a byte a value, its upper 8 bits; of 10 bits then the
    lower two, a 32-bit word for 16 values, byte d % 4 of which has value d at bit d // 4 * 2; then a half a block of 32
    values, its scale: the largest value / (2^(bits-1) - 1), and never so small that a half would keep it as a denormal.
    """
    largest = 2 ** (bits - 1) - 1
    blocks = rows.astype(np.float32).reshape(len(rows), -1, 32)
    scales = np.maximum(np.abs(blocks).max(axis=2) / np.float32(largest), np.float32(2**-14)).astype(np.float16)
    integers = np.clip(np.rint(blocks / scales.astype(np.float32)[:, :, None]), -largest, largest)
    codes = (integers.reshape(rows.shape) + largest + 1).astype(np.uint16)
    parts = [(codes >> (bits - 8)).astype(np.uint8)]
    if bits == 10:
        fields = (codes & 3).reshape(len(rows), -1, 4, 4) << (2 * np.arange(4, dtype=np.uint16))[:, None]
        parts.append(fields.sum(axis=2).astype(np.uint8).reshape(len(rows), -1))
    return np.concatenate([*parts, scales.view(np.uint8)], axis=1)


def from_cache_bytes(raw: np.ndarray, shape: tuple[int, ...], bits: int = 8) -> np.ndarray:
    """The values of `to_cache_bytes`: uint8 [S, W / 32 * (4 * bits + 2)] -> float32 [S, W]."""
    s, width = shape
    raw = raw.reshape(s, -1)
    scales = np.ascontiguousarray(raw[:, width * bits // 8 :]).view(np.float16).astype(np.float32)
    codes = raw[:, :width].astype(np.int32) << (bits - 8)
    if bits == 10:
        fields = raw[:, width : width * 5 // 4].reshape(s, -1, 1, 4) >> (2 * np.arange(4, dtype=np.uint8))[:, None]
        codes |= (fields & 3).reshape(s, width)
    integers = (codes - 2 ** (bits - 1)).astype(np.float32)
    return (integers.reshape(s, -1, 32) * scales[:, :, None]).reshape(s, width)
