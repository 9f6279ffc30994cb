"""Sizes of every part of a model, read from a Hugging Face config.json and checked against each other.

Both spellings are read: the releases' (`rope_theta` and `rope_scaling`, `num_experts`) and that of transformers 5
(`rope_parameters`, `num_local_experts`). What is missing, no sensible number, or contradicts another entry is an
InvalidModelFile that names it; what would need other tensors or other maths is an UnsupportedModel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..errors import InvalidModelFile, UnsupportedModel
from ..formats.tensors import shown

Symbols = dict[str, int | tuple[int, ...]]

# Components and the file each goes to, in the order they are written.
PARTS = {
    "thinker": ("thinker_text",),
    "mmproj": ("audio_encoder", "vision_encoder"),
    "talker": ("talker", "code_predictor", "code2wav"),
}

SIZE_LIMIT = 2**31 - 1  # of any one number
COUNT_LIMIT = 2**16  # of layers, experts, groups: whatever a loop runs over

_AGAIN = "download the checkpoint again"
_FAMILIES = {
    "Qwen3OmniMoeForConditionalGeneration": "qwen3omni",
    "Qwen3MoeForCausalLM": "qwen3moe",
    "Qwen3ForCausalLM": "qwen3",
    "LlamaForCausalLM": "llama",
}
_MODEL_TYPES = {"qwen3_omni_moe": "qwen3omni", "qwen3_moe": "qwen3moe", "qwen3": "qwen3", "llama": "llama"}


@dataclass(frozen=True)
class Dims:
    """What the tensor table needs to know of one checkpoint.

    family: "qwen3omni", or a plain text model: "qwen3moe", "qwen3", "llama". components: those that the checkpoint has
    -> symbol -> size; a tuple where the size differs from block to block. tied: the embedding is also the output
    matrix, so there is none. rope_factors: divisors of the rotary frequencies (llama 3), or empty.
    """

    family: str
    components: dict[str, Symbols]
    tied: bool = False
    rope_factors: tuple[float, ...] = field(default=(), repr=False)

    @property
    def parts(self) -> tuple[str, ...]:
        """The files this checkpoint makes: some of "thinker", "mmproj", "talker"."""
        return tuple(part for part, names in PARTS.items() if any(name in self.components for name in names))

    def size(self, component: str, symbol: str) -> int:
        """One size of a component that is there; KeyError otherwise, TypeError for one that differs between blocks."""
        value = self.components[component][symbol]
        if isinstance(value, tuple):
            raise TypeError(f"{component} {symbol} differs from block to block")
        return value


class Settings:
    """Typed reading of one section of a JSON file; every message names the file and the entry. null means absent."""

    def __init__(self, values: Any, path: str | Path = "config.json", place: str = "") -> None:
        self.path, self.place = path, place
        if not isinstance(values, dict):
            what = f"{place or 'the file'} is {shown(values)}, expected a JSON object"
            raise InvalidModelFile(f"{path}: {what}; {_AGAIN}")
        self.values: dict[str, Any] = values

    def name(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key

    def bad(self, key: str, what: str) -> InvalidModelFile:
        return InvalidModelFile(f"{self.path}: {self.name(key)} {what}; {_AGAIN}")

    def unsupported(self, key: str, why: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.path}: {self.name(key)} {why}; use another model")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def section(self, key: str) -> Settings:
        if not self.has(key):
            raise self.bad(key, "is missing")
        return Settings(self.values[key], self.path, self.name(key))

    def integer(
        self, key: str, default: int | None = None, *, other: str = "", low: int = 1, high: int = SIZE_LIMIT
    ) -> int:
        """A whole number from low to high; `other` is a second spelling of the key."""
        value = self.values.get(key)
        if other and self.has(other):
            if value is not None and value != self.values[other]:
                raise self.bad(key, f"is {shown(value)}, but {other} is {shown(self.values[other])}")
            key, value = other, self.values[other]
        if value is None:
            if default is None:
                raise self.bad(key, "is missing")
            return default
        return self._whole(key, value, low, high)

    def _whole(self, key: str, value: Any, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            raise self.bad(key, f"is {shown(value)}, expected a whole number")
        if not low <= value <= high:
            raise self.bad(key, f"is {shown(value)}, expected {low} to {high}")
        return value

    def count(self, key: str, *, other: str = "") -> int:
        return self.integer(key, other=other, high=COUNT_LIMIT)

    def integers(self, key: str, default: tuple[int, ...] | None = None, *, low: int = 1) -> tuple[int, ...]:
        """A short list of whole numbers."""
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, list | tuple) or len(value) > COUNT_LIMIT:
            raise self.bad(key, "is missing" if value is None else f"is {shown(value)}, expected a list of numbers")
        return tuple(self._whole(f"{key}[{i}]", entry, low, SIZE_LIMIT) for i, entry in enumerate(value))

    def number(self, key: str, default: float | None = None, *, positive: bool = True) -> float:
        """A finite number that float32 can hold, above 0 unless `positive` is false."""
        value = self.values.get(key)
        if value is None:
            if default is None:
                raise self.bad(key, "is missing")
            return default
        good = not isinstance(value, bool) and isinstance(value, int | float) and abs(value) < 3e38
        if not good or (positive and value < 1e-38):  # NaN is not good either
            raise self.bad(key, f"is {shown(value)}, expected a {'positive ' if positive else ''}number")
        return float(value)

    def flag(self, key: str, default: bool | None = None) -> bool:
        value = self.values.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, bool):
            raise self.bad(key, "is missing" if value is None else f"is {shown(value)}, expected true or false")
        return value

    def only(self, key: str, *allowed: Any) -> None:
        """Refuse a setting with another value than those that we implement; absent is the first of them."""
        value = self.values.get(key, allowed[0])
        if value is not None and value not in allowed:
            raise self.unsupported(key, f"is {shown(value)}; only {' or '.join(map(str, allowed))} is supported")

    def same(self, key: str, value: int, other: Settings, other_key: str, other_value: int) -> None:
        if value != other_value:
            raise self.bad(key, f"is {value}, but {other.name(other_key)} is {other_value}")


def dims(config: Any, path: str | Path = "config.json") -> Dims:
    """The sizes in a config.json of Qwen3-Omni (with or without talker) or of a plain Qwen3, Qwen3-MoE or Llama.

    Raises InvalidModelFile or UnsupportedModel, in one line that names the file (`path`) and the entry.
    """
    root = Settings(config, path)
    family = _family(root)
    if family == "qwen3omni":
        return _omni(root)
    tied = root.flag("tie_word_embeddings", False)
    factors = llama3_factors(root) if family == "llama" else ()
    return Dims(family, {"thinker_text": _plain(root, family)}, tied, factors)


def rope(section: Settings, default_theta: float | None = None, kinds: tuple[str, ...] = ("default", "mrope")):
    """(base of the rotary frequencies, M-RoPE sections t, h, w or None) in either spelling.

    kinds: types of scaling that the caller can do; another one is an UnsupportedModel.
    """
    key, values = _rope_section(section)
    kind = values.values.get("rope_type", values.values.get("type")) or "default"
    if kind not in kinds:
        raise section.unsupported(key, f"asks for {shown(kind)} scaling, which this version cannot do here")
    theta = (values if values.has("rope_theta") else section).number("rope_theta", default_theta)
    sections = values.integers("mrope_section", (), low=0)
    if sections and len(sections) != 3:
        raise values.bad("mrope_section", f"is {shown(list(sections))}, expected three numbers")
    return theta, sections or None


def _rope_section(section: Settings) -> tuple[str, Settings]:
    key = "rope_parameters" if section.has("rope_parameters") else "rope_scaling"
    return key, section.section(key) if section.has(key) else Settings({}, section.path, section.name(key))


def llama3_factors(section: Settings) -> tuple[float, ...]:
    """Divisors of the rotary frequencies under llama 3's scaling ([head_dim / 2]), or () where there is none.

    Long waves are divided by `factor`, short ones kept, those between blended
    (transformers, modeling_rope_utils.py, `_compute_llama3_parameters`).
    """
    _, values = _rope_section(section)
    if values.values.get("rope_type", values.values.get("type")) != "llama3":
        return ()
    theta, _ = rope(section, 10000.0, ("llama3",))
    factor, low = values.number("factor"), values.number("low_freq_factor")
    high, context = values.number("high_freq_factor"), values.integer("original_max_position_embeddings")
    if high <= low:
        raise values.bad("high_freq_factor", f"is {high:g}, expected more than low_freq_factor {low:g}")
    half = _head_dim(section, "llama") // 2
    if half > COUNT_LIMIT:
        raise section.bad("head_dim", f"is {2 * half}, expected at most {2 * COUNT_LIMIT}")
    factors = []
    for i in range(half):
        turns = context * theta ** (-i / half) / (2 * math.pi)  # full turns of this pair within the old context
        blend = min(1.0, max(0.0, (turns - low) / (high - low)))
        factors.append(1 / ((1 - blend) / factor + blend))
    return tuple(factors)


def _family(root: Settings) -> str:
    names = root.values.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if name is None:
        kind = root.values.get("model_type")
        if not isinstance(kind, str):
            raise root.bad("architectures", "is missing")
        family = _MODEL_TYPES.get(kind)
        key, name = "model_type", kind
    else:
        family, key = _FAMILIES.get(name) if isinstance(name, str) else None, "architectures"
    if family is None:
        raise root.unsupported(key, f"says {shown(name)}, supported are {', '.join(_FAMILIES)}")
    return family


def _omni(root: Settings) -> Dims:
    thinker = root.section("thinker_config")
    text = thinker.section("text_config")
    text.only("sliding_window", None)
    components: dict[str, Symbols] = {"thinker_text": _moe(text)}
    dim = text.integer("hidden_size")
    if thinker.has("audio_config"):
        components["audio_encoder"] = _audio(thinker.section("audio_config"), text, dim)
    if thinker.has("vision_config"):
        components["vision_encoder"] = _vision(thinker.section("vision_config"), text, dim)
    if _speaks(root):
        _speech(root, text, dim, components)
    return Dims("qwen3omni", components, text.flag("tie_word_embeddings", False))


def _speaks(root: Settings) -> bool:
    """Thinking and Captioner have no talker, or one in config.json that their files do not hold."""
    return root.flag("enable_audio_output", root.has("talker_config"))


def _speech(root: Settings, text: Settings, dim: int, components: dict[str, Symbols]) -> None:
    talker, wav = root.section("talker_config"), root.section("code2wav_config")
    predictor = talker.section("code_predictor_config")
    speaker = talker.section("text_config")
    for section in (speaker, predictor):
        section.only("sliding_window", None)
    talker.same("thinker_hidden_size", talker.integer("thinker_hidden_size"), text, "hidden_size", dim)
    inner = speaker.integer("hidden_size")
    predictor.same("hidden_size", predictor.integer("hidden_size"), speaker, "hidden_size", inner)
    groups = talker.integer("num_code_groups", low=2, high=COUNT_LIMIT)
    for section, key in ((predictor, "num_code_groups"), (wav, "num_quantizers")):
        section.same(key, section.integer(key), talker, "num_code_groups", groups)
    codes, known = predictor.integer("vocab_size"), wav.integer("codebook_size")
    predictor.same("vocab_size", codes, wav, "codebook_size", known)
    shared = {"S": speaker.integer("shared_expert_intermediate_size"), "TD": dim}
    components["talker"] = _moe(speaker) | shared | {"P": speaker.integer("intermediate_size")}
    components["code_predictor"] = _dense(predictor) | {"G": groups - 1}
    components["code2wav"] = _code2wav(wav, known * groups)


def _attention(section: Settings, family: str = "") -> Symbols:
    """Sizes every decoder has: V D L, H query and KVH key/value heads of HD, and their rows Q and KV."""
    section.only("attention_bias", False)
    section.only("hidden_act", "silu")
    heads = section.integer("num_attention_heads")
    kv_heads = section.integer("num_key_value_heads", heads)
    if heads % kv_heads:
        raise section.bad("num_attention_heads", f"is {heads}, no multiple of num_key_value_heads {kv_heads}")
    size = _head_dim(section, family)
    symbols: Symbols = {"D": section.integer("hidden_size"), "L": section.count("num_hidden_layers")}
    return symbols | {"H": heads, "KVH": kv_heads, "HD": size, "Q": heads * size, "KV": kv_heads * size}


def _head_dim(section: Settings, family: str) -> int:
    """Stated, except where transformers has a rule for its absence."""
    if section.has("head_dim") or family not in ("qwen3", "qwen3moe", "llama", "code2wav"):
        size = section.integer("head_dim")
    elif family == "qwen3":
        size = 128
    else:
        size = _share(section, "hidden_size", "num_attention_heads")
    if size % 2:
        raise section.bad("head_dim", f"is {size}, expected an even number")
    return size


def _share(section: Settings, whole: str, parts: str) -> int:
    dim, heads = section.integer(whole), section.integer(parts)
    if dim % heads:
        raise section.bad(whole, f"is {dim}, no multiple of {parts} {heads}")
    return dim // heads


def _dense(section: Settings, family: str = "") -> Symbols:
    return _attention(section, family) | {
        "V": section.integer("vocab_size"),
        "F": section.integer("intermediate_size"),
    }


def _moe(section: Settings, family: str = "") -> Symbols:
    section.only("decoder_sparse_step", 1)
    section.only("mlp_only_layers", [])
    section.only("use_qk_norm", True)
    return _attention(section, family) | {
        "V": section.integer("vocab_size"),
        "F": section.integer("moe_intermediate_size"),
        "E": section.count("num_experts", other="num_local_experts"),
    }


def _plain(root: Settings, family: str) -> Symbols:
    root.only("mlp_bias", False)
    root.only("use_sliding_window", False)
    return _moe(root, family) if family == "qwen3moe" else _dense(root, family)


def _audio(section: Settings, text: Settings, dim: int) -> Symbols:
    section.only("activation_function", "gelu")
    section.only("scale_embedding", False)
    section.same("output_dim", section.integer("output_dim"), text, "hidden_size", dim)
    _share(section, "d_model", "encoder_attention_heads")
    width, channels = section.integer("d_model", low=4), section.integer("downsample_hidden_size")
    if width % 2:
        raise section.bad("d_model", f"is {width}, expected an even number")
    bins = section.integer("num_mel_bins")
    for _ in range(3):  # three convolutions of stride 2, padding 1
        bins = (bins + 1) // 2
    return {
        "D": width,
        "L": section.count("encoder_layers"),
        "F": section.integer("encoder_ffn_dim"),
        "C": channels,
        "CM": channels * bins,
        "POS": section.integer("max_source_positions", high=COUNT_LIMIT),
        "O": dim,
    }


def _vision(section: Settings, text: Settings, dim: int) -> Symbols:
    section.only("hidden_act", "gelu_pytorch_tanh")
    section.only("temporal_patch_size", 2)
    section.same("out_hidden_size", section.integer("out_hidden_size"), text, "hidden_size", dim)
    _share(section, "hidden_size", "num_heads")
    width, layers = section.integer("hidden_size"), section.count("depth")
    taps = section.integers("deepstack_visual_indexes", low=0)
    if any(b <= a for a, b in pairwise(taps)) or any(tap >= layers for tap in taps):
        raise section.bad("deepstack_visual_indexes", f"is {shown(list(taps))}, expected growing, below {layers}")
    return {
        "D": width,
        "L": layers,
        "F": section.integer("intermediate_size"),
        "QKV": 3 * width,
        "IN": section.integer("in_channels", 3),
        "P": section.integer("patch_size"),
        "T": 2,
        "POS": section.integer("num_position_embeddings"),
        "M": width * section.integer("spatial_merge_size") ** 2,
        "O": dim,
        "TAPS": len(taps),
        "TAP": taps,
    }


def _code2wav(section: Settings, codes: int) -> Symbols:
    rates, ratios = section.integers("upsample_rates"), section.integers("upsampling_ratios")
    width = section.integer("decoder_dim")
    channels = tuple(width >> i for i in range(min(len(rates), 32) + 1))
    if channels[-1] < 1 or len(channels) != len(rates) + 1:
        raise section.bad("upsample_rates", f"has {len(rates)} entries, too many for decoder_dim {width}")
    symbols = _attention(section, "code2wav")
    inner = symbols["D"]
    assert isinstance(inner, int)
    return symbols | {
        "F": section.integer("intermediate_size"),
        "CODES": codes,
        "U": len(ratios),
        "UK": ratios,
        "D4": 4 * inner,
        "B": len(rates),
        "BK": tuple(2 * rate for rate in rates),
        "BI": channels[:-1],
        "BO": channels[1:],
        "W": width,
        "WO": channels[-1],
        "R": 3,
    }
