"""config.json: both spellings, and every way in which one can be wrong is refused in one line that names the entry."""

import copy
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import GENERATION, PREPROCESSOR

from qwen3omni_wgpu.convert import mmproj, names, talker
from qwen3omni_wgpu.convert.dims import PARTS, Settings, dims, rope
from qwen3omni_wgpu.errors import InvalidModelFile, UnsupportedModel

CONFIG = json.loads((Path(__file__).parents[1] / "data" / "config_30b.json").read_text())


def changed(place: str, value: Any, config: dict[str, Any] = CONFIG) -> dict[str, Any]:
    """A copy with one entry set, or removed where the value is `...`."""
    config = copy.deepcopy(config)
    node: Any = config
    *path, last = place.split(".")
    for key in path:
        node = node[key]
    if value is ...:
        del node[last]
    else:
        node[last] = value
    return config


def as_v5(node: Any) -> Any:
    """The spelling of transformers 5: rope_parameters everywhere, num_local_experts in the talker."""
    if not isinstance(node, dict):
        return node
    made = {key: as_v5(value) for key, value in node.items() if key not in ("rope_theta", "rope_scaling")}
    if "rope_theta" in node:
        made["rope_parameters"] = {
            "rope_type": "default",
            **(node["rope_scaling"] or {} if "rope_scaling" in node else {}),
            "rope_theta": node["rope_theta"],
        }
    if node.get("shared_expert_intermediate_size"):
        made["num_local_experts"] = made.pop("num_experts")
    if "deepstack_visual_indexes" in node:
        made["rope_parameters"] = {"rope_theta": 10000.0, "rope_type": "axial"}
    return made


def test_sizes_of_the_release() -> None:
    sizes = dims(CONFIG)
    assert sizes.family == "qwen3omni"
    assert sizes.parts == tuple(PARTS)
    assert not sizes.tied
    text = {"V": 152064, "D": 2048, "L": 48, "E": 128, "F": 768, "H": 32, "KVH": 4, "HD": 128, "Q": 4096, "KV": 512}
    assert sizes.components["thinker_text"] == text
    assert sizes.size("audio_encoder", "CM") == 7680
    assert sizes.size("vision_encoder", "M") == 4608
    assert sizes.components["vision_encoder"]["TAP"] == (8, 16, 24)
    assert sizes.components["code2wav"]["BO"] == (768, 384, 192, 96)
    assert sizes.size("code2wav", "CODES") == 32768
    with pytest.raises(TypeError):
        sizes.size("vision_encoder", "TAP")


@pytest.mark.parametrize(("bins", "left"), [(128, 16), (100, 13), (80, 10), (1, 1), (9, 2)])
def test_the_stem_halves_the_mel_bins_three_times(bins: int, left: int) -> None:
    """A convolution of width 3, stride 2 and padding 1 leaves every second bin, the first included."""
    assert left == len(range(bins)[::2][::2][::2])
    config = changed("thinker_config.audio_config.num_mel_bins", bins)
    assert dims(config).size("audio_encoder", "CM") == 480 * left


def test_both_spellings_give_the_same() -> None:
    other = as_v5(CONFIG)
    assert "rope_parameters" in other["code2wav_config"]
    assert "num_local_experts" in other["talker_config"]["text_config"]
    assert dims(other) == dims(CONFIG)
    assert talker.metadata(other, GENERATION, "x") == talker.metadata(CONFIG, GENERATION, "x")
    assert mmproj.metadata(other, PREPROCESSOR, "x") == mmproj.metadata(CONFIG, PREPROCESSOR, "x")


def test_rope_in_both_spellings() -> None:
    text = CONFIG["thinker_config"]["text_config"]
    assert rope(Settings(text)) == rope(Settings(as_v5(text))) == (1e6, (24, 20, 20))
    assert rope(Settings({"rope_theta": 10000})) == (10000.0, None)
    assert rope(Settings({}), 10000.0) == (10000.0, None)
    with pytest.raises(InvalidModelFile, match="rope_theta is missing"):
        rope(Settings({"rope_scaling": {"rope_type": "default"}}))
    with pytest.raises(UnsupportedModel, match="'yarn' scaling"):
        rope(Settings({"rope_theta": 1e6, "rope_scaling": {"type": "yarn", "factor": 4.0}}))
    for sections in ([24, 20], [1, 2, 3, 4], 24, [24, 20, -1], [24.0, 20, 20]):
        with pytest.raises(InvalidModelFile, match="mrope_section"):
            rope(Settings({"rope_theta": 1e6, "rope_scaling": {"mrope_section": sections}}))


