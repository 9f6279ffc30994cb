"""Twins of ops/moe.py."""

import numpy as np

from .elementwise import softmax


def moe_gate(logits: np.ndarray, k: int, renormalise: bool, always: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Softmax over all experts, the k most probable of them, optionally divided by their sum.

    logits [N, E], 1 <= k <= E -> (ids uint32 [N, K], weights float32 [N, K]), by falling probability, ties to the lower
    id. always: so many experts E, E + 1, ... come after them, with the sigmoid of a last logit, [N, E + 1].
    Source: transformers, Qwen3MoeTopKRouter (softmax first, then top-k, then norm_topk_prob).
    """
    if always:
        ids, weights = moe_gate(logits[:, :-1], k, renormalise)
        more = np.arange(logits.shape[1] - 1, logits.shape[1] - 1 + always, dtype=np.uint32)
        share = 1 / (1 + np.exp(-logits[:, -1:].astype(np.float64)))
        ids = np.concatenate([ids, np.tile(more, (len(ids), 1))], axis=1)
        return ids, np.concatenate([weights, np.tile(share, always)], axis=1).astype(np.float32)
    probabilities = softmax(logits)
    # a stable sort of the negated logits keeps the lower id first on ties; logits order exactly as probabilities do,
    # without the ties that rounding or underflow of the exponential would add
    ids = np.argsort(-logits, axis=-1, kind="stable")[:, :k]
    weights = np.take_along_axis(probabilities, ids, axis=-1)
    if renormalise:
        weights = weights / np.sum(weights, axis=-1, keepdims=True)
    return ids.astype(np.uint32), weights


def moe_combine(y: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted sum of the chosen experts' outputs: y [N, K, D], weights [N, K] -> [N, D]."""
    return np.einsum("nkd,nk->nd", y, weights)


NONE = 0xFFFFFFFF  # no slot, no expert


def moe_sort(ids: np.ndarray, e: int, tile: int, tiles: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots t * K + k of ids [N, K] by expert, in tiles: (slots uint32 [tiles, tile], experts uint32 [tiles]).

    A tile's slots are of one expert and rise; NONE where there is no slot or no expert.
    """
    slots = np.full((tiles, tile), NONE, np.uint32)
    experts = np.full(tiles, NONE, np.uint32)
    at = 0
    for expert in range(e):
        found = np.flatnonzero(ids.reshape(-1) == expert)
        for start in range(0, len(found), tile):
            piece = found[start : start + tile]
            slots[at, : len(piece)] = piece
            experts[at] = expert
            at += 1
    return slots, experts
