"""Metadata of the speech part's file: every hyper-parameter of talker, code predictor and Code2Wav."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import GENERATION

from qwen3omni_wgpu.convert.talker import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, UnsupportedModel

CONFIG = json.loads((Path(__file__).parents[1] / "data" / "config_30b.json").read_text())

RELEASE: dict[str, Any] = {
    "block_count": 20,
    "context_length": 65536,
    "embedding_length": 1024,
    "vocab_size": 3072,
    "attention.head_count": 16,
    "attention.head_count_kv": 2,
    "attention.key_length": 128,
    "attention.value_length": 128,
    "attention.layer_norm_rms_epsilon": 1e-6,
    "rope.freq_base": 1e6,
    "rope.dimension_count": 128,
    "rope.dimension_sections": [24, 20, 20, 0],
    "hidden_act": "silu",
    "expert_count": 128,
    "expert_used_count": 6,
    "expert_feed_forward_length": 384,
    "expert_shared_feed_forward_length": 768,
    "expert_weights_norm": True,
    "projection.input_length": 2048,
    "projection.feed_forward_length": 2048,
    "num_code_groups": 16,
    "accept_hidden_layer": 24,
    "position_id_per_seconds": 13,
    "seconds_per_chunk": 2,
    "spatial_merge_size": 2,
    "codec.pad_id": 2148,
    "codec.bos_id": 2149,
    "codec.eos_id": 2150,
    "codec.nothink_id": 2155,
    "codec.think_bos_id": 2156,
    "codec.think_eos_id": 2157,
    "speaker.names": ["chelsie", "ethan", "aiden"],
    "speaker.ids": [2301, 2302, 2303],
    "speaker.default": "ethan",
    "token.tts_pad_id": 151671,
    "token.tts_bos_id": 151672,
    "token.tts_eos_id": 151673,
    "token.im_start_id": 151644,
    "token.im_end_id": 151645,
    "token.system_id": 8948,
    "token.user_id": 872,
    "token.assistant_id": 77091,
    "token.audio_id": 151675,
    "token.image_id": 151655,
    "token.video_id": 151656,
    "token.audio_start_id": 151669,
    "token.audio_end_id": 151670,
    "token.vision_start_id": 151652,
    "token.vision_end_id": 151653,
    "sampling.do_sample": True,
    "sampling.temperature": 0.9,
    "sampling.top_k": 50,
    "sampling.top_p": 1.0,
    "sampling.repetition_penalty": 1.05,
    "sampling.max_new_tokens": 4096,
    "code_predictor.block_count": 5,
    "code_predictor.context_length": 32768,
    "code_predictor.embedding_length": 1024,
    "code_predictor.feed_forward_length": 3072,
    "code_predictor.vocab_size": 2048,
    "code_predictor.num_code_groups": 16,
    "code_predictor.attention.head_count": 16,
    "code_predictor.attention.head_count_kv": 8,
    "code_predictor.attention.key_length": 128,
    "code_predictor.attention.value_length": 128,
    "code_predictor.attention.layer_norm_rms_epsilon": 1e-6,
    "code_predictor.rope.freq_base": 1e6,
    "code_predictor.rope.dimension_count": 128,
    "code_predictor.hidden_act": "silu",
    "code_predictor.sampling.temperature": 1.0,
    "code_predictor.sampling.top_k": 50,
    "code_predictor.sampling.top_p": 0.8,
    "code_predictor.sampling.repetition_penalty": 1.0,
    "code2wav.block_count": 8,
    "code2wav.context_length": 8000,
    "code2wav.embedding_length": 1024,
    "code2wav.feed_forward_length": 3072,
    "code2wav.attention.head_count": 16,
    "code2wav.attention.head_count_kv": 16,
    "code2wav.attention.key_length": 64,
    "code2wav.attention.value_length": 64,
    "code2wav.attention.layer_norm_rms_epsilon": 1e-5,
    "code2wav.attention.sliding_window": 72,
    "code2wav.rope.freq_base": 10000.0,
    "code2wav.rope.dimension_count": 64,
    "code2wav.hidden_act": "silu",
    "code2wav.codebook_size": 2048,
    "code2wav.num_quantizers": 16,
    "code2wav.decoder_length": 1536,
    "code2wav.upsample_rates": [8, 5, 4, 3],
    "code2wav.upsampling_ratios": [2, 2],
    "code2wav.samples_per_frame": 1920,
    "code2wav.sampling_rate": 24000,
    "code2wav.chunk_size": 300,
    "code2wav.left_context_size": 25,
    "code2wav.layer_norm_epsilon": 1e-6,
    "code2wav.snake_epsilon": 1e-9,
}


def own(found: dict[str, Any]) -> dict[str, Any]:
    return {key.removeprefix("qwen3omni-talker."): value for key, value in found.items() if "talker." in key}


@pytest.mark.parametrize("generation", [GENERATION, {}])
def test_the_release(generation: dict[str, Any]) -> None:
    found = metadata(CONFIG, generation, "Some Name")
    assert own(found) == RELEASE
    assert {key: value for key, value in found.items() if "talker." not in key} == {
        "general.architecture": "qwen3omni-talker",
        "general.type": "model",
        "general.name": "Some Name",
    }
    for key, value in own(found).items():
        assert type(value) is type(RELEASE[key]), key


def test_the_generation_config_decides() -> None:
    mine = {
        "talker_do_sample": False,
        "talker_temperature": 0.5,
        "talker_top_k": 0,
        "talker_top_p": 0.75,
        "talker_repetition_penalty": 1.5,
        "talker_max_new_tokens": 9,
        "temperature": 3.0,  # the thinker's
    }
    found = own(metadata(CONFIG, mine, "x"))
    assert {key: value for key, value in found.items() if key.startswith("sampling.")} == {
        "sampling.do_sample": False,
        "sampling.temperature": 0.5,
        "sampling.top_k": 0,
        "sampling.top_p": 0.75,
        "sampling.repetition_penalty": 1.5,
        "sampling.max_new_tokens": 9,
    }


def test_speakers_keep_their_order_and_one_is_the_default() -> None:
    config = copy.deepcopy(CONFIG)
    config["talker_config"]["speaker_id"] = {"zoe": 2400, "amy": 2305}
    found = own(metadata(config, GENERATION, "x"))
    assert (found["speaker.names"], found["speaker.ids"]) == (["zoe", "amy"], [2400, 2305])
    assert found["speaker.default"] == "zoe"


def test_token_ids_may_stand_in_any_section() -> None:
    config = copy.deepcopy(CONFIG)
    ids = ("audio", "image", "video")
    for section in (config["talker_config"], config["thinker_config"]):
        for name in ids:
            del section[f"{name}_token_id"]
    with pytest.raises(InvalidModelFile, match="audio_token_id is missing"):
        metadata(config, GENERATION, "x")
    config |= {f"{name}_token_id": i for i, name in enumerate(ids)}
    found = own(metadata(config, GENERATION, "x"))
    assert [found[f"token.{name}_id"] for name in ids] == [0, 1, 2]


def test_a_model_without_a_talker_is_refused() -> None:
    with pytest.raises(UnsupportedModel, match=r"^there/config\.json: describes a model without a talker"):
        metadata({**CONFIG, "enable_audio_output": False}, {}, "x", Path("there/config.json"))


@pytest.mark.parametrize(
    ("wrong", "blamed"),
    [
        ({"talker_temperature": 0}, "talker_temperature is 0, expected a positive number"),
        ({"talker_top_p": "1"}, "talker_top_p is '1', expected a positive number"),
        ({"talker_top_k": -1}, "talker_top_k is -1, expected 0 to"),
        ({"talker_max_new_tokens": 0}, "talker_max_new_tokens is 0, expected 1 to"),
        ({"talker_do_sample": 1}, "talker_do_sample is 1, expected true or false"),
    ],
)
def test_a_wrong_generation_config_is_named(wrong: dict[str, Any], blamed: str) -> None:
    with pytest.raises(InvalidModelFile) as error:
        metadata(CONFIG, wrong, "x", Path("there/config.json"))
    assert str(error.value).startswith(f"there/generation_config.json: {blamed}")


JSON = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.floats(), max_size=4)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(wrong=st.dictionaries(st.sampled_from([*GENERATION, "talker_do_sample"]), JSON, max_size=3))
def test_any_generation_config_is_understood_or_refused(wrong: dict[str, Any]) -> None:
    message = ""
    try:
        assert set(own(metadata(CONFIG, GENERATION | wrong, "x"))) == set(RELEASE)
    except InvalidModelFile as error:
        message = str(error)
    assert "\n" not in message