@pytest.mark.parametrize(
    ("place", "value", "parts"),
    [
        ("enable_audio_output", False, ("thinker", "mmproj")),
        ("enable_audio_output", ..., ("thinker", "mmproj", "talker")),
        ("thinker_config.vision_config", ..., ("thinker", "mmproj", "talker")),
    ],
)
def test_parts_follow_the_config(place: str, value: Any, parts: tuple[str, ...]) -> None:
    assert dims(changed(place, value)).parts == parts


def test_thinking_has_no_talker() -> None:
    config = changed("talker_config", ...)
    del config["code2wav_config"]
    with pytest.raises(InvalidModelFile, match="talker_config is missing"):
        dims(config)  # it says that it speaks
    del config["enable_audio_output"]
    assert dims(config).parts == ("thinker", "mmproj")
    del config["thinker_config"]["audio_config"], config["thinker_config"]["vision_config"]
    assert dims(config).parts == ("thinker",)


NEEDED = """
    thinker_config thinker_config.text_config thinker_config.text_config.hidden_size
    thinker_config.text_config.num_hidden_layers thinker_config.text_config.head_dim
    thinker_config.text_config.num_attention_heads thinker_config.text_config.num_experts
    thinker_config.text_config.moe_intermediate_size thinker_config.text_config.vocab_size
    thinker_config.audio_config.d_model thinker_config.audio_config.encoder_layers
    thinker_config.audio_config.encoder_attention_heads thinker_config.audio_config.encoder_ffn_dim
    thinker_config.audio_config.downsample_hidden_size thinker_config.audio_config.num_mel_bins
    thinker_config.audio_config.max_source_positions thinker_config.audio_config.output_dim
    thinker_config.audio_config.n_window thinker_config.audio_config.n_window_infer
    thinker_config.vision_config.depth thinker_config.vision_config.hidden_size thinker_config.vision_config.num_heads
    thinker_config.vision_config.intermediate_size thinker_config.vision_config.patch_size
    thinker_config.vision_config.spatial_merge_size thinker_config.vision_config.out_hidden_size
    thinker_config.vision_config.num_position_embeddings thinker_config.vision_config.deepstack_visual_indexes
    talker_config.thinker_hidden_size talker_config.num_code_groups talker_config.accept_hidden_layer
    talker_config.codec_eos_token_id talker_config.speaker_id talker_config.position_id_per_seconds
    talker_config.text_config talker_config.text_config.hidden_size talker_config.text_config.intermediate_size
    talker_config.text_config.shared_expert_intermediate_size talker_config.text_config.num_experts
    talker_config.text_config.num_experts_per_tok talker_config.text_config.norm_topk_prob
    talker_config.text_config.rms_norm_eps talker_config.text_config.max_position_embeddings
    talker_config.code_predictor_config talker_config.code_predictor_config.hidden_size
    talker_config.code_predictor_config.vocab_size talker_config.code_predictor_config.num_code_groups
    talker_config.code_predictor_config.intermediate_size talker_config.code_predictor_config.num_hidden_layers
    talker_config.code_predictor_config.head_dim
    code2wav_config code2wav_config.hidden_size code2wav_config.num_attention_heads code2wav_config.intermediate_size
    code2wav_config.codebook_size code2wav_config.num_quantizers code2wav_config.decoder_dim
    code2wav_config.upsample_rates code2wav_config.upsampling_ratios code2wav_config.sliding_window
    code2wav_config.num_hidden_layers code2wav_config.rms_norm_eps
    im_start_token_id tts_pad_token_id assistant_token_id
""".split()  # noqa: SIM905


def read_all(config: dict[str, Any], path: Path = Path("somewhere/config.json")) -> None:
    """Whatever reads a config.json here, as far as it needs no tensors."""
    sizes = dims(config, path)
    found = [mmproj.metadata(config, PREPROCESSOR, "x", path)]
    if "talker" in sizes.parts:
        found.append(talker.metadata(config, GENERATION, "x", path))
    for metadata in found:
        for key, value in metadata.items():
            assert_fits_gguf(key, value)
    for part in PARTS:
        for target in itertools.islice(names.targets(sizes, part), 400):
            assert all(type(size) is int and size > 0 for size in target.shape), target
    assert len(names.unknown(["thinker.model.norm.weight", "x"], sizes)) in (1, 2)


