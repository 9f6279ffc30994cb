"""Sizes of Code2Wav, from the metadata of a speech file whose tensors all fit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from ..errors import UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import shown
from .config import Keys, check_tensor

ARCHITECTURE = "qwen3omni-talker"
PREFIX = "a.gen.wav"
TAPS = 7  # of every convolution that is neither transposed nor a matrix
DILATIONS = (1, 3, 9)  # of the residual units of a block
_FLOATS = ("f32", "f16", "bf16")
_MOST_SAMPLES = 1 << 15  # of a frame: counts of rows stay within 32 bits


@dataclass(frozen=True)
class Code2WavConfig:
    """codebook_size codes in each of n_codebooks tables; a frame becomes `samples_per_frame` samples.

    ratios and rates: how much longer every stage of the upsampling, and every block of the decoder, makes its rows.
    chunk and left_context: frames of transformers' chunked decoding.
    """

    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    window: int
    codebook_size: int
    n_codebooks: int
    decoder_dim: int
    ratios: tuple[int, ...]
    rates: tuple[int, ...]
    sampling_rate: int
    chunk: int
    left_context: int
    rope_theta: float
    norm_eps: float
    layer_norm_eps: float
    snake_eps: float

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> Code2WavConfig:
        """UnsupportedModel (no speech file, a setting or tensor we do not know), InvalidModelFile (missing or
        contradictory metadata, missing tensor, wrong shape).
        """
        if file.metadata.get("general.architecture") != ARCHITECTURE:
            raise UnsupportedModel(f"{file.path}: is no talker-*.gguf, so it has no Code2Wav; name a speech file")
        keys = Keys(file, f"{ARCHITECTURE}.code2wav")
        if keys.get("hidden_act") not in ("silu", None):
            raise keys.unsupported("hidden_act", f"is {shown(keys.get('hidden_act'))}; only 'silu' is supported")
        config = cls(
            n_layers=keys.integer("block_count"),
            dim=keys.integer("embedding_length"),
            n_heads=keys.integer("attention.head_count"),
            n_kv_heads=keys.integer("attention.head_count_kv"),
            head_dim=keys.integer("attention.key_length"),
            ffn_dim=keys.integer("feed_forward_length"),
            window=keys.integer("attention.sliding_window"),
            codebook_size=keys.integer("codebook_size"),
            n_codebooks=keys.integer("num_quantizers"),
            decoder_dim=keys.integer("decoder_length"),
            ratios=_integers(keys, "upsampling_ratios"),
            rates=_integers(keys, "upsample_rates"),
            sampling_rate=keys.integer("sampling_rate"),
            chunk=keys.integer("chunk_size"),
            left_context=keys.integer("left_context_size", low=0),
            rope_theta=keys.number("rope.freq_base"),
            norm_eps=keys.number("attention.layer_norm_rms_epsilon"),
            layer_norm_eps=keys.number("layer_norm_epsilon"),
            snake_eps=keys.number("snake_epsilon"),
        )
        _check_sizes(keys, config)
        _check_tensors(file, config)
        return config

    @property
    def samples_per_frame(self) -> int:
        return prod(self.ratios) * prod(self.rates)

    @property
    def hidden(self) -> tuple[int, ...]:
        """Rows at the start of the stream, before the decoder's blocks and after each, that stand for nothing.

        A transposed convolution's row needs two rows of its input, so the first `rate` of what it makes are not output.
        """
        counts = [0]
        for rate in self.rates:
            counts.append((counts[-1] + 1) * rate)
        return tuple(counts)

    @property
    def lost_samples(self) -> int:
        """What the first frame has less than `samples_per_frame`."""
        return self.hidden[-1]

    def channels(self, block: int) -> int:
        """Of the rows that block number `block` of the decoder reads; of what the last one writes for len(rates)."""
        return self.decoder_dim >> block


def _integers(keys: Keys, key: str) -> tuple[int, ...]:
    values = keys.get(key)
    if not isinstance(values, list) or not values or not all(type(v) is int and 0 < v < 2**15 for v in values):
        raise keys.bad(key, f"is {shown(values)}, expected a list of whole numbers of 1 or more")
    return tuple(values)


def _check_sizes(keys: Keys, c: Code2WavConfig) -> None:
    if c.dim % 32:
        raise keys.unsupported("embedding_length", f"is {c.dim}; only multiples of 32 are supported")
    if c.head_dim % 4 or c.n_heads % c.n_kv_heads:
        why = f"is {c.head_dim} for {c.n_heads} and {c.n_kv_heads} heads; only multiples of 4 and even shares will do"
        raise keys.unsupported("attention.key_length", why)
    if c.ffn_dim % 4:
        raise keys.unsupported("feed_forward_length", f"is {c.ffn_dim}; only multiples of 4 are supported")
    if c.decoder_dim % (4 << len(c.rates)):
        why = f"is {c.decoder_dim} for {len(c.rates)} blocks; only multiples of {4 << len(c.rates)} are supported"
        raise keys.unsupported("decoder_length", why)
    samples = keys.integer("samples_per_frame", c.samples_per_frame)
    if samples != c.samples_per_frame:
        raise keys.bad("samples_per_frame", f"is {samples}, but its factors make {c.samples_per_frame}")
    if samples > _MOST_SAMPLES:
        raise keys.unsupported("samples_per_frame", f"is {samples}; at most {_MOST_SAMPLES} are supported")


def plain_shapes(c: Code2WavConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and row-major shape of every tensor that keeps its form: transformer, tables, matrices of the upsampling."""
    yield f"{PREFIX}.embd.weight", (c.codebook_size * c.n_codebooks, c.dim)
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    matrices = {"attn_q": (q, c.dim), "attn_k": (kv, c.dim), "attn_v": (kv, c.dim), "attn_out": (c.dim, q)}
    matrices |= {"ffn_gate": (c.ffn_dim, c.dim), "ffn_up": (c.ffn_dim, c.dim), "ffn_down": (c.dim, c.ffn_dim)}
    for i in range(c.n_layers):
        block = f"{PREFIX}.tfm.blk.{i}"
        for name, shape in matrices.items():
            yield f"{block}.{name}.weight", shape
        for name in ("ln1", "ls1", "ln2", "ls2"):
            yield f"{block}.{name}.weight", (c.dim,)
    yield f"{PREFIX}.tfm.output_norm.weight", (c.dim,)
    for u in range(len(c.ratios)):
        up = f"{PREFIX}.up.blk.{u}"
        yield f"{up}.dwconv.bias", (c.dim,)
        yield f"{up}.norm.weight", (c.dim,)
        yield f"{up}.norm.bias", (c.dim,)
        yield f"{up}.pw1.weight", (4 * c.dim, c.dim)
        yield f"{up}.pw2.weight", (c.dim, 4 * c.dim)


