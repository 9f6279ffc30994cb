"""Twins of ops/elementwise.py."""

import math

import numpy as np


def swiglu(gate: np.ndarray, up: np.ndarray) -> np.ndarray:
    """silu(gate) * up with silu(g) = g / (1 + e^-g); gate and up of equal shape -> the same shape.

    Source: transformers, LlamaMLP (act_fn(gate_proj(x)) * up_proj(x), act_fn silu).
    """
    # e^-g overflows to inf for very negative g, which gives the right limit: g / inf = -0
    with np.errstate(over="ignore"):
        return gate / (np.float32(1) + np.exp(-gate)) * up


def gelu(x: np.ndarray) -> np.ndarray:
    """x * (1 + erf(x / sqrt 2)) / 2 of any shape, in float64 until the last rounding.

    Source: Hendrycks and Gimpel 2016; torch.nn.functional.gelu.
    """
    wide = x.astype(np.float64)
    erf = np.array([math.erf(value) for value in (wide / math.sqrt(2)).ravel()]).reshape(x.shape)
    return (wide * (1 + erf) / 2).astype(np.float32)


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    """x * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 x^3))) / 2 of any shape, in float64 until the last rounding.

    Source: Hendrycks and Gimpel 2016; torch.nn.functional.gelu(approximate="tanh").
    """
    wide = x.astype(np.float64)
    return (wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3))) / 2).astype(np.float32)


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a + b of equal shape."""
    return a + b


def replace_rows(x: np.ndarray, rows: np.ndarray, flags: np.ndarray) -> np.ndarray:
    """Row t of `rows` where flags[t] is not 0, of x elsewhere: x and rows [N, D], flags [N] -> [N, D].

    Source: transformers, Qwen3OmniMoeThinkerForConditionalGeneration.forward (masked_scatter into inputs_embeds).
    """
    return np.where(flags[:, None] != 0, rows, x)


def softmax(x: np.ndarray) -> np.ndarray:
    """softmax over the last axis: x [..., D] -> [..., D]; the maximum is taken off first. -inf gives exactly 0."""
    exps = np.exp(x - np.max(x, axis=-1, keepdims=True))
    return exps / np.sum(exps, axis=-1, keepdims=True)