def assert_fits_gguf(key: str, value: Any) -> None:
    """A plain value that the writer has a type for."""
    if isinstance(value, list):
        assert value, key
        assert len({type(entry) for entry in value}) == 1, key
        for entry in value:
            assert_fits_gguf(key, entry)
            assert type(entry) is not int or entry < 2**31, key
    else:
        assert type(value) in (bool, int, float, str), (key, value)
        assert type(value) is not int or 0 <= value < 2**32, (key, value)
        assert type(value) is not float or (math.isfinite(value) and abs(value) < 3.4e38), (key, value)


@pytest.mark.parametrize("place", NEEDED)
def test_a_missing_entry_is_named(place: str) -> None:
    for value in (..., None):
        with pytest.raises(InvalidModelFile) as error:
            read_all(changed(place, value))
        message = str(error.value)
        assert message.startswith(f"somewhere/config.json: {place} is missing; "), message
        assert "\n" not in message


def value_at(place: str) -> Any:
    node = CONFIG
    for key in place.split("."):
        node = node[key]
    return node


@pytest.mark.parametrize("bad", [-1, True, "8", 2**40, -(2**70), math.nan, math.inf, 7.5, [], {}, [8]], ids=repr)
@pytest.mark.parametrize("place", [place for place in NEEDED if type(value_at(place)) is int])
def test_a_bad_number_is_named(place: str, bad: Any) -> None:
    with pytest.raises(InvalidModelFile) as error:
        read_all(changed(place, bad))
    message = str(error.value)
    assert f"somewhere/config.json: {place} is " in message, message
    assert len(message) < 250


@pytest.mark.parametrize(
    ("place", "value", "blamed"),
    [
        ("thinker_config.text_config.num_key_value_heads", 5, "num_attention_heads is 32, no multiple"),
        ("thinker_config.text_config.head_dim", 127, "head_dim is 127, expected an even number"),
        (
            "thinker_config.text_config.hidden_size",
            1024,
            "output_dim is 2048, but thinker_config.text_config.hidden_size",
        ),
        ("thinker_config.audio_config.d_model", 1290, "d_model is 1290, no multiple of encoder_attention_heads 20"),
        ("thinker_config.audio_config.n_window_infer", 850, "n_window_infer is 850, no multiple of twice n_window 50"),
        ("thinker_config.vision_config.num_heads", 7, "hidden_size is 1152, no multiple of num_heads 7"),
        ("thinker_config.vision_config.out_hidden_size", 3584, "out_hidden_size is 3584, but"),
        ("thinker_config.vision_config.deepstack_visual_indexes", [8, 8, 24], "expected growing, below 27"),
        ("thinker_config.vision_config.deepstack_visual_indexes", [8, 27], "expected growing, below 27"),
        ("thinker_config.vision_config.num_position_embeddings", 2300, "is 2300, no square number"),
        ("talker_config.thinker_hidden_size", 1024, "thinker_hidden_size is 1024, but"),
        ("talker_config.num_code_groups", 32, "num_code_groups is 16, but talker_config.num_code_groups is 32"),
        ("talker_config.num_code_groups", 1, "num_code_groups is 1, expected 2 to"),
        ("talker_config.code_predictor_config.hidden_size", 512, "hidden_size is 512, but"),
        (
            "talker_config.code_predictor_config.vocab_size",
            4096,
            "vocab_size is 4096, but code2wav_config.codebook_size",
        ),
        ("talker_config.text_config.rope_scaling", {"mrope_section": [24, 20, 19]}, "three numbers that make 64"),
        ("talker_config.text_config.rope_scaling", None, "mrope_section is missing"),
        ("talker_config.text_config.num_experts_per_tok", 129, "num_experts_per_tok is 129, expected 1 to 128"),
        ("talker_config.text_config.num_local_experts", 64, "num_experts is 128, but num_local_experts is 64"),
        ("talker_config.speaker_id", {"ethan": 3072}, "speaker_id.ethan is 3072, expected 0 to 3071"),
        ("talker_config.speaker_id", {}, "speaker_id names no speaker"),
        ("talker_config.accept_hidden_layer", 49, "accept_hidden_layer is 49, expected 0 to 48"),
        ("tts_pad_token_id", 152064, "tts_pad_token_id is 152064, expected 0 to 152063"),
        ("code2wav_config.upsample_rates", [2] * 11, "upsample_rates has 11 entries, too many for decoder_dim 1536"),
        ("code2wav_config.upsample_rates", [2**30, 2, 2, 2], "samples a frame"),
        ("code2wav_config.upsample_rates", [8, 0], "upsample_rates[1] is 0, expected 1 to"),
        ("enable_audio_output", "yes", "enable_audio_output is 'yes', expected true or false"),
        ("architectures", ..., None),
    ],
)
def test_contradictions_are_named(place: str, value: Any, blamed: str | None) -> None:
    config = changed(place, value)
    if blamed is None:
        assert dims(config) == dims(CONFIG)  # model_type says the same
        return
    with pytest.raises(InvalidModelFile) as error:
        read_all(config)
    assert blamed in str(error.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("architectures", ["Qwen2VLForConditionalGeneration"]),
        ("architectures", [7]),
        ("thinker_config.text_config.attention_bias", True),
        ("thinker_config.text_config.hidden_act", "gelu"),
        ("thinker_config.text_config.sliding_window", 4096),
        ("thinker_config.text_config.decoder_sparse_step", 2),
        ("thinker_config.text_config.mlp_only_layers", [0]),
        ("thinker_config.text_config.use_qk_norm", False),
        ("thinker_config.audio_config.activation_function", "relu"),
        ("thinker_config.audio_config.scale_embedding", True),
        ("thinker_config.vision_config.hidden_act", "gelu"),
        ("thinker_config.vision_config.temporal_patch_size", 1),
        ("talker_config.text_config.rope_scaling", {"rope_type": "yarn"}),
        ("talker_config.code_predictor_config.sliding_window", 64),
        ("talker_config.code_predictor_config.rope_scaling", {"mrope_section": [24, 20, 20]}),
        ("code2wav_config.hidden_act", "gelu"),
    ],
)
def test_what_we_cannot_do_is_refused_by_name(place: str, value: Any) -> None:
    with pytest.raises(UnsupportedModel) as error:
        read_all(changed(place, value))
    assert place.split(".")[-1] in str(error.value)


