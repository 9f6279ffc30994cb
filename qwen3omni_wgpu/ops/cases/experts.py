"""Cases of the mixture of experts."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...gpu import Plan, Tensor
from ..matmul import moe_matmul
from ..moe import moe_combine, moe_gate
from ..moe_experts import moe_down, moe_swiglu
from ..moe_route import moe_route, moe_route_swiglu
from ..moe_sort import moe_sort
from .case import Builder, Case, case
from .make import (
    FUSED,
    GROUPED,
    PAIRS,
    VARIANTS,
    Rng,
    expert_ids,
    norm_of,
    normal,
    set_state,
    uploaded,
    variant_of,
    weight,
)


def _moe_matmul(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, shared: bool, act: str = "f32",
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = expert_ids(plan, rng, n, k, e)
    x = normal(plan, rng, n if shared else n * k, d)
    w = weight(plan, rng, (e, f, d), type)
    return [moe_matmul(plan, x, w, ids, variant=variant_of(variant))]


def _moe_swiglu(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, act: str = "f32", apart: bool = False,
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = expert_ids(plan, rng, n, k, e)
    shapes = [(e, f, d)] * 2 if apart else [(2 * e, f, d)]
    weights = [weight(plan, rng, shape, type) for shape in shapes]
    return [moe_swiglu(plan, normal(plan, rng, n, d), weights, ids, variant=variant_of(variant))]


def _moe_down(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, act: str = "f32", residual: bool = False,
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = expert_ids(plan, rng, n, k, e)
    shares = uploaded(plan, rng.random((n, k), dtype=np.float32), "weights")
    rest = normal(plan, rng, n, d, name="residual") if residual else None
    x, w = normal(plan, rng, n * k, f), weight(plan, rng, (e, d, f), type)
    return [moe_down(plan, x, w, ids, shares, residual=rest, variant=variant_of(variant))]


def _moe_route(
    plan: Plan, rng: Rng, type: str, n: int, e: int, k: int, d: int, renormalise: bool = True, norm: bool = False,
    always: int = 0, variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    before = norm_of(plan, rng, d) if norm else None
    router = weight(plan, rng, (e + (always > 0), d), type, "router")
    x, how = normal(plan, rng, n, d), variant_of(variant)
    return list(moe_route(plan, x, router, k, renormalise, norm=before, always=always, variant=how))


def _moe_route_swiglu(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, renormalise: bool = True,
    always: int = 0, act: str = "f32", variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    before = norm_of(plan, rng, d)
    router = weight(plan, rng, (e + (always > 0), d), "f32", "router")
    gate_up, how = [weight(plan, rng, (2 * (e + always), f, d), type)], variant_of(variant)
    x = normal(plan, rng, n, d)
    return list(moe_route_swiglu(plan, x, router, gate_up, k, renormalise, norm=before, always=always, variant=how))


def _moe_gate(plan: Plan, rng: Rng, n: int, e: int, k: int, renormalise: bool, always: int = 0) -> list[Tensor]:
    return list(moe_gate(plan, normal(plan, rng, n, e + (always > 0), scale=2.0), k, renormalise, always))


def _moe_combine(plan: Plan, rng: Rng, n: int, k: int, d: int) -> list[Tensor]:
    weights = uploaded(plan, rng.random((n, k), dtype=np.float32), "weights")
    return [moe_combine(plan, normal(plan, rng, n * k, d), weights)]


def _moe_sort(plan: Plan, rng: Rng, n: int, k: int, e: int, tile: int, used: int | None = None) -> list[Tensor]:
    if used is not None:
        set_state(plan, 0, used)
    return list(moe_sort(plan, expert_ids(plan, rng, n, k, e), e, tile))


BUILDERS: dict[str, Builder] = {
    "moe_matmul": _moe_matmul,
    "moe_swiglu": _moe_swiglu,
    "moe_down": _moe_down,
    "moe_route": _moe_route,
    "moe_route_swiglu": _moe_route_swiglu,
    "moe_sort": _moe_sort,
    "moe_gate": _moe_gate,
    "moe_combine": _moe_combine,
}

CASES: tuple[Case, ...] = (
    *(
        case("moe_matmul", type=t, n=n, k=k, e=8, f=48, d=96, shared=shared, act=act)
        for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "f32"), ("q4_1", "q8"))
        for n, k, shared in ((1, 2, True), (1, 2, False), (5, 3, True), (5, 3, False))
    ),
    *(case("moe_matmul", type="q8_0", n=3, k=2, e=8, f=50, d=288, shared=True, variant=v) for v in VARIANTS[0:5:2]),
    case("moe_matmul", type="q8_0", n=1, k=8, e=16, f=768, d=2048, shared=True),
    case("moe_matmul", type="q8_0", n=1, k=8, e=16, f=2048, d=768, shared=False),
    *(case("moe_matmul", True, type="q8_0", n=n, k=8, e=128, f=768, d=2048, shared=True, act=a)
      for n in (1, 8) for a in ("f32", "q8")),
    *(case("moe_matmul", True, type="q8_0", n=n, k=8, e=128, f=2048, d=768, shared=False, act=a)
      for n in (1, 8) for a in ("f32", "q8")),
    *(case("moe_swiglu", type=t, n=n, k=3, e=8, f=42, d=96, act=act, variant=v)
      for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "q8"), ("q4_1", "f32"))
      for n, v in ((1, None), (2, FUSED))),
    # The same of GPUs; a step of one row's threads goes over several experts.
    *(case(op, type=t, n=2, k=3, e=8, f=f, d=d, act=a, variant=v, **more)
      for op, f, d, more in (("moe_swiglu", 42, 192, {}), ("moe_matmul", 42, 192, {"shared": True}),
                             ("moe_matmul", 42, 64, {"shared": False}), ("moe_down", 64, 44, {"residual": True}))
      for t, a, v in (("q8_0", "q8", PAIRS[0]), ("q8_0", "f32", PAIRS[3]))),
    *(case("moe_down", type=t, n=1, k=5, e=6, f=128, d=36, act=a, variant=v)
      for t, a, v in (("f16", "f32", PAIRS[1]), ("q4_0", "q8", PAIRS[2]), ("q4_1", "f32", PAIRS[0]))),
    *(case("moe_swiglu", type="q8_0", n=n, k=2, e=8, f=32, d=64, apart=a, act="q8")
      for n, a in ((5, False), (1, True))),
    *(case("moe_swiglu", type="q8_0", n=1, k=8, e=16, f=384, d=1024, act=a) for a in ("f32", "q8")),
    *(case("moe_swiglu", True, type="q8_0", n=1, k=8, e=128, f=768, d=2048, act=a) for a in ("f32", "q8")),
    *(case("moe_down", type=t, n=n, k=3, e=8, f=96, d=44, act=act, residual=n == 1, variant=v)
      for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "q8"), ("q4_1", "f32"))
      for n, v in ((1, None), (2, FUSED))),
    case("moe_down", type="q8_0", n=5, k=2, e=8, f=32, d=64, act="q8", residual=True),
    *(case("moe_down", type="q8_0", n=1, k=8, e=16, f=384, d=1024, act=a, residual=True) for a in ("f32", "q8")),
    *(case("moe_down", True, type="q8_0", n=1, k=8, e=128, f=768, d=2048, act=a) for a in ("f32", "q8")),
    *(case("moe_sort", n=n, k=k, e=e, tile=tile, used=used)
      for n, k, e, tile, used in ((1, 1, 1, 1, None), (5, 3, 8, 4, None), (40, 2, 7, 16, 13), (300, 8, 128, 32, None),
                                  (9, 6, 300, 8, None))),
    *(case("moe_matmul", type=t, n=n, k=3, e=8, f=75, d=d, shared=shared, act=a, variant=v)
      for t, a, v in (("q8_0", "q8", GROUPED[0]), ("q4_0", "q8", GROUPED[1]), ("q8_0", "f32", GROUPED[1]),
                      ("f16", "f32", GROUPED[0]))
      for n, d, shared in ((21, 128, True), (7, 96, False))),
    *(case("moe_swiglu", type="q8_0", n=n, k=3, e=8, f=f, d=d, act=a, apart=p, variant=GROUPED[1])
      for n, f, d, a, p in ((13, 32, 128, "q8", False), (6, 75, 96, "f32", False), (9, 75, 128, "q8", True))),
    *(case("moe_swiglu", True, type="q8_0", n=n, k=8, e=128, f=768, d=2048, act=a)
      for n in (128, 512) for a in ("f32", "q8")),
    *(case("moe_matmul", True, type="q8_0", n=n, k=8, e=128, f=2048, d=768, shared=False, act=a)
      for n in (128, 512) for a in ("f32", "q8")),
    *(case("moe_route", type="f32", n=n, e=128, k=k, d=d, norm=True, always=a)
      for n, k, d, a in ((1, 6, 1024, 2), (2, 8, 2048, 0), (5, 6, 96, 2))),
    *(case("moe_route", type=t, n=2, e=e, k=k, d=d, renormalise=r, norm=no)
      for t, e, k, d, r, no in (("f32", 8, 2, 64, False, False), ("bf16", 300, 5, 96, True, True),
                                ("q8_0", 48, 48, 64, False, True), ("q4_1", 7, 1, 32, True, False))),
    case("moe_route", type="f32", n=2, e=37, k=4, d=192, norm=True, always=2, variant=PAIRS[0]),
    *(case("moe_route_swiglu", type=t, n=n, k=k, e=e, f=f, d=d, always=a, act=act, variant=v)
      for t, n, k, e, f, d, a, act, v in (("q8_0", 1, 8, 128, 20, 64, 0, "q8", PAIRS[0]),
                                          ("q8_0", 2, 3, 37, 42, 192, 2, "f32", PAIRS[3]),
                                          ("q4_0", 2, 1, 1, 30, 64, 1, "q8", PAIRS[1]),
                                          ("f16", 1, 5, 6, 32, 128, 0, "f32", PAIRS[2]),
                                          ("q4_1", 2, 2, 9, 32, 96, 1, "f32", None))),
    *(case("moe_route_swiglu", True, type="q8_0", n=1, k=8, e=128, f=768, d=2048, act=a) for a in ("f32", "q8")),
    *(case("moe_gate", n=n, e=e, k=k, renormalise=True, always=a) for n, e, k, a in ((1, 128, 6, 2), (3, 8, 8, 1))),
    *(case("moe_gate", n=n, e=e, k=k, renormalise=r)
      for n, e, k, r in ((1, 128, 8, True), (5, 128, 6, True), (3, 8, 2, False), (2, 48, 4, True), (1, 300, 5, True))),
    *(case("moe_combine", n=n, k=k, d=d) for n, k, d in ((1, 8, 2048), (5, 2, 36))),
)  # fmt: skip
