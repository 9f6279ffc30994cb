"""The talker: a mixture of experts like the thinker, whose tokens are the first codes of speech frames.

    rows of its prompt = text_proj(thinker's embeddings) or hidden_proj(thinker's hidden states), + codec embeddings
    proj(x) = W2 silu(W1 x + b1) + b2
    logits = Head decoder(rows)                      decoder: models/text.py, with a shared expert in every layer

Dims: N tokens, D model, T the thinker's, V codes with the control ids behind them.
Source: transformers Qwen3OmniMoeTalkerForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from .. import ops
from ..errors import InvalidRequest, UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import shown
from ..gpu import Device, Plan, Tensor
from . import code_predictor
from .config import Keys, TextConfig, check_tensor, decoder_config, tensor_shapes
from .text import TextModel

ARCHITECTURE = "qwen3omni-talker"
PROJECTIONS = ("text_proj", "hidden_proj")
# Rows that may be projected together.
MOST_ROWS = 128


@dataclass(frozen=True)
class CodecIds:
    """Control ids of the talker's vocabulary."""

    pad: int
    bos: int
    eos: int
    nothink: int
    think_bos: int
    think_eos: int


@dataclass(frozen=True)
class ThinkerIds:
    """Ids of the thinker's vocabulary that shape the talker's prompt; -1 for one that the model does not have."""

    tts_pad: int
    tts_bos: int
    tts_eos: int
    im_start: int
    user: int
    assistant: int
    audio: int
    image: int
    video: int
    audio_start: int
    vision_start: int
    vision_end: int


@dataclass(frozen=True)
class TalkerConfig:
    """decoder: its layers. accept_layer: which of the thinker's hidden states media rows are, the embeddings being 0.

    codes: ids below it are codes, the others control ids. groups: codes of a frame.
    """

    decoder: TextConfig
    thinker_dim: int
    projection_dim: int
    codes: int
    groups: int
    accept_layer: int
    codec: CodecIds
    tokens: ThinkerIds
    voices: Mapping[str, int]
    default_voice: str

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> TalkerConfig:
        """From a talker file whose tensors all fit; InvalidModelFile or UnsupportedModel, naming what does not."""
        arch = file.metadata.get("general.architecture")
        if arch != ARCHITECTURE:
            raise UnsupportedModel(
                f"{file.path}: architecture {shown(arch)} cannot speak; name a file that `qwen3omni quantize` wrote as "
                "talker-NAME.gguf"
            )
        keys = Keys(file, ARCHITECTURE)
        if keys.get("hidden_act") not in ("silu", None):
            raise keys.unsupported("hidden_act", f"is {shown(keys.get('hidden_act'))}; only 'silu' is supported")
        decoder = decoder_config(keys, moe=True, mrope=True)
        names = {f"codec.{name}_id": name for name in CodecIds.__dataclass_fields__}
        config = cls(
            decoder=decoder,
            thinker_dim=keys.integer("projection.input_length"),
            projection_dim=keys.integer("projection.feed_forward_length"),
            codes=Keys(file, code_predictor.KEYS).integer("vocab_size"),
            groups=keys.integer("num_code_groups", low=2),
            accept_layer=keys.integer("accept_hidden_layer", low=0),
            codec=CodecIds(**{name: keys.integer(key, low=0) for key, name in names.items()}),
            tokens=_tokens(keys),
            voices=_voices(keys),
            default_voice=str(keys.get("speaker.default")),
        )
        _check(keys, config)
        _check_tensors(file, config)
        return config

    def voice(self, name: str | None) -> int:
        """The codec id of a speaker, by a name in any case; None = the default one. InvalidRequest for another name."""
        wanted = self.default_voice if name is None else name.lower()
        if wanted not in self.voices:
            raise InvalidRequest(f"there is no voice {name!r}; this model has {', '.join(self.voices)}")
        return self.voices[wanted]


def _tokens(keys: Keys) -> ThinkerIds:
    optional = ("audio_start", "vision_start", "vision_end")
    found = {}
    for name in ThinkerIds.__dataclass_fields__:
        key = f"token.{name}_id"
        found[name] = -1 if name in optional and keys.get(key) is None else keys.integer(key, low=0)
    return ThinkerIds(**found)


