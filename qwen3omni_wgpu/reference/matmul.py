"""Twins of ops/matmul.py. Weights arrive dequantised to float32, with one row per output as in GGUF."""

import numpy as np

GROUP = 8  # activations that share one scale: four groups to a block of 32 weights
BLOCK = 32


def matmul(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """y = x w^T: x [N, D], w [F, D] -> [N, F]."""
    return x @ w.T


def quantize_q8(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations as 8-bit integers, with one float32 scale for every 8 of them.

    x [N, D], D a multiple of 32 -> (q int8 [N, D], scale float32 [N, D/8], sums float32 [N, D/32]).
    scale = max|x| / 127, q = x / scale rounded half away from zero; sums = the sum of scale * q over a block of 32:
    what a weight block with an offset (Q4_0, Q4_1) needs beside the integer dot products.
    Source: ggml, quantize_row_q8_0_ref (roundf, multiplication by 1 / scale), with groups of 8 instead of 32: see
    docs/decisions.md for what that is worth.
    """
    n, d = x.shape
    groups = x.reshape(n, d // GROUP, GROUP)
    largest = np.max(np.abs(groups), axis=-1)
    scale = largest / np.float32(127)
    inverse = np.divide(np.float32(127), largest, out=np.zeros_like(largest), where=largest > 0)
    scaled = groups * inverse[..., None]
    # np.round goes half to even; floor(|v| + 0.5) goes half away from zero, in float64 so that the addition is exact
    q = np.copysign(np.floor(np.abs(scaled.astype(np.float64)) + 0.5), scaled).astype(np.int8)
    group_sums = scale * q.sum(axis=-1, dtype=np.int32).astype(np.float32)
    sums = group_sums.reshape(n, d // BLOCK, BLOCK // GROUP).sum(axis=-1)
    return q.reshape(n, d), scale, sums


def dequantize_q8(q: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The activations that quantize_q8 stands for: q int8 [N, D], scale [N, D/8] -> float32 [N, D]."""
    return q.astype(np.float32) * np.repeat(scale, GROUP, axis=-1)


def quantize_dequantize_q8(x: np.ndarray) -> np.ndarray:
    """What is left of activations [..., D] after a trip through 8 bits: the same shape, float32."""
    q, scale, _ = quantize_q8(x.reshape(-1, x.shape[-1]))
    return dequantize_q8(q, scale).reshape(x.shape)


def rms_norm_q8(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """rms_norm of x [N, D] in 8 bits. The size of a row is no part of its quants: it scales them afterwards."""
    scale = 1 / np.sqrt(np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32) + np.float32(eps))
    return quantize_dequantize_q8(x * weight) * scale


def matmul_q8(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """matmul with quantised activations: x [N, D] with D a multiple of 32, w [F, D] -> [N, F]."""
    return matmul(quantize_dequantize_q8(x), w)


def moe_matmul(x: np.ndarray, w: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Every token times the matrices of its K experts.

    x [N, D] (the same input for all K, gate and up) or [N, K, D] (one input per chosen expert, down);
    w [E, F, D]; ids [N, K] integers in 0..E-1 -> [N, K, F].
    """
    n, k = ids.shape
    y = np.empty((n, k, w.shape[1]), dtype=np.float32)
    for i in range(n):
        for j in range(k):
            y[i, j] = w[ids[i, j]] @ (x[i] if x.ndim == 2 else x[i, j])
    return y
