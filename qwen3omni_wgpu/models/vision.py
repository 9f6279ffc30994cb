"""The vision tower: patches of pictures to rows that take the place of a prompt's embeddings.

    x = Wp patch + b + position(row, column)             a 16 x 16 patch of two frames; a table, interpolated
    h = x + Attention(LayerNorm(x))                      within one picture, rotated by row and column
    x = h + Down(gelu_tanh(Up(LayerNorm(h))))
    y = W2 gelu(W1 concat4(LayerNorm(x)))                four patches a row, at the end
    y_tap = W2 gelu(W1 LayerNorm(concat4(x)))            after some blocks: deepstack

A block runs in two passes: keys and values of all rows come first, so that pictures larger than a plan go through in
chunks. Dims: N patches of a chunk, S of a picture, P values of a patch, D model, H heads, HD head, F feed-forward,
M = 4 D merged, O output. Weights keep their GGUF names, but for the patch kernel, whose two frames are joined.
Source: transformers Qwen3OmniMoeVisionEncoder; llama.cpp's tensor names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import isqrt

import numpy as np

from .. import ops
from ..errors import UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import dequantize, shown
from ..gpu import Device, Plan, Tensor
from ..ops.attention_windows import LONGEST_HEAD
from ..reference.rope import rope_frequencies
from ..weights import load_weights
from .config import Keys, check_tensor

_PROJECTOR, _ACTIVATION = "qwen3vl_merger", "gelu_pytorch_tanh"
_FRAMES = 2  # of a patch: the file has one kernel each
_KERNELS = ("v.patch_embd.weight", "v.patch_embd.weight.1")
_TABLE = "v.position_embd.weight"


@dataclass(frozen=True)
class VisionConfig:
    """Sizes of the tower. merge: side of the square of patches that become one row; side: of the position table.

    taps: the blocks after which a deepstack merger reads, rising.
    """

    n_layers: int
    dim: int
    n_heads: int
    ffn_dim: int
    output_dim: int
    channels: int
    patch: int
    merge: int
    side: int
    taps: tuple[int, ...]
    rope_theta: float
    norm_eps: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> VisionConfig:
        """From the metadata of an mmproj file whose tensors all fit.

        UnsupportedModel (no vision tower of this kind, a setting or tensor we do not know), InvalidModelFile (missing
        or contradictory metadata, missing tensor, wrong shape).
        """
        keys = Keys(file, "clip.vision")
        if not file.metadata.get("clip.has_vision_encoder"):
            raise UnsupportedModel(f"{file.path}: has no vision tower, so it cannot see; name a file that has one")
        wanted = {"projector_type": _PROJECTOR, "hidden_act": _ACTIVATION, "temporal_patch_size": _FRAMES}
        for key, value in wanted.items():
            if keys.get(key) not in (value, None):
                raise keys.unsupported(key, f"is {shown(keys.get(key))}; only {value!r} is supported")
        n_layers, patch = keys.integer("block_count"), keys.integer("patch_size")
        # What llama.cpp has no key for has a default here.
        side = keys.integer("image_size") // patch
        config = cls(
            n_layers=n_layers,
            dim=keys.integer("embedding_length"),
            n_heads=keys.integer("attention.head_count"),
            ffn_dim=keys.integer("feed_forward_length"),
            output_dim=keys.integer("projection_dim"),
            channels=keys.integer("in_channels", 3),
            patch=patch,
            merge=keys.integer("spatial_merge_size", 2),
            side=isqrt(keys.integer("num_position_embeddings", side * side)),
            taps=_taps(keys, n_layers),
            rope_theta=keys.number("rope.freq_base", 10000.0),
            norm_eps=keys.number("attention.layer_norm_epsilon", 1e-6),
        )
        _check_sizes(keys, config)
        _check_tensors(file, config)
        return config

    @property
    def patch_dim(self) -> int:
        """Values of a patch: channels of frames of rows of pixels."""
        return self.channels * _FRAMES * self.patch**2

    @property
    def head_dim(self) -> int:
        return self.dim // self.n_heads

    @property
    def unit(self) -> int:
        """Patches that become one row."""
        return self.merge**2


def _taps(keys: Keys, n_layers: int) -> tuple[int, ...]:
    flags = keys.get("is_deepstack_layers")
    if flags is None:
        return ()
    if not isinstance(flags, list) or len(flags) != n_layers or not all(isinstance(flag, bool) for flag in flags):
        raise keys.bad("is_deepstack_layers", f"is {shown(flags)}, expected a yes or no for each of {n_layers} blocks")
    return tuple(i for i, flag in enumerate(flags) if flag)


def _check_sizes(keys: Keys, c: VisionConfig) -> None:
    if c.dim % c.n_heads or c.head_dim % 4 or c.head_dim > LONGEST_HEAD:
        why = f"is {c.n_heads} for embedding_length {c.dim}; only heads of 4, 8, ... {LONGEST_HEAD} are supported"
        raise keys.unsupported("attention.head_count", why)
    if c.ffn_dim % 4:
        raise keys.unsupported("feed_forward_length", f"is {c.ffn_dim}; only multiples of 4 are supported")
    if c.patch_dim % 4:
        raise keys.unsupported("patch_size", f"is {c.patch}; only even sizes are supported")


def _shapes(c: VisionConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and row-major shape of every matrix and vector that keeps its form, in the order of use.

    Lazily, so that an absurd layer count fails at the first missing tensor.
    """
    yield "v.patch_embd.bias", (c.dim,)
    merged = c.dim * c.unit
    for i in range(c.n_layers):
        block = f"v.blk.{i}"
        yield from _vectors(f"{block}.ln1", c.dim)
        yield from _linear_shapes(f"{block}.attn_qkv", 3 * c.dim, c.dim)
        yield from _linear_shapes(f"{block}.attn_out", c.dim, c.dim)
        yield from _vectors(f"{block}.ln2", c.dim)
        yield from _linear_shapes(f"{block}.ffn_up", c.ffn_dim, c.dim)
        yield from _linear_shapes(f"{block}.ffn_down", c.dim, c.ffn_dim)
        if i in c.taps:
            yield from _vectors(f"v.deepstack.{i}.norm", merged)
            yield from _linear_shapes(f"v.deepstack.{i}.fc1", merged, merged)
            yield from _linear_shapes(f"v.deepstack.{i}.fc2", c.output_dim, merged)
    yield from _vectors("v.post_ln", c.dim)
    yield from _linear_shapes("mm.0", merged, merged)
    yield from _linear_shapes("mm.2", c.output_dim, merged)


