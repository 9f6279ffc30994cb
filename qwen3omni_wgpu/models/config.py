"""Hyper-parameters of the text model, read from GGUF metadata and checked against the tensors that are there.

Keys and tensor names are llama.cpp's (`llama-arch.cpp`). A setting that changes the maths and that we do not implement
is refused by name, and so is a tensor that the forward pass would leave unused: a wrong answer is worse than none.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidModelFile, UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import shown

_DENSE = ("llama", "qwen3")
_MOE = ("qwen3moe", "qwen3vlmoe")
ARCHITECTURES = _DENSE + _MOE

_HINTS = {
    "clip": "it holds audio and vision towers (mmproj); name the thinker file beside it",
    "qwen3tts": "it is a speech model; name the text model",
}
_AGAIN = "download or convert it again"
KV_TYPES = {"f16": (64, 64), "f32": (128, 128), "q8_0": (42, 34)}  # bytes of 32 keys, of 32 values
# The first layers of a model that has so many keep float16 under "q8_0": they decide which early token it is that later
# layers attend to by default, so that errors of theirs grow most (docs/decisions.md).
HALF_LAYERS, DEEP = 4, 16
_FLOATS = ("f32", "f16", "bf16")

# Settings that are read below, or that say nothing about the maths of the text model.
_KNOWN = """
    block_count context_length embedding_length feed_forward_length vocab_size tensor_data_layout pooling_type
    attention.head_count attention.head_count_kv attention.key_length attention.value_length attention.scale
    attention.layer_norm_rms_epsilon attention.sliding_window
    rope.freq_base rope.dimension_count rope.scale_linear rope.scaling.factor rope.scaling.original_context_length
    rope.scaling.finetuned
"""
_KNOWN_MOE = "expert_count expert_used_count expert_feed_forward_length expert_weights_norm"
_KNOWN_VISION = "rope.dimension_sections n_deepstack_layers"
# Settings that we accept only where they say "nothing special"; any other unknown setting must be 0, false or empty.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "expert_weights_scale": (0.0, 1.0),
    "expert_gating_func": (0, 1),  # softmax
    "rope.scaling.attn_factor": (0.0, 1.0),
    "rope.scaling.type": ("none", "linear"),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
    "interleave_moe_layer_step": (0, 1),
    "moe_every_n_layers": (0, 1),
}


@dataclass(frozen=True)
class TextConfig:
    """Everything the forward pass needs to know besides the weights. Lengths in elements.

    rope_scale: linear factor, frequencies are divided by it. mrope_sections: pairs turned by t, h and w (interleaved
    M-RoPE), or None. ffn_dim is 0 for a mixture of experts; n_experts, n_experts_used and expert_dim are 0 for a dense
    model. norm_topk: the weights of the chosen experts are divided by their sum. tied_head: the embedding is also the
    output matrix. shared_dim: of the expert that every token takes besides, 0 where there is none.
    """

    architecture: str
    n_layers: int
    dim: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int
    norm_eps: float
    rope_theta: float
    rope_dim: int
    rope_style: str
    rope_scale: float
    mrope_sections: tuple[int, int, int] | None
    qk_norm: bool
    n_experts: int
    n_experts_used: int
    expert_dim: int
    norm_topk: bool
    context_length: int
    tied_head: bool
    shared_dim: int = 0


def text_config(file: GGUFFile) -> TextConfig:
    """The configuration of a llama, qwen3, qwen3moe or qwen3vlmoe file whose tensors all fit it.

    Raises InvalidModelFile (missing or contradictory metadata, missing tensor, wrong shape) or UnsupportedModel
    (architecture, or a setting or tensor we do not implement). Matrices may have any supported type; norm vectors and
    rope_freqs f32, f16 or bf16.
    """
    keys = Keys(file, _architecture(file))
    keys.check_settings()
    config = _build(keys, file)
    _check_tensors(file, config)
    return config


def tensor_shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Name -> row-major shape of every tensor the forward pass uses, in the order of use."""
    return dict(_shapes(config))


def kv_bytes_per_token(config: TextConfig, kv_type: str) -> int:
    """Bytes one token takes in the KV cache (all layers, keys and values); kv_type of KV_TYPES."""
    each = sum(sum(KV_TYPES[layer_kv_type(config, kv_type, i)]) for i in range(config.n_layers))
    return config.n_kv_heads * config.head_dim * each // 32


def kv_row_bytes(config: TextConfig, kv_type: str) -> int:
    """Bytes of one token's keys in the layer where they take most, which is never less than its values take."""
    largest = max(KV_TYPES[layer_kv_type(config, kv_type, i)][0] for i in range(config.n_layers))
    return config.n_kv_heads * config.head_dim * largest // 32


