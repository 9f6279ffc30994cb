"""GGUF metadata of the speech part (`talker-NAME-TYPE.gguf`): talker, code predictor and Code2Wav.

llama.cpp has no such architecture. Keys that mean the same are spelled as its own for text models, under the prefixes
`qwen3omni-talker.`, `qwen3omni-talker.code_predictor.` and `qwen3omni-talker.code2wav.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

from ..errors import UnsupportedModel
from .dims import SIZE_LIMIT, Dims, Settings, Symbols, dims, rope

ARCHITECTURE = "qwen3omni-talker"

# Codec ids: key in talker_config -> ours. They count in the talker's vocabulary.
_CODEC = {
    "codec_pad_id": "codec.pad_id",
    "codec_bos_id": "codec.bos_id",
    "codec_eos_token_id": "codec.eos_id",
    "codec_nothink_id": "codec.nothink_id",
    "codec_think_bos_id": "codec.think_bos_id",
    "codec_think_eos_id": "codec.think_eos_id",
}
# Ids of the thinker's vocabulary that shape the talker's prompt: at the top of config.json, or in one of its sections.
_TOKENS = """
    tts_pad tts_bos tts_eos im_start im_end system user assistant audio image video audio_start audio_end vision_start
    vision_end
"""
_OPTIONAL = ("audio_start", "audio_end", "vision_start", "vision_end")

# Sampling of group 0 unless generation_config.json says otherwise, and of the other groups, which has no entries there
# (transformers, Qwen3OmniMoeForConditionalGeneration.generate).
_TALKER_SAMPLING = {"temperature": 0.9, "top_p": 1.0, "repetition_penalty": 1.05}
_PREDICTOR_SAMPLING = {"temperature": 1.0, "top_k": 50, "top_p": 0.8, "repetition_penalty": 1.0}

# Fixed in transformers' code or in the release's description, not in config.json.
_SAMPLING_RATE = 24000
_CHUNK, _LEFT_CONTEXT = 300, 25
_LAYER_NORM_EPS, _SNAKE_EPS = 1e-6, 1e-9


def metadata(
    config: Mapping[str, Any], generation: Mapping[str, Any], name: str, path: str | Path = "config.json"
) -> dict[str, Any]:
    """All metadata of the speech part's file except `general.file_type`.

    config: config.json in either spelling. generation: generation_config.json, may be empty. name: the model's. path:
    of config.json, for messages. Raises InvalidModelFile, or UnsupportedModel (also where there is no talker).
    """
    sizes = dims(config, path)
    if "talker" not in sizes.components:
        raise UnsupportedModel(
            f"{path}: describes a model without a talker, so it cannot speak; use the Instruct model"
        )
    root = Settings(config, path)
    talker = root.section("talker_config")
    generated = Settings(generation, Path(path).with_name("generation_config.json"))
    found = _talker(talker, sizes) | _codec(talker, sizes) | _tokens(root, talker, sizes) | _sampling(generated)
    for prefix, values in (
        ("code_predictor", _predictor(talker.section("code_predictor_config"), sizes)),
        ("code2wav", _code2wav(root.section("code2wav_config"), sizes)),
    ):
        found |= {f"{prefix}.{key}": value for key, value in values.items()}
    general = {"general.architecture": ARCHITECTURE, "general.type": "model", "general.name": name}
    return general | {f"{ARCHITECTURE}.{key}": value for key, value in found.items()}


def _decoder(section: Settings, symbols: Symbols) -> dict[str, Any]:
    """What the talker, the code predictor and Code2Wav's transformer have in common."""
    theta, _ = rope(section)
    return {
        "block_count": symbols["L"],
        "context_length": section.integer("max_position_embeddings"),
        "embedding_length": symbols["D"],
        "attention.head_count": symbols["H"],
        "attention.head_count_kv": symbols["KVH"],
        "attention.key_length": symbols["HD"],
        "attention.value_length": symbols["HD"],
        "attention.layer_norm_rms_epsilon": section.number("rms_norm_eps"),
        "rope.freq_base": theta,
        "rope.dimension_count": symbols["HD"],
        "hidden_act": "silu",
    }


