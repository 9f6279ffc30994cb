"""Activations in 8 bits: the tensors they are kept in, and how the debug runner judges them."""

from __future__ import annotations

import numpy as np

from ..gpu import NumericalError, Plan, Tensor
from ..reference import matmul as reference

# Quants uint32 [N, D/4], scales float32 [N, D/8], sums of scale * quant float32 [N, D/32].
Quants = tuple[Tensor, Tensor, Tensor]


def empty_quants(plan: Plan, x: Tensor) -> Quants:
    """For the values of x [N, D]."""
    n, d = x.shape
    quants = plan.empty((n, d // 4), "u32", f"{x.name}.quants")
    scales = plan.empty((n, d // 8), "f32", f"{x.name}.scales")
    return quants, scales, plan.empty((n, d // 32), "f32", f"{x.name}.sums")


def known_quants(plan: Plan, x: Tensor) -> Quants | None:
    """What an earlier op of the plan has made of x."""
    return plan.memo["q8", id(x)][1] if ("q8", id(x)) in plan.memo else None


def keep_quants(plan: Plan, x: Tensor, made: Quants) -> None:
    plan.memo["q8", id(x)] = (x, made)  # x is kept: its id must not be reused


def judge_quants(op: str, quants: Tensor, x: np.ndarray) -> list[np.ndarray]:
    """The scales and sums that quants of x [N, D] have to have. NumericalError where the quants are not x's.

    A quant on a rounding border may go the other way, once in 100,000; so the sums are those of the quants found.
    """
    q, scale, _sums = reference.quantize_q8(x)
    found = quants.numpy().view(np.int8)[: len(q)]
    off = np.abs(found.astype(np.int32) - q)
    if off.max(initial=0) > 1 or np.count_nonzero(off) > 2 + off.size // 1000:
        raise NumericalError(f"{op}: {np.count_nonzero(off)} of {off.size} quants differ, most by {off.max()}")
    return [scale, reference.dequantize_q8(found, scale).reshape(len(q), -1, 32).sum(axis=-1)]
