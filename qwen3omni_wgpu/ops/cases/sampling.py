"""Cases of what comes after the logits."""

from __future__ import annotations

import numpy as np

from ...gpu import Plan, Tensor
from ..pick import pick, top_k
from ..sample import argmax, penalize, sample
from .case import Builder, Case, case
from .make import (
    Rng,
    normal,
    uploaded,
)


def _argmax(plan: Plan, rng: Rng, n: int, v: int, parts: int | None = None) -> list[Tensor]:
    return [argmax(plan, normal(plan, rng, n, v), parts=parts)]


def _top_k(plan: Plan, rng: Rng, v: int, k: int, ties: bool = False) -> list[Tensor]:
    logits = rng.standard_normal((1, v), dtype=np.float32) * np.float32(3)
    return list(top_k(plan, uploaded(plan, np.round(logits) if ties else logits, "logits"), k))


def _pick(
    plan: Plan, rng: Rng, v: int, k: int, chain: str, penalties: str | None = None, ties: bool = False
) -> list[Tensor]:
    """chain: temperature, top_k, top_p, log(min_p). penalties: repeat, presence, frequency."""
    logits = rng.standard_normal((1, v), dtype=np.float32) * np.float32(3)
    counts = (rng.integers(1, 4, v) * (rng.random(v) < 0.3)).astype(np.uint32)
    used = np.flatnonzero(counts)
    leaving = int(used[0]) if penalties and len(used) else v
    numbers = [*chain.split(), str(rng.random()), str(leaving), *(penalties or "1 0 0").split()]
    seen = uploaded(plan, counts, "seen") if penalties else None
    settings = uploaded(plan, np.array(numbers, np.float32), "settings")
    target = uploaded(plan, np.round(logits) if ties else logits, "logits")
    id = pick(plan, target, settings, k, seen=seen)
    return [id, *([] if seen is None else [seen])]


def _penalize(plan: Plan, rng: Rng, v: int, used: int) -> list[Tensor]:
    pairs = np.stack([rng.permutation(v)[:64], rng.integers(1, 5, 64)], axis=1).astype(np.uint32)
    options = uploaded(plan, np.array([used, 1.3, 0.25, 0.125], np.float32), "options")
    logits = normal(plan, rng, 1, v, name="logits", scale=5.0)
    penalize(plan, logits, uploaded(plan, pairs, "recent"), options)
    return [logits]


def _sample(
    plan: Plan, rng: Rng, v: int, settings: str, seen: bool = False, left_out: tuple[int, int] = (0, 0),
    spared: int | None = None, codes: bool = False, ties: bool = False,
) -> list[Tensor]:  # fmt: skip
    """settings: temperature, top-k, top-p, repeat penalty."""
    logits = rng.standard_normal((1, v), dtype=np.float32) * np.float32(3)
    numbers = np.array(settings.split(), np.float32)
    made = {
        "seen": uploaded(plan, rng.integers(0, 3, v).astype(np.uint32), "seen") if seen else None,
        "codes": uploaded(plan, rng.integers(0, 9, 3).astype(np.uint32), "codes") if codes else None,
    }
    random = uploaded(plan, rng.random(3, dtype=np.float32), "random")
    target = uploaded(plan, np.round(logits) if ties else logits, "logits")
    id = sample(
        plan, target, random, uploaded(plan, numbers, "settings"), draw=1, left_out=left_out,
        spared=spared, at=2, **made,
    )  # fmt: skip
    return [id, *(tensor for tensor in made.values() if tensor is not None)]


BUILDERS: dict[str, Builder] = {
    "argmax": _argmax,
    "top_k": _top_k,
    "pick": _pick,
    "penalize": _penalize,
    "sample": _sample,
}

CASES: tuple[Case, ...] = (
    *(case("argmax", n=n, v=v) for n, v in ((1, 49152), (3, 151), (1, 152064))),
    *(case("argmax", n=n, v=v, parts=parts) for n, v, parts in ((3, 700, 300), (2, 9000, 7))),
    *(case("top_k", v=v, k=k) for v, k in ((49152, 40), (152064, 128), (300, 128), (128, 128), (777, 1))),
    *(case("top_k", v=v, k=k, ties=True) for v, k in ((4096, 128), (513, 40))),
    *(case("pick", v=v, k=k, chain=c, penalties=p, ties=t)
      for v, k, c, p, t in ((152064, 40, "0.8 40 0.95 -3", None, False),
                            (49152, 20, "0.6 20 0.9 -9", "1.1 0.2 0.1", False),
                            (5000, 128, "1 0 0.5 -2", None, True), (5000, 40, "2 40 1 -1", "1.5 0 0", True),
                            (223, 128, "1.5 0 0.9 -99", None, False), (100, 100, "1 0 1 -99", "1.2 0.5 0.25", False),
                            (9, 1, "1 1 1 -99", "2 0 0", False), (1, 1, "1 3 0.5 -1", None, False))),
    *(case("penalize", v=1000, used=u) for u in (0, 64, 37)),
    # The talker's first code, the other 15; greedy; borders.
    *(case("sample", v=3072, settings=s, seen=True, left_out=(2048, 3072), spared=2150, codes=c)
      for s, c in (("0.9 50 1 1.05", True), ("0 50 1 1.05", False))),
    *(case("sample", v=v, settings=s, codes=True, ties=t)
      for v, s, t in ((2048, "1 50 0.8 1", False), (2048, "1 50 0.8 1", True), (4096, "1 0 0.9 1", False),
                      (300, "0.5 300 0.5 1", True), (300, "2 1 0.5 1", True), (7, "1 0 0 1", True),
                      (1, "1 5 0 1", False))),
    case("sample", v=1000, settings="1 0 1 1"),
)  # fmt: skip
