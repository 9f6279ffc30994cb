"""Whole random Qwen3-Omni checkpoints for tests: a Hugging Face folder in its three layouts, without torch."""

import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tiny_checkpoint_shapes import random_tensor, shapes
from tiny_gguf import byte_symbols
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

DTYPES: dict[str, Any] = {"bf16": ml_dtypes.bfloat16, "f16": np.float16, "f32": np.float32}
SPECIAL = """
    <|endoftext|> <|im_start|> <|im_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>
    <|audio_start|> <|audio_end|> <tts_pad> <tts_text_bos> <tts_text_eod> <tts_text_bos_single> <|audio_pad|>
""".split()  # noqa: SIM905
ADDED = ("<tool_call>", "</tool_call>", "<|fim_pad|>", "<think>", "</think>")  # not special
WORDS = ("user", "assistant", "system", "hello", "world", "the", "say", "what", "is")
# Texts or lists of parts, as in the releases' own.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'text' %}{{ part['text'] }}"
    "{% elif part['type'] == 'audio' %}{{ '<|audio_start|><|audio_pad|><|audio_end|>' }}"
    "{% elif part['type'] == 'image' %}{{ '<|vision_start|><|image_pad|><|vision_end|>' }}"
    "{% elif part['type'] == 'video' %}{{ '<|vision_start|><|video_pad|><|vision_end|>' }}{% endif %}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
GENERATION = {
    "talker_max_new_tokens": 4096,
    "talker_repetition_penalty": 1.05,
    "talker_temperature": 0.9,
    "talker_top_k": 50,
    "talker_top_p": 1.0,
}
PREPROCESSOR = {
    "feature_extractor_type": "WhisperFeatureExtractor",
    "feature_size": 128,
    "hop_length": 160,
    "n_fft": 400,
    "sampling_rate": 16000,
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
}
# Much smaller than the reference script's; vision_ffn has no whole blocks of 32 in a row, as in the 30B.
DIMS: dict[str, Any] = {
    "thinker_layers": 2,
    "thinker_hidden": 64,
    "thinker_heads": 4,
    "thinker_kv_heads": 2,
    "thinker_moe": 32,
    "head_dim": 32,
    "experts": 4,
    "top_k": 2,
    "audio_layers": 2,
    "audio_dim": 64,
    "audio_heads": 2,
    "audio_ffn": 96,
    "audio_conv": 32,
    "vision_depth": 3,
    "vision_dim": 64,
    "vision_heads": 2,
    "vision_ffn": 80,
    "vision_side": 4,
    "deepstack": (0, 2),
    "talker_layers": 2,
    "talker_hidden": 32,
    "talker_heads": 2,
    "talker_kv_heads": 1,
    "talker_moe": 32,
    "talker_shared": 64,
    "talker_resize": 64,
    "talker_vocab": 96,
    "codes": 48,
    "groups": 16,
    "predictor_layers": 2,
    "predictor_ffn": 64,
    "wav_layers": 2,
    "wav_hidden": 32,
    "wav_heads": 2,
    "wav_ffn": 64,
    "wav_decoder_dim": 64,
    "wav_window": 6,
    "wav_ratios": (2, 2),
    "wav_rates": (8, 5, 4, 3),
    "speech": True,  # False: thinker only, as Thinking and Captioner are
}