@pytest.mark.parametrize("config", [None, [], 7, "x", {}, {"architectures": []}, {"architectures": "x"}])
def test_not_a_config(config: Any) -> None:
    with pytest.raises(InvalidModelFile, match=r"^somewhere/config\.json: "):
        dims(config, "somewhere/config.json")


def test_absent_sizes_of_plain_models_follow_transformers() -> None:
    text = CONFIG["thinker_config"]["text_config"]
    for name, size in (("Qwen3ForCausalLM", 128), ("Qwen3MoeForCausalLM", 64), ("LlamaForCausalLM", 64)):
        config = {**text, "architectures": [name], "head_dim": None}
        assert dims(config).size("thinker_text", "HD") == size
    config = {**text, "architectures": ["LlamaForCausalLM"], "num_key_value_heads": None}
    assert dims(config).size("thinker_text", "KVH") == 32
    for key in ("mlp_bias", "attention_bias", "use_sliding_window"):
        with pytest.raises(UnsupportedModel, match=key):
            dims({**config, key: True})


# Anything at all ---------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([0, 1, 2, 3, 2**16, 2**16 + 1, 2**31 - 1, 2**31, 2**40, 2**2000, -1])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["default", "llama3", "mrope", "silu"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every entry of a JSON value, lists' too."""
    entries = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else []
    return [spot for key, value in entries for spot in [(*path, key), *places(value, (*path, key))]]


def plain(family: str) -> dict[str, Any]:
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    text = CONFIG["thinker_config"]["text_config"]
    return {**text, "architectures": [family], "rope_scaling": llama3 if family.startswith("Llama") else None}


STARTS = [CONFIG, as_v5(CONFIG), *map(plain, ("LlamaForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"))]


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data(), start=st.sampled_from(STARTS))
def test_any_change_is_understood_or_refused(data: st.DataObject, start: dict[str, Any]) -> None:
    config = copy.deepcopy(start)
    for _ in range(data.draw(st.integers(1, 3))):
        spots = places(config)
        if not spots:
            break
        *path, last = data.draw(st.sampled_from(spots))
        node = config
        for key in path:
            node = node[key]
        if data.draw(st.integers(0, 5)):
            node[last] = data.draw(JSON)
        else:
            del node[last]
    message = ""
    try:
        if "thinker_config" in start:
            read_all(config)
        else:
            list(itertools.islice(names.targets(dims(config), "thinker"), 400))
    except (InvalidModelFile, UnsupportedModel) as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 500
