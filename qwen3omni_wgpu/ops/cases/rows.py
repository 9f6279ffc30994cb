"""Cases of what works row by row: embeddings, norms, elementwise ops."""

from __future__ import annotations

import numpy as np

from ...gpu import Plan, Tensor
from ..codes import embed_code
from ..elementwise import add, replace_rows, softmax, swiglu, swiglu_joined
from ..gather import add_rows, embed, embed_mean, select_row
from ..norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .case import Builder, Case, case
from .make import (
    TYPES,
    Rng,
    normal,
    set_state,
    uploaded,
    weight,
)


def _norm_weights(plan: Plan, rng: Rng, d: int) -> tuple[Tensor, Tensor]:
    return normal(plan, rng, d, name="weight"), normal(plan, rng, d, name="bias")


def _embed(plan: Plan, rng: Rng, type: str, n: int, v: int, d: int) -> list[Tensor]:
    ids = uploaded(plan, rng.integers(0, v, n).astype(np.uint32), "ids")
    return [embed(plan, weight(plan, rng, (v, d), type), ids)]


def _embed_code(plan: Plan, rng: Rng, type: str, v: int, d: int, before: bool) -> list[Tensor]:
    # One in four is no row at all.
    id = uploaded(plan, rng.integers(0, v + v // 3, 1).astype(np.uint32), "id")
    table, total = weight(plan, rng, (v, d), type), normal(plan, rng, 1, d, name="total")
    first = normal(plan, rng, 1, d, name="before") if before else None
    return [embed_code(plan, table, id, total, first), total]


def _embed_mean(plan: Plan, rng: Rng, type: str, n: int, k: int, v: int, d: int) -> list[Tensor]:
    ids = uploaded(plan, rng.integers(0, v, (n, k)).astype(np.uint32), "ids")
    return [embed_mean(plan, weight(plan, rng, (v, d), type), ids)]


def _add_rows(plan: Plan, rng: Rng, n: int, v: int, d: int, k: int) -> list[Tensor]:
    ids = uploaded(plan, rng.integers(0, v, (n, k)).astype(np.uint32), "ids")
    x, table = normal(plan, rng, n, d), normal(plan, rng, v, d, name="table")
    return [add_rows(plan, x, table, ids, normal(plan, rng, n, k, name="weights"))]


def _select_row(plan: Plan, rng: Rng, n: int, d: int, used: int) -> list[Tensor]:
    set_state(plan, 7, used)
    return [select_row(plan, normal(plan, rng, n, d))]


def _replace_rows(plan: Plan, rng: Rng, n: int, d: int, used: int | None = None) -> list[Tensor]:
    if used is not None:
        set_state(plan, 3, used)
    flags = uploaded(plan, rng.integers(0, 3, n).astype(np.uint32), "flags")
    return [replace_rows(plan, normal(plan, rng, n, d), normal(plan, rng, n, d, name="rows"), flags)]


def _add(plan: Plan, rng: Rng, n: int, f: int) -> list[Tensor]:
    return [add(plan, normal(plan, rng, n, f), normal(plan, rng, n, f))]


def _swiglu(plan: Plan, rng: Rng, n: int, f: int, per_token: int = 1) -> list[Tensor]:
    gate = normal(plan, rng, n * per_token, f, scale=3.0)
    return [swiglu(plan, gate, normal(plan, rng, n * per_token, f), per_token)]


def _swiglu_joined(plan: Plan, rng: Rng, n: int, f: int) -> list[Tensor]:
    return [swiglu_joined(plan, normal(plan, rng, n, 2 * f, scale=3.0))]


def _softmax(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    return [softmax(plan, normal(plan, rng, n, d, scale=4.0))]


def _rms_norm(plan: Plan, rng: Rng, n: int, d: int, act: str = "f32") -> list[Tensor]:
    plan.activations = act
    return [rms_norm(plan, normal(plan, rng, n, d), normal(plan, rng, d, name="weight"), 1e-6)]


def _add_rms_norm(plan: Plan, rng: Rng, n: int, d: int, scaled: bool = False, act: str = "f32") -> list[Tensor]:
    plan.activations = act
    x, residual = normal(plan, rng, n, d), normal(plan, rng, n, d, name="residual")
    factors = normal(plan, rng, d, name="factors") if scaled else None
    return list(add_rms_norm(plan, x, residual, normal(plan, rng, d, name="weight"), 1e-5, factors))


def _layer_norm(plan: Plan, rng: Rng, n: int, d: int, per_token: int = 1) -> list[Tensor]:
    x, weight, bias = normal(plan, rng, n * per_token, d), *_norm_weights(plan, rng, d)
    return [layer_norm(plan, x, weight, bias, 1e-5, per_token)]


def _add_layer_norm(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    x, residual = normal(plan, rng, n, d), normal(plan, rng, n, d, name="residual")
    return list(add_layer_norm(plan, x, residual, *_norm_weights(plan, rng, d), 1e-6))


BUILDERS: dict[str, Builder] = {
    "embed": _embed,
    "embed_code": _embed_code,
    "embed_mean": _embed_mean,
    "add_rows": _add_rows,
    "select_row": _select_row,
    "replace_rows": _replace_rows,
    "add": _add,
    "swiglu": _swiglu,
    "swiglu_joined": _swiglu_joined,
    "softmax": _softmax,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
}

CASES: tuple[Case, ...] = (
    *(case("embed", type=t, n=9, v=300, d=d) for t in TYPES for d in (96, 576)),
    case("embed", type="q8_0", n=3, v=4096, d=2048),
    *(case("embed_code", type=t, v=40, d=96, before=b) for t in TYPES for b in (False, True)),
    *(case("embed_code", type=t, v=3072, d=1024, before=b) for t, b in (("q8_0", True), ("f16", False))),
    *(case("embed_mean", type=t, n=3, k=16, v=90, d=96) for t in TYPES),
    case("embed_mean", type="f16", n=2, k=16, v=32768, d=1024),
    *(case("add_rows", n=n, v=v, d=d, k=k) for n, v, d, k in ((13, 1500, 1280, 1), (9, 2304, 1152, 4), (3, 5, 12, 2))),
    *(case("rms_norm", n=n, d=d) for n, d in ((1, 2048), (5, 576), (3, 100), (128, 64))),
    *(case("add_rms_norm", n=n, d=d) for n, d in ((1, 2048), (7, 576), (2, 33))),
    # In 8 bits as well; rows that are not whole blocks stay float.
    *(case("rms_norm", n=n, d=d, act="q8") for n, d in ((1, 2048), (5, 576), (3, 32), (2, 100))),
    *(case("add_rms_norm", n=n, d=d, act="q8") for n, d in ((3, 2048), (7, 96), (2, 33))),
    *(case("add_rms_norm", n=n, d=d, scaled=True) for n, d in ((4, 1024), (2, 33))),
    *(case("layer_norm", n=n, d=d, per_token=p) for n, d, p in ((3, 1280, 1), (2, 1152, 4), (3, 4608, 1), (5, 33, 2))),
    *(case("add_layer_norm", n=n, d=d) for n, d in ((3, 1280), (7, 100))),
    *(case("swiglu_joined", n=n, f=f) for n, f in ((1, 1536), (7, 36))),
    *(case("swiglu", n=n, f=f, per_token=p) for n, f, p in ((1, 1536, 1), (9, 768, 8), (3, 36, 3))),
    case("add", n=5, f=2048),
    *(case("replace_rows", n=n, d=d, used=u) for n, d, u in ((7, 2048, 5), (1, 64, None), (9, 36, None))),
    *(case("softmax", n=n, d=d) for n, d in ((3, 128), (2, 1000))),
    case("select_row", n=8, d=576, used=5),
    case("select_row", n=1, d=2048, used=1),
)  # fmt: skip
