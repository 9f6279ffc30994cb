"""Cases of rotation, KV cache and attention."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from ...gpu import Plan, Tensor
from ...reference import rope as rope_reference
from ..attention import attention, store_rows
from ..attention_ways import Way, adds_up_last
from ..attention_windows import window_attention, window_tiles
from ..rope import rope, rope_qkv
from ..rope_attention import rope_attention
from ..rows import load_rows
from .case import Builder, Case, case
from .make import (
    Rng,
    filled_cache,
    filled_caches,
    normal,
    set_state,
    uploaded,
)

# Ways of attention that no rule chooses for the small cases.
WAYS: tuple[dict[str, Any], ...] = (
    {"kernel": "split", "workgroup": 128, "splits": 4, "lanes": 8},
    {"kernel": "split", "workgroup": 64, "splits": 8, "lanes": 4, "last": True},
    {"kernel": "tiled", "rows": 8, "staged": True},
    {"kernel": "direct"},
)


def way_of(plan: Plan, way: dict[str, Any] | None) -> Way | None:
    """As a device can run it: `doctor` runs the cases on all."""
    wanted = Way(**way) if way else None
    return replace(wanted, last=wanted.last and adds_up_last(plan.device)) if wanted else None


def _heads(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, style: str, cache: str, start: int,
    sections: rope_reference.Sections, qk_norm: bool, pairs: int | None, fused: bool, way: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    """A layer's queries, keys and values with all that turning them takes."""
    set_state(plan, start, n)
    freqs = uploaded(plan, rope_reference.rope_frequencies(2 * (pairs or hd // 2), 1e6), "freqs")
    places = np.arange(start, start + n)[:, None] + rng.integers(0, 9, (n, 3))
    positions = uploaded(plan, places.astype(np.float32), "positions")
    keys, vals = filled_caches(plan, rng, start + n + 3, kv * hd, cache)
    norms = normal(plan, rng, 2 * hd, name="norms") if qk_norm else None
    x = normal(plan, rng, n, (heads + 2 * kv) * hd)
    common = (plan, x, positions, freqs, heads, kv, keys, vals)
    turn: dict[str, Any] = {"style": style, "sections": sections, "norms": norms, "eps": 1e-3}
    if fused:
        return [rope_attention(*common, hd**-0.5, **turn, way=way_of(plan, way)), keys, vals]
    return [rope_qkv(*common, **turn), keys, vals]


def _rope(
    plan: Plan, rng: Rng, n: int, heads: int, hd: int, style: str, pairs: int | None = None,
    sections: rope_reference.Sections = None, qk_norm: bool = False, cache: str | None = None, start: int = 0,
) -> list[Tensor]:  # fmt: skip
    pairs = pairs or hd // 2
    freqs = uploaded(plan, rope_reference.rope_frequencies(2 * pairs, 1e6), "freqs")
    base = np.arange(start, start + n, dtype=np.float32)[:, None] + rng.integers(0, 9, (n, 3)).astype(np.float32)
    positions = uploaded(plan, base.astype(np.float32), "positions")
    weight = normal(plan, rng, hd, name="norm") if qk_norm else None
    target = None
    if cache:
        set_state(plan, start, n)
        target = filled_cache(plan, rng, start + n + 3, heads * hd, cache)
    x = normal(plan, rng, n, heads * hd)
    return [rope(plan, x, positions, freqs, heads, style=style, sections=sections, norm=weight, eps=1e-6, cache=target)]


def _rope_qkv(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, style: str, cache: str, start: int = 0,
    sections: rope_reference.Sections = None, qk_norm: bool = False, pairs: int | None = None,
) -> list[Tensor]:  # fmt: skip
    return _heads(plan, rng, n, heads, kv, hd, style, cache, start, sections, qk_norm, pairs, fused=False)


def _rope_attention(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, style: str, cache: str, start: int = 0,
    sections: rope_reference.Sections = None, qk_norm: bool = False, pairs: int | None = None,
    way: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    return _heads(plan, rng, n, heads, kv, hd, style, cache, start, sections, qk_norm, pairs, fused=True, way=way)


def _store_rows(plan: Plan, rng: Rng, n: int, width: int, cache: str, start: int) -> list[Tensor]:
    set_state(plan, start, n)
    target = filled_cache(plan, rng, start + n + 2, width, cache)
    return [store_rows(plan, normal(plan, rng, n, width), target)]


def _load_rows(plan: Plan, rng: Rng, n: int, d: int, start: int) -> list[Tensor]:
    set_state(plan, start, n)
    return [load_rows(plan, normal(plan, rng, start + n + 2, d), n)]


def _attention(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, past: int, cache: str, window: int = 0,
    way: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    set_state(plan, past, n)
    keys, vals = filled_caches(plan, rng, past + n + 5, kv * hd, cache)
    q = normal(plan, rng, n, heads * hd, name="q")
    return [attention(plan, q, keys, vals, heads, kv, hd**-0.5, window, way=way_of(plan, way))]


def _window_attention(
    plan: Plan, rng: Rng, n: int, s: int, heads: int, hd: int, windows: int, stored: str
) -> list[Tensor]:
    """n queries and s keys in windows of random sizes; each has a key, some have no query."""
    rows = [0, *np.sort(rng.integers(0, n + 1, windows - 1)).tolist(), n]
    places = [0, *np.sort(1 + rng.permutation(s - 1)[: windows - 1]).tolist(), s]
    spans = zip(rows, rows[1:], places, places[1:], strict=False)
    tiles = uploaded(plan, window_tiles(spans, n // 64 + windows), "tiles")
    keys, vals = (filled_cache(plan, rng, s, heads * hd, stored) for _ in range(2))
    q = normal(plan, rng, n, heads * hd, name="q")
    return [window_attention(plan, q, keys, vals, tiles, heads, hd**-0.5)]


BUILDERS: dict[str, Builder] = {
    "rope": _rope,
    "rope_qkv": _rope_qkv,
    "rope_attention": _rope_attention,
    "store_rows": _store_rows,
    "load_rows": _load_rows,
    "attention": _attention,
    "window_attention": _window_attention,
}

CASES: tuple[Case, ...] = (
    *(case("rope", n=n, heads=h, hd=hd, style=s)
      for n, h, hd in ((1, 9, 64), (17, 4, 128)) for s in ("neox", "interleaved")),
    case("rope", n=3, heads=2, hd=128, style="neox", pairs=32),
    case("rope", n=4, heads=3, hd=128, style="neox", start=31000),
    *(case("rope", n=6, heads=4, hd=hd, style="neox", sections=sec, qk_norm=True, cache=c)
      for hd, sec in ((128, (24, 20, 20)), (64, (12, 10, 10)), (32, (6, 5, 5))) for c in (None, "f32", "f16")),
    case("rope", n=1, heads=4, hd=128, style="interleaved", cache="f16", start=40),
    *(case("rope_qkv", n=n, heads=h, kv=kv, hd=hd, style="neox", cache=c, start=s, sections=sec, qk_norm=True)
      for n, h, kv, hd, s, sec in ((1, 32, 4, 128, 9, (24, 20, 20)), (5, 4, 2, 64, 0, None)) for c in ("f32", "f16")),
    *(case("rope_qkv", n=n, heads=9, kv=3, hd=64, style="interleaved", cache=c, start=s)
      for n, s in ((1, 200), (9, 3)) for c in ("f32", "f16")),
    case("rope_qkv", n=2, heads=2, kv=1, hd=128, style="neox", cache="f16", pairs=32, start=5),
    *(case("rope_qkv", n=n, heads=h, kv=h, hd=hd, style="neox", cache="f32", start=s, sections="halves")
      for n, h, hd, s in ((7, 16, 72, 12), (3, 2, 32, 0))),
    # The code predictor's two first tokens and its last one; groups of 8; a cache too long for one dispatch.
    *(case("rope_attention", n=n, heads=h, kv=kv, hd=hd, style="neox", cache=c, start=s, sections=sec, qk_norm=True)
      for n, h, kv, hd, s, sec in ((2, 16, 8, 128, 0, None), (1, 16, 8, 128, 13, None), (2, 4, 2, 64, 27, None),
                                   (1, 16, 2, 128, 28, (24, 20, 20)), (1, 4, 2, 64, 40, None)) for c in ("f32", "f16")),
    *(case("rope_attention", n=n, heads=9, kv=3, hd=64, style="interleaved", cache="f32", start=s)
      for n, s in ((1, 0), (2, 7))),
    *(case("rope_attention", n=2, heads=2, kv=1, hd=72, style="neox", cache=c, pairs=20, start=5, qk_norm=c == "f16")
      for c in ("f32", "f16")),
    # Blocks of 8-bit integers in the cache; heads that are no eights.
    *(case("rope_attention", n=n, heads=4, kv=2, hd=64, style="neox", cache="kv_q8", start=s, qk_norm=n == 1, way=w)
      for n, s, w in ((1, 0, None), (2, 600, WAYS[1]))),
    # Query heads of one key/value head in three and in two workgroups.
    case("rope_attention", n=1, heads=9, kv=1, hd=64, style="neox", cache="f16", start=130, qk_norm=True, way=WAYS[1]),
    case("rope_attention", n=1, heads=32, kv=2, hd=64, style="neox", cache="kv_q8", start=64, way=WAYS[0]),
    case("rope_qkv", n=5, heads=4, kv=2, hd=64, style="neox", cache="kv_q8", start=2),
    case("rope_qkv", n=3, heads=4, kv=2, hd=128, style="neox", cache="kv_q8", start=4, qk_norm=True),
    *(case("rope_qkv", n=3, heads=2, kv=1, hd=36, style="neox", cache=c, start=s) for c, s in (("f32", 0), ("f16", 4))),
    *(case("store_rows", n=5, width=w, cache=c, start=3) for w in (192, 512) for c in ("f32", "f16")),
    *(case("load_rows", n=n, d=d, start=s) for n, d, s in ((5, 1152, 9), (1, 4, 0), (3, 260, 1))),
    *(case("attention", n=n, heads=h, kv=kv, hd=hd, past=p, cache=c)
      for n, h, kv, hd, p in ((1, 9, 3, 64, 0), (1, 32, 4, 128, 63), (1, 32, 4, 128, 64), (1, 16, 2, 128, 300),
                              (20, 9, 3, 64, 50), (70, 8, 8, 64, 0), (3, 4, 2, 72, 10), (2, 4, 1, 32, 130))
      for c in ("f32", "f16")),
    *(case("attention", n=n, heads=9, kv=3, hd=64, past=p, cache="kv_q8") for n, p in ((1, 130), (20, 50))),
    *(case("attention", n=n, heads=4, kv=2, hd=128, past=70, cache="kv_q8", way=w)
      for n, w in ((2, None), (9, WAYS[2]))),
    *(case("attention", n=n, heads=4, kv=2, hd=64, past=p, cache=c, way=WAYS[i])
      for n, p, c, i in ((2, 500, "f32", 0), (1, 300, "f16", 1), (9, 70, "f16", 2), (2, 70, "f16", 3))),
    *(case("attention", n=n, heads=4, kv=2, hd=36, past=p, cache="f32") for n, p in ((1, 70), (5, 0))),
    *(case("attention", n=n, heads=h, kv=kv, hd=64, past=p, cache=c, window=w)
      for n, h, kv, p, c, w in ((5, 16, 16, 300, "f32", 72), (80, 2, 2, 0, "f32", 72), (3, 4, 2, 70, "f16", 64),
                                (4, 2, 1, 1, "f32", 1))),
    *(case("window_attention", n=n, s=s, heads=h, hd=hd, windows=w, stored=c)
      for n, s, h, hd, w, c in ((1, 1, 2, 64, 1, "f32"), (208, 208, 20, 64, 2, "f32"), (130, 135, 2, 64, 3, "f16"),
                                (64, 64, 16, 72, 1, "f32"), (70, 97, 3, 72, 2, "f16"), (9, 33, 2, 128, 4, "f32"),
                                (65, 40, 1, 4, 2, "f16"))),
    *(case("window_attention", True, n=1024, s=s, heads=16, hd=72, windows=1, stored=c)
      for s in (1024, 4096) for c in ("f32", "f16")),
    # The 30B's heads: what a token costs at a depth, and a chunk of a prompt.
    *(case("attention", True, n=1, heads=32, kv=4, hd=128, past=p, cache=c)
      for c in ("f16", "kv_q8") for p in (4095, 16383, 32767, 65471)),
    *(case("attention", True, n=512, heads=32, kv=4, hd=128, past=p, cache=c)
      for c in ("f16", "kv_q8") for p in (0, 3584, 15872, 32256)),
    *(case("rope_attention", True, n=1, heads=32, kv=4, hd=128, style="neox", cache=c, start=32767,
           sections=(24, 20, 20), qk_norm=True) for c in ("f16", "kv_q8")),
)  # fmt: skip
