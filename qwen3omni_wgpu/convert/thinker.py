"""GGUF metadata of the text model, from config.json and generation_config.json of a Hugging Face checkpoint.

Keys are llama.cpp's for the architectures qwen3vlmoe (Qwen3-Omni's thinker), qwen3moe, qwen3 and llama. What Qwen3-Omni
needs beyond these stands under `qwen3omni.*`: ids of special tokens and the time scale of positions.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dims import Dims, Settings, dims, rope

_ARCHITECTURES = {"qwen3omni": "qwen3vlmoe"}  # the other families are called as in llama.cpp
_QUANTIZATION_VERSION = 2  # of ggml's block formats

# Ids that the release has at the top of config.json or under thinker_config.
_IDS = """
    audio_token_id image_token_id video_token_id audio_start_token_id audio_end_token_id vision_start_token_id
    vision_end_token_id im_start_token_id im_end_token_id user_token_id assistant_token_id system_token_id
    tts_pad_token_id tts_bos_token_id tts_eos_token_id
"""

# generation_config.json -> key under general.sampling, and what transformers takes while sampling if it is not there.
_SAMPLING: dict[str, tuple[str, float | None]] = {
    "temperature": ("temp", 1.0),
    "top_p": ("top_p", 1.0),
    "min_p": ("min_p", 0.0),
    "repetition_penalty": ("penalty_repeat", None),
}
_TOP_K = 50

# BaseName-SizeLabel-FineTune of GGUF's naming convention.
_NAME = re.compile(
    r"(?P<base>.+?)[-_ ](?P<size>\d+(?:\.\d+)?[KMBT](?:-A\d+(?:\.\d+)?[KMB])?)(?:[-_ ](?P<tune>.+))?", re.IGNORECASE
)


def metadata(
    config: Mapping[str, Any], name: str, generation: Mapping[str, Any], path: str | Path = "config.json"
) -> dict[str, Any]:
    """All metadata of the text model's file except the tokenizer's and `general.file_type`.

    config: config.json in the releases' or transformers 5's spelling. name: the model's, such as
    Qwen3-Omni-30B-A3B-Instruct. generation: generation_config.json, empty when there is none. path: of config.json,
    for messages. Raises InvalidModelFile (missing or contradictory) or UnsupportedModel (what we cannot run).
    """
    sizes, root = dims(config, path), Settings(config, path)
    arch = _ARCHITECTURES.get(sizes.family, sizes.family)
    omni = sizes.family == "qwen3omni"
    text = root.section("thinker_config").section("text_config") if omni else root
    found = _general(arch, name) | _sampling(generation, omni, Path(path).with_name("generation_config.json"))
    found |= {f"{arch}.{key}": value for key, value in (_sizes(text, sizes) | _rope(text, sizes)).items()}
    return found | _omni(root, sizes) if omni else found


def _general(arch: str, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {"general.architecture": arch, "general.type": "model", "general.name": name}
    if match := _NAME.fullmatch(name):
        found |= {"general.basename": match["base"], "general.size_label": match["size"]}
        if match["tune"]:
            found["general.finetune"] = match["tune"]
    return found | {"general.quantization_version": _QUANTIZATION_VERSION}


def _sampling(generation: Mapping[str, Any], omni: bool, path: Path) -> dict[str, Any]:
    """As transformers' generate(): greedy unless do_sample is set. Qwen3-Omni takes `thinker_...` entries too."""
    if not generation:
        return {}
    values = dict(generation)
    if omni:
        own = {key.removeprefix("thinker_"): value for key, value in values.items() if key.startswith("thinker_")}
        values |= {key: value for key, value in own.items() if value is not None}
    settings = Settings(values, path)
    found: dict[str, Any] = {}
    if not settings.flag("do_sample", False):
        found["general.sampling.temp"] = 0.0
    else:
        found["general.sampling.top_k"] = settings.integer("top_k", _TOP_K, low=0)
        for key, (ours, default) in _SAMPLING.items():
            if settings.has(key) or default is not None:
                off = key != "repetition_penalty" and values.get(key) in (0, 0.0) and values[key] is not False
                found[f"general.sampling.{ours}"] = 0.0 if off else settings.number(key, default)
    if omni and settings.has("max_new_tokens"):
        found["qwen3omni.max_new_tokens"] = settings.integer("max_new_tokens")
    return found


