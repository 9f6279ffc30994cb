"""Token slots grouped by the expert they go to, on the device, so that a matmul reads each expert's weights once."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import moe as reference
from .guard import expect, require


def tiles_needed(slots: int, e: int, tile: int) -> int:
    """The most tiles that so many slots of E experts can fill: every expert may have one that is not full."""
    return max(1, min(slots, (slots + min(slots, e) * (tile - 1)) // tile))


def moe_sort(plan: Plan, ids: Tensor, e: int, tile: int) -> tuple[Tensor, Tensor]:
    """ids uint32 [N, K] of E experts -> (slots uint32 [T, tile], experts uint32 [T]).

    Slot t * K + k is token t's k-th choice. Every tile's slots are of one expert and rise; places without a slot and
    tiles without an expert hold 2^32 - 1. T = tiles_needed. Recorded once for all matmuls of the plan with these ids.
    """
    expect("moe_sort", ids, (None, None), ("u32",))
    require("moe_sort", tile > 0 and e > 0, f"tiles of {tile} slots for {e} experts")
    key = ("moe_sort", id(ids), e, tile)
    if key in plan.memo:
        return plan.memo[key][1]
    n, k = ids.shape
    count = tiles_needed(n * k, e, tile)
    slots = plan.empty((count, tile), "u32", f"{ids.name}.slots")
    experts = plan.empty((count,), "u32", f"{ids.name}.experts")
    threads = min(256, 1 << (e - 1).bit_length())
    kernel = Kernel.of("moe_sort.wgsl", SLOTS=n * k, K=k, E=e, TILE=tile, TILES=count, WG=threads)
    nbytes = 4 * (2 * n * k + slots.shape[0] * (tile + 1))
    plan.add("moe_sort", kernel, [ids, plan.state], [slots, experts], (1, 1, 1), nbytes=nbytes)

    def twin(_: int, n_tokens: int, ids: np.ndarray) -> list[np.ndarray]:
        wanted, owners = reference.moe_sort(ids[:n_tokens], e, tile, count)
        used = owners != reference.NONE
        # Places in tiles that nobody reads hold whatever was there.
        wanted[~used] = slots.numpy()[~used]
        return [wanted, owners]

    plan.check(twin, [ids], [slots, experts], 0.0)  # whole numbers
    plan.memo[key] = (ids, (slots, experts))  # ids are kept: their id must not be reused
    return slots, experts