def kernel_shapes(c: Code2WavConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Those of the convolutions and of what goes with them, which take another form on the device."""
    for u, ratio in enumerate(c.ratios):
        up = f"{PREFIX}.up.blk.{u}"
        yield f"{up}.conv.weight", (c.dim, c.dim, ratio)
        yield f"{up}.dwconv.weight", (c.dim, 1, TAPS)
        for name, size in (("conv.bias", c.dim), ("pw1.bias", 4 * c.dim), ("pw2.bias", c.dim), ("gamma", c.dim)):
            yield f"{up}.{name}", (size,)
    dac = f"{PREFIX}.dac"
    yield from _convolution(f"{dac}.entry", c.decoder_dim, c.dim, TAPS)
    for b, rate in enumerate(c.rates):
        before, after = c.channels(b), c.channels(b + 1)
        yield from _snake(f"{dac}.blk.{b}.snake", before)
        yield f"{dac}.blk.{b}.conv.weight", (before, after, 2 * rate)
        yield f"{dac}.blk.{b}.conv.bias", (after,)
        for r in range(len(DILATIONS)):
            unit = f"{dac}.blk.{b}.res.{r}"
            yield from _snake(f"{unit}.act1", after)
            yield from _snake(f"{unit}.act2", after)
            yield from _convolution(f"{unit}.conv1", after, after, TAPS)
            yield from _convolution(f"{unit}.conv2", after, after, 1)
    last = c.channels(len(c.rates))
    yield from _snake(f"{dac}.post_snake", last)
    yield from _convolution(f"{dac}.post_conv", 1, last, TAPS)


def _convolution(name: str, out: int, into: int, taps: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.weight", (out, into, taps)
    yield f"{name}.bias", (out,)


def _snake(name: str, size: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield f"{name}.alpha", (size,)
    yield f"{name}.beta", (size,)


def _check_tensors(file: GGUFFile, c: Code2WavConfig) -> None:
    """Presence, shape and type of all that is used, and nothing of this part beside it."""
    used = set()
    for shapes in (kernel_shapes(c), plain_shapes(c)):
        for name, shape in shapes:
            check_tensor(file, name, shape)
            used.add(name)
            kind = file.tensors[name].type
            if kind not in _FLOATS and not name.startswith((f"{PREFIX}.tfm.", f"{PREFIX}.embd.")):
                known = " ".join(_FLOATS)
                raise UnsupportedModel(f"{file.path}: tensor '{name}' has type {kind}; convolutions are {known}")
    unused = [name for name in file.tensors if name.startswith(f"{PREFIX}.") and name not in used]
    if unused:
        names = ", ".join(shown(name) for name in unused[:4]) + (" and more" if len(unused) > 4 else "")
        raise UnsupportedModel(
            f"{file.path}: tensors that a Code2Wav of {c.n_layers} layers and {len(c.rates)} blocks does not use, so "
            f"the result would be wrong: {names}; use another model"
        )
