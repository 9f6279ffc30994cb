"""Twins of ops/rope.py: rotary position embedding in its three flavours."""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Sections = Sequence[int] | Literal["halves"] | None


def rope_frequencies(rope_dim: int, theta: float, scale: float = 1.0, factors: np.ndarray | None = None) -> np.ndarray:
    """Radians per position of every rotated pair: float32 [rope_dim / 2].

    theta^(-2i / rope_dim), divided by `scale` (linear scaling: 2.0 means twice the context) and by `factors`
    [rope_dim / 2] (llama 3's `rope_freqs.weight`).
    Source: transformers, LlamaRotaryEmbedding.compute_default_rope_parameters; llama.cpp, ggml_rope_ext freq_factors.
    """
    exponents = np.arange(0, rope_dim, 2, dtype=np.float32) / np.float32(rope_dim)
    frequencies = np.float32(1) / np.power(np.float32(theta), exponents) / np.float32(scale)
    return frequencies if factors is None else frequencies / factors.astype(np.float32)


def rope_axes(count: int, sections: Sections) -> np.ndarray:
    """Which of the positions (0 t, 1 h, 2 w) turns each of `count` pairs: int [count].

    Interleaved M-RoPE: pair i follows h for i % 3 == 1 and i < 3 * sections[1], w for i % 3 == 2 and
    i < 3 * sections[2], t otherwise. "halves": h for the first half of the pairs, w for the second (vision towers).
    Without sections every pair follows t.
    Source: transformers, apply_interleaved_mrope and VisionRotaryEmbedding of Qwen3-Omni and Qwen3-VL.
    """
    if sections == "halves":
        return np.repeat([1, 2], count // 2)
    axes = np.zeros(count, dtype=np.int64)
    if sections is not None:
        for axis in (1, 2):
            axes[axis : 3 * sections[axis] : 3] = axis
    return axes


def rope(
    x: np.ndarray,
    positions: np.ndarray,
    freqs: np.ndarray,
    style: str,
    sections: Sections = None,
) -> np.ndarray:
    """Rotate pairs of every head by position times frequency.

    x [N, H, HD], positions float32 [N, 3] (t, h, w; plain RoPE reads only t), freqs [rope_dim / 2] -> [N, H, HD].
    style "neox" pairs i with i + rope_dim / 2 (Qwen), "interleaved" pairs 2i with 2i + 1 (llama in GGUF, whose q and k
    rows llama.cpp has permuted). Values from rope_dim on stay as they are. Angles, cos and sin are float32.
    Source: transformers, apply_rotary_pos_emb; ggml, GGML_ROPE_TYPE_NORMAL and GGML_ROPE_TYPE_NEOX.
    """
    half = len(freqs)
    angles = positions.astype(np.float32)[:, rope_axes(half, sections)] * freqs.astype(np.float32)
    cos, sin = np.cos(angles)[:, None, :], np.sin(angles)[:, None, :]
    if style == "neox":
        first, second = slice(0, half), slice(half, 2 * half)
    elif style == "interleaved":
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    else:
        raise ValueError(f"rope style {style!r}: expected 'neox' or 'interleaved'")
    a, b = x[..., first], x[..., second]
    out = x.copy()
    out[..., first] = a * cos - b * sin
    out[..., second] = b * cos + a * sin
    return out
