"""Mixture of experts: the router's choice and the weighted sum (the experts themselves are matmul.moe_matmul)."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import moe as reference
from .guard import expect, require, workgroup_for

# exp of differences and a division; weights are at most 1. The ids must be equal (error 0 for integers).
TOLERANCE = 1e-5


def moe_gate(plan: Plan, logits: Tensor, k: int, renormalise: bool, always: int = 0) -> tuple[Tensor, Tensor]:
    """Router logits [N, E] -> (ids uint32 [N, K] by falling probability, weights [N, K]).

    Softmax over all E, the K largest (ties to the lower id), divided by their sum if `renormalise`. always: that many
    experts more, which every token takes: ids and weights are [N, K + always], the last ones E, E + 1, ... with the
    sigmoid of one more logit, [N, E + 1].
    Source: transformers Qwen3MoeTopKRouter, Qwen3OmniMoeTalkerTextSparseMoeBlock.
    """
    expect("moe_gate", logits, (None, None))
    n, width = logits.shape
    e = width - 1 if always else width
    require("moe_gate", 0 < k <= min(e, 256), f"top-{k} of {e} experts")
    wg = max(workgroup_for(plan.device, e), 1 << (k - 1).bit_length())  # thread k writes the k-th choice
    ids = plan.empty((n, k + always), "u32", f"{logits.name}.ids")
    weights = plan.empty((n, k + always), "f32", f"{logits.name}.weights")
    kernel = Kernel.of("moe_gate.wgsl", E=e, K=k, RENORMALISE=renormalise, ALWAYS=always, WG=wg)
    plan.add("moe_gate", kernel, [logits, plan.state], [ids, weights], (n, 1, 1), nbytes=4 * n * (e + 2 * k))

    def twin(_: int, n_tokens: int, logits: np.ndarray) -> list[np.ndarray]:
        return list(reference.moe_gate(logits[:n_tokens], k, renormalise, always))

    plan.check(twin, [logits], [ids, weights], TOLERANCE)
    return ids, weights


def moe_combine(plan: Plan, x: Tensor, weights: Tensor) -> Tensor:
    """Sum of the chosen experts' outputs: x [N * K, D], weights [N, K] -> [N, D]."""
    expect("moe_combine", weights, (None, None))
    n, k = weights.shape
    expect("moe_combine", x, (n * k, None))
    d = x.shape[1]
    require("moe_combine", d % 4 == 0, f"{x.name} has rows of {d}, not a multiple of 4")
    y = plan.empty((n, d), "f32", f"{x.name}.combined")
    kernel = Kernel.of("moe_combine.wgsl", D=d, K=k, WG=64)
    grid = (-(-d // 256), n, 1)
    inputs = [x, weights, plan.state]
    plan.add("moe_combine", kernel, inputs, [y], grid, nbytes=4 * n * d * (k + 1), flops=2 * n * k * d)

    def twin(_: int, n_tokens: int, x: np.ndarray, weights: np.ndarray) -> list[np.ndarray]:
        weights = weights[:n_tokens]
        return [reference.moe_combine(x.reshape(-1, k, d)[: len(weights)], weights)]

    plan.check(twin, [x, weights], [y], TOLERANCE)
    return y
