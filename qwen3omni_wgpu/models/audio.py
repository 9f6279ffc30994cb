"""The audio tower: log-mel features to rows that take the place of a prompt's embeddings.

    x = conv_out(gelu(conv(gelu(conv(gelu(conv(mel))))))) + sinusoids     chunks of 1 s, 8 frames a token
    h = x + Attention(LayerNorm(x))                                         within windows of 8 s
    x = h + Down(gelu(Up(LayerNorm(h))))
    y = W2 gelu(W1 LayerNorm(x))

Dims: B chunks, T frames of a chunk, N tokens, D model, F feed-forward, C channels of the convolutions, O output.
Weights keep their GGUF names, but for the convolutions', which become matmuls. Source: transformers
Qwen3OmniMoeAudioEncoder; llama.cpp's tensor names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np

from .. import ops
from ..errors import UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import Info, dequantize, shown
from ..gpu import Device, Plan, Tensor
from ..ops.attention_windows import LONGEST_HEAD
from ..ops.conv import columns_width, half
from ..weights import load_weights
from .config import Keys, check_tensor

# Chunks that may go through the convolutions together.
MOST_CHUNKS = 8
CONVOLUTIONS = 3
_PROJECTOR = "qwen3a"


@dataclass(frozen=True)
class AudioConfig:
    """Sizes of the tower. chunk: mel frames that are convolved together; window_chunks: chunks that attend together."""

    n_layers: int
    dim: int
    n_heads: int
    ffn_dim: int
    channels: int
    n_mels: int
    output_dim: int
    chunk: int
    window_chunks: int
    norm_eps: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> AudioConfig:
        """From the metadata of an mmproj file whose tensors all fit.

        UnsupportedModel (no audio tower of this kind, a setting or tensor we do not know), InvalidModelFile (missing or
        contradictory metadata, missing tensor, wrong shape).
        """
        keys = Keys(file, "clip.audio")
        if not file.metadata.get("clip.has_audio_encoder"):
            raise UnsupportedModel(f"{file.path}: has no audio tower, so it cannot listen; name a file that has one")
        for key, wanted in (("projector_type", _PROJECTOR), ("activation_function", "gelu")):
            if keys.get(key) not in (wanted, None):
                raise keys.unsupported(key, f"is {shown(keys.get(key))}; only {wanted!r} is supported")
        # A file that llama.cpp wrote lacks what has a default here.
        half_chunk = keys.integer("n_window", 50)
        window = keys.integer("n_window_infer", 16 * half_chunk)
        if window % (2 * half_chunk):
            raise keys.bad("n_window_infer", f"is {window}, no multiple of twice n_window {half_chunk}")
        config = cls(
            n_layers=keys.integer("block_count"),
            dim=keys.integer("embedding_length"),
            n_heads=keys.integer("attention.head_count"),
            ffn_dim=keys.integer("feed_forward_length"),
            channels=keys.integer("downsample_hidden_size", 480),
            n_mels=keys.integer("num_mel_bins"),
            output_dim=keys.integer("projection_dim"),
            chunk=2 * half_chunk,
            window_chunks=window // (2 * half_chunk),
            norm_eps=keys.number("attention.layer_norm_epsilon", 1e-5),
        )
        _check_sizes(keys, config)
        _check_tensors(file, config)
        return config

    @property
    def chunk_tokens(self) -> int:
        return _eighth(self.chunk)

    @property
    def window_tokens(self) -> int:
        return self.window_chunks * self.chunk_tokens

    def n_tokens(self, frames: int) -> int:
        """Rows that so many mel frames become: eight frames a token, every chunk rounded up."""
        return frames // self.chunk * self.chunk_tokens + _eighth(frames % self.chunk)


def _eighth(size: int) -> int:
    """A length after the three convolutions."""
    return half(half(half(size)))


def _check_sizes(keys: Keys, c: AudioConfig) -> None:
    head_dim = c.dim // c.n_heads
    if c.dim % c.n_heads or head_dim % 4 or head_dim > LONGEST_HEAD:
        why = f"is {c.n_heads} for embedding_length {c.dim}; only heads of 4, 8, ... {LONGEST_HEAD} are supported"
        raise keys.unsupported("attention.head_count", why)
    for key, size in (("feed_forward_length", c.ffn_dim), ("downsample_hidden_size", c.channels)):
        if size % 4:
            raise keys.unsupported(key, f"is {size}; only multiples of 4 are supported")


def _shapes(c: AudioConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and row-major shape of every matrix and vector that keeps its form, in the order of use.

    Lazily, so that an absurd layer count fails at the first missing tensor.
    """
    for i in range(c.n_layers):
        block = f"a.blk.{i}"
        matrices = [(f"attn_{name}", c.dim, c.dim) for name in ("q", "k", "v", "out")]
        for name, out, into in [*matrices, ("ffn_up", c.ffn_dim, c.dim), ("ffn_down", c.dim, c.ffn_dim)]:
            yield f"{block}.{name}.weight", (out, into)
            yield f"{block}.{name}.bias", (out,)
        yield from _norm_shapes(f"{block}.ln1", c.dim)
        yield from _norm_shapes(f"{block}.ln2", c.dim)
    yield from _norm_shapes("a.post_ln", c.dim)
    for name, out in (("mm.a.mlp.1", c.dim), ("mm.a.mlp.2", c.output_dim)):
        yield f"{name}.weight", (out, c.dim)
        yield f"{name}.bias", (out,)