def write_tiny_checkpoint(
    folder: Path,
    rng: np.random.Generator,
    layout: str = "index",
    dtype: str = "bf16",
    config_style: str = "legacy",
    tokenizer_json: bool = False,
    shards: int = 3,
    endless: bool = False,
    **dims: Any,
) -> dict[str, np.ndarray]:
    """Write the folder; returns Hugging Face name -> weights as they are stored.

    layout: "index" (shards with model.safetensors.index.json), "single" or "numbered" (shards without index). dtype:
    "bf16", "f16" or "f32". config_style: "legacy" as in the releases, "v5" as transformers 5 writes it. tokenizer_json:
    False = vocab.json and merges.txt only, as in the release. endless: neither text nor speech ends by itself, whatever
    is drawn. dims: any of DIMS.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = write_tokenizer(folder, tokenizer_json)
    config = build_config({**DIMS, **dims}, vocabulary)
    tensors = {name: random_tensor(rng, name, shape).astype(DTYPES[dtype]) for name, shape in shapes(config)}
    if endless:
        _never_end(tensors, config)
    write_json(folder / "config.json", config if config_style == "legacy" else _as_v5(config))
    write_json(folder / "generation_config.json", GENERATION)
    write_json(folder / "preprocessor_config.json", PREPROCESSOR)
    write_tensors(folder, tensors, layout, shards)
    return tensors


def _never_end(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> None:
    """Logits of the ends are 0, which the best of hundreds of others leaves far behind.

    The talker's have to be larger for that, because it has few codes.
    """
    tensors["thinker.lm_head.weight"][[config["im_end_token_id"], config["im_start_token_id"] - 1]] = 0
    if "talker_config" in config:
        head = tensors["talker.codec_head.weight"]
        head[:] = (head.astype(np.float32) * 100).astype(head.dtype)
        head[config["talker_config"]["codec_eos_token_id"]] = 0


def write_tensors(folder: Path, tensors: dict[str, np.ndarray], layout: str, shards: int = 3) -> None:
    """The safetensors files in one of the three layouts, names dealt out in turn."""
    if layout == "single":
        save_file(tensors, folder / "model.safetensors")
        return
    where = {name: f"model-{i % shards + 1:05}-of-{shards:05}.safetensors" for i, name in enumerate(tensors)}
    for file in sorted(set(where.values())):
        save_file({name: tensors[name] for name in tensors if where[name] == file}, folder / file)
    if layout == "index":
        size = sum(tensor.nbytes for tensor in tensors.values())
        write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": where})


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False), encoding="utf-8")


# Tokenizer ---------------------------------------------------------------------------------------------------------


def write_tokenizer(folder: Path, tokenizer_json: bool) -> dict[str, int]:
    """A small byte-level BPE in the Qwen2 tokenizer's files; returns all tokens."""
    symbols = byte_symbols()
    words = {symbols[byte]: i for i, byte in enumerate(sorted(symbols))}
    merges: list[tuple[str, str]] = []
    for word in [*WORDS, *("Ġ" + word for word in WORDS)]:
        for end in range(1, len(word)):
            if (word[:end], word[end]) not in merges:
                merges.append((word[:end], word[end]))
                words.setdefault(word[: end + 1], len(words))
    added = {text: len(words) + i for i, text in enumerate((*SPECIAL, *ADDED))}
    write_json(folder / "vocab.json", words)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    decoder = {str(i): {"content": text, **flags, "special": text in SPECIAL} for text, i in added.items()}
    settings = {
        "added_tokens_decoder": decoder,
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": None,
        "model_max_length": 131072,
        "tokenizer_class": "Qwen2Tokenizer",
    }
    write_json(folder / "tokenizer_config.json", settings)
    write_json(folder / "chat_template.json", {"chat_template": CHAT_TEMPLATE})
    if tokenizer_json:
        _backend(words, merges).save(str(folder / "tokenizer.json"))
    return words | added


def _backend(words: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    backend = Tokenizer(models.BPE(vocab=words, merges=merges))
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False, special=True) for text in SPECIAL])
    backend.add_tokens([AddedToken(text, normalized=False, special=False) for text in ADDED])
    return backend


# config.json -------------------------------------------------------------------------------------------------------


