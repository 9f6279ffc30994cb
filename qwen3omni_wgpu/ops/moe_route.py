"""The router of a mixture of experts with the norm before it, in one dispatch for one or two tokens."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..gpu import Kernel, NumericalError, Plan, Tensor
from ..reference import moe as reference
from ..reference.elementwise import softmax
from ..reference.norm import rms_norm
from . import pairs
from .fused import MOST_TOKENS, Norm, normed, workgroup_bytes
from .fused import fits as fits_around
from .guard import WEIGHTS, expect, require, workgroup_for
from .matmul import matmul
from .moe import moe_gate
from .moe_experts import few_swiglu_twin, moe_swiglu
from .pair_matvec import Around, pair_matvec
from .variant import TOLERANCE, TOLERANCE_Q8, Variant, is_packed, variant_for

# Bytes of a router that one workgroup takes longer to read than a second dispatch costs: a GPU's unit reads some
# 50 GB/s, a CPU's core some 5.
LARGE = 1 << 18
# Experts that every workgroup of the experts' matvec may rank: it compares each with each.
MOST_RANKED = 256


def moe_route(
    plan: Plan, x: Tensor, router: Tensor, k: int, renormalise: bool, *, norm: Norm | None = None, always: int = 0,
    variant: Variant | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """x [N, D], router [E, D] -> (h [N, D], ids uint32 [N, K] by falling probability, weights [N, K]).

    h = norm(x), with norm = (weight [D], eps) of an RMS norm, or x itself; the choice is moe_gate's of h router^T.
    always: experts that every token takes besides, as moe_gate has them; the router then has one row more, [E + 1, D].
    One dispatch for one or two tokens of small routers: a workgroup reads all of it. Of large ones norm and matmul are
    one dispatch on a GPU, by `variant`, and moe_gate is another; else each has its own.
    """
    op = "moe_route"
    e = _expect(op, x, router, k, norm, always)
    n, (width, d) = x.shape[0], router.shape
    if norm is not None and _apart(plan, x, router, variant):
        h, logits = _logits(plan, x, router, norm, variant)
        return h, *moe_gate(plan, logits, k, renormalise, always)
    largest = 512 if plan.device.limits["max-compute-invocations-per-workgroup"] >= 512 else 256
    wg, lanes = workgroup_for(plan.device, 8 * width, largest), 1 if plan.device.info.software else 8
    # Activations stay float32 and loads 32 bits wide: choices are worth the precision, and routers are small.
    bytes_needed = workgroup_bytes(False, d, Variant("moe_route", lanes=lanes, rows=0, workgroup=wg)) + 4 * (
        width * (lanes + 3) + k
    )
    fits = bytes_needed <= plan.device.limits["max-compute-workgroup-storage-size"]
    if n > MOST_TOKENS or router.nbytes >= LARGE or not fits:
        h = normed(plan, x, norm)
        return h, *moe_gate(plan, matmul(plan, h, router), k, renormalise, always)
    ids = plan.empty((n, k + always), "u32", f"{router.name}.ids")
    weights = plan.empty((n, k + always), "f32", f"{router.name}.weights")
    params = {"WEIGHT": router.dtype, "PACKED": False, "NORM": norm is not None, "RENORMALISE": renormalise}
    params |= {"D": d, "E": e, "K": k, "ALWAYS": always, "LANES": lanes, "WG": wg}
    params["STAGED"] = norm is not None or lanes > 1
    if norm is not None:
        params["EPS"] = float(norm[1])
    h = x if norm is None else plan.empty((n, d), "f32", f"{router.name}.h")
    inputs = [router, x, *([norm[0]] if norm is not None else []), plan.state]
    outputs = [*([h] if norm is not None else []), ids, weights]
    flops = n * d * (2 * width + 4)
    kernel = Kernel.of("moe_route.wgsl", **params)
    plan.add(op, kernel, inputs, outputs, (n, 1, 1), nbytes=router.nbytes * n + 8 * n * d, flops=flops)

    def twin(_: int, n_tokens: int, x: np.ndarray, router: np.ndarray, *weight: np.ndarray) -> list[np.ndarray]:
        h = x[:n_tokens] if norm is None else rms_norm(x[:n_tokens], weight[0], norm[1])
        logits = h @ router.T
        wanted, shares = reference.moe_gate(logits, k, renormalise, always)
        # Of logits that differ by rounding only either may come first: the device's choice is judged, then followed.
        found = ids.numpy()[: len(h), :k]
        _judge(logits[:, :e], found)
        chosen = np.take_along_axis(softmax(logits[:, :e]), found.astype(np.int64), axis=1)
        wanted[:, :k] = found
        shares[:, :k] = chosen / chosen.sum(axis=1, keepdims=True) if renormalise else chosen
        return [*([h] if norm is not None else []), wanted, shares]

    plan.check(twin, [x, router, *([norm[0]] if norm is not None else [])], outputs, TOLERANCE)
    return h, ids, weights


def moe_route_swiglu(
    plan: Plan, x: Tensor, router: Tensor, gate_up: Sequence[Tensor], k: int, renormalise: bool, *,
    norm: Norm | None = None, always: int = 0, variant: Variant | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """moe_route, then moe_swiglu of its h: x [N, D] -> ([N * (K + always), F], ids and weights [N, K + always]).

    gate_up: as moe_swiglu takes it, with the `always` experts behind the others. Where moe_route would be two
    dispatches, a large router's on a GPU, the experts' makes the choice: each of its workgroups ranks the logits.
    """
    op = "moe_route_swiglu"
    e = _expect(op, x, router, k, norm, always)
    for w in gate_up:
        expect(op, w, (2 * (e + always) // len(gate_up), None, router.shape[1]), WEIGHTS)
    how = _ranking(plan, x, router, gate_up, k, always, variant) if norm is not None and renormalise else None
    if norm is None or how is None:
        h, ids, shares = moe_route(plan, x, router, k, renormalise, norm=norm, always=always, variant=variant)
        return moe_swiglu(plan, h, gate_up, ids, variant=variant), ids, shares
    h, logits = _logits(plan, x, router, norm, variant)
    w, (n, slots) = gate_up[0], (x.shape[0], k + always)
    ids = plan.empty((n, slots), "u32", f"{router.name}.ids")
    shares = plan.empty((n, slots), "f32", f"{router.name}.weights")
    y = plan.empty((n * slots, w.shape[1]), "f32", f"{w.name}.swiglu")
    around = Around(glu=True, ids=ids, shares=shares, per_x=slots, logits=logits, always=always)
    pair_matvec(plan, "moe_swiglu", h, w, y, 0, how, around)
    packed = is_packed(plan, w)

    def twin(_: int, n_tokens: int, h: np.ndarray, w: np.ndarray, logits: np.ndarray) -> list[np.ndarray]:
        wanted, weights = reference.moe_gate(logits[:n_tokens], k, renormalise, always)
        return [few_swiglu_twin(h, w, wanted, packed), wanted, weights]

    # Of ids the next one is at least 1 / 256 of the largest away.
    plan.check(twin, [h, w, logits], [y, ids, shares], TOLERANCE_Q8 if packed else TOLERANCE)
    return y, ids, shares


def _expect(op: str, x: Tensor, router: Tensor, k: int, norm: Norm | None, always: int) -> int:
    """The number of experts to choose from; ShapeError where something does not go together."""
    expect(op, router, (None, None), WEIGHTS)
    width, d = router.shape
    expect(op, x, (None, d))
    e = width - 1 if always else width
    require(op, 0 < k <= min(e, 256), f"top-{k} of {e} experts")
    require(op, d % 32 == 0, f"{router.name} has rows of {d}, not a multiple of 32")
    if norm is not None:
        expect(op, norm[0], (d,))
    return e


def _apart(plan: Plan, x: Tensor, router: Tensor, variant: Variant | None) -> bool:
    """Whether the router's matmul has a dispatch of its own: it takes more than one of a GPU's units to be read."""
    large = not plan.device.info.software and router.nbytes >= LARGE and not is_packed(plan, router)
    return (variant is not None or large) and fits_around(plan, x, [router], variant)


def _ranking(
    plan: Plan, x: Tensor, router: Tensor, gate_up: Sequence[Tensor], k: int, always: int, variant: Variant | None
) -> Variant | None:
    """How the experts' matvec goes, if it can rank the logits itself."""
    w, (n, d) = gate_up[0], x.shape
    e = router.shape[0]
    if n > MOST_TOKENS or e > MOST_RANKED or len(gate_up) > 1 or len(w.parts) > 1:
        return None
    slots = k + always
    how = variant or variant_for(plan, "moe_swiglu", w, 1, 2 * w.shape[1] * slots, d, k=slots)
    if how.shader != pairs.SHADER or not _apart(plan, x, router, variant) or not fits_around(plan, x, gate_up, how):
        return None
    size = how.lanes, how.rows, 1, how.workgroup
    ranks = 4 * (8 * (e + how.workgroup) + slots)  # lib/rank.wgsl; more than it takes
    room = plan.device.limits["max-compute-workgroup-storage-size"]
    return how if pairs.workgroup_bytes(size, is_packed(plan, w), d, n) + ranks <= room else None


