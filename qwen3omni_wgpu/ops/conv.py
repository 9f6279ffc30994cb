"""Convolutions as matmuls: what a 3x3 kernel reads, gathered into rows."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, Plan, Tensor
from ..reference import conv as reference
from .guard import expect, require

TAPS = 9


def half(size: int) -> int:
    """Length of an axis after a convolution with stride 2, a kernel of 3 and padding 1."""
    return (size + 1) // 2


def columns_width(channels: int) -> int:
    """Values in a row of conv_columns: nine taps of all channels, filled up to a multiple of four."""
    return (TAPS * channels + 3) // 4 * 4


def conv_columns(plan: Plan, x: Tensor, valid: Tensor, size: tuple[int, int], scale: int = 1) -> Tensor:
    """Rows for a 3x3 convolution with stride 2 and padding 1 by a matmul: x [N * T * F, C] -> [N * T' * F', WIDTH].

    `size` is (T, F), T' = ceil(T / 2) and F' = ceil(F / 2); a row holds the nine taps, 3 kt + kf, of C channels each,
    and zeros up to WIDTH = columns_width(C). Only the first ceil(valid[0] / scale) of the T columns of each of the N
    pictures count (valid uint32 [1]); the rest are read as zeros, like the padding.
    Source: Chellapilla, Puri and Simard 2006 ("im2col").
    """
    expect("conv_columns", x, (None, None))
    expect("conv_columns", valid, (1,), ("u32",))
    t, f = size
    rows, c = x.shape
    require("conv_columns", rows % (t * f) == 0, f"{x.name} has {rows} rows, not pictures of {t} x {f}")
    n, each, width = rows // (t * f), half(t) * half(f), columns_width(c)
    y = plan.empty((n * each, width), "f32", f"{x.name}.columns")
    kernel = Kernel.of("conv_columns.wgsl", C=c, T_IN=t, F_IN=f, WIDTH=width, SCALE=scale, WG=64)
    grid = (-(-width // 256), n * each, 1)
    plan.add("conv_columns", kernel, [x, valid, plan.state], [y], grid, nbytes=4 * (rows * c + n * each * width))

    def twin(_: int, n_tokens: int, x: np.ndarray, valid: np.ndarray) -> list[np.ndarray]:
        pictures = x.reshape(n, t, f, c)[:n_tokens]
        columns = reference.conv_columns(pictures, min(t, -(-int(valid[0]) // scale)))
        return [np.pad(columns.reshape(-1, TAPS * c), ((0, 0), (0, width - TAPS * c)))]

    plan.check(twin, [x, valid], [y], 0.0)
    return y