def _voices(keys: Keys) -> dict[str, int]:
    names, ids = keys.get("speaker.names"), keys.get("speaker.ids")
    if not isinstance(names, list) or not isinstance(ids, list) or len(names) != len(ids) or not names:
        raise keys.bad("speaker.names", "and speaker.ids are no two lists of one length")
    return {str(name).lower(): id for name, id in zip(names, ids, strict=True)}


def _check(keys: Keys, c: TalkerConfig) -> None:
    last = c.decoder.vocab_size - 1
    ids = {f"codec.{name}_id": value for name, value in vars(c.codec).items()}
    ids |= {f"speaker.ids ({name})": value for name, value in c.voices.items()}
    for key, value in ids.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= last:
            raise keys.bad(key, f"is {shown(value)}, expected an id up to {last}")
    if c.default_voice not in c.voices:
        raise keys.bad("speaker.default", f"is {shown(c.default_voice)}, none of {', '.join(c.voices)}")
    if not 0 < c.codes <= last:
        raise keys.bad("vocab_size", f"is {last + 1}, expected more than the {c.codes} codes")
    inner = Keys(keys.file, code_predictor.KEYS)
    for key, value in (("embedding_length", c.decoder.dim), ("num_code_groups", c.groups)):
        if inner.integer(key) != value:
            raise inner.bad(key, f"is {inner.integer(key)}, but the talker's is {value}")


def _shapes(c: TalkerConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and row-major shape of every tensor the talker uses."""
    yield from tensor_shapes(c.decoder).items()
    for name in PROJECTIONS:
        for layer, out, into in (("fc1", c.projection_dim, c.thinker_dim), ("fc2", c.decoder.dim, c.projection_dim)):
            yield f"{name}.{layer}.weight", (out, into)
            yield f"{name}.{layer}.bias", (out,)


def _check_tensors(file: GGUFFile, c: TalkerConfig) -> None:
    used = set()
    for name, shape in _shapes(c):
        check_tensor(file, name, shape)
        used.add(name)
    unused = [name for name in file.tensors if not name.startswith("a.gen.") and name not in used]
    if unused:
        raise UnsupportedModel(
            f"{file.path}: tensors that a talker of {c.decoder.n_layers} layers does not use, so the result would be "
            f"wrong: {', '.join(shown(name) for name in unused[:4])}; use another model"
        )


@dataclass
class TalkerModel:
    """Weights on a device; ones [MOST_ROWS, P]: a SwiGLU times ones is the projections' SiLU."""

    device: Device
    config: TalkerConfig
    decoder: TextModel
    ones: Tensor

    @classmethod
    def load(
        cls,
        file: GGUFFile,
        device: Device,
        activations: str = "f32",
        progress: Callable[[int, int], None] | None = None,
    ) -> TalkerModel:
        """Check metadata and shapes, then read the tensors. activations: as for TextModel.load."""
        c = TalkerConfig.from_gguf(file)
        decoder = TextModel.read(file, device, c.decoder, {n: n for n, _ in _shapes(c)}, activations, progress)
        decoder.scope = "talker."
        ones = np.ones((MOST_ROWS, c.projection_dim), np.float32)
        return cls(device, c, decoder, Tensor.from_numpy(device, ones, "ones"))

    @property
    def codes(self) -> Tensor:
        """Embeddings of codes and control ids [V, D]."""
        return self.decoder.weights["token_embd.weight"]

    def free(self) -> None:
        self.ones.free()
        self.decoder.free()


def project(plan: Plan, model: TalkerModel, name: str, x: Tensor) -> Tensor:
    """One of PROJECTIONS: the thinker's rows x [N, T], N up to MOST_ROWS -> [N, D]."""
    weights = model.decoder.weights
    hidden = ops.matmul(plan, x, weights[f"{name}.fc1.weight"], bias=weights[f"{name}.fc1.bias"])
    hidden = ops.swiglu(plan, hidden, model.ones.first(x.shape[0]))
    return ops.matmul(plan, hidden, weights[f"{name}.fc2.weight"], bias=weights[f"{name}.fc2.bias"])


def logits(plan: Plan, model: TalkerModel, h: Tensor, out: Tensor) -> Tensor:
    """Of the next frame's code 0, and of all control ids: h [1, D], normalised -> [1, V]."""
    return ops.matmul(plan, h, model.decoder.head, out=out)
