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


def allowed(
    logits: np.ndarray, seen: np.ndarray | None, repeat: float, left_out: tuple[int, int], spared: int | None
) -> np.ndarray:
    """Logits [V] after the repeat penalty, -inf where a token may not come: left out, or no number.

    seen [V]: how often a token came so far; positive logits of those that did are divided by `repeat`, others
    multiplied, once. left_out (first, stop) is a range of ids without `spared`.
    Source: transformers RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor.
    """
    out = logits.astype(np.float32, copy=True)
    if seen is not None:
        penalised = np.where(out > 0, out / np.float32(repeat), out * np.float32(repeat))
        out = np.where(seen > 0, penalised, out)
    ids = np.arange(len(out))
    gone = (ids >= left_out[0]) & (ids < left_out[1]) & (ids != spared) | np.isnan(logits) | np.isneginf(logits)
    largest = np.finfo(np.float32).max
    return np.where(gone, -np.inf, np.clip(out, -largest, largest)).astype(np.float32)


def distribution(x: np.ndarray, temperature: float, k: int, p: float) -> np.ndarray:
    """Probabilities of the tokens after temperature, top-k and top-p: x [V] (-inf: never) -> float64 [V].

    k 0: all; ties of the k-th stay. p: tokens leave from the least probable on while those that left have at most 1 - p
    together; of ties the lower ids leave first. One always stays. 0 everywhere if x is -inf everywhere.
    Source: transformers TopKLogitsWarper, TopPLogitsWarper (which of ties leave is open there).
    """
    if not np.isfinite(x).any():
        return np.zeros(len(x))
    least = np.partition(x, -k)[-k] if 0 < k < len(x) else -np.inf
    weights = np.where(x >= least, np.exp((x.astype(np.float64) - x.max()) / temperature), 0.0)
    weights /= weights.sum()
    if p < 1:
        order = np.argsort(x, kind="stable")
        leaving = order[:-1][np.cumsum(weights[order])[:-1] <= 1 - p]
        weights[leaving] = 0
        weights /= weights.sum()
    return weights


def chain(x: np.ndarray, temperature: float, k: int, p: float, floor: float) -> tuple[np.ndarray, np.ndarray]:
    """What top_k, top_p and min_p leave of logits x [V], falling, ties by id: (ids [M], sums of probabilities [M]).

    k 0: all. Of these the first whose sum of probabilities reaches p; of these those from floor = log(min_p) below the
    best on; of these the probabilities are those of x / temperature. One always stays.
    Source: llama.cpp's chain of top_k, top_p, min_p, temperature.
    """
    ids = np.argsort(-x, kind="stable")
    ids = ids[:k] if k else ids
    falling = x[ids].astype(np.float64)
    masses = np.cumsum(np.exp(falling - falling[0]))
    count = min(len(ids), int(np.searchsorted(masses, p * masses[-1])) + 1) if p < 1 else len(ids)
    count = max(1, min(count, int((x[ids] >= x[ids[0]] + np.float32(floor)).sum())))
    sums = np.cumsum(np.exp((falling[:count] - falling[0]) / temperature))
    return ids[:count], sums / sums[-1]


def draw(probabilities: np.ndarray, uniform: float) -> int:
    """The token at which the sum of probabilities [V] exceeds uniform in [0, 1); V if they are all 0."""
    if not probabilities.any():
        return len(probabilities)
    sums = np.cumsum(probabilities)
    return int(np.searchsorted(sums, min(uniform, 1 - 1e-12) * sums[-1], side="right"))
