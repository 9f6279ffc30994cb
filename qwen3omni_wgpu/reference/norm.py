"""Twins of ops/norm.py."""

import numpy as np


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    """x / sqrt(mean(x^2) + eps) * weight over the last axis.

    x [..., D], weight [D] -> [..., D]. Also used for QK-norm with x [N, H, HD] and one weight [HD] for all heads.
    Source: transformers, LlamaRMSNorm and Qwen3RMSNorm (statistics in float32, weight applied last).
    """
    mean_square = np.mean(np.square(x), axis=-1, keepdims=True, dtype=np.float32)
    return x / np.sqrt(mean_square + np.float32(eps)) * weight


def add_rms_norm(x: np.ndarray, residual: np.ndarray, weight: np.ndarray, eps: float) -> tuple[np.ndarray, np.ndarray]:
    """Residual addition and the norm that follows it.

    x [N, D], residual [N, D], weight [D] -> (x + residual [N, D], rms_norm of that sum [N, D]).
    """
    total = x + residual
    return total, rms_norm(total, weight, eps)


def layer_norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float) -> np.ndarray:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis.

    x [..., D], weight and bias [D] -> [..., D]. The variance is that of the D values themselves (divided by D).
    Source: torch.nn.functional.layer_norm.
    """
    centred = x - np.mean(x, axis=-1, keepdims=True, dtype=np.float32)
    variance = np.mean(np.square(centred), axis=-1, keepdims=True, dtype=np.float32)
    return centred / np.sqrt(variance + np.float32(eps)) * weight + bias


def add_layer_norm(
    x: np.ndarray, residual: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """Residual addition and the norm that follows it: x and residual [N, D] -> (their sum, layer_norm of it)."""
    total = x + residual
    return total, layer_norm(total, weight, bias, eps)
