"""The table of op cases: the real models' shapes and the borders of every kernel.

Tests, the micro-benchmarks, `doctor`'s self-test and the instruction report all read this table. A new op is one
builder and its lines in CASES.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gguf
import numpy as np

from ..gpu import Device, NumericalError, Part, Plan, Tensor
from ..reference import rope as rope_reference
from ..reference import sample as sample_reference
from .attention import attention, store_rows
from .attention_windows import window_attention, window_tiles
from .codes import embed_code
from .conv import conv_columns
from .conv1d import Tile, conv1d, conv1d_depthwise
from .elementwise import add, replace_rows, softmax, swiglu, swiglu_joined
from .gather import add_rows, embed, embed_mean, select_row
from .guard import values
from .matmul import Variant, matmul, matmul_joined, matmul_swiglu, moe_matmul, quantize_q8
from .moe import moe_combine, moe_gate
from .moe_experts import moe_down, moe_swiglu
from .moe_route import moe_route
from .norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .rope import rope, rope_qkv
from .rope_attention import rope_attention
from .rows import load_rows
from .sample import argmax, penalize, sample, top_k
from .streams import Rows, carry_rows, lead_rows, shift_rows

Rng = np.random.Generator


@dataclass(frozen=True)
class CaseResult:
    """Outcome of one case. `max_error` is relative to max(1, largest expected value); seconds are the median replay."""

    max_error: float
    tolerance: float
    seconds: float
    bytes: int
    flops: int
    dispatches: int

    @property
    def ok(self) -> bool:
        return self.max_error <= self.tolerance


@dataclass(frozen=True)
class Case:
    """An op with concrete shapes. `large` cases are for benchmarks: real sizes whose twin takes long."""

    op: str
    params: dict[str, Any] = field(hash=False)
    large: bool = False

    @property
    def name(self) -> str:
        shown = (f"{key}={value}" for key, value in self.params.items() if value is not None)
        return f"{self.op}({', '.join(shown)})"

    def plan(self, device: Device, seed: int | None = None) -> Plan:
        """A finished plan with fresh random inputs."""
        plan = Plan(device, self.op)
        outputs = BUILDERS[self.op](plan, np.random.default_rng(seed), **self.params)
        return plan.finish(keep=outputs)

    def run(self, device: Device, *, seed: int | None = None, repeat: int = 0, check: bool = True) -> CaseResult:
        """Check the case against its twin, then time `repeat` replays. NumericalError when it differs."""
        plan = self.plan(device, seed)
        try:
            results = plan.run_debug(values) if check else []
            error, tolerance = max(((error, tol) for _, error, tol in results), default=(0.0, 0.0))
            seconds = _time(plan, repeat) if repeat else 0.0
            return CaseResult(error, tolerance, seconds, plan.nbytes, plan.flops, len(plan.steps))
        finally:
            plan.free()


def _time(plan: Plan, repeat: int) -> float:
    times = []
    plan.run()
    plan.device.wait()
    # Short kernels are replayed several times a measurement, so that the wait does not hide them.
    start = time.perf_counter()
    plan.run()
    plan.device.wait()
    inner = int(min(50, max(1, 0.02 / (time.perf_counter() - start))))
    for _ in range(repeat):
        start = time.perf_counter()
        for _ in range(inner):
            plan.run()
        plan.device.wait()
        times.append((time.perf_counter() - start) / inner)
    return float(np.median(times))


# Builders: random inputs on the device, one op recorded, its outputs returned ---------------------------------------


def normal(plan: Plan, rng: Rng, *shape: int, name: str = "x", scale: float = 1.0) -> Tensor:
    return Tensor.from_numpy(plan.device, rng.standard_normal(shape, dtype=np.float32) * np.float32(scale), name)


def weight(plan: Plan, rng: Rng, shape: tuple[int, ...], dtype: str, name: str = "w") -> Tensor:
    """Random weights of variance 1 / D in the type's own bytes."""
    array = rng.standard_normal(shape, dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
    raw = gguf.quants.quantize(array, gguf.GGMLQuantizationType[dtype.upper()])
    return Tensor.from_bytes(plan.device, raw, shape, dtype, name)


def _state(plan: Plan, n_past: int, n_tokens: int) -> None:
    plan.state = Tensor.from_numpy(plan.device, np.array([n_past, n_tokens], np.uint32), "state")


def _variant(variant: dict[str, Any] | None) -> Variant | None:
    return Variant(**variant) if variant else None


def _matmul(
    plan: Plan, rng: Rng, type: str, n: int, f: int, d: int, act: str = "f32", variant: dict[str, Any] | None = None,
    used: int | None = None, bias: bool = False, gelu: str | None = None, norm: bool = False, residual: bool = False,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    if used is not None:
        _state(plan, 0, used)
    added = normal(plan, rng, f, name="bias") if bias else None
    before = _norm(plan, rng, d) if norm else None
    rest = normal(plan, rng, n, f, name="residual") if residual else None
    x, w = normal(plan, rng, n, d, scale=3.0 if norm else 1.0), weight(plan, rng, (f, d), type)
    return [matmul(plan, x, w, bias=added, act=gelu, norm=before, residual=rest, variant=_variant(variant))]


def _norm(plan: Plan, rng: Rng, d: int) -> tuple[Tensor, float]:
    return normal(plan, rng, d, name="norm"), 1e-3


def _matmul_joined(
    plan: Plan, rng: Rng, types: str, n: int, fs: str, d: int, act: str = "f32", norm: bool = False
) -> list[Tensor]:
    plan.activations = act
    sizes = zip(types.split(), map(int, fs.split()), strict=True)
    weights = [weight(plan, rng, (f, d), kind, f"w{i}") for i, (kind, f) in enumerate(sizes)]
    before = _norm(plan, rng, d) if norm else None
    return [matmul_joined(plan, normal(plan, rng, n, d), weights, norm=before)]


def _matmul_swiglu(
    plan: Plan, rng: Rng, type: str, n: int, f: int, d: int, act: str = "f32", variant: dict[str, Any] | None = None,
    norm: bool = False,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    w = weight(plan, rng, (2 * f, d), type)
    before = _norm(plan, rng, d) if norm else None
    return [matmul_swiglu(plan, normal(plan, rng, n, d), [w], norm=before, variant=_variant(variant))]


def _moe_matmul(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, shared: bool, act: str = "f32",
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = np.stack([rng.permutation(e)[:k] for _ in range(n)]).astype(np.uint32)
    x = normal(plan, rng, n if shared else n * k, d)
    w = weight(plan, rng, (e, f, d), type)
    return [moe_matmul(plan, x, w, Tensor.from_numpy(plan.device, ids, "ids"), variant=_variant(variant))]


def _moe_swiglu(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, act: str = "f32", apart: bool = False,
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = np.stack([rng.permutation(e)[:k] for _ in range(n)]).astype(np.uint32)
    shapes = [(e, f, d)] * 2 if apart else [(2 * e, f, d)]
    weights = [weight(plan, rng, shape, type) for shape in shapes]
    chosen = Tensor.from_numpy(plan.device, ids, "ids")
    return [moe_swiglu(plan, normal(plan, rng, n, d), weights, chosen, variant=_variant(variant))]


def _moe_down(
    plan: Plan, rng: Rng, type: str, n: int, k: int, e: int, f: int, d: int, act: str = "f32", residual: bool = False,
    variant: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    plan.activations = act
    ids = np.stack([rng.permutation(e)[:k] for _ in range(n)]).astype(np.uint32)
    shares = Tensor.from_numpy(plan.device, rng.random((n, k), dtype=np.float32), "weights")
    rest = normal(plan, rng, n, d, name="residual") if residual else None
    x, w = normal(plan, rng, n * k, f), weight(plan, rng, (e, d, f), type)
    chosen = Tensor.from_numpy(plan.device, ids, "ids")
    return [moe_down(plan, x, w, chosen, shares, residual=rest, variant=_variant(variant))]


def _moe_route(
    plan: Plan, rng: Rng, type: str, n: int, e: int, k: int, d: int, renormalise: bool = True, norm: bool = False,
    always: int = 0,
) -> list[Tensor]:  # fmt: skip
    before = _norm(plan, rng, d) if norm else None
    router = weight(plan, rng, (e + (always > 0), d), type, "router")
    return list(moe_route(plan, normal(plan, rng, n, d), router, k, renormalise, norm=before, always=always))


def _quantize(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    return list(quantize_q8(plan, normal(plan, rng, n, d)))


def _embed(plan: Plan, rng: Rng, type: str, n: int, v: int, d: int) -> list[Tensor]:
    ids = Tensor.from_numpy(plan.device, rng.integers(0, v, n).astype(np.uint32), "ids")
    return [embed(plan, weight(plan, rng, (v, d), type), ids)]


def _embed_code(plan: Plan, rng: Rng, type: str, v: int, d: int, before: bool) -> list[Tensor]:
    # One in four is no row at all.
    id = Tensor.from_numpy(plan.device, rng.integers(0, v + v // 3, 1).astype(np.uint32), "id")
    table, total = weight(plan, rng, (v, d), type), normal(plan, rng, 1, d, name="total")
    first = normal(plan, rng, 1, d, name="before") if before else None
    return [embed_code(plan, table, id, total, first), total]


def _conv_columns(plan: Plan, rng: Rng, n: int, t: int, f: int, c: int, valid: int, scale: int = 1) -> list[Tensor]:
    frames = Tensor.from_numpy(plan.device, np.array([valid], np.uint32), "valid")
    return [conv_columns(plan, normal(plan, rng, n * t * f, c), frames, (t, f), scale)]


def _filled_rows(plan: Plan, rng: Rng, n: int, c: int, before: int) -> Rows:
    lead = lead_rows(before, c)
    whole = normal(plan, rng, lead + n, c)
    body = Part(whole.storage, 4 * lead * c, 4 * n * c, 0, n)
    return Rows(whole, Tensor(plan.device, (n, c), "f32", [body], "x"))


def _conv1d(
    plan: Plan, rng: Rng, n: int, rate: int, f: int, c: int, taps: int = 1, dilation: int = 1, type: str = "f32",
    act: str | None = None, scale: bool = False, residual: bool = False, snake: bool = False, plain: bool = False,
    hidden: int = 0, before: int = 0, tile: dict[str, Any] | None = None,
) -> list[Tensor]:  # fmt: skip
    """n tokens of `rate` rows; `before` tokens went before them."""
    plan.state = Tensor.from_numpy(plan.device, np.array([0, n, before], np.uint32), "state")
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
    _state(plan, 3, used)
    x = _filled_rows(plan, rng, n * rate, c, lead)
    kept = normal(plan, rng, x.lead, c, name="kept")
    return [carry_rows(plan, x, kept, rate).whole, kept]


def _shift_rows(plan: Plan, rng: Rng, count: int, past: int, width: int) -> list[Tensor]:
    _state(plan, past, 1)
    return [shift_rows(plan, normal(plan, rng, past + 3, width, name="cache"), count)]


def _embed_mean(plan: Plan, rng: Rng, type: str, n: int, k: int, v: int, d: int) -> list[Tensor]:
    ids = Tensor.from_numpy(plan.device, rng.integers(0, v, (n, k)).astype(np.uint32), "ids")
    return [embed_mean(plan, weight(plan, rng, (v, d), type), ids)]


def _add_rows(plan: Plan, rng: Rng, n: int, v: int, d: int, k: int) -> list[Tensor]:
    ids = Tensor.from_numpy(plan.device, rng.integers(0, v, (n, k)).astype(np.uint32), "ids")
    x, table = normal(plan, rng, n, d), normal(plan, rng, v, d, name="table")
    return [add_rows(plan, x, table, ids, normal(plan, rng, n, k, name="weights"))]


def _rms_norm(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    return [rms_norm(plan, normal(plan, rng, n, d), normal(plan, rng, d, name="weight"), 1e-6)]


def _add_rms_norm(plan: Plan, rng: Rng, n: int, d: int, scaled: bool = False) -> list[Tensor]:
    x, residual = normal(plan, rng, n, d), normal(plan, rng, n, d, name="residual")
    factors = normal(plan, rng, d, name="factors") if scaled else None
    return list(add_rms_norm(plan, x, residual, normal(plan, rng, d, name="weight"), 1e-5, factors))


def _layer_norm(plan: Plan, rng: Rng, n: int, d: int, per_token: int = 1) -> list[Tensor]:
    x, weight, bias = normal(plan, rng, n * per_token, d), *_norm_weights(plan, rng, d)
    return [layer_norm(plan, x, weight, bias, 1e-5, per_token)]


def _add_layer_norm(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    x, residual = normal(plan, rng, n, d), normal(plan, rng, n, d, name="residual")
    return list(add_layer_norm(plan, x, residual, *_norm_weights(plan, rng, d), 1e-6))


def _norm_weights(plan: Plan, rng: Rng, d: int) -> tuple[Tensor, Tensor]:
    return normal(plan, rng, d, name="weight"), normal(plan, rng, d, name="bias")


def _rope(
    plan: Plan, rng: Rng, n: int, heads: int, hd: int, style: str, pairs: int | None = None,
    sections: rope_reference.Sections = None, qk_norm: bool = False, cache: str | None = None, start: int = 0,
) -> list[Tensor]:  # fmt: skip
    pairs = pairs or hd // 2
    freqs = Tensor.from_numpy(plan.device, rope_reference.rope_frequencies(2 * pairs, 1e6), "freqs")
    base = np.arange(start, start + n, dtype=np.float32)[:, None] + rng.integers(0, 9, (n, 3)).astype(np.float32)
    positions = Tensor.from_numpy(plan.device, base.astype(np.float32), "positions")
    weight = normal(plan, rng, hd, name="norm") if qk_norm else None
    target = None
    if cache:
        _state(plan, start, n)
        target = _filled_cache(plan, rng, start + n + 3, heads * hd, cache)
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
) -> list[Tensor]:  # fmt: skip
    return _heads(plan, rng, n, heads, kv, hd, style, cache, start, sections, qk_norm, pairs, fused=True)


def _heads(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, style: str, cache: str, start: int,
    sections: rope_reference.Sections, qk_norm: bool, pairs: int | None, fused: bool,
) -> list[Tensor]:  # fmt: skip
    """A layer's queries, keys and values with all that turning them takes."""
    _state(plan, start, n)
    freqs = Tensor.from_numpy(plan.device, rope_reference.rope_frequencies(2 * (pairs or hd // 2), 1e6), "freqs")
    places = np.arange(start, start + n)[:, None] + rng.integers(0, 9, (n, 3))
    positions = Tensor.from_numpy(plan.device, places.astype(np.float32), "positions")
    keys, vals = (_filled_cache(plan, rng, start + n + 3, kv * hd, cache) for _ in range(2))
    norms = normal(plan, rng, 2 * hd, name="norms") if qk_norm else None
    x = normal(plan, rng, n, (heads + 2 * kv) * hd)
    common = (plan, x, positions, freqs, heads, kv, keys, vals)
    turn: dict[str, Any] = {"style": style, "sections": sections, "norms": norms, "eps": 1e-3}
    return [rope_attention(*common, hd**-0.5, **turn) if fused else rope_qkv(*common, **turn), keys, vals]


def _filled_cache(plan: Plan, rng: Rng, rows: int, width: int, dtype: str) -> Tensor:
    array = rng.standard_normal((rows, width), dtype=np.float32)
    return Tensor.from_numpy(plan.device, array.astype(np.float16) if dtype == "f16" else array, "cache")


def _store_rows(plan: Plan, rng: Rng, n: int, width: int, cache: str, start: int) -> list[Tensor]:
    _state(plan, start, n)
    target = _filled_cache(plan, rng, start + n + 2, width, cache)
    return [store_rows(plan, normal(plan, rng, n, width), target)]


def _load_rows(plan: Plan, rng: Rng, n: int, d: int, start: int) -> list[Tensor]:
    _state(plan, start, n)
    return [load_rows(plan, normal(plan, rng, start + n + 2, d), n)]


def _attention(
    plan: Plan, rng: Rng, n: int, heads: int, kv: int, hd: int, past: int, cache: str, window: int = 0
) -> list[Tensor]:
    _state(plan, past, n)
    keys, vals = (_filled_cache(plan, rng, past + n + 5, kv * hd, cache) for _ in range(2))
    q = normal(plan, rng, n, heads * hd, name="q")
    return [attention(plan, q, keys, vals, heads, kv, hd**-0.5, window)]


def _window_attention(
    plan: Plan, rng: Rng, n: int, s: int, heads: int, hd: int, windows: int, stored: str
) -> list[Tensor]:
    """n queries and s keys in windows of random sizes; each has a key, some have no query."""
    rows = [0, *np.sort(rng.integers(0, n + 1, windows - 1)).tolist(), n]
    places = [0, *np.sort(1 + rng.permutation(s - 1)[: windows - 1]).tolist(), s]
    spans = zip(rows, rows[1:], places, places[1:], strict=False)
    tiles = Tensor.from_numpy(plan.device, window_tiles(spans, n // 64 + windows), "tiles")
    keys, vals = (_filled_cache(plan, rng, s, heads * hd, stored) for _ in range(2))
    q = normal(plan, rng, n, heads * hd, name="q")
    return [window_attention(plan, q, keys, vals, tiles, heads, hd**-0.5)]


def _swiglu(plan: Plan, rng: Rng, n: int, f: int, per_token: int = 1) -> list[Tensor]:
    gate = normal(plan, rng, n * per_token, f, scale=3.0)
    return [swiglu(plan, gate, normal(plan, rng, n * per_token, f), per_token)]


def _swiglu_joined(plan: Plan, rng: Rng, n: int, f: int) -> list[Tensor]:
    return [swiglu_joined(plan, normal(plan, rng, n, 2 * f, scale=3.0))]


def _add(plan: Plan, rng: Rng, n: int, f: int) -> list[Tensor]:
    return [add(plan, normal(plan, rng, n, f), normal(plan, rng, n, f))]


def _replace_rows(plan: Plan, rng: Rng, n: int, d: int, used: int | None = None) -> list[Tensor]:
    if used is not None:
        _state(plan, 3, used)
    flags = Tensor.from_numpy(plan.device, rng.integers(0, 3, n).astype(np.uint32), "flags")
    return [replace_rows(plan, normal(plan, rng, n, d), normal(plan, rng, n, d, name="rows"), flags)]


def _softmax(plan: Plan, rng: Rng, n: int, d: int) -> list[Tensor]:
    return [softmax(plan, normal(plan, rng, n, d, scale=4.0))]


def _moe_gate(plan: Plan, rng: Rng, n: int, e: int, k: int, renormalise: bool, always: int = 0) -> list[Tensor]:
    return list(moe_gate(plan, normal(plan, rng, n, e + (always > 0), scale=2.0), k, renormalise, always))


def _moe_combine(plan: Plan, rng: Rng, n: int, k: int, d: int) -> list[Tensor]:
    weights = Tensor.from_numpy(plan.device, rng.random((n, k), dtype=np.float32), "weights")
    return [moe_combine(plan, normal(plan, rng, n * k, d), weights)]


def _argmax(plan: Plan, rng: Rng, n: int, v: int) -> list[Tensor]:
    return [argmax(plan, normal(plan, rng, n, v))]


def _top_k(plan: Plan, rng: Rng, v: int, k: int, ties: bool = False) -> list[Tensor]:
    logits = rng.standard_normal((1, v), dtype=np.float32) * np.float32(3)
    if ties:
        logits = np.round(logits)
    ids, vals = top_k(plan, Tensor.from_numpy(plan.device, logits, "logits"), k)
    want_ids, want, logsumexp = sample_reference.top_k(logits[0], k)

    def twin(_p: int, _n: int, *_: np.ndarray) -> list[np.ndarray]:
        order = np.lexsort((got_ids := ids.numpy(), -vals.numpy()[:k]))
        if not np.array_equal(got_ids[order], want_ids):
            raise NumericalError(f"top_k: the {k} largest of {v} logits differ from the twin's")
        # The candidates are a set; put the expected values in the order in which the device wrote them.
        expected = np.append(np.empty(k, np.float32), np.float32(logsumexp))
        expected[order] = want
        return [expected]

    plan.check(twin, [], [vals], 1e-5)
    return [ids, vals]


def _penalize(plan: Plan, rng: Rng, v: int, used: int) -> list[Tensor]:
    pairs = np.stack([rng.permutation(v)[:64], rng.integers(1, 5, 64)], axis=1).astype(np.uint32)
    options = Tensor.from_numpy(plan.device, np.array([used, 1.3, 0.25, 0.125], np.float32), "options")
    logits = normal(plan, rng, 1, v, name="logits", scale=5.0)
    penalize(plan, logits, Tensor.from_numpy(plan.device, pairs, "recent"), options)
    return [logits]


def _sample(
    plan: Plan, rng: Rng, v: int, settings: str, seen: bool = False, left_out: tuple[int, int] = (0, 0),
    spared: int | None = None, codes: bool = False, ties: bool = False,
) -> list[Tensor]:  # fmt: skip
    """settings: temperature, top-k, top-p, repeat penalty."""
    logits = rng.standard_normal((1, v), dtype=np.float32) * np.float32(3)
    numbers = np.array(settings.split(), np.float32)
    made = {
        "seen": Tensor.from_numpy(plan.device, rng.integers(0, 3, v).astype(np.uint32), "seen") if seen else None,
        "codes": Tensor.from_numpy(plan.device, rng.integers(0, 9, 3).astype(np.uint32), "codes") if codes else None,
    }
    random = Tensor.from_numpy(plan.device, rng.random(3, dtype=np.float32), "random")
    target = Tensor.from_numpy(plan.device, np.round(logits) if ties else logits, "logits")
    id = sample(
        plan, target, random, Tensor.from_numpy(plan.device, numbers, "settings"), draw=1, left_out=left_out,
        spared=spared, at=2, **made,
    )  # fmt: skip
    return [id, *(tensor for tensor in made.values() if tensor is not None)]


def _select_row(plan: Plan, rng: Rng, n: int, d: int, used: int) -> list[Tensor]:
    _state(plan, 7, used)
    return [select_row(plan, normal(plan, rng, n, d))]


BUILDERS: dict[str, Callable[..., list[Tensor]]] = {
    "matmul": _matmul,
    "matmul_joined": _matmul_joined,
    "matmul_swiglu": _matmul_swiglu,
    "moe_matmul": _moe_matmul,
    "moe_swiglu": _moe_swiglu,
    "moe_down": _moe_down,
    "moe_route": _moe_route,
    "quantize_q8": _quantize,
    "embed": _embed,
    "embed_code": _embed_code,
    "embed_mean": _embed_mean,
    "conv_columns": _conv_columns,
    "conv1d": _conv1d,
    "conv1d_depthwise": _conv1d_depthwise,
    "carry_rows": _carry_rows,
    "shift_rows": _shift_rows,
    "add_rows": _add_rows,
    "rms_norm": _rms_norm,
    "add_rms_norm": _add_rms_norm,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "rope": _rope,
    "rope_qkv": _rope_qkv,
    "rope_attention": _rope_attention,
    "store_rows": _store_rows,
    "load_rows": _load_rows,
    "attention": _attention,
    "window_attention": _window_attention,
    "swiglu": _swiglu,
    "swiglu_joined": _swiglu_joined,
    "add": _add,
    "replace_rows": _replace_rows,
    "softmax": _softmax,
    "moe_gate": _moe_gate,
    "moe_combine": _moe_combine,
    "argmax": _argmax,
    "top_k": _top_k,
    "penalize": _penalize,
    "sample": _sample,
    "select_row": _select_row,
}


def _case(op: str, large: bool = False, **params: Any) -> Case:
    return Case(op, params, large)


TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
QUANTISED = ("q8_0", "q4_0", "q4_1")
# Kernel variants that must all be right whatever the rule or the tuner picks on a device.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"shader": "matvec", "lanes": 1, "rows": 4, "tokens": 1, "workgroup": 16},
    {"shader": "matvec", "lanes": 1, "rows": 8, "tokens": 8, "workgroup": 16},
    {"shader": "matvec", "lanes": 1, "rows": 8, "tokens": 1, "workgroup": 8, "wide": True},
    {"shader": "matvec", "lanes": 8, "rows": 2, "tokens": 4, "workgroup": 64},
    {"shader": "matvec", "lanes": 32, "rows": 1, "tokens": 2, "workgroup": 64},
    {"shader": "matvec", "lanes": 16, "rows": 2, "tokens": 8, "workgroup": 64},
    {"shader": "matmul", "workgroup": 256},
)

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

FUSED: tuple[dict[str, Any], ...] = (
    {"shader": "fused_matvec", "lanes": 1, "rows": 4, "tokens": 2, "workgroup": 8, "wide": True},
    {"shader": "fused_matvec", "lanes": 16, "rows": 2, "tokens": 1, "workgroup": 256},
    {"shader": "fused_matvec", "lanes": 4, "rows": 4, "tokens": 2, "workgroup": 64},
)

CASES: tuple[Case, ...] = (
    # Every weight type: one token, a few, many; rows with an odd number of blocks (start in the middle of a word).
    *(_case("matmul", type=t, n=n, f=96, d=d) for t in TYPES for n, d in ((1, 256), (1, 96), (5, 96), (19, 160))),
    *(_case("matmul", type=t, n=n, f=80, d=d, act="q8") for t in QUANTISED for n, d in ((1, 256), (3, 96), (33, 224))),
    *(_case("matmul", type="q8_0", n=13, f=150, d=288, act=act, variant=v) for v in VARIANTS for act in ("f32", "q8")),
    *(_case("matmul", type="q4_1", n=70, f=130, d=192, act=act, variant=VARIANTS[-1]) for act in ("f32", "q8")),
    _case("matmul", type="q8_0", n=32, f=64, d=64, used=11),
    # A bias and an activation after it; rows of floats that end inside a block of 32.
    *(_case("matmul", type=t, n=n, f=75, d=96, act=a, bias=True, gelu=g)
      for t, a in (("f32", "f32"), ("q8_0", "q8")) for n, g in ((1, "gelu"), (5, None), (33, "gelu_tanh"))),
    *(_case("matmul", type=t, n=n, f=50, d=d, bias=n > 1, gelu="gelu")
      for t in ("f32", "f16", "bf16") for n, d in ((1, 36), (6, 100), (19, 4))),
    *(_case("matmul", type="f16", n=13, f=70, d=140, bias=True, gelu="gelu", variant=v) for v in VARIANTS),
    _case("matmul", type="f16", n=4, f=1152, d=4304, bias=True),
    # The norm before and the addition after; the talker's and the code predictor's shapes.
    *(_case("matmul", type=t, n=n, f=76, d=96, act=a, norm=no, residual=r, variant=v)
      for t, a in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_1", "f32"), ("q4_0", "q8"))
      for n, no, r, v in ((1, True, True, None), (2, True, False, FUSED[2]), (2, False, True, FUSED[0]),
                          (1, True, True, FUSED[1]))),
    *(_case("matmul", type=t, n=2, f=52, d=160, norm=True, residual=True) for t in ("f16", "bf16", "q4_0")),
    *(_case("matmul", type="q8_0", n=n, f=60, d=96, norm=True, residual=True, bias=b, act="q8")
      for n, b in ((5, False), (2, True))),
    *(_case("matmul", type=t, n=1, f=1024, d=d, residual=True, act=a)
      for t, a in (("q8_0", "q8"), ("f16", "f32")) for d in (2048, 3072)),
    # SmolLM2-135M and the 30B thinker.
    *(_case("matmul", type="q8_0", n=n, f=f, d=d) for n in (1, 128) for f, d in ((576, 576), (1536, 576), (576, 1536))),
    *(_case("matmul", type="q8_0", n=1, f=f, d=d) for f, d in ((4096, 2048), (512, 2048), (2048, 4096))),
    _case("matmul", type="f32", n=1, f=128, d=2048),
    _case("matmul", type="q8_0", n=1, f=4096, d=2048, act="q8"),
    _case("matmul", type="q8_0", n=128, f=512, d=2048, act="q8"),
    *(_case("matmul", True, type="q8_0", n=n, f=4096, d=2048, act=a) for n in (4, 8, 128, 512) for a in ("f32", "q8")),
    *(_case("matmul", True, type="q8_0", n=1, f=152064, d=2048, act=act) for act in ("f32", "q8")),
    *(
        _case("moe_matmul", type=t, n=n, k=k, e=8, f=48, d=96, shared=shared, act=act)
        for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "f32"), ("q4_1", "q8"))
        for n, k, shared in ((1, 2, True), (1, 2, False), (5, 3, True), (5, 3, False))
    ),
    *(_case("moe_matmul", type="q8_0", n=3, k=2, e=8, f=50, d=288, shared=True, variant=v) for v in VARIANTS[0:5:2]),
    _case("moe_matmul", type="q8_0", n=1, k=8, e=16, f=768, d=2048, shared=True),
    _case("moe_matmul", type="q8_0", n=1, k=8, e=16, f=2048, d=768, shared=False),
    *(_case("moe_matmul", True, type="q8_0", n=n, k=8, e=128, f=768, d=2048, shared=True, act=a)
      for n in (1, 8) for a in ("f32", "q8")),
    *(_case("moe_matmul", True, type="q8_0", n=n, k=8, e=128, f=2048, d=768, shared=False, act=a)
      for n in (1, 8) for a in ("f32", "q8")),
    *(_case("moe_swiglu", type=t, n=n, k=3, e=8, f=42, d=96, act=act, variant=v)
      for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "q8"), ("q4_1", "f32"))
      for n, v in ((1, None), (2, FUSED[1]))),
    *(_case("moe_swiglu", type="q8_0", n=n, k=2, e=8, f=32, d=64, apart=a, act="q8")
      for n, a in ((5, False), (1, True))),
    *(_case("moe_swiglu", type="q8_0", n=1, k=8, e=16, f=384, d=1024, act=a) for a in ("f32", "q8")),
    *(_case("moe_swiglu", True, type="q8_0", n=1, k=8, e=128, f=768, d=2048, act=a) for a in ("f32", "q8")),
    *(_case("moe_down", type=t, n=n, k=3, e=8, f=96, d=44, act=act, residual=n == 1, variant=v)
      for t, act in (("f32", "f32"), ("q8_0", "f32"), ("q8_0", "q8"), ("q4_0", "q8"), ("q4_1", "f32"))
      for n, v in ((1, None), (2, FUSED[1]))),
    _case("moe_down", type="q8_0", n=5, k=2, e=8, f=32, d=64, act="q8", residual=True),
    *(_case("moe_down", type="q8_0", n=1, k=8, e=16, f=384, d=1024, act=a, residual=True) for a in ("f32", "q8")),
    *(_case("moe_down", True, type="q8_0", n=1, k=8, e=128, f=768, d=2048, act=a) for a in ("f32", "q8")),
    *(_case("moe_route", type="f32", n=n, e=128, k=k, d=d, norm=True, always=a)
      for n, k, d, a in ((1, 6, 1024, 2), (2, 8, 2048, 0), (5, 6, 96, 2))),
    *(_case("moe_route", type=t, n=2, e=e, k=k, d=d, renormalise=r, norm=no)
      for t, e, k, d, r, no in (("f32", 8, 2, 64, False, False), ("bf16", 300, 5, 96, True, True),
                                ("q8_0", 48, 48, 64, False, True), ("q4_1", 7, 1, 32, True, False))),
    _case("quantize_q8", n=1, d=2048),
    _case("quantize_q8", n=37, d=576),
    *(_case("embed", type=t, n=9, v=300, d=d) for t in TYPES for d in (96, 576)),
    _case("embed", type="q8_0", n=3, v=4096, d=2048),
    *(_case("embed_code", type=t, v=40, d=96, before=b) for t in TYPES for b in (False, True)),
    *(_case("embed_code", type=t, v=3072, d=1024, before=b) for t, b in (("q8_0", True), ("f16", False))),
    *(_case("conv_columns", n=n, t=t, f=f, c=c, valid=v, scale=s)
      for n, t, f, c, v, s in ((1, 100, 128, 1, 100, 1), (2, 50, 64, 32, 99, 2), (1, 25, 32, 480, 100, 4),
                               (2, 13, 5, 6, 7, 1), (1, 1, 1, 8, 1, 1))),
    *(_case("conv1d", n=2, rate=5, f=f, c=c, taps=k, dilation=d, **after)
      for (f, c, k, d), after in zip(
          ((24, 8, 1, 1), (40, 12, 1, 1), (12, 40, 1, 1), (100, 36, 7, 1), (30, 4, 2, 1), (36, 36, 1, 1), (33, 8, 7, 9),
           (1, 96, 7, 1)), AFTER, strict=True)),
    *(_case("conv1d", n=3, rate=23, f=70, c=44, taps=7, dilation=3, type="f16", tile=t, **AFTER[6]) for t in TILES),
    *(_case("conv1d", n=2, rate=3, f=20, c=12, taps=2, type=t) for t in ("f16", "bf16")),
    *(_case("conv1d", n=1, rate=4, f=8, c=32, taps=7, before=b, **AFTER[5]) for b in (1, 2, 1 << 16)),
    # A frame of the 30B's Code2Wav: one layer of each kind.
    *(_case("conv1d", True, n=1, rate=r, f=f, c=c, taps=k, dilation=d, type="f16", **AFTER[i])
      for r, f, c, k, d, i in ((4, 4096, 1024, 1, 1, 1), (4, 1024, 4096, 1, 1, 2), (4, 1536, 1024, 7, 1, 3),
                               (4, 6144, 1536, 2, 1, 4), (32, 768, 768, 7, 9, 3), (160, 768, 384, 2, 1, 4),
                               (640, 192, 192, 7, 3, 3), (1920, 96, 96, 7, 9, 3), (1920, 96, 96, 1, 1, 6),
                               (1920, 1, 96, 7, 1, 7))),
    *(_case("conv1d_depthwise", n=n, rate=r, c=c, taps=7) for n, r, c in ((3, 2, 1024), (2, 4, 36))),
    *(_case("carry_rows", n=n, rate=r, c=c, lead=h, used=u)
      for n, r, c, h, u in ((4, 32, 768, 54, 1), (2, 4, 1024, 6, 2), (9, 3, 4, 6, 5), (3, 5, 36, 1, 3))),
    *(_case("shift_rows", count=c, past=p, width=w) for c, p, w in ((71, 300, 1024), (71, 71, 36), (5, 8, 4))),
    *(_case("embed_mean", type=t, n=3, k=16, v=90, d=96) for t in TYPES),
    _case("embed_mean", type="f16", n=2, k=16, v=32768, d=1024),
    *(_case("add_rows", n=n, v=v, d=d, k=k) for n, v, d, k in ((13, 1500, 1280, 1), (9, 2304, 1152, 4), (3, 5, 12, 2))),
    *(_case("rms_norm", n=n, d=d) for n, d in ((1, 2048), (5, 576), (3, 100), (128, 64))),
    *(_case("add_rms_norm", n=n, d=d) for n, d in ((1, 2048), (7, 576), (2, 33))),
    *(_case("add_rms_norm", n=n, d=d, scaled=True) for n, d in ((4, 1024), (2, 33))),
    *(_case("layer_norm", n=n, d=d, per_token=p) for n, d, p in ((3, 1280, 1), (2, 1152, 4), (3, 4608, 1), (5, 33, 2))),
    *(_case("add_layer_norm", n=n, d=d) for n, d in ((3, 1280), (7, 100))),
    *(_case("rope", n=n, heads=h, hd=hd, style=s)
      for n, h, hd in ((1, 9, 64), (17, 4, 128)) for s in ("neox", "interleaved")),
    _case("rope", n=3, heads=2, hd=128, style="neox", pairs=32),
    _case("rope", n=4, heads=3, hd=128, style="neox", start=31000),
    *(_case("rope", n=6, heads=4, hd=hd, style="neox", sections=sec, qk_norm=True, cache=c)
      for hd, sec in ((128, (24, 20, 20)), (64, (12, 10, 10)), (32, (6, 5, 5))) for c in (None, "f32", "f16")),
    _case("rope", n=1, heads=4, hd=128, style="interleaved", cache="f16", start=40),
    *(_case("rope_qkv", n=n, heads=h, kv=kv, hd=hd, style="neox", cache=c, start=s, sections=sec, qk_norm=True)
      for n, h, kv, hd, s, sec in ((1, 32, 4, 128, 9, (24, 20, 20)), (5, 4, 2, 64, 0, None)) for c in ("f32", "f16")),
    *(_case("rope_qkv", n=n, heads=9, kv=3, hd=64, style="interleaved", cache=c, start=s)
      for n, s in ((1, 200), (9, 3)) for c in ("f32", "f16")),
    _case("rope_qkv", n=2, heads=2, kv=1, hd=128, style="neox", cache="f16", pairs=32, start=5),
    *(_case("rope_qkv", n=n, heads=h, kv=h, hd=hd, style="neox", cache="f32", start=s, sections="halves")
      for n, h, hd, s in ((7, 16, 72, 12), (3, 2, 32, 0))),
    # The code predictor's two first tokens and its last one; groups of 8; a cache too long for one dispatch.
    *(_case("rope_attention", n=n, heads=h, kv=kv, hd=hd, style="neox", cache=c, start=s, sections=sec, qk_norm=True)
      for n, h, kv, hd, s, sec in ((2, 16, 8, 128, 0, None), (1, 16, 8, 128, 13, None), (2, 4, 2, 64, 27, None),
                                   (1, 16, 2, 128, 28, (24, 20, 20)), (1, 4, 2, 64, 40, None)) for c in ("f32", "f16")),
    *(_case("rope_attention", n=n, heads=9, kv=3, hd=64, style="interleaved", cache="f32", start=s)
      for n, s in ((1, 0), (2, 7))),
    *(_case("rope_attention", n=2, heads=2, kv=1, hd=72, style="neox", cache=c, pairs=20, start=5, qk_norm=c == "f16")
      for c in ("f32", "f16")),
    *(_case("matmul_joined", types=t, n=n, fs=f, d=96, act=act)
      for t, f in (("q8_0", "130"), ("q4_0 q4_0 q8_0", "64 40 26")) for n in (1, 20) for act in ("f32", "q8")),
    *(_case("matmul_joined", types=t, n=n, fs=f, d=96, act=act, norm=True)
      for t, f in (("q8_0", "130"), ("q4_0 f16 q8_0", "64 40 26")) for n in (2, 20) for act in ("f32", "q8")),
    _case("matmul_joined", types="q8_0", n=1, fs="4096", d=1024, act="q8", norm=True),
    *(_case("matmul_swiglu", type=t, n=n, f=f, d=d, act=act)
      for t, act in (("q8_0", "f32"), ("q8_0", "q8"), ("q4_1", "f32"), ("f16", "f32"))
      for n, f, d in ((1, 75, 96), (3, 64, 96), (20, 100, 96))),
    *(_case("matmul_swiglu", type="q8_0", n=13, f=75, d=288, act=a, variant=v)
      for v in VARIANTS for a in ("f32", "q8")),
    _case("matmul_swiglu", type="q8_0", n=1, f=1536, d=576),
    *(_case("matmul_swiglu", type=t, n=n, f=75, d=96, act=act, norm=True, variant=v)
      for t, act in (("q8_0", "f32"), ("q8_0", "q8"), ("f16", "f32"))
      for n, v in ((1, None), (2, None), (2, FUSED[1]), (2, FUSED[2]), (4, None))),
    _case("matmul_swiglu", type="q8_0", n=1, f=3072, d=1024, act="q8", norm=True),
    *(_case("swiglu_joined", n=n, f=f) for n, f in ((1, 1536), (7, 36))),
    *(_case("store_rows", n=5, width=w, cache=c, start=3) for w in (192, 512) for c in ("f32", "f16")),
    *(_case("load_rows", n=n, d=d, start=s) for n, d, s in ((5, 1152, 9), (1, 4, 0), (3, 260, 1))),
    *(_case("attention", n=n, heads=h, kv=kv, hd=hd, past=p, cache=c)
      for n, h, kv, hd, p in ((1, 9, 3, 64, 0), (1, 32, 4, 128, 63), (1, 32, 4, 128, 64), (1, 16, 2, 128, 300),
                              (20, 9, 3, 64, 50), (70, 8, 8, 64, 0), (3, 4, 2, 72, 10), (2, 4, 1, 32, 130))
      for c in ("f32", "f16")),
    *(_case("attention", n=n, heads=h, kv=kv, hd=64, past=p, cache=c, window=w)
      for n, h, kv, p, c, w in ((5, 16, 16, 300, "f32", 72), (80, 2, 2, 0, "f32", 72), (3, 4, 2, 70, "f16", 64),
                                (4, 2, 1, 1, "f32", 1))),
    *(_case("window_attention", n=n, s=s, heads=h, hd=hd, windows=w, stored=c)
      for n, s, h, hd, w, c in ((1, 1, 2, 64, 1, "f32"), (208, 208, 20, 64, 2, "f32"), (130, 135, 2, 64, 3, "f16"),
                                (64, 64, 16, 72, 1, "f32"), (70, 97, 3, 72, 2, "f16"), (9, 33, 2, 128, 4, "f32"),
                                (65, 40, 1, 4, 2, "f16"))),
    *(_case("window_attention", True, n=1024, s=s, heads=16, hd=72, windows=1, stored=c)
      for s in (1024, 4096) for c in ("f32", "f16")),
    *(_case("attention", True, n=1, heads=32, kv=4, hd=128, past=p, cache="f16") for p in (4095, 32767)),
    *(_case("swiglu", n=n, f=f, per_token=p) for n, f, p in ((1, 1536, 1), (9, 768, 8), (3, 36, 3))),
    _case("add", n=5, f=2048),
    *(_case("replace_rows", n=n, d=d, used=u) for n, d, u in ((7, 2048, 5), (1, 64, None), (9, 36, None))),
    *(_case("softmax", n=n, d=d) for n, d in ((3, 128), (2, 1000))),
    *(_case("moe_gate", n=n, e=e, k=k, renormalise=True, always=a) for n, e, k, a in ((1, 128, 6, 2), (3, 8, 8, 1))),
    *(_case("moe_gate", n=n, e=e, k=k, renormalise=r)
      for n, e, k, r in ((1, 128, 8, True), (5, 128, 6, True), (3, 8, 2, False), (2, 48, 4, True), (1, 300, 5, True))),
    *(_case("moe_combine", n=n, k=k, d=d) for n, k, d in ((1, 8, 2048), (5, 2, 36))),
    *(_case("argmax", n=n, v=v) for n, v in ((1, 49152), (3, 151), (1, 152064))),
    *(_case("top_k", v=v, k=k) for v, k in ((49152, 40), (152064, 128), (300, 128), (128, 128), (777, 1))),
    *(_case("top_k", v=v, k=k, ties=True) for v, k in ((4096, 128), (513, 40))),
    *(_case("penalize", v=1000, used=u) for u in (0, 64, 37)),
    # The talker's first code, the other 15; greedy; borders.
    *(_case("sample", v=3072, settings=s, seen=True, left_out=(2048, 3072), spared=2150, codes=c)
      for s, c in (("0.9 50 1 1.05", True), ("0 50 1 1.05", False))),
    *(_case("sample", v=v, settings=s, codes=True, ties=t)
      for v, s, t in ((2048, "1 50 0.8 1", False), (2048, "1 50 0.8 1", True), (4096, "1 0 0.9 1", False),
                      (300, "0.5 300 0.5 1", True), (300, "2 1 0.5 1", True), (7, "1 0 0 1", True),
                      (1, "1 5 0 1", False))),
    _case("sample", v=1000, settings="1 0 1 1"),
    _case("select_row", n=8, d=576, used=5),
    _case("select_row", n=1, d=2048, used=1),
)  # fmt: skip