def layer_kv_type(config: TextConfig, kv_type: str, layer: int) -> str:
    """What a layer's part of the KV cache is kept in; kv_type of KV_TYPES, and so is the answer."""
    return "f16" if kv_type == "q8_0" and layer < HALF_LAYERS and config.n_layers >= DEEP else kv_type


def weight_bytes(file: GGUFFile) -> int:
    """Bytes of all tensors as they lie in the file, which is also what they take on the GPU."""
    return sum(info.nbytes for info in file.tensors.values())


def _shapes(config: TextConfig) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Lazily, so that an absurd layer count fails at the first missing tensor."""
    c = config
    yield "token_embd.weight", (c.vocab_size, c.dim)
    for layer in range(c.n_layers):
        for name, shape in _layer_shapes(c):
            yield f"blk.{layer}.{name}.weight", shape
    yield "output_norm.weight", (c.dim,)
    if not c.tied_head:
        yield "output.weight", (c.vocab_size, c.dim)


def _layer_shapes(c: TextConfig) -> list[tuple[str, tuple[int, ...]]]:
    q, kv = c.n_heads * c.head_dim, c.n_kv_heads * c.head_dim
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("attn_norm", (c.dim,)),
        ("attn_q", (q, c.dim)),
        ("attn_k", (kv, c.dim)),
        ("attn_v", (kv, c.dim)),
        ("attn_output", (c.dim, q)),
    ]
    if c.qk_norm:
        shapes += [("attn_q_norm", (c.head_dim,)), ("attn_k_norm", (c.head_dim,))]
    shapes += [("ffn_norm", (c.dim,))]
    if not c.n_experts:
        up, down = (c.ffn_dim, c.dim), (c.dim, c.ffn_dim)
        return [*shapes, ("ffn_gate", up), ("ffn_up", up), ("ffn_down", down)]
    up = (c.n_experts, c.expert_dim, c.dim)
    down = (c.n_experts, c.dim, c.expert_dim)
    shapes += [("ffn_gate_inp", (c.n_experts, c.dim)), ("ffn_gate_exps", up), ("ffn_up_exps", up)]
    shapes += [("ffn_down_exps", down)]
    if not c.shared_dim:
        return shapes
    up, down = (c.shared_dim, c.dim), (c.dim, c.shared_dim)
    shapes += [("ffn_gate_inp_shexp", (1, c.dim)), ("ffn_gate_shexp", up), ("ffn_up_shexp", up)]
    return [*shapes, ("ffn_down_shexp", down)]


def _architecture(file: GGUFFile) -> str:
    arch = file.metadata.get("general.architecture")
    if not isinstance(arch, str):
        raise InvalidModelFile(f"{file.path}: has no metadata 'general.architecture'; {_AGAIN}")
    if arch not in ARCHITECTURES:
        hint = _HINTS.get(arch, "choose a model of one of these")
        supported = ", ".join(ARCHITECTURES)
        raise UnsupportedModel(f"{file.path}: architecture {shown(arch)} is not supported ({supported} are): {hint}")
    kind = file.metadata.get("general.type", "model")
    if kind != "model":
        raise UnsupportedModel(
            f"{file.path}: holds {shown(kind)}, not a whole model (general.type); name the model file"
        )
    return arch


class Keys:
    """Typed reading of `{architecture}.*` metadata; every message names the file and the key.

    The towers' keys begin with `clip.audio` and `clip.vision` instead of an architecture.
    """

    def __init__(self, file: GGUFFile, arch: str) -> None:
        self.file, self.arch = file, arch

    def bad(self, key: str, what: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self.file.path}: metadata {shown(f'{self.arch}.{key}')} {what}; {_AGAIN}")

    def unsupported(self, key: str, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.file.path}: metadata {shown(f'{self.arch}.{key}')} {why}; use another model")

    def get(self, key: str) -> Any:
        return self.file.metadata.get(f"{self.arch}.{key}")

    def integer(self, key: str, default: int | None = None, low: int = 1) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.bad(key, "is missing")
        if isinstance(value, list):
            value = self._same(key, value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(key, f"is {shown(value)}, expected a whole number")
        if not low <= value < 2**31:
            raise self.bad(key, f"is {value}, expected {low} or more, below 2^31")
        return value

    def _same(self, key: str, values: list[Any]) -> Any:
        """Per-layer values: we run models whose layers are all alike."""
        if not values:
            raise self.bad(key, "is an empty list")
        if any(value != values[0] for value in values):
            raise self.unsupported(key, "differs from layer to layer, which is not supported")
        return values[0]

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if value is None:
            raise self.bad(key, "is missing")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
            raise self.bad(key, f"is {shown(value)}, expected a positive number")
        return float(value)

    def check_settings(self) -> None:
        """Refuse what would change the maths. Unknown settings may say 0, false or nothing."""
        prefix, known = f"{self.arch}.", _known(self.arch)
        for full, value in self.file.metadata.items():
            key = full.removeprefix(prefix)
            if key == full:
                continue
            if key in _NEUTRAL:
                if value not in _NEUTRAL[key]:
                    accepted = " or ".join(repr(v) for v in _NEUTRAL[key])
                    raise self.unsupported(key, f"is {shown(value)}; only {accepted} is supported")
            elif key not in known and value not in (0, "", []):
                raise self.unsupported(key, f"is {shown(value)}, a setting this version does not implement")


def _known(arch: str) -> set[str]:
    texts = [_KNOWN, _KNOWN_MOE if arch in _MOE else "", _KNOWN_VISION if arch == "qwen3vlmoe" else ""]
    return set(" ".join(texts).split())


def _build(keys: Keys, file: GGUFFile) -> TextConfig:
    arch = keys.arch
    config = decoder_config(keys, moe=arch in _MOE, mrope=arch == "qwen3vlmoe")
    return replace(
        config,
        vocab_size=_vocab_size(keys, file, config.dim),
        rope_style="interleaved" if arch == "llama" else "neox",
        qk_norm=arch != "llama",
        tied_head="output.weight" not in file.tensors,
    )


def decoder_config(keys: Keys, *, moe: bool, mrope: bool) -> TextConfig:
    """What the metadata say of a decoder like Qwen3's: QK-norm, neighbours half a head apart, a head of its own.

    vocab_size as stated, 0 where it is not. InvalidModelFile or UnsupportedModel, naming the key.
    """
    dim, n_layers = keys.integer("embedding_length"), keys.integer("block_count")
    n_heads = keys.integer("attention.head_count")
    n_kv_heads = keys.integer("attention.head_count_kv", n_heads)
    if n_heads % n_kv_heads:
        raise keys.bad("attention.head_count", f"is {n_heads}, no multiple of head_count_kv {n_kv_heads}")
    head_dim, context = _head_dim(keys, dim, n_heads), keys.integer("context_length")
    _check_attention(keys, head_dim, context)
    rope_dim = _rope_dim(keys, head_dim)
    n_experts, n_used, expert_dim = _experts(keys) if moe else (0, 0, 0)
    return TextConfig(
        architecture=keys.arch,
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=0 if moe else keys.integer("feed_forward_length"),
        vocab_size=keys.integer("vocab_size", 0, low=0),
        norm_eps=_norm_eps(keys),
        rope_theta=keys.number("rope.freq_base", 10000.0),
        rope_dim=rope_dim,
        rope_style="neox",
        rope_scale=_rope_scale(keys),
        mrope_sections=_sections(keys, rope_dim) if mrope else None,
        qk_norm=True,
        n_experts=n_experts,
        n_experts_used=n_used,
        expert_dim=expert_dim,
        norm_topk=moe and _norm_topk(keys),
        context_length=context,
        tied_head=False,
        shared_dim=keys.integer("expert_shared_feed_forward_length", 0, low=0) if moe else 0,
    )


def _head_dim(keys: Keys, dim: int, n_heads: int) -> int:
    if keys.get("attention.key_length") is None and dim % n_heads:
        raise keys.bad("attention.key_length", f"is missing, and {n_heads} heads do not divide embedding_length {dim}")
    head_dim = keys.integer("attention.key_length", dim // n_heads)
    value_dim = keys.integer("attention.value_length", head_dim)
    if value_dim != head_dim:
        why = f"is {value_dim} and key_length {head_dim}; only equal lengths are supported"
        raise keys.unsupported("attention.value_length", why)
    return head_dim


def _check_attention(keys: Keys, head_dim: int, context: int) -> None:
    usual = 1 / math.sqrt(head_dim)
    scale = keys.get("attention.scale")
    if scale not in (None, 0) and not math.isclose(keys.number("attention.scale"), usual, rel_tol=1e-4):
        raise keys.unsupported("attention.scale", f"is {scale}; only 1/sqrt(head dim) = {usual:.6g} is supported")
    window = keys.integer("attention.sliding_window", 0, low=0)
    if 0 < window < context:
        raise keys.unsupported("attention.sliding_window", f"is {window}; sliding-window attention is not supported")


def _rope_dim(keys: Keys, head_dim: int) -> int:
    rope_dim = keys.integer("rope.dimension_count", head_dim)
    if rope_dim % 2 or rope_dim > head_dim:
        raise keys.bad("rope.dimension_count", f"is {rope_dim}, expected an even number up to the head dim {head_dim}")
    return rope_dim


def _rope_scale(keys: Keys) -> float:
    """Linear factor; llama.cpp's older key is `rope.scale_linear`, and 0 means 1 in both."""
    if keys.get("rope.scaling.type") == "none":
        return 1.0
    for key in ("rope.scaling.factor", "rope.scale_linear"):
        if keys.get(key) not in (None, 0):
            return keys.number(key)
    return 1.0