def _sizes(text: Settings, sizes: Dims) -> dict[str, Any]:
    """Without the architecture's prefix; the tensors' sizes are dims', so that both always agree."""
    symbols = sizes.components["thinker_text"]
    moe = sizes.family in ("qwen3omni", "qwen3moe")
    found: dict[str, Any] = {
        "block_count": symbols["L"],
        "context_length": text.integer("max_position_embeddings"),
        "embedding_length": symbols["D"],
        "feed_forward_length": symbols["F"],
        "vocab_size": symbols["V"],
        "attention.head_count": symbols["H"],
        "attention.head_count_kv": symbols["KVH"],
        "attention.key_length": symbols["HD"],
        "attention.value_length": symbols["HD"],
        "attention.layer_norm_rms_epsilon": text.number("rms_norm_eps"),
    }
    if moe:
        experts, used = symbols["E"], text.integer("num_experts_per_tok")
        assert isinstance(experts, int)
        if used > experts:
            raise text.bad("num_experts_per_tok", f"is {used}, more than the {experts} experts")
        found |= {
            "expert_count": experts,
            "expert_used_count": used,
            "expert_feed_forward_length": symbols["F"],
            # transformers: false where absent. llama.cpp always normalises, so it runs only the true ones rightly.
            "expert_weights_norm": text.flag("norm_topk_prob", sizes.family == "qwen3omni"),
        }
        if text.has("intermediate_size"):  # of dense layers, of which there are none
            found["feed_forward_length"] = text.integer("intermediate_size")
    return found


def _rope(text: Settings, sizes: Dims) -> dict[str, Any]:
    """llama 3's scaling is a tensor (rope_freqs.weight), so nothing is said of it here."""
    kinds = ("default", "mrope", "linear", *(("llama3",) if sizes.family == "llama" else ()))
    theta, sections = rope(text, None if sizes.family == "qwen3omni" else 10000.0, kinds)
    symbols = sizes.components["thinker_text"]
    found: dict[str, Any] = {"rope.freq_base": theta, "rope.dimension_count": symbols["HD"]}
    if sizes.family == "qwen3omni":
        if sections is None:
            raise text.bad("rope_scaling.mrope_section", "is missing")
        found["rope.dimension_sections"] = [*sections, 0]
    scaling = text.values.get("rope_parameters") or text.values.get("rope_scaling") or {}
    if scaling.get("rope_type", scaling.get("type")) == "linear":
        found |= {"rope.scaling.type": "linear", "rope.scaling.factor": Settings(scaling, text.path).number("factor")}
    return found


def _omni(root: Settings, sizes: Dims) -> dict[str, Any]:
    """The number of deepstack maps that the thinker adds, and what prompts with media need."""
    thinker = root.section("thinker_config")
    vision = sizes.components.get("vision_encoder")
    found: dict[str, Any] = {"qwen3vlmoe.n_deepstack_layers": vision["TAPS"] if vision else 0}
    rows = sizes.components["thinker_text"]["V"]
    assert isinstance(rows, int)
    for key in _IDS.split():
        place = thinker if thinker.has(key) else root
        if place.has(key):
            found[f"qwen3omni.{key}"] = place.integer(key, low=0, high=rows - 1)
    for key in ("position_id_per_seconds", "seconds_per_chunk"):
        if thinker.has(key):
            found[f"qwen3omni.{key}"] = thinker.integer(key)
    found["qwen3omni.enable_audio_output"] = "talker" in sizes.parts
    return found
