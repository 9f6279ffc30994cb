"""Metadata of the towers' file: what llama.cpp's clip loader reads, and what our towers need beyond that."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import PREPROCESSOR

from qwen3omni_wgpu.convert.mmproj import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, UnsupportedModel

CONFIG = json.loads((Path(__file__).parents[1] / "data" / "config_30b.json").read_text())

# Written out from llama.cpp's clip loader and converter for `qwen3vl_merger` and `qwen3a`.
CLIP: dict[str, Any] = {
    "general.architecture": "clip",
    "general.type": "mmproj",
    "clip.has_vision_encoder": True,
    "clip.has_audio_encoder": True,
    "clip.use_gelu": True,
    "clip.vision.projector_type": "qwen3vl_merger",
    "clip.vision.image_size": 768,
    "clip.vision.patch_size": 16,
    "clip.vision.embedding_length": 1152,
    "clip.vision.feed_forward_length": 4304,
    "clip.vision.block_count": 27,
    "clip.vision.projection_dim": 2048,
    "clip.vision.attention.head_count": 16,
    "clip.vision.attention.layer_norm_epsilon": 1e-6,
    "clip.vision.image_mean": [0.5, 0.5, 0.5],
    "clip.vision.image_std": [0.5, 0.5, 0.5],
    "clip.vision.spatial_merge_size": 2,
    "clip.vision.is_deepstack_layers": [block in (8, 16, 24) for block in range(27)],
    "clip.audio.projector_type": "qwen3a",
    "clip.audio.embedding_length": 1280,
    "clip.audio.feed_forward_length": 5120,
    "clip.audio.block_count": 32,
    "clip.audio.projection_dim": 2048,
    "clip.audio.attention.head_count": 20,
    "clip.audio.attention.layer_norm_epsilon": 1e-5,
    "clip.audio.num_mel_bins": 128,
}
OURS: dict[str, Any] = {
    "clip.vision.image_min_pixels": 3136,
    "clip.vision.image_max_pixels": 12845056,
    "clip.vision.video_min_pixels": 128 * 32 * 32,
    "clip.vision.video_max_pixels": 768 * 32 * 32,
    "clip.vision.in_channels": 3,
    "clip.vision.temporal_patch_size": 2,
    "clip.vision.num_position_embeddings": 2304,
    "clip.vision.deepstack_visual_indexes": [8, 16, 24],
    "clip.vision.rope.freq_base": 10000.0,
    "clip.vision.hidden_act": "gelu_pytorch_tanh",
    "clip.audio.downsample_hidden_size": 480,
    "clip.audio.max_source_positions": 1500,
    "clip.audio.n_window": 50,
    "clip.audio.n_window_infer": 800,
    "clip.audio.conv_chunksize": 500,
    "clip.audio.activation_function": "gelu",
    "clip.audio.sampling_rate": 16000,
    "clip.audio.n_fft": 400,
    "clip.audio.hop_length": 160,
    "clip.audio.padding_value": 0.0,
    "clip.audio.mel_min_frequency": 0.0,
    "clip.audio.mel_max_frequency": 8000.0,
    "clip.audio.mel_scale": "slaney",
}


@pytest.mark.parametrize("preprocessor", [PREPROCESSOR, {}])
def test_the_release(preprocessor: dict[str, Any]) -> None:
    found = metadata(CONFIG, preprocessor, "Some Name")
    assert found == CLIP | OURS | {"general.name": "Some Name"}
    for key, value in found.items():
        assert type(value) is type((CLIP | OURS | {"general.name": ""})[key])


def test_one_projector_type_for_both_towers_would_be_wrong() -> None:
    """llama.cpp takes clip.projector_type, where it stands, for both."""
    assert "clip.projector_type" not in metadata(CONFIG, PREPROCESSOR, "x")


@pytest.mark.parametrize(("absent", "kept"), [("vision_config", "audio"), ("audio_config", "vision")])
def test_one_tower_alone(absent: str, kept: str) -> None:
    config = copy.deepcopy(CONFIG)
    del config["thinker_config"][absent]
    found = metadata(config, PREPROCESSOR, "x")
    assert found[f"clip.has_{kept}_encoder"] is True
    other = absent.removesuffix("_config")
    assert found[f"clip.has_{other}_encoder"] is False
    assert not [key for key in found if key.startswith(f"clip.{other}.")]


def test_a_tower_without_taps_has_no_empty_list() -> None:
    config = copy.deepcopy(CONFIG)
    config["thinker_config"]["vision_config"]["deepstack_visual_indexes"] = []
    found = metadata(config, PREPROCESSOR, "x")
    assert found["clip.vision.is_deepstack_layers"] == [False] * 27
    assert "clip.vision.deepstack_visual_indexes" not in found


def test_the_preprocessor_decides() -> None:
    mine = {"image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3], "min_pixels": 7, "max_pixels": 9, "hop_length": 80}
    found = metadata(CONFIG, mine, "x")
    assert found["clip.vision.image_mean"] == [0.1, 0.2, 0.3]
    assert found["clip.vision.image_std"] == [1.0, 2.0, 3.0]
    assert (found["clip.vision.image_min_pixels"], found["clip.vision.image_max_pixels"]) == (7, 9)
    assert found["clip.audio.hop_length"] == 80


def test_transformers_5_has_a_section_for_each_modality() -> None:
    nested = {
        "feature_extractor": {"hop_length": 80, "feature_size": 128},
        "image_processor": {"size": {"shortest_edge": 7, "longest_edge": 9}, "image_mean": [0.1, 0.2, 0.3]},
    }
    found = metadata(CONFIG, nested, "x")
    assert found["clip.audio.hop_length"] == 80
    assert (found["clip.vision.image_min_pixels"], found["clip.vision.image_max_pixels"]) == (7, 9)
    assert found["clip.vision.image_mean"] == [0.1, 0.2, 0.3]


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ({"image_mean": [0.5, 0.5]}, "image_mean has other than 3 entries"),
        ({"image_mean": 0.5}, "image_mean has other than 3 entries"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std[1] is 0, expected a positive number"),
        ({"image_std": [0.5, float("nan"), 0.5]}, "image_std[1] is nan"),
        ({"min_pixels": 10, "max_pixels": 9}, "min_pixels is 10, more than max_pixels 9"),
        ({"patch_size": 14}, "patch_size is 14, but thinker_config.vision_config.patch_size is 16"),
        ({"merge_size": 4}, "merge_size is 4, but thinker_config.vision_config.spatial_merge_size is 2"),
        ({"feature_size": 80}, "feature_size is 80, but thinker_config.audio_config.num_mel_bins is 128"),
        ({"hop_length": 0}, "hop_length is 0, expected 1 to"),
        ({"size": 3}, "size is 3, expected a JSON object"),
    ],
)
def test_a_wrong_preprocessor_is_named(wrong: dict[str, Any], blamed: str) -> None:
    with pytest.raises(InvalidModelFile) as error:
        metadata(CONFIG, wrong, "x", Path("there/config.json"))
    assert str(error.value).startswith(f"there/preprocessor_config.json: {blamed}")


def test_dither_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match="dither"):
        metadata(CONFIG, {"dither": 0.1}, "x")


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.floats(), max_size=4)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wrong=st.dictionaries(st.sampled_from([*PREPROCESSOR, "size", "image_processor", "dither"]), JSON, max_size=3))
def test_any_preprocessor_is_understood_or_refused(wrong: dict[str, Any]) -> None:
    message = ""
    try:
        found = metadata(CONFIG, PREPROCESSOR | wrong, "x")
        assert set(found) == set(CLIP) | set(OURS) | {"general.name"}
    except (InvalidModelFile, UnsupportedModel) as error:
        message = str(error)
    assert "\n" not in message
