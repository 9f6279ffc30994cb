"""From what an op asked (ops/choice.py) to a case that poses the same problem: one to be timed, one to be checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...gpu import nbytes_of
from ..choice import Problem
from .case import Case, case

# Weights of a case that is timed: enough to keep a GPU busy for 0.1 ms, few enough to be made and loaded at once.
TIMED_BYTES = 32 << 20
# Tokens and rows of a case that is checked: full of borders, and its twin takes no time.
CHECKED_TOKENS = 37
CHECKED_ROWS = 148
# Keys of attention: where a long answer is, and as few as have borders.
TIMED_KEYS, CHECKED_KEYS = 4096, 333

# A problem and how many rows and tokens of it may be used -> the op's case.
Maker = Callable[[Problem, "Limits"], Case]


class Limits:
    """How much of a problem a case takes over: the inner shapes are all kept, rows and tokens only up to a limit."""

    def __init__(self, small: bool) -> None:
        self.small = small

    def tokens(self, n: int) -> int:
        return min(n, CHECKED_TOKENS) if self.small else n

    def rows(self, f: int, d: int, dtype: str) -> int:
        """Of a matrix [f, d]."""
        return min(f, CHECKED_ROWS if self.small else max(256, TIMED_BYTES // nbytes_of((d,), dtype)))

    def experts(self, wanted: int, f: int, d: int, dtype: str) -> int:
        """How many [f, d] there shall be, where `wanted` of them are used; never fewer than used by a token."""
        return wanted if self.small else max(wanted, min(128, TIMED_BYTES // nbytes_of((f, d), dtype)))


def _matmul(problem: Problem, limits: Limits, **options: Any) -> Case:
    n, f, d, dtype = problem["n"], problem["f"], problem["d"], problem["type"]
    return case(
        "matmul", type=dtype, n=limits.tokens(n), f=limits.rows(f, d, dtype), d=d, act=_activations(problem), **options
    )


def _fused(problem: Problem, limits: Limits) -> Case:
    return _matmul(problem, limits, norm=True)


def _moe_matmul(problem: Problem, limits: Limits) -> Case:
    f, d, dtype = problem["f"], problem["d"], problem["type"]
    k = problem.get("k") or _chosen(problem["n"])
    f = min(f, CHECKED_ROWS) if limits.small else f
    e = limits.experts(2 * k, f, d, dtype)
    n = min(problem["n"] // k, e // k)  # no more slots than experts, or they would be grouped
    return case("moe_matmul", type=dtype, n=n, k=k, e=e, f=f, d=d, shared=k > 1, act=_activations(problem))


def _moe_grouped(problem: Problem, limits: Limits) -> Case:
    """n counts the slots of all tokens. All experts are kept: how many slots each has is what decides."""
    e, f, d, dtype = problem["e"], problem["f"], problem["d"], problem["type"]
    k = min(_chosen(problem["n"]), e)
    n = limits.tokens(problem["n"] // k)
    f = min(f, CHECKED_ROWS) if limits.small else min(f, max(64, TIMED_BYTES // nbytes_of((e, d), dtype)))
    e = min(e, 2 * k) if limits.small else e
    return case("moe_matmul", type=dtype, n=n, k=k, e=e, f=f, d=d, shared=k > 1, act=_activations(problem))


def _moe_swiglu(problem: Problem, limits: Limits) -> Case:
    """f counts the gates and ups of all K experts."""
    d, dtype = problem["d"], problem["type"]
    k = problem.get("k") or _chosen(problem["f"] // 2)
    f = problem["f"] // 2 // k
    f = min(f, CHECKED_ROWS) if limits.small else f
    e = limits.experts(2 * k, 2 * f, d, dtype)
    return case("moe_swiglu", type=dtype, n=problem["n"], k=k, e=e, f=f, d=d, act=_activations(problem))


def _moe_down(problem: Problem, limits: Limits) -> Case:
    """d counts the inputs of all K experts."""
    rows, dtype = problem["f"], problem["type"]
    k = problem.get("k") or _chosen(problem["d"] // 32)
    f = problem["d"] // k
    d = min(rows, CHECKED_ROWS) if limits.small else rows
    e = limits.experts(2 * k, d, f, dtype)
    act = _activations(problem)
    return case("moe_down", type=dtype, n=problem["n"], k=k, e=e, f=f, d=d, act=act, residual=True)


def _attention(problem: Problem, limits: Limits) -> Case:
    """rows: of the cache, which is nearly full."""
    n = limits.tokens(problem["n"])
    past = max(0, min(problem["rows"], CHECKED_KEYS if limits.small else TIMED_KEYS) - n - 5)
    shape = {"heads": problem["heads"], "kv": problem["kv"], "hd": problem["hd"], "cache": problem["type"]}
    return case("attention", n=n, past=past, window=problem["window"], **shape)


def _chosen(total: int) -> int:
    """Experts a token, where the problem does not say: the most usual number that divides a count of theirs."""
    return next(k for k in (8, 6, 4, 2, 1) if total % k == 0)


def _activations(problem: Problem) -> str:
    return "q8" if problem["packed"] else "f32"


PROBLEMS: dict[str, Maker] = {
    "matmul": _matmul,
    "fused": _fused,
    "moe_matmul": _moe_matmul,
    "moe_grouped": _moe_grouped,
    "moe_swiglu": _moe_swiglu,
    "moe_down": _moe_down,
    "attention": _attention,
}


def timed_case(problem: Problem) -> Case:
    """The problem with its own shapes, but no more weights than it takes to time it."""
    return PROBLEMS[problem.op](problem, Limits(small=False))


def checked_case(problem: Problem) -> Case:
    """The problem with its own inner shapes, but few rows and tokens: to be compared with the op's twin."""
    return PROBLEMS[problem.op](problem, Limits(small=True))
