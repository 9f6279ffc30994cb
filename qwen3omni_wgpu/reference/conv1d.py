"""Twins of ops/conv1d.py and ops/streams.py: causal convolutions over rows of time, channels last."""

import numpy as np


def snake(x: np.ndarray, alpha: np.ndarray, beta: np.ndarray) -> np.ndarray:
    """x + beta * sin(alpha x)^2 over the last axis: x [..., C], alpha and beta [C] -> the same shape.

    alpha is e^a and beta 1 / (e^b + eps) of the stored a and b.
    Source: Ziyin, Hartwig and Ueda 2020; transformers, Qwen3OmniMoeSnakeBeta.
    """
    return x + beta * np.square(np.sin(alpha * x))


def conv1d(x: np.ndarray, weight: np.ndarray, rows: int, dilation: int = 1) -> np.ndarray:
    """Every row and the taps - 1 before it, `dilation` apart: x [S, C], weight [F, taps, C] -> [rows, F].

    Row t of the result reads rows S - rows + t - (taps - 1 - j) * dilation of x.
    Source: transformers, Qwen3OmniMoeCausalConvNet.
    """
    taps, lead = weight.shape[1], len(x) - rows
    result = np.zeros((rows, len(weight)), np.float32)
    for j in range(taps):
        first = lead - (taps - 1 - j) * dilation
        result += x[first : first + rows] @ weight[:, j].T
    return result


def conv1d_depthwise(x: np.ndarray, weight: np.ndarray, rows: int) -> np.ndarray:
    """Every channel alone: x [S, C], weight [taps, C] -> [rows, C]."""
    taps, lead = len(weight), len(x) - rows
    result = np.zeros((rows, x.shape[1]), np.float32)
    for j in range(taps):
        first = lead - (taps - 1 - j)
        result += x[first : first + rows] * weight[j]
    return result