def _logits(plan: Plan, x: Tensor, router: Tensor, norm: Norm, variant: Variant | None) -> tuple[Tensor, Tensor]:
    """h = norm(x) and h router^T in one dispatch of many workgroups, the first of which writes h."""
    n, (width, d) = x.shape[0], router.shape
    variant = variant or variant_for(plan, "fused", router, n, width, d)
    h, logits = plan.empty((n, d), "f32", f"{router.name}.h"), plan.empty((n, width), "f32", f"{router.name}.logits")
    pair_matvec(plan, "moe_route", x, router, logits, 0, variant, Around(norm=norm, keep=h))

    def twin(_: int, n_tokens: int, x: np.ndarray, router: np.ndarray, weight: np.ndarray) -> list[np.ndarray]:
        h = rms_norm(x[:n_tokens], weight, norm[1])
        return [h, h @ router.T]

    plan.check(twin, [x, router, norm[0]], [h, logits], TOLERANCE)
    return h, logits


def _judge(logits: np.ndarray, ids: np.ndarray) -> None:
    """NumericalError unless the ids [N, K] are the largest of the logits [N, E], falling, as far as rounding tells."""
    for row, found in zip(logits, ids, strict=True):
        if len(set(found.tolist())) < len(found) or found.max() >= len(row):
            raise NumericalError(f"moe_route: {found.tolist()} are not {len(found)} of {len(row)} experts")
        left = np.delete(row, found)
        above = max(left.max(initial=-np.inf) - row[found[-1]], np.diff(row[found]).max(initial=-np.inf))
        if above > TOLERANCE * max(1.0, float(np.abs(row).max())):
            raise NumericalError(f"moe_route: {found.tolist()} are not the {len(found)} best, off by {above:.2e}")
