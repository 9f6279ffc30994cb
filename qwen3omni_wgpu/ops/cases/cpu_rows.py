"""Cases of the software adapters' matvec: every weight type, every place where a chunk may start, all that it does."""

from __future__ import annotations

from .case import Builder, Case, case
from .make import TYPES

BUILDERS: dict[str, Builder] = {}


def _variant(rows: int, wide: bool = True) -> dict[str, object]:
    return {"shader": "row_matvec", "lanes": 1, "rows": rows, "tokens": 1, "workgroup": 8, "wide": wide}


CASES: tuple[Case, ...] = (
    # Rows of 3 blocks of Q8_0 start at any even byte of a load, of 2 at any word, of 4 and 8 at some words.
    *(case("matmul", type="q8_0", n=1, f=f, d=d, norm=True, residual=True, variant=_variant(4, wide))
      for f, d, wide in ((76, 96, True), (76, 64, True), (72, 128, True), (40, 256, True), (76, 96, False))),
    *(case("matmul", type=t, n=2, f=44, d=160, norm=True, residual=True, variant=_variant(2)) for t in TYPES),
    *(case("matmul", type=t, n=1, f=75, d=64, bias=True, gelu="gelu", variant=_variant(2)) for t in TYPES),
    case("matmul", type="q4_1", n=1, f=75, d=128, bias=True, gelu="gelu_tanh", variant=_variant(1, wide=False)),
    *(case("matmul_swiglu", type="q8_0", n=2, f=75, d=192, norm=norm, variant=_variant(4)) for norm in (False, True)),
    *(case("moe_swiglu", type="q8_0", n=2, k=3, e=5, f=44, d=128, variant=_variant(8, wide)) for wide in (True, False)),
    *(case("moe_down", type=t, n=2, k=3, e=5, f=96, d=76, residual=residual, variant=_variant(4, wide))
      for t, residual, wide in (("q8_0", True, True), ("q4_0", False, True), ("q8_0", True, False))),
    *(case("moe_matmul", type="q8_0", n=2, k=3, e=5, f=75, d=96, shared=shared, variant=_variant(4))
      for shared in (True, False)),
)  # fmt: skip
