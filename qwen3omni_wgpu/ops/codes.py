"""Codes of a speech frame: each one's embedding is the next step's input, and their sum the next frame's."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import gather as reference
from .guard import WEIGHTS, expect, grid_1d, require


def embed_code(plan: Plan, table: Tensor, id: Tensor, total: Tensor, before: Tensor | None = None) -> Tensor:
    """The row of table [V, D] for id uint32 [1]: [1, D], or [2, D] behind `before` [1, D]; also added to total [1, D].

    table: any weight type, one part; D a multiple of 32. An id that is no row counts as the last.
    Source: transformers Qwen3OmniMoeTalkerForConditionalGeneration.prepare_inputs_for_generation.
    """
    expect("embed_code", table, (None, None), WEIGHTS)
    v, d = table.shape
    expect("embed_code", id, (1,), ("u32",))
    expect("embed_code", total, (1, d))
    if before is not None:
        expect("embed_code", before, (1, d))
    require("embed_code", d % 32 == 0, f"{table.name} has rows of {d}, not a multiple of 32")
    x = plan.empty((1 if before is None else 2, d), "f32", f"{table.name}.row")
    kernel = Kernel.of("embed_code.wgsl", WEIGHT=table.dtype, V=v, D=d, BEFORE=before is not None, WG=32)
    inputs = [table, id, *([] if before is None else [before])]
    plan.add("embed_code", kernel, inputs, [x, total], grid_1d(plan, d // 32, 32), nbytes=20 * d, flops=d)

    def twin(_p: int, _n: int, table: np.ndarray, id: np.ndarray, total: np.ndarray, *before: np.ndarray) -> list:
        row = reference.embed(table, np.minimum(id, v - 1))
        return [np.concatenate([*before, row]), total + row]

    # Dequantising and one addition, rounded as in the twin.
    plan.check(twin, [table, id, total, *([] if before is None else [before])], [x, total], 1e-6)
    return x