def _vectors(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _linear_shapes(name: str, out: int, into: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into)
    yield f"{name}.bias", (out,)


def _check_tensors(file: GGUFFile, c: VisionConfig) -> None:
    """Presence and shape of all that is used, and nothing of the tower's beside it."""
    used = {*_KERNELS, _TABLE}
    for name in _KERNELS:
        check_tensor(file, name, (c.dim, c.channels, c.patch, c.patch))
    check_tensor(file, _TABLE, (c.side**2, c.dim))
    for name, shape in _shapes(c):
        check_tensor(file, name, shape)
        used.add(name)
    own = [name for name in file.tensors if name.startswith(("v.", "mm.")) and not name.startswith("mm.a.")]
    unused = [name for name in own if name not in used]
    if unused:
        names = ", ".join(shown(name) for name in unused[:4]) + (" and more" if len(unused) > 4 else "")
        raise UnsupportedModel(
            f"{file.path}: tensors that a vision tower of {c.n_layers} blocks does not use, so the result would be "
            f"wrong: {names}; use another model"
        )


@dataclass
class VisionModel:
    """Weights on a device. kernel [D, P]: of patches; table [side^2, D]: of positions; freqs [HD / 2]: of rotation."""

    device: Device
    config: VisionConfig
    weights: dict[str, Tensor]
    kernel: Tensor
    table: Tensor
    freqs: Tensor

    @classmethod
    def load(cls, file: GGUFFile, device: Device, progress: Callable[[int, int], None] | None = None) -> VisionModel:
        """Check metadata and shapes, then read the tensors; `progress(bytes done, bytes in all)` counts matrices."""
        c = VisionConfig.from_gguf(file)
        weights = load_weights(device, file, [name for name, _ in _shapes(c)], progress)
        made: list[Tensor] = []
        try:
            # Channels of frames of rows of pixels, the order of a patch's values.
            frames = np.stack([dequantize(file.tensors[name]) for name in _KERNELS], axis=2)
            half = all(file.tensors[name].type == "f16" for name in _KERNELS)
            kernel = np.ascontiguousarray(frames.reshape(c.dim, c.patch_dim), np.float16 if half else np.float32)
            made.append(Tensor.from_numpy(device, kernel, _KERNELS[0]))
            made.append(Tensor.from_numpy(device, dequantize(file.tensors[_TABLE]), _TABLE))
            # The same frequencies for rows and for columns.
            freqs = np.tile(rope_frequencies(c.head_dim // 2, c.rope_theta), 2)
            made.append(Tensor.from_numpy(device, freqs, "vision freqs"))
        except BaseException:
            for tensor in (*weights.values(), *made):
                tensor.free()
            raise
        return cls(device, c, weights, *made)

    def weight(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight and bias, by the name that both have in the file."""
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def free(self) -> None:
        for tensor in (*self.weights.values(), self.kernel, self.table, self.freqs):
            tensor.free()
        self.weights = {}


@dataclass(frozen=True)
class Rows:
    """What a picture's patches hold between the passes, each [S, D]: residual, queries, keys and values."""

    x: Tensor
    q: Tensor
    keys: Tensor
    values: Tensor

    @classmethod
    def empty(cls, device: Device, count: int, dim: int) -> Rows:
        made: list[Tensor] = []
        try:
            for name in ("x", "q", "keys", "values"):
                made.append(Tensor.empty(device, (count, dim), "f32", f"patches.{name}"))
        except BaseException:
            for tensor in made:
                tensor.free()
            raise
        return cls(*made)

    def free(self) -> None:
        for tensor in (self.x, self.q, self.keys, self.values):
            tensor.free()


def embed(plan: Plan, model: VisionModel, patches: Tensor, ids: Tensor, weights: Tensor, rows: Rows) -> None:
    """Patches [N, P] with their four neighbours in the position table, ids and weights [N, 4] -> rows.x."""
    x = ops.matmul(plan, patches, model.kernel, bias=model.weights["v.patch_embd.bias"])
    ops.store_rows(plan, ops.add_rows(plan, x, model.table, ids, weights), rows.x)


def prepare(plan: Plan, model: VisionModel, i: int, positions: Tensor, rows: Rows) -> None:
    """First pass of block i: queries, keys and values of N rows, turned by positions [N, 3] (row, column last)."""
    c = model.config
    x = ops.load_rows(plan, rows.x, positions.shape[0])
    h = ops.layer_norm(plan, x, *model.weight(f"v.blk.{i}.ln1"), c.norm_eps)
    qkv = _linear(plan, model, f"v.blk.{i}.attn_qkv", h)  # [N, 3 D]
    turned = ops.rope_qkv(
        plan, qkv, positions, model.freqs, c.n_heads, c.n_heads, rows.keys, rows.values, style="neox", sections="halves"
    )
    ops.store_rows(plan, turned, rows.q)


def block(plan: Plan, model: VisionModel, i: int, n: int, tiles: Tensor, rows: Rows) -> None:
    """Second pass of block i: attention and MLP of n rows. tiles: of window_attention, over all rows."""
    c, name = model.config, f"v.blk.{i}"
    q, x = ops.load_rows(plan, rows.q, n), ops.load_rows(plan, rows.x, n)
    mixed = ops.window_attention(plan, q, rows.keys, rows.values, tiles, c.n_heads, c.head_dim**-0.5)
    update = _linear(plan, model, f"{name}.attn_out", mixed)
    x, h = ops.add_layer_norm(plan, update, x, *model.weight(f"{name}.ln2"), c.norm_eps)
    update = _linear(plan, model, f"{name}.ffn_down", _linear(plan, model, f"{name}.ffn_up", h, act="gelu_tanh"))
    ops.store_rows(plan, ops.add(plan, x, update), rows.x)


def merger(plan: Plan, model: VisionModel, rows: Rows, out: Tensor) -> None:
    """The tower's result: LayerNorm of every patch, then four in a row -> out [N / 4, O]. The plan counts in rows."""
    c = model.config
    x = _merged(plan, c, rows, out.shape[0]).view(out.shape[0] * c.unit, c.dim)
    h = ops.layer_norm(plan, x, *model.weight("v.post_ln"), c.norm_eps, per_token=c.unit)
    _project(plan, model, "mm.0", "mm.2", h.view(out.shape[0], c.dim * c.unit), out)


def deepstack(plan: Plan, model: VisionModel, i: int, rows: Rows, out: Tensor) -> None:
    """The tap after block i: four patches in a row, then LayerNorm -> out [N / 4, O]. The plan counts in rows."""
    x = _merged(plan, model.config, rows, out.shape[0])
    h = ops.layer_norm(plan, x, *model.weight(f"v.deepstack.{i}.norm"), model.config.norm_eps)
    _project(plan, model, f"v.deepstack.{i}.fc1", f"v.deepstack.{i}.fc2", h, out)


def _merged(plan: Plan, c: VisionConfig, rows: Rows, n: int) -> Tensor:
    """The residual as n rows of four patches each [n, M]."""
    return ops.load_rows(plan, rows.x.view(rows.x.shape[0] // c.unit, c.dim * c.unit), n)


def _project(plan: Plan, model: VisionModel, first: str, second: str, h: Tensor, out: Tensor) -> None:
    _linear(plan, model, second, _linear(plan, model, first, h, act="gelu"), out=out)


def _linear(
    plan: Plan, model: VisionModel, name: str, x: Tensor, act: str | None = None, out: Tensor | None = None
) -> Tensor:
    weight, bias = model.weight(name)
    return ops.matmul(plan, x, weight, bias=bias, act=act, out=out)


def places(c: VisionConfig, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every patch of a grid, in the order of merged squares: positions float32 [S, 3] (0, row, column), and the
    neighbours in the position table: ids uint32 [S, 4], weights float32 [S, 4] (aligned corners, bilinear).

    Source: transformers, get_vision_interpolation_indices_and_weights and get_vision_position_ids.
    """
    m = c.merge
    grid = np.indices((height, width)).reshape(2, height // m, m, width // m, m)
    row, column = grid.transpose(0, 1, 3, 2, 4).reshape(2, -1)
    positions = np.stack([np.zeros_like(row), row, column], axis=1).astype(np.float32)
    row_taps, row_weights = _neighbours(row, height, c.side)
    column_taps, column_weights = _neighbours(column, width, c.side)
    ids = (row_taps[:, :, None] * c.side + column_taps[:, None]).reshape(-1, 4)
    return positions, ids.astype(np.uint32), (row_weights[:, :, None] * column_weights[:, None]).reshape(-1, 4)


def _neighbours(index: np.ndarray, size: int, side: int) -> tuple[np.ndarray, np.ndarray]:
    """Two places in a table of `side` and their weights, for positions of an axis of length `size`: [S, 2] each."""
    at = index.astype(np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    low = np.floor(at)
    taps = np.minimum(low.astype(np.int64)[:, None] + [0, 1], side - 1)
    distance = np.abs((at - low)[:, None] - np.array([0, 1], np.float32))
    return taps, 1 - distance