def _talker(talker: Settings, sizes: Dims) -> dict[str, Any]:
    text, symbols = talker.section("text_config"), sizes.components["talker"]
    _, sections = rope(text)
    pairs = sizes.size("talker", "HD") // 2
    if sections is None or sum(sections) != pairs:
        shown = "missing" if sections is None else list(sections)
        raise text.bad("rope_scaling.mrope_section", f"is {shown}, expected three numbers that make {pairs}")
    experts = sizes.size("talker", "E")
    return _decoder(text, symbols) | {
        "vocab_size": symbols["V"],
        "rope.dimension_sections": [*sections, 0],
        "expert_count": experts,
        "expert_used_count": text.integer("num_experts_per_tok", high=experts),
        "expert_feed_forward_length": symbols["F"],
        "expert_shared_feed_forward_length": symbols["S"],
        "expert_weights_norm": text.flag("norm_topk_prob"),
        # of text_proj and hidden_proj, which turn the thinker's rows into the talker's
        "projection.input_length": symbols["TD"],
        "projection.feed_forward_length": symbols["P"],
        "num_code_groups": talker.integer("num_code_groups"),
        # index into the thinker's hidden states, counting the embeddings as 0
        "accept_hidden_layer": talker.integer("accept_hidden_layer", low=0, high=sizes.size("thinker_text", "L")),
        "position_id_per_seconds": talker.integer("position_id_per_seconds"),
        "seconds_per_chunk": talker.integer("seconds_per_chunk", 2),
        "spatial_merge_size": talker.integer("spatial_merge_size", 2),
    }


def _codec(talker: Settings, sizes: Dims) -> dict[str, Any]:
    last = sizes.size("talker", "V") - 1
    speakers = talker.section("speaker_id")
    if not speakers.values:
        raise talker.bad("speaker_id", "names no speaker")
    found: dict[str, Any] = {ours: talker.integer(key, low=0, high=last) for key, ours in _CODEC.items()}
    return found | {
        "speaker.names": list(speakers.values),
        "speaker.default": "ethan" if speakers.has("ethan") else next(iter(speakers.values)),
        "speaker.ids": [speakers.integer(name, low=0, high=last) for name in speakers.values],
    }


def _tokens(root: Settings, talker: Settings, sizes: Dims) -> dict[str, Any]:
    last = sizes.size("thinker_text", "V") - 1
    places = (root, talker, root.section("thinker_config"))
    found = {}
    for token in _TOKENS.split():
        key = f"{token}_token_id"
        place = next((place for place in places if place.has(key)), None)
        if place is not None:
            found[f"token.{token}_id"] = place.integer(key, low=0, high=last)
        elif token not in _OPTIONAL:
            raise root.bad(key, "is missing")
    return found


def _sampling(generated: Settings) -> dict[str, Any]:
    """Entries of generation_config.json begin with `talker_`."""
    found: dict[str, Any] = {
        "sampling.do_sample": generated.flag("talker_do_sample", True),
        "sampling.top_k": generated.integer("talker_top_k", 50, low=0),
        "sampling.max_new_tokens": generated.integer("talker_max_new_tokens", 4096),
    }
    for key, default in _TALKER_SAMPLING.items():
        found[f"sampling.{key}"] = generated.number(f"talker_{key}", default)
    return found


def _predictor(section: Settings, sizes: Dims) -> dict[str, Any]:
    symbols = sizes.components["code_predictor"]
    if rope(section)[1]:
        raise section.unsupported(
            "rope_scaling.mrope_section", "is set; only plain rotary positions are supported here"
        )
    return _decoder(section, symbols) | {
        "vocab_size": symbols["V"],
        "feed_forward_length": symbols["F"],
        "num_code_groups": section.integer("num_code_groups"),
        **{f"sampling.{key}": value for key, value in _PREDICTOR_SAMPLING.items()},
    }


def _code2wav(section: Settings, sizes: Dims) -> dict[str, Any]:
    symbols = sizes.components["code2wav"]
    rates, ratios = section.integers("upsample_rates"), section.integers("upsampling_ratios")
    samples = prod(rates) * prod(ratios)
    if not rates or not ratios or samples > SIZE_LIMIT:
        raise section.bad("upsample_rates", f"and upsampling_ratios make {samples} samples a frame")
    return _decoder(section, symbols) | {
        "feed_forward_length": symbols["F"],
        "attention.sliding_window": section.integer("sliding_window"),
        "codebook_size": section.integer("codebook_size"),
        "num_quantizers": section.integer("num_quantizers"),
        "decoder_length": symbols["W"],
        "upsample_rates": list(rates),
        "upsampling_ratios": list(ratios),
        "samples_per_frame": samples,
        "sampling_rate": _SAMPLING_RATE,
        "chunk_size": _CHUNK,
        "left_context_size": _LEFT_CONTEXT,
        "layer_norm_epsilon": _LAYER_NORM_EPS,
        "snake_epsilon": _SNAKE_EPS,
    }