def _norm_shapes(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _stem_shapes(c: AudioConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Those of the convolutions and what follows them, which take another form on the device."""
    for i in range(CONVOLUTIONS):
        yield f"a.conv2d.{i + 1}.weight", (c.channels, c.channels if i else 1, 3, 3)
        yield f"a.conv2d.{i + 1}.bias", (c.channels, 1, 1)
    yield "a.conv_out.weight", (c.dim, c.channels * _eighth(c.n_mels))


def _check_tensors(file: GGUFFile, c: AudioConfig) -> None:
    """Presence and shape of all that is used, and nothing of the tower's beside it."""
    used = {"a.position_embd.weight"}
    for shapes in (_stem_shapes(c), _shapes(c)):
        for name, shape in shapes:
            check_tensor(file, name, shape)
            used.add(name)
    table = file.tensors.get("a.position_embd.weight")
    check_tensor(file, "a.position_embd.weight", (max(table.shape[0] if table else 0, c.chunk_tokens), c.dim))
    unused = [name for name in file.tensors if name.startswith(("a.", "mm.a.")) and name not in used]
    if unused:
        names = ", ".join(shown(name) for name in unused[:4]) + (" and more" if len(unused) > 4 else "")
        raise UnsupportedModel(
            f"{file.path}: tensors that an audio tower of {c.n_layers} layers does not use, so the result would be "
            f"wrong: {names}; use another model"
        )


@dataclass
class AudioModel:
    """Weights on a device.

    convolutions: (kernel [C, 9 C_in], bias [C]) of each; positions [MOST_CHUNKS * T / 8, D]: a chunk's, over and over.
    """

    device: Device
    config: AudioConfig
    weights: dict[str, Tensor]
    convolutions: list[tuple[Tensor, Tensor]]
    conv_out: Tensor
    positions: Tensor

    @classmethod
    def load(
        cls, file: GGUFFile, device: Device, progress: Callable[[int, int], None] | None = None
    ) -> AudioModel:
        """Check metadata and shapes, then read the tensors; progress(bytes done, bytes in all) counts the layers'."""
        c = AudioConfig.from_gguf(file)
        weights = load_weights(device, file, [name for name, _ in _shapes(c)], progress)
        made: list[Tensor] = []
        try:
            for i in range(CONVOLUTIONS):
                for kind, arrange in (("weight", _kernel), ("bias", np.ravel)):
                    info = file.tensors[f"a.conv2d.{i + 1}.{kind}"]
                    made.append(_upload(device, info, arrange(dequantize(info))))
            info = file.tensors["a.conv_out.weight"]
            # Its rows are ordered as channels of frequencies; ours are frequencies of channels, as they come.
            rows = dequantize(info).reshape(c.dim, c.channels, -1).transpose(0, 2, 1).reshape(c.dim, -1)
            made.append(_upload(device, info, rows))
            table = dequantize(file.tensors["a.position_embd.weight"])[: c.chunk_tokens]
            made.append(Tensor.from_numpy(device, np.tile(table, (MOST_CHUNKS, 1)), "a.positions"))
        except BaseException:
            for tensor in (*weights.values(), *made):
                tensor.free()
            raise
        *convolutions, conv_out, positions = made
        pairs = list(zip(convolutions[::2], convolutions[1::2], strict=True))
        return cls(device, c, weights, pairs, conv_out, positions)

    def weight(self, name: str) -> tuple[Tensor, Tensor]:
        """A layer's weight and bias, by the name that both have in the file."""
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]

    def free(self) -> None:
        made = [tensor for pair in self.convolutions for tensor in pair]
        for tensor in (*self.weights.values(), *made, self.conv_out, self.positions):
            tensor.free()
        self.weights = {}


def _kernel(values: np.ndarray) -> np.ndarray:
    """[C, C_in, frequency, time] to the order of conv_columns: [C, (time, frequency, C_in)], filled up with zeros."""
    rows = values.transpose(0, 3, 2, 1).reshape(len(values), -1)
    return np.pad(rows, ((0, 0), (0, columns_width(values.shape[1]) - rows.shape[1])))


def _upload(device: Device, info: Info, values: np.ndarray) -> Tensor:
    """In the type that the file has if that is f16, else as float32."""
    kind = np.float16 if info.type == "f16" else np.float32
    return Tensor.from_numpy(device, np.ascontiguousarray(values, kind), info.name)


def stem(plan: Plan, model: AudioModel, mel: Tensor, frames: Tensor) -> Tensor:
    """Chunks of log-mel features [B, T, bins] to tokens with positions [B * T / 8, D], T / 8 rounded up.

    frames uint32 [1]: how many of the T frames there are; the convolutions end there as at the border of a picture.
    """
    b, t, f = mel.shape
    x = mel.view(b * t * f, 1)
    for i, (kernel, bias) in enumerate(model.convolutions):
        columns = ops.conv_columns(plan, x, frames, (t, f), scale=1 << i)  # [B * T / 2 * F / 2, 9 C]
        x = ops.matmul(plan, columns, kernel, bias=bias, act="gelu")
        t, f = half(t), half(f)
    x = ops.matmul(plan, x.view(b * t, f * model.config.channels), model.conv_out)
    return ops.add(plan, x, model.positions.first(b * t))


def layers(plan: Plan, model: AudioModel, x: Tensor, tiles: Tensor) -> Tensor:
    """Tokens x [N, D] through all layers -> normalised hidden states [N, D]. tiles: of window_attention."""
    c = model.config
    h = ops.layer_norm(plan, x, *model.weight("a.blk.0.ln1"), c.norm_eps)
    for i in range(c.n_layers):
        plan.scope = f"a.blk.{i}."
        update = attention(plan, model, i, h, tiles)
        x, h = ops.add_layer_norm(plan, update, x, *model.weight(f"a.blk.{i}.ln2"), c.norm_eps)
        update = mlp(plan, model, i, h)
        norm = "a.post_ln" if i + 1 == c.n_layers else f"a.blk.{i + 1}.ln1"
        x, h = ops.add_layer_norm(plan, update, x, *model.weight(norm), c.norm_eps)
    plan.scope = ""
    return h


def attention(plan: Plan, model: AudioModel, i: int, h: Tensor, tiles: Tensor) -> Tensor:
    """Self-attention inside windows, no mask, no rotation: h [N, D] -> [N, D]."""
    c = model.config
    q, k, v = (_linear(plan, model, f"a.blk.{i}.attn_{name}", h) for name in "qkv")
    mixed = ops.window_attention(plan, q, k, v, tiles, c.n_heads, (c.dim // c.n_heads) ** -0.5)
    return _linear(plan, model, f"a.blk.{i}.attn_out", mixed)


def mlp(plan: Plan, model: AudioModel, i: int, h: Tensor) -> Tensor:
    """gelu(h Up^T + b) Down^T + b: h [N, D] -> [N, D]."""
    hidden = _linear(plan, model, f"a.blk.{i}.ffn_up", h, act="gelu")  # [N, F]
    return _linear(plan, model, f"a.blk.{i}.ffn_down", hidden)


def projector(plan: Plan, model: AudioModel, h: Tensor, out: Tensor | None = None) -> Tensor:
    """To the width of the text model: h [N, D] -> [N, O]."""
    return _linear(plan, model, "mm.a.mlp.2", _linear(plan, model, "mm.a.mlp.1", h, act="gelu"), out=out)


def _linear(
    plan: Plan, model: AudioModel, name: str, x: Tensor, act: str | None = None, out: Tensor | None = None
) -> Tensor:
    weight, bias = model.weight(name)
    return ops.matmul(plan, x, weight, bias=bias, act=act, out=out)


def column_bytes(config: AudioConfig) -> int:
    """Bytes of the largest intermediate result of one chunk in `stem`: what the second convolution reads."""
    positions = prod(half(half(size)) for size in (config.chunk, config.n_mels))
    return 4 * positions * columns_width(config.channels)
