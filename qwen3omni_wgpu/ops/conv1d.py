"""Causal convolutions over rows of time, channels last: a row is the channels of one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..gpu import Device, Kernel, Plan, Tensor
from ..reference import conv1d as reference
from ..reference.elementwise import gelu
from .guard import expect, require
from .streams import Rows

TYPES = ("f32", "f16", "bf16")
ACTIVATIONS = ("gelu", "clamp")
# Sums of taps * C products (7168 at most) in another order than NumPy's, see matmul; the snake multiplies their error
# by its slope, 1 + 2 alpha beta at most, which is near 3 where alpha and beta are of order 1.
TOLERANCE = 6e-5
TOLERANCE_DEPTHWISE = 1e-6
# Multiplications that are not worth the largest kernel on a software adapter, which takes a second to compile.
SMALL = 1 << 27


@dataclass(frozen=True)
class Tile:
    """One way to run conv1d: through workgroup memory (side_f x side_t threads, 4 x 4 results each), or directly.

    Directly (side_f 0): rows x tokens results a thread, `lanes` of `workgroup` threads side by side along the outputs.
    """

    side_f: int = 0
    side_t: int = 0
    rows: int = 4
    tokens: int = 4
    lanes: int = 1
    workgroup: int = 16


def choose_tile(device: Device, n: int, f: int, d: int) -> Tile:
    """The tile for n rows of f outputs, each of d products."""
    if f < 8:
        return Tile(rows=1, tokens=8, workgroup=16) if device.info.software else Tile(rows=1, tokens=2, workgroup=64)
    if not device.info.software:
        return Tile(16, 16) if f % 64 == 0 or f > 256 else Tile(8, 32)
    most = 4 if n * f * d <= SMALL else 8
    # Side by side along time where there is enough of it, so that no lane is without an output.
    return Tile(rows=most, tokens=most, lanes=1 if n >= 16 * most else 16)


def conv1d(
    plan: Plan,
    x: Rows | Tensor,
    w: Tensor,
    after: Tensor,
    *,
    taps: int = 1,
    dilation: int = 1,
    per_token: int = 1,
    act: str | None = None,
    scale: bool = False,
    residual: Tensor | None = None,
    hidden: int = 0,
    snake: bool = False,
    out: Tensor | None = None,
    plain: Tensor | None = None,
    tile: Tile | None = None,
) -> Tensor:
    """A causal convolution: x [N * per_token, C], w [F, taps * C] float of any kind -> [N * per_token, F].

    Row t reads rows t - (taps - 1 - j) * dilation; those before row 0 lie in front of x (Rows), which must have them.
    Then comes, in this order: the bias; act ("gelu", "clamp" to -1 .. 1 or None); a factor with `scale`; `residual`;
    zeros instead of the first `hidden` rows of the stream, where state[2] tokens went before this step; `plain`, if
    given, takes what there is then; with `snake` + beta sin(alpha value)^2. `after` [rows, F] are bias, factor (with
    scale), alpha and beta (with snake) of every output. C a multiple of 4.
    A transposed convolution of kernel 2 s and stride s is one with taps = 2 and F = s * channels.
    """
    op, whole, n = "conv1d", *_source(x)
    expect(op, w, (None, None), TYPES)
    f, d = w.shape
    expect(op, whole, (None, d // taps))
    c = whole.shape[1]
    require(op, c % 4 == 0 and c * taps == d, f"{w.name} has rows of {d}, not {taps} times a multiple of 4")
    lead, before = whole.shape[0] - n, (taps - 1) * dilation
    require(op, lead >= before, f"{whole.name} has {lead} rows in front, {before} are read")
    require(op, n % per_token == 0, f"{whole.name} has {n} rows, not {per_token} a token")
    expect(op, after, (1 + scale + 2 * snake, f))
    require(op, act is None or act in ACTIVATIONS, f"no activation {act!r}, expected {' or '.join(ACTIVATIONS)}")
    for tensor in (residual, out, plain):
        if tensor is not None:
            expect(op, tensor, (n, f))
    if hidden:
        expect(op, plan.state, (3,), ("u32",))
    y = out or plan.empty((n, f), "f32", f"{w.name}.out")
    tile = tile or choose_tile(plan.device, n, f, d)
    flags = {"RESIDUAL": residual is not None, "SCALE": scale, "HIDES": hidden > 0, "SNAKE": snake}
    kernel, grid = _kernel(tile, n, f, WEIGHT=w.dtype, ACT=act or "none", PLAIN=plain is not None, **flags)
    outputs = [y, *([plain] if plain is not None else [])]
    given = [*([residual] if residual is not None else [])]
    plan.add(
        op,
        kernel,
        [w, whole, after, *given, plan.state],
        outputs,
        grid,
        immediates=(f, n, c // 4, taps, dilation, lead, per_token, hidden),
        nbytes=w.nbytes + whole.nbytes + 4 * n * f * (len(outputs) + len(given)),
        flops=2 * n * f * d,
    )

    def twin(
        _: int, n_tokens: int, w: np.ndarray, whole: np.ndarray, after: np.ndarray, state: np.ndarray,
        *residual: np.ndarray,
    ) -> list[np.ndarray]:  # fmt: skip
        rows = min(n, n_tokens * per_token)
        value = reference.conv1d(whole[: lead + rows], w.reshape(f, taps, c), rows, dilation) + after[0]
        value = gelu(value) if act == "gelu" else np.clip(value, -1, 1) if act == "clamp" else value
        value = value * after[1] if scale else value
        value = value + residual[0][:rows] if residual else value
        if hidden:
            value[: max(0, hidden - int(state[2]) * per_token)] = 0
        last = reference.snake(value, after[-2], after[-1]) if snake else value
        return [last, value][: len(outputs)]

    plan.check(twin, [w, whole, after, plan.state, *given], outputs, TOLERANCE)
    return y


def conv1d_depthwise(plan: Plan, x: Rows, w: Tensor, bias: Tensor, per_token: int = 1) -> Tensor:
    """A causal convolution of each channel alone: x [N * per_token, C], w [taps, C], bias [C] -> [N * per_token, C]."""
    op, whole, n = "conv1d_depthwise", *_source(x)
    expect(op, w, (None, None))
    taps, c = w.shape
    expect(op, bias, (c,))
    expect(op, whole, (None, c))
    lead = whole.shape[0] - n
    require(op, c % 4 == 0, f"{whole.name} has rows of {c}, not a multiple of 4")
    require(op, lead >= taps - 1, f"{whole.name} has {lead} rows in front, {taps - 1} are read")
    require(op, n % per_token == 0, f"{whole.name} has {n} rows, not {per_token} a token")
    y = plan.empty((n, c), "f32", f"{w.name}.out")
    kernel = Kernel.of("conv1d_depthwise.wgsl", TAPS=taps, WG=64)
    inputs, grid = [w, bias, whole, plan.state], (-(-c // 256), n, 1)
    cost = {"nbytes": 4 * n * c * 2, "flops": 2 * n * c * taps}
    plan.add(op, kernel, inputs, [y], grid, immediates=(c // 4, n, lead, per_token), **cost)

    def twin(_: int, n_tokens: int, w: np.ndarray, bias: np.ndarray, whole: np.ndarray) -> list[np.ndarray]:
        rows = min(n, n_tokens * per_token)
        return [reference.conv1d_depthwise(whole[: lead + rows], w, rows) + bias]

    plan.check(twin, inputs[:3], [y], TOLERANCE_DEPTHWISE)
    return y


def _source(x: Rows | Tensor) -> tuple[Tensor, int]:
    """The buffer that is read, and the rows of it that are this step's."""
    return (x.whole, x.body.shape[0]) if isinstance(x, Rows) else (x, x.shape[0])


def _kernel(tile: Tile, n: int, f: int, **params: str | bool) -> tuple[Kernel, tuple[int, int, int]]:
    if tile.side_f:
        grid = (-(-f // (4 * tile.side_f)), -(-n // (4 * tile.side_t)), 1)
        return Kernel.of("conv1d.wgsl", SIDE_F=tile.side_f, SIDE_T=tile.side_t, **params), grid
    along_f, along_t = tile.lanes * tile.rows, tile.workgroup // tile.lanes * tile.tokens
    shape = {"ROWS": tile.rows, "TOKENS": tile.tokens, "LANES": tile.lanes, "WG": tile.workgroup}
    return Kernel.of("conv1d_direct.wgsl", **shape, **params), (-(-f // along_f), -(-n // along_t), 1)