def _sections(keys: Keys, rope_dim: int) -> tuple[int, int, int]:
    """t, h, w pairs of interleaved M-RoPE: together all pairs, and h and w must find room at every third pair."""
    key, pairs = "rope.dimension_sections", rope_dim // 2
    value = keys.get(key)
    if value is None:
        raise keys.bad(key, "is missing")
    if not isinstance(value, list) or len(value) not in (3, 4) or any(type(v) is not int or v < 0 for v in value):
        raise keys.bad(key, f"is {shown(value)}, expected 3 or 4 whole numbers")
    t, h, w = value[:3]
    if any(value[3:]) or t + h + w != pairs or 3 * h - 2 >= pairs or 3 * w - 1 >= pairs:
        raise keys.bad(key, f"is {value}, which does not fit {pairs} interleaved pairs of t, h and w")
    return t, h, w


def _experts(keys: Keys) -> tuple[int, int, int]:
    n_experts, n_used = keys.integer("expert_count"), keys.integer("expert_used_count")
    if n_used > n_experts:
        raise keys.bad("expert_used_count", f"is {n_used}, more than expert_count {n_experts}")
    return n_experts, n_used, keys.integer("expert_feed_forward_length")


def _norm_topk(keys: Keys) -> bool:
    """Absent means true: llama.cpp always renormalises in these architectures."""
    value = keys.get("expert_weights_norm")
    if value is not None and not isinstance(value, bool):
        raise keys.bad("expert_weights_norm", f"is {shown(value)}, expected true or false")
    return value is not False


