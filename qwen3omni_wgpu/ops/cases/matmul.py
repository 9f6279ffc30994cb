"""Cases of matrix products."""

from __future__ import annotations

from typing import Any

from ...gpu import Plan, Tensor
from ..matmul import matmul, matmul_joined, matmul_swiglu, quantize_q8
from .case import Builder, Case, case
from .make import (
    FUSED,
    PAIRS,
    QUANTISED,
    TYPES,
    VARIANTS,
    Rng,
    norm_of,
    normal,
    set_state,
    variant_of,
    weight,
)


def _matmul(
    plan: Plan, rng: Rng, type: str, n: int, f: int, d: int, act: str = "f32", variant: dict[str, Any] | None = None,
    used: int | None = None, bias: bool = False, gelu: str | None = None, norm: bool = False, residual: bool = False,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    if used is not None:
        set_state(plan, 0, used)
    added = normal(plan, rng, f, name="bias") if bias else None
    before = norm_of(plan, rng, d) if norm else None
    rest = normal(plan, rng, n, f, name="residual") if residual else None
    x, w = normal(plan, rng, n, d, scale=3.0 if norm else 1.0), weight(plan, rng, (f, d), type)
    return [matmul(plan, x, w, bias=added, act=gelu, norm=before, residual=rest, variant=variant_of(variant))]


def _matmul_joined(
    plan: Plan, rng: Rng, types: str, n: int, fs: str, d: int, act: str = "f32", norm: bool = False
) -> list[Tensor]:
    plan.activations = act
    sizes = zip(types.split(), map(int, fs.split()), strict=True)
    weights = [weight(plan, rng, (f, d), kind, f"w{i}") for i, (kind, f) in enumerate(sizes)]
    before = norm_of(plan, rng, d) if norm else None
    return [matmul_joined(plan, normal(plan, rng, n, d), weights, norm=before)]


def _matmul_swiglu(
    plan: Plan, rng: Rng, type: str, n: int, f: int, d: int, act: str = "f32", variant: dict[str, Any] | None = None,
    norm: bool = False,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    w = weight(plan, rng, (2 * f, d), type)
    before = norm_of(plan, rng, d) if norm else None
    return [matmul_swiglu(plan, normal(plan, rng, n, d), [w], norm=before, variant=variant_of(variant))]


def _quantize(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    return list(quantize_q8(plan, normal(plan, rng, n, d)))


BUILDERS: dict[str, Builder] = {
    "matmul": _matmul,
    "matmul_joined": _matmul_joined,
    "matmul_swiglu": _matmul_swiglu,
    "quantize_q8": _quantize,
}

CASES: tuple[Case, ...] = (
    # Every weight type: one token, a few, many; rows with an odd number of blocks (start in the middle of a word).
    *(case("matmul", type=t, n=n, f=96, d=d) for t in TYPES for n, d in ((1, 256), (1, 96), (5, 96), (19, 160))),
    *(case("matmul", type=t, n=n, f=80, d=d, act="q8") for t in QUANTISED for n, d in ((1, 256), (3, 96), (33, 224))),
    *(case("matmul", type="q8_0", n=13, f=150, d=288, act=act, variant=v) for v in VARIANTS for act in ("f32", "q8")),
    *(case("matmul", type="q4_1", n=70, f=130, d=192, act=act, variant=VARIANTS[-1]) for act in ("f32", "q8")),
    case("matmul", type="q8_0", n=32, f=64, d=64, used=11),
    # A bias and an activation after it; rows of floats that end inside a block of 32.
    *(case("matmul", type=t, n=n, f=75, d=96, act=a, bias=True, gelu=g)
      for t, a in (("f32", "f32"), ("q8_0", "q8")) for n, g in ((1, "gelu"), (5, None), (33, "gelu_tanh"))),
    *(case("matmul", type=t, n=n, f=50, d=d, bias=n > 1, gelu="gelu")
      for t in ("f32", "f16", "bf16") for n, d in ((1, 36), (6, 100), (19, 4))),
    *(case("matmul", type="f16", n=13, f=70, d=140, bias=True, gelu="gelu", variant=v) for v in VARIANTS),
    case("matmul", type="f16", n=4, f=1152, d=4304, bias=True),
    # The norm before and the addition after; the talker's and the code predictor's shapes.
    *(case("matmul", type=t, n=n, f=76, d=96, act=a, norm=no, residual=r, variant=v)
      for t, a in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_1", "f32"), ("q4_0", "q8"))
      for n, no, r, v in ((1, True, True, None), (2, False, True, FUSED))),
    # The matvec of GPUs: every weight type, all that stands around, rows that end anywhere in a step of the threads.
    *(case("matmul", type=t, n=2, f=76, d=d, act=a, norm=True, residual=True, variant=v)
      for t, a, d, v in (("f32", "f32", 192, PAIRS[0]), ("f16", "f32", 320, PAIRS[2]), ("bf16", "f32", 64, PAIRS[1]),
                         ("q8_0", "f32", 320, PAIRS[1]), ("q8_0", "q8", 320, PAIRS[0]), ("q4_0", "f32", 192, PAIRS[2]),
                         ("q4_0", "q8", 64, PAIRS[1]), ("q4_1", "f32", 576, PAIRS[0]), ("q4_1", "q8", 192, PAIRS[1]))),
    *(case("matmul", type=t, n=n, f=75, d=d, act=a, bias=b, gelu=g, variant=v)
      for t, a, n, d, b, g, v in (
          ("q8_0", "q8", 5, 320, True, "gelu", PAIRS[3]), ("f16", "f32", 7, 192, True, "gelu", PAIRS[3]),
          ("q8_0", "f32", 3, 576, False, None, PAIRS[2]), ("q4_0", "f32", 1, 64, True, None, PAIRS[1]),
          ("q4_1", "q8", 3, 192, False, "gelu_tanh", PAIRS[0]))),
    case("matmul", type="q8_0", n=2, f=40, d=128, act="q8", residual=True, used=1, variant=PAIRS[0]),
    *(case("matmul", type=t, n=2, f=52, d=160, norm=True, residual=True) for t in ("f16", "bf16", "q4_0")),
    *(case("matmul", type="q8_0", n=n, f=60, d=96, norm=True, residual=True, bias=b, act="q8")
      for n, b in ((5, False), (2, True))),
    *(case("matmul", type=t, n=1, f=1024, d=d, residual=True, act=a)
      for t, a in (("q8_0", "q8"), ("f16", "f32")) for d in (2048, 3072)),
    # SmolLM2-135M and the 30B thinker.
    *(case("matmul", type="q8_0", n=n, f=f, d=d) for n in (1, 128) for f, d in ((576, 576), (1536, 576), (576, 1536))),
    *(case("matmul", type="q8_0", n=1, f=f, d=d) for f, d in ((4096, 2048), (512, 2048), (2048, 4096))),
    case("matmul", type="f32", n=1, f=128, d=2048),
    case("matmul", type="q8_0", n=1, f=4096, d=2048, act="q8"),
    case("matmul", type="q8_0", n=128, f=512, d=2048, act="q8"),
    *(case("matmul", True, type="q8_0", n=n, f=4096, d=2048, act=a) for n in (4, 8, 128, 512) for a in ("f32", "q8")),
    *(case("matmul", True, type="q8_0", n=1, f=152064, d=2048, act=act) for act in ("f32", "q8")),
    case("quantize_q8", n=1, d=2048),
    case("quantize_q8", n=37, d=576),
    *(case("matmul_joined", types=t, n=n, fs=f, d=96, act=act)
      for t, f in (("q8_0", "130"), ("q4_0 q4_0 q8_0", "64 40 26")) for n in (1, 20) for act in ("f32", "q8")),
    *(case("matmul_joined", types=t, n=n, fs=f, d=96, act=act, norm=True)
      for t, f in (("q8_0", "130"), ("q4_0 f16 q8_0", "64 40 26")) for n in (2, 20) for act in ("f32", "q8")),
    case("matmul_joined", types="q8_0", n=1, fs="4096", d=1024, act="q8", norm=True),
    *(case("matmul_swiglu", type=t, n=n, f=f, d=d, act=act)
      for t, act in (("q8_0", "f32"), ("q8_0", "q8"), ("q4_1", "f32"), ("f16", "f32"))
      for n, f, d in ((1, 75, 96), (3, 64, 96), (20, 100, 96))),
    *(case("matmul_swiglu", type="q8_0", n=13, f=75, d=288, act=a, variant=v)
      for v in VARIANTS for a in ("f32", "q8")),
    case("matmul_swiglu", type="q8_0", n=1, f=1536, d=576),
    *(case("matmul_swiglu", type=t, n=n, f=75, d=96, act=act, norm=True, variant=v)
      for t, act in (("q8_0", "f32"), ("q8_0", "q8"), ("f16", "f32"))
      for n, v in ((1, None), (2, None), (4, None))),
    *(case("matmul_swiglu", type="q8_0", n=n, f=75, d=d, act=a, norm=n < 3, variant=v)
      for a, n, d, v in (("q8", 1, 320, PAIRS[0]), ("q8", 4, 192, PAIRS[1]), ("f32", 2, 128, PAIRS[0]))),
    case("matmul_swiglu", type="q8_0", n=1, f=3072, d=1024, act="q8", norm=True),
)  # fmt: skip
