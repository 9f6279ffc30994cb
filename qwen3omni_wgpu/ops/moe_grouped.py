"""Gate, up and SwiGLU of many tokens' experts, in tiles of token slots that have the expert in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gpu import Plan, Tensor
from ..reference import matmul as reference
from ..reference.elementwise import swiglu as swiglu_twin
from .matmul import moe_matmul, quantize_q8
from .tiled import grouped_into
from .variant import TOLERANCE, TOLERANCE_Q8, Variant, is_packed


def grouped_swiglu(plan: Plan, x: Tensor, weights: Sequence[Tensor], ids: Tensor, variant: Variant) -> Tensor:
    """As moe_swiglu: x [N, D], weights Gate and Up [E, F, D] or one [2 E, F, D], ids uint32 [N, K] -> [N * K, F].

    One dispatch beside the grouping where gates and ups are one tensor (in one part); else the ups' multiplies what the
    gates' has left.
    """
    (n, k), f = ids.shape, weights[0].shape[1]
    first = weights[0]
    joined = len(weights) == 1
    e = first.shape[0] // 2 if joined else weights[0].shape[0]
    w = first if joined else weights[1]
    y = plan.empty((n * k, f), "f32", f"{first.name}.swiglu")
    gate = None if joined else moe_matmul(plan, x, weights[0], ids, variant=variant)
    packed = is_packed(plan, w)
    inputs = list(quantize_q8(plan, x)) if packed else [x]
    grouped_into(plan, "moe_swiglu", inputs, w, ids, y, variant, per_x=k, glu=joined, gate=gate)

    def twin(
        _: int, n_tokens: int, x: np.ndarray, w: np.ndarray, ids: np.ndarray, *gate: np.ndarray
    ) -> list[np.ndarray]:
        ids = ids[:n_tokens]
        x = reference.quantize_dequantize_q8(x[: len(ids)]) if packed else x[: len(ids)]
        up = reference.moe_matmul(x, w[-e:], ids)
        gates = gate[0].reshape(-1, k, f)[: len(ids)] if gate else reference.moe_matmul(x, w[:e], ids)
        return [swiglu_twin(gates, up)]

    inputs = [x, w, ids, *([gate] if gate is not None else [])]
    plan.check(twin, inputs, [y], TOLERANCE_Q8 if packed else TOLERANCE, steps=len(w.parts))
    return y
