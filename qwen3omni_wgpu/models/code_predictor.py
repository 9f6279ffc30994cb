"""The code predictor: codes 1 to 15 of a speech frame, one after the other, from the talker's hidden state and code 0.

    x_0 = [h, C[c_0]]; x_k = R_{k-1}[c_k]           h: the talker's, normalised; C: its table; R: one table a group
    c_{k+1} ~ softmax(Head_k decoder(x_0 .. x_k))   k = 0 .. 14; positions 0, 1, 2, ...; a fresh cache every frame

Dims: G groups (16), V codes, D model.
Source: transformers Qwen3OmniMoeTalkerCodePredictorModelForConditionalGeneration.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .. import ops
from ..errors import UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import shown
from ..gpu import Device, Part, Plan, Tensor
from .config import Keys, TextConfig, check_tensor, decoder_config, tensor_shapes
from .text import KVCache, TextModel, final_norm, stream

_PREFIX = "a.gen.code."
# Where the file's name of a layer's tensor differs from a text model's.
_THEIRS = {"attn_norm": "ln1", "attn_output": "attn_out", "ffn_norm": "ln2"}
_TABLES, _HEADS = "codes", "heads"
KEYS = "qwen3omni-talker.code_predictor"


@dataclass(frozen=True)
class CodePredictorConfig:
    """decoder: its layers, with vocab_size codes. groups: codes of a frame, the talker's own among them."""

    decoder: TextConfig
    groups: int

    @classmethod
    def from_gguf(cls, file: GGUFFile) -> CodePredictorConfig:
        """From a talker file whose tensors all fit; InvalidModelFile or UnsupportedModel, naming what does not."""
        keys = Keys(file, KEYS)
        if keys.get("hidden_act") not in ("silu", None):
            raise keys.unsupported("hidden_act", f"is {shown(keys.get('hidden_act'))}; only 'silu' is supported")
        config = cls(decoder_config(keys, moe=False, mrope=False), keys.integer("num_code_groups", low=2))
        if not config.decoder.vocab_size:
            raise keys.bad("vocab_size", "is missing")
        for name, shape in config.shapes().items():
            check_tensor(file, name, shape)
        unused = [name for name in file.tensors if name.startswith(_PREFIX) and name not in config.shapes()]
        if unused:
            raise UnsupportedModel(
                f"{file.path}: tensors that a code predictor of {config.decoder.n_layers} layers does not use, so the "
                f"result would be wrong: {', '.join(shown(name) for name in unused[:4])}; use another model"
            )
        return config

    def names(self) -> dict[str, str]:
        """Our name of every tensor -> the file's."""
        found = {}
        for name in tensor_shapes(self.decoder):
            block, _, leaf = name.removesuffix(".weight").rpartition(".")
            if name not in ("token_embd.weight", "output.weight"):
                found[name] = f"{_PREFIX}{block}{'.' if block else ''}{_THEIRS.get(leaf, leaf)}.weight"
        return found | {_TABLES: f"{_PREFIX}embd.weight", _HEADS: f"{_PREFIX}head.weight"}

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The file's name of every tensor -> its row-major shape."""
        stack = (self.groups - 1, self.decoder.vocab_size, self.decoder.dim)
        known = tensor_shapes(self.decoder) | {_TABLES: stack, _HEADS: stack}
        return {theirs: known[name] for name, theirs in self.names().items()}


@dataclass
class CodePredictorModel:
    """Weights on a device. tables and heads: G - 1 of them, [V, D] each."""

    device: Device
    config: CodePredictorConfig
    decoder: TextModel
    tables: list[Tensor]
    heads: list[Tensor]

    @classmethod
    def load(
        cls,
        file: GGUFFile,
        device: Device,
        activations: str = "f32",
        progress: Callable[[int, int], None] | None = None,
    ) -> CodePredictorModel:
        """Check metadata and shapes, then read the tensors. activations: as for TextModel.load."""
        config = CodePredictorConfig.from_gguf(file)
        decoder = TextModel.read(file, device, config.decoder, config.names(), activations, progress)
        decoder.scope = "code."
        try:
            stacks = [_slices(file, decoder.weights[name]) for name in (_TABLES, _HEADS)]
        except BaseException:
            decoder.free()
            raise
        return cls(device, config, decoder, *stacks)

    def free(self) -> None:
        self.decoder.free()


def _slices(file: GGUFFile, stack: Tensor) -> list[Tensor]:
    """The matrices of a stack [N, V, D], on its bytes. UnsupportedModel where one cannot be bound alone."""
    size = stack.nbytes // stack.shape[0]
    step = stack.device.limits["min-storage-buffer-offset-alignment"]
    if size % step:
        raise UnsupportedModel(
            f"{file.path}: one group's codes take {size} bytes in the code predictor, and {stack.device.info.name} "
            f"wants a multiple of {step}; use a model of another type"
        )
    found = []
    for part in stack.parts:
        for i in range(part.stop - part.start):
            piece = Part(part.storage, part.offset + i * size, size, 0, stack.shape[1])
            name = f"{stack.name}[{part.start + i}]"
            found.append(Tensor(stack.device, stack.shape[1:], stack.dtype, [piece], name))
    return found


def logits(plan: Plan, model: CodePredictorModel, group: int, x: Tensor, positions: Tensor, cache: KVCache) -> Tensor:
    """Of the codes of a group, 1 to G - 1: x [N, D] -> [1, V], behind what the cache holds of this frame.

    N is 2 for group 1 (the talker's hidden state and code 0), 1 for the others (the code before).
    """
    x = stream(plan, model.decoder, x, positions, cache)
    last = ops.select_row(plan, x) if x.shape[0] > 1 else x
    return ops.matmul(plan, last, model.heads[group - 1], norm=final_norm(model.decoder))
