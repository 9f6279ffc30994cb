"""Cases of convolutions and of what they keep between steps."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...gpu import Part, Plan, Tensor
from ..conv import conv_columns
from ..conv1d import Tile, conv1d, conv1d_depthwise
from ..streams import Rows, carry_rows, lead_rows, shift_rows
from .case import Builder, Case, case
from .make import (
    Rng,
    normal,
    set_state,
    uploaded,
    weight,
)


def _filled_rows(plan: Plan, rng: Rng, n: int, c: int, before: int) -> Rows:
    lead = lead_rows(before, c)
    whole = normal(plan, rng, lead + n, c)
    body = Part(whole.storage, 4 * lead * c, 4 * n * c, 0, n)
    return Rows(whole, Tensor(plan.device, (n, c), "f32", [body], "x"))


def _conv_columns(plan: Plan, rng: Rng, n: int, t: int, f: int, c: int, valid: int, scale: int = 1) -> list[Tensor]:
    frames = uploaded(plan, np.array([valid], np.uint32), "valid")
    return [conv_columns(plan, normal(plan, rng, n * t * f, c), frames, (t, f), scale)]


def _conv1d(
    plan: Plan, rng: Rng, n: int, rate: int, f: int, c: int, taps: int = 1, dilation: int = 1, type: str = "f32",
    act: str | None = None, scale: bool = False, residual: bool = False, snake: bool = False, plain: bool = False,
    hidden: int = 0, before: int = 0, tile: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    """n tokens of `rate` rows; `before` tokens went before them."""
    plan.state = uploaded(plan, np.array([0, n, before], np.uint32), "state")
    rows = n * rate
    x = _filled_rows(plan, rng, rows, c, (taps - 1) * dilation) if taps > 1 else normal(plan, rng, rows, c)
    added = normal(plan, rng, rows, f, name="residual") if residual else None
    other = plan.empty((rows, f), "f32", "plain") if plain else None
    options = {"taps": taps, "dilation": dilation, "per_token": rate, "act": act, "scale": scale, "hidden": hidden}
    options |= {"residual": added, "snake": snake, "plain": other, "tile": Tile(**tile) if tile else None}
    after = normal(plan, rng, 1 + scale + 2 * snake, f, name="after")
    y = conv1d(plan, x, weight(plan, rng, (f, taps * c), type), after, **options)
    return [y, *([other] if other is not None else [])]


def _conv1d_depthwise(plan: Plan, rng: Rng, n: int, rate: int, c: int, taps: int) -> list[Tensor]:
    x = _filled_rows(plan, rng, n * rate, c, taps - 1)
    w, bias = normal(plan, rng, taps, c, name="w"), normal(plan, rng, c, name="bias")
    return [conv1d_depthwise(plan, x, w, bias, rate)]


def _carry_rows(plan: Plan, rng: Rng, n: int, rate: int, c: int, lead: int, used: int) -> list[Tensor]:
    set_state(plan, 3, used)
    x = _filled_rows(plan, rng, n * rate, c, lead)
    kept = normal(plan, rng, x.lead, c, name="kept")
    return [carry_rows(plan, x, kept, rate).whole, kept]


def _shift_rows(plan: Plan, rng: Rng, count: int, past: int, width: int) -> list[Tensor]:
    set_state(plan, past, 1)
    return [shift_rows(plan, normal(plan, rng, past + 3, width, name="cache"), count)]


BUILDERS: dict[str, Builder] = {
    "conv_columns": _conv_columns,
    "conv1d": _conv1d,
    "conv1d_depthwise": _conv1d_depthwise,
    "carry_rows": _carry_rows,
    "shift_rows": _shift_rows,
}

# Tiles of conv1d that must all be right whatever the rule picks, and what the layers of Code2Wav do after their sums.
TILES: tuple[dict[str, int], ...] = (
    {"side_f": 16, "side_t": 16},
    {"side_f": 8, "side_t": 32},
    {"rows": 1, "tokens": 2, "workgroup": 64},
    {"rows": 4, "tokens": 4, "lanes": 16},
)
AFTER: tuple[dict[str, Any], ...] = (
    {},
    {"act": "gelu"},
    {"scale": True, "residual": True},
    {"snake": True},
    {"snake": True, "plain": True, "hidden": 9},
    {"snake": True, "residual": True, "hidden": 5},
    {"snake": True, "residual": True, "plain": True, "hidden": 8},
    {"act": "clamp"},
)

CASES: tuple[Case, ...] = (
    *(case("conv_columns", n=n, t=t, f=f, c=c, valid=v, scale=s)
      for n, t, f, c, v, s in ((1, 100, 128, 1, 100, 1), (2, 50, 64, 32, 99, 2), (1, 25, 32, 480, 100, 4),
                               (2, 13, 5, 6, 7, 1), (1, 1, 1, 8, 1, 1))),
    *(case("conv1d", n=2, rate=5, f=f, c=c, taps=k, dilation=d, **after)
      for (f, c, k, d), after in zip(
          ((24, 8, 1, 1), (40, 12, 1, 1), (12, 40, 1, 1), (100, 36, 7, 1), (30, 4, 2, 1), (36, 36, 1, 1), (33, 8, 7, 9),
           (1, 96, 7, 1)), AFTER, strict=True)),
    *(case("conv1d", n=3, rate=23, f=70, c=44, taps=7, dilation=3, type="f16", tile=t, **AFTER[6]) for t in TILES),
    *(case("conv1d", n=2, rate=3, f=20, c=12, taps=2, type=t) for t in ("f16", "bf16")),
    *(case("conv1d", n=1, rate=4, f=8, c=32, taps=7, before=b, **AFTER[5]) for b in (1, 2, 1 << 16)),
    # A frame of the 30B's Code2Wav: one layer of each kind.
    *(case("conv1d", True, n=1, rate=r, f=f, c=c, taps=k, dilation=d, type="f16", **AFTER[i])
      for r, f, c, k, d, i in ((4, 4096, 1024, 1, 1, 1), (4, 1024, 4096, 1, 1, 2), (4, 1536, 1024, 7, 1, 3),
                               (4, 6144, 1536, 2, 1, 4), (32, 768, 768, 7, 9, 3), (160, 768, 384, 2, 1, 4),
                               (640, 192, 192, 7, 3, 3), (1920, 96, 96, 7, 9, 3), (1920, 96, 96, 1, 1, 6),
                               (1920, 1, 96, 7, 1, 7))),
    *(case("conv1d_depthwise", n=n, rate=r, c=c, taps=7) for n, r, c in ((3, 2, 1024), (2, 4, 36))),
    *(case("carry_rows", n=n, rate=r, c=c, lead=h, used=u)
      for n, r, c, h, u in ((4, 32, 768, 54, 1), (2, 4, 1024, 6, 2), (9, 3, 4, 6, 5), (3, 5, 36, 1, 3))),
    *(case("shift_rows", count=c, past=p, width=w) for c, p, w in ((71, 300, 1024), (71, 71, 36), (5, 8, 4))),
)  # fmt: skip