def build_config(d: dict[str, Any], vocabulary: dict[str, int]) -> dict[str, Any]:
    """config.json in the releases' spelling."""
    ids = {
        "audio_token_id": vocabulary["<|audio_pad|>"],
        "image_token_id": vocabulary["<|image_pad|>"],
        "video_token_id": vocabulary["<|video_pad|>"],
        "audio_start_token_id": vocabulary["<|audio_start|>"],
        "audio_end_token_id": vocabulary["<|audio_end|>"],
        "vision_start_token_id": vocabulary["<|vision_start|>"],
        "position_id_per_seconds": 13,
        "seconds_per_chunk": 2,
    }
    config: dict[str, Any] = {
        "architectures": ["Qwen3OmniMoeForConditionalGeneration"],
        "model_type": "qwen3_omni_moe",
        "enable_audio_output": d["speech"],
        "im_start_token_id": vocabulary["<|im_start|>"],
        "im_end_token_id": vocabulary["<|im_end|>"],
        "tts_pad_token_id": vocabulary["<tts_pad>"],
        "tts_bos_token_id": vocabulary["<tts_text_bos>"],
        "tts_eos_token_id": vocabulary["<tts_text_eod>"],
        **{f"{role}_token_id": vocabulary[role] for role in ("system", "user", "assistant")},
        "thinker_config": {
            **ids,
            "vision_end_token_id": vocabulary["<|vision_end|>"],
            "user_token_id": vocabulary["user"],
            "model_type": "qwen3_omni_moe_thinker",
            "text_config": _decoder(d, "thinker") | {"vocab_size": (len(vocabulary) + 39) // 32 * 32},
            "audio_config": _audio(d),
            "vision_config": _vision(d),
        },
    }
    if d["speech"]:
        config |= {"talker_config": _talker(d) | ids, "code2wav_config": _code2wav(d)}
    return config


def _decoder(d: dict[str, Any], part: str) -> dict[str, Any]:
    half = d["head_dim"] // 2
    side = half * 20 // 64
    return {
        "hidden_size": d[f"{part}_hidden"],
        "num_hidden_layers": d[f"{part}_layers"],
        "num_attention_heads": d[f"{part}_heads"],
        "num_key_value_heads": d[f"{part}_kv_heads"],
        "head_dim": d["head_dim"],
        "intermediate_size": d[f"{part}_moe"],
        "moe_intermediate_size": d[f"{part}_moe"],
        "num_experts": d["experts"],
        "num_experts_per_tok": d["top_k"],
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": False,
        "sliding_window": None,
        "max_position_embeddings": 65536,
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000,
        "rope_scaling": {
            "interleaved": True,
            "mrope_interleaved": True,
            "mrope_section": [half - 2 * side, side, side],
            "rope_type": "default",
            "type": "default",
        },
    }


def _audio(d: dict[str, Any]) -> dict[str, Any]:
    return {
        "num_mel_bins": 128,
        "d_model": d["audio_dim"],
        "encoder_layers": d["audio_layers"],
        "encoder_attention_heads": d["audio_heads"],
        "encoder_ffn_dim": d["audio_ffn"],
        "activation_function": "gelu",
        "downsample_hidden_size": d["audio_conv"],
        "output_dim": d["thinker_hidden"],
        "n_window": 50,
        "n_window_infer": 200,
        "conv_chunksize": 500,
        "max_source_positions": 1500,
        "scale_embedding": False,
    }


def _vision(d: dict[str, Any]) -> dict[str, Any]:
    return {
        "depth": d["vision_depth"],
        "hidden_size": d["vision_dim"],
        "num_heads": d["vision_heads"],
        "intermediate_size": d["vision_ffn"],
        "hidden_act": "gelu_pytorch_tanh",
        "in_channels": 3,
        "patch_size": 16,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "out_hidden_size": d["thinker_hidden"],
        "num_position_embeddings": d["vision_side"] ** 2,
        "deepstack_visual_indexes": list(d["deepstack"]),
    }


def _talker(d: dict[str, Any]) -> dict[str, Any]:
    text = _decoder(d, "talker") | {
        "intermediate_size": d["talker_resize"],
        "shared_expert_intermediate_size": d["talker_shared"],
        "vocab_size": d["talker_vocab"],
    }
    predictor = {key: text[key] for key in text if "expert" not in key and "moe" not in key and "rope" not in key} | {
        "intermediate_size": d["predictor_ffn"],
        "num_hidden_layers": d["predictor_layers"],
        "vocab_size": d["codes"],
        "num_code_groups": d["groups"],
        "rope_theta": 1000000,
        "rope_scaling": None,
        "layer_types": ["full_attention"] * d["predictor_layers"],
    }
    names = ("codec_pad_id", "codec_bos_id", "codec_eos_token_id", "codec_nothink_id", "codec_think_bos_id")
    return {
        "text_config": text,
        "code_predictor_config": predictor,
        "num_code_groups": d["groups"],
        "thinker_hidden_size": d["thinker_hidden"],
        "accept_hidden_layer": 1,
        "spatial_merge_size": 2,
        **{name: d["codes"] + i for i, name in enumerate((*names, "codec_think_eos_id"))},
        "speaker_id": {name: d["codes"] + 10 + i for i, name in enumerate(("chelsie", "ethan", "aiden"))},
    }


def _code2wav(d: dict[str, Any]) -> dict[str, Any]:
    return {
        "codebook_size": d["codes"],
        "num_quantizers": d["groups"],
        "hidden_size": d["wav_hidden"],
        "intermediate_size": d["wav_ffn"],
        "num_hidden_layers": d["wav_layers"],
        "num_attention_heads": d["wav_heads"],
        "num_key_value_heads": d["wav_heads"],
        "hidden_act": "silu",
        "attention_bias": False,
        "sliding_window": d["wav_window"],
        "rms_norm_eps": 1e-5,
        "layer_scale_initial_scale": 0.01,
        "rope_theta": 10000,
        "decoder_dim": d["wav_decoder_dim"],
        "upsample_rates": list(d["wav_rates"]),
        "upsampling_ratios": list(d["wav_ratios"]),
        "max_position_embeddings": 8000,
    }


def _as_v5(node: Any) -> Any:
    """transformers 5's spelling: rope_parameters, and num_local_experts where there is a shared expert (the talker)."""
    if not isinstance(node, dict):
        return node
    made = {key: _as_v5(value) for key, value in node.items() if key not in ("rope_theta", "rope_scaling")}
    if "rope_theta" in node:
        rope = {"rope_type": "default", **(node.get("rope_scaling") or {})}
        made["rope_parameters"] = rope | {"rope_theta": node["rope_theta"]}
    if "shared_expert_intermediate_size" in made:
        made["num_local_experts"] = made.pop("num_experts")
    return made
