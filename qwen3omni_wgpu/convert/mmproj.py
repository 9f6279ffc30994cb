"""GGUF metadata of both towers (`mmproj-NAME-TYPE.gguf`).

Keys that llama.cpp's clip loader reads for its projectors `qwen3vl_merger` and `qwen3a` have its names and values. What
it has no key for, because it is fixed in its code, stands beside them under the name it has in config.json.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .dims import Dims, Settings, dims, rope

# Fixed in transformers' code, not in any file: LayerNorm's epsilon in both towers, the pixel limits of video frames,
# and the upper end of the mel filters in Hz.
_AUDIO_EPS, _VISION_EPS = 1e-5, 1e-6
_VIDEO_PIXELS = (131072, 786432)
_MEL_TOP = 8000.0


def metadata(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], name: str, path: str | Path = "config.json"
) -> dict[str, Any]:
    """All metadata of the towers' file except `general.file_type`.

    config: config.json in either spelling. preprocessor: preprocessor_config.json; what it lacks (all of it, if empty)
    is as in the release. name: the model's. path: of config.json, for messages. Raises InvalidModelFile or
    UnsupportedModel.
    """
    sizes = dims(config, path)
    thinker = Settings(config, path).section("thinker_config")
    front = _front(preprocessor, Path(path).with_name("preprocessor_config.json"))
    found: dict[str, Any] = {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "general.name": name,
        "clip.has_vision_encoder": "vision_encoder" in sizes.components,
        "clip.has_audio_encoder": "audio_encoder" in sizes.components,
        "clip.use_gelu": True,
    }
    if "vision_encoder" in sizes.components:
        found |= _prefixed("clip.vision.", _vision(thinker.section("vision_config"), sizes, front))
    if "audio_encoder" in sizes.components:
        found |= _prefixed("clip.audio.", _audio(thinker.section("audio_config"), sizes, front))
    return found


def _prefixed(prefix: str, values: dict[str, Any]) -> dict[str, Any]:
    return {prefix + key: value for key, value in values.items()}


def _front(preprocessor: Mapping[str, Any], path: Path) -> Settings:
    """One flat section, also from transformers 5's processor_config.json, which has one a modality."""
    values = dict(Settings(preprocessor, path).values)
    for key in ("feature_extractor", "image_processor"):
        if isinstance(values.get(key), dict):
            values |= values.pop(key)
    return Settings(values, path)


def _vision(section: Settings, sizes: Dims, front: Settings) -> dict[str, Any]:
    """Without the prefix. image_size is the side of the position table in pixels, not a limit."""
    symbols = sizes.components["vision_encoder"]
    positions, patch = section.integer("num_position_embeddings"), section.integer("patch_size")
    side = math.isqrt(positions)
    if side * side != positions:
        raise section.bad("num_position_embeddings", f"is {positions}, no square number")
    if side * patch > 2**31 - 1:
        raise section.bad("patch_size", f"is {patch}, too large for {positions} positions")
    merge = section.integer("spatial_merge_size")
    for key, other, value in (("patch_size", "patch_size", patch), ("merge_size", "spatial_merge_size", merge)):
        front.same(key, front.integer(key, value), section, other, value)
    least, most = _pixels(front)
    theta, _ = rope(section, 10000.0, ("default", "axial"))
    taps = symbols["TAP"]
    assert isinstance(taps, tuple)
    return {
        "projector_type": "qwen3vl_merger",
        "embedding_length": symbols["D"],
        "feed_forward_length": symbols["F"],
        "block_count": symbols["L"],
        "attention.head_count": section.integer("num_heads"),
        "attention.layer_norm_epsilon": _VISION_EPS,
        "projection_dim": symbols["O"],
        "image_size": side * patch,
        "patch_size": patch,
        "spatial_merge_size": merge,
        "is_deepstack_layers": [block in taps for block in range(section.count("depth"))],
        "image_mean": _channels(front, "image_mean", sizes.size("vision_encoder", "IN")),
        "image_std": _channels(front, "image_std", sizes.size("vision_encoder", "IN")),
        "image_min_pixels": least,
        "image_max_pixels": most,
        # ours from here on
        "video_min_pixels": _VIDEO_PIXELS[0],
        "video_max_pixels": _VIDEO_PIXELS[1],
        "in_channels": symbols["IN"],
        "temporal_patch_size": symbols["T"],
        "num_position_embeddings": positions,
        "rope.freq_base": theta,
        "hidden_act": "gelu_pytorch_tanh",
        **({"deepstack_visual_indexes": list(taps)} if taps else {}),
    }


def _pixels(front: Settings) -> tuple[int, int]:
    """Limits of an image's area after resizing; transformers 5 keeps them as the edges of `size`."""
    size = front.section("size") if front.has("size") else Settings({}, front.path)
    least = front.integer("min_pixels", size.integer("shortest_edge", 3136))
    most = front.integer("max_pixels", size.integer("longest_edge", 12845056))
    if least > most:
        raise front.bad("min_pixels", f"is {least}, more than max_pixels {most}")
    return least, most


def _channels(front: Settings, key: str, channels: int) -> list[float]:
    """One number a channel; llama.cpp divides by the deviation too."""
    values = front.values.get(key)
    if values is None:
        values = [0.5] * min(channels, 16)
    if not isinstance(values, list | tuple) or len(values) != channels:
        raise front.bad(key, f"has other than {channels} entries, one a channel")
    entries = Settings({f"{key}[{i}]": value for i, value in enumerate(values)}, front.path)
    return [entries.number(entry, positive=key == "image_std") for entry in entries.values]


def _audio(section: Settings, sizes: Dims, front: Settings) -> dict[str, Any]:
    """Without the prefix. The log-mel front end belongs to the tower: its weights fit no other."""
    symbols = sizes.components["audio_encoder"]
    bins = section.integer("num_mel_bins")
    front.same("feature_size", front.integer("feature_size", bins), section, "num_mel_bins", bins)
    window, infer = section.integer("n_window"), section.integer("n_window_infer")
    if infer % (2 * window):
        raise section.bad("n_window_infer", f"is {infer}, no multiple of twice n_window {window}")
    front.only("dither", 0.0, 0)  # it would add noise
    return {
        "projector_type": "qwen3a",
        "embedding_length": symbols["D"],
        "feed_forward_length": symbols["F"],
        "block_count": symbols["L"],
        "attention.head_count": section.integer("encoder_attention_heads"),
        "attention.layer_norm_epsilon": _AUDIO_EPS,
        "projection_dim": symbols["O"],
        "num_mel_bins": bins,
        # ours from here on
        "downsample_hidden_size": symbols["C"],
        "max_source_positions": symbols["POS"],
        "n_window": window,
        "n_window_infer": infer,
        "conv_chunksize": section.integer("conv_chunksize", 500),
        "activation_function": "gelu",
        "sampling_rate": front.integer("sampling_rate", 16000),
        "n_fft": front.integer("n_fft", 400),
        "hop_length": front.integer("hop_length", 160),
        "padding_value": front.number("padding_value", 0.0, positive=False),
        "mel_min_frequency": 0.0,
        "mel_max_frequency": _MEL_TOP,
        "mel_scale": "slaney",
    }