def _norm_eps(keys: Keys) -> float:
    eps = keys.number("attention.layer_norm_rms_epsilon")
    if eps >= 1:
        raise keys.bad("attention.layer_norm_rms_epsilon", f"is {eps}, expected less than 1")
    return eps


def _vocab_size(keys: Keys, file: GGUFFile, dim: int) -> int:
    """Rows of the embedding; the metadata may repeat it, and the tokenizer may have fewer tokens but not more."""
    info = file.tensors.get("token_embd.weight")
    if info is None:
        raise _missing(file, "token_embd.weight")
    rows = info.shape[0]
    check_tensor(file, info.name, (rows, dim))
    stated = keys.integer("vocab_size", rows)
    if stated != rows:
        raise keys.bad("vocab_size", f"is {stated}, but tensor 'token_embd.weight' has shape {list(info.shape)}")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list) and len(tokens) > rows:
        what = f"has {len(tokens)} tokens but 'token_embd.weight' has only {rows} rows"
        raise InvalidModelFile(f"{file.path}: {what}; {_AGAIN}")
    return rows


def _missing(file: GGUFFile, name: str) -> InvalidModelFile:
    return InvalidModelFile(f"{file.path}: tensor '{name}' is missing; {_AGAIN}")


def _check_tensors(file: GGUFFile, config: TextConfig) -> None:
    """Presence, shape and type of all that is used, and nothing beside it."""
    used: set[str] = set()
    for name, shape in _shapes(config):
        check_tensor(file, name, shape)
        used.add(name)
    if config.architecture == "llama" and "rope_freqs.weight" in file.tensors:
        check_tensor(file, "rope_freqs.weight", (config.rope_dim // 2,))
        used.add("rope_freqs.weight")
    unused = [name for name in file.tensors if name not in used]
    if unused:
        names = ", ".join(shown(name) for name in unused[:4]) + (
            f" and {len(unused) - 4} more" if len(unused) > 4 else ""
        )
        raise UnsupportedModel(
            f"{file.path}: tensors not used by architecture '{config.architecture}' with {config.n_layers} layers, "
            f"so the result would be wrong: {names}; use another model"
        )


def check_tensor(file: GGUFFile, name: str, shape: tuple[int, ...]) -> None:
    """InvalidModelFile unless the tensor is there in this shape; UnsupportedModel for a vector that is quantised."""
    info = file.tensors.get(name)
    if info is None:
        raise _missing(file, name)
    if info.shape != shape:
        what = f"tensor '{name}' has shape {list(info.shape)}, expected {list(shape)}"
        raise InvalidModelFile(f"{file.path}: {what}; {_AGAIN}")
    if len(shape) == 1 and info.type not in _FLOATS:
        raise UnsupportedModel(f"{file.path}: vector '{name}' has type {info.type}; supported are {' '.join(_FLOATS)}")
