"""Twins of ops/sample.py: what the GPU does with the logits of the last position."""

import numpy as np


def argmax(x: np.ndarray) -> np.ndarray:
    """Index of the largest value of every row, the lower one on ties: x [N, V] -> uint32 [N]."""
    return np.argmax(x, axis=-1).astype(np.uint32)


def logsumexp(x: np.ndarray) -> np.ndarray:
    """log(sum(exp(x))) over the last axis: x [..., V] -> float32 [...], summed in float64."""
    top = np.max(x, axis=-1, keepdims=True)
    total = np.sum(np.exp((x - top).astype(np.float64)), axis=-1)
    return (np.log(total) + top[..., 0]).astype(np.float32)


def top_k(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray, float]:
    """The k largest logits of one position and what is needed to turn them into probabilities.

    x [V], 1 <= k <= V -> (ids uint32 [k], values float32 [k] falling, ties to the lower id; logsumexp of all V).
    """
    ids = np.argsort(-x, kind="stable")[:k]
    return ids.astype(np.uint32), x[ids], float(logsumexp(x))


def penalize(
    logits: np.ndarray,
    ids: np.ndarray,
    counts: np.ndarray,
    repeat: float,
    presence: float,
    frequency: float,
) -> np.ndarray:
    """Make recently used tokens less likely.

    logits [V]; ids [M] distinct tokens of the recent window and counts [M] how often each occurs there -> [V].
    For every such token: a positive logit is divided by `repeat`, any other multiplied by it; then
    count * frequency + presence (where count > 0) is taken off.
    Source: llama.cpp, llama_sampler_penalties_apply.
    """
    out = logits.astype(np.float32, copy=True)
    for token, count in zip(np.asarray(ids, dtype=np.int64), counts, strict=True):
        if count == 0:
            continue
        value = out[token]
        value = value * np.float32(repeat) if value <= 0 else value / np.float32(repeat)
        out[token] = value - (np.float32(count) * np.float32(frequency) + np.float32(presence))
    return out
