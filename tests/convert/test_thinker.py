"""Metadata of the text model: what our engine's configuration makes of it, both spellings, and what is refused."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import DIMS, GENERATION, write_tiny_checkpoint

from qwen3omni_wgpu.convert.dims import dims
from qwen3omni_wgpu.convert.names import targets
from qwen3omni_wgpu.convert.thinker import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.formats.tensors import Derived, Info
from qwen3omni_wgpu.models.config import TextConfig, tensor_shapes, text_config
from qwen3omni_wgpu.sampler import GenerationConfig

PLAIN = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
    "max_position_embeddings": 4096,
    "hidden_act": "silu",
    "attention_bias": False,
    "tie_word_embeddings": True,
}
DENSE: dict[str, Any] = {"architectures": ["Qwen3ForCausalLM"], **PLAIN}
MOE: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    **PLAIN,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "norm_topk_prob": True,
    "tie_word_embeddings": False,
}


@pytest.fixture
def omni(tmp_path: Path) -> dict[str, Any]:
    """A random config.json in the releases' spelling."""
    rng = np.random.default_rng()
    dims = {"thinker_layers": int(rng.integers(1, 5)), "head_dim": int(rng.choice([16, 32, 64])), "thinker_heads": 6}
    write_tiny_checkpoint(tmp_path / "omni", rng, **dims)
    return read(tmp_path / "omni")


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "config.json").read_text())


def as_read(config: dict[str, Any], **changes: Any) -> TextConfig:
    """What models/config.py makes of the metadata and of the tensors that the converter will write beside them."""
    config = config | changes
    path = Path("made.gguf")
    tensors: dict[str, Info] = {
        target.name: Derived(target.name, target.shape, "f32", ()) for target in targets(dims(config), "thinker")
    }
    return text_config(GGUFFile(path, metadata(config, "x", {}), tensors))


def test_qwen3_omni(omni: dict[str, Any]) -> None:
    text = omni["thinker_config"]["text_config"]
    config = as_read(omni)
    assert config.architecture == "qwen3vlmoe"
    assert (config.n_layers, config.dim, config.head_dim) == (
        text["num_hidden_layers"],
        text["hidden_size"],
        text["head_dim"],
    )
    assert (config.n_heads, config.n_kv_heads) == (6, DIMS["thinker_kv_heads"])
    assert (config.n_experts, config.n_experts_used, config.expert_dim) == (4, 2, 32)
    assert config.mrope_sections == tuple(text["rope_scaling"]["mrope_section"])
    assert (config.rope_theta, config.norm_eps, config.context_length) == (1e6, 1e-6, 65536)
    assert config.norm_topk
    assert not config.tied_head
    assert tensor_shapes(config)["output.weight"] == (text["vocab_size"], text["hidden_size"])


def test_what_llama_cpp_needs(omni: dict[str, Any]) -> None:
    found = metadata(omni, "Qwen3-Omni-30B-A3B-Instruct", {})
    assert found["qwen3vlmoe.rope.dimension_sections"] == [
        *omni["thinker_config"]["text_config"]["rope_scaling"]["mrope_section"],
        0,
    ]
    assert found["qwen3vlmoe.n_deepstack_layers"] == len(DIMS["deepstack"])
    assert found["general.type"] == "model"
    assert found["general.quantization_version"] == 2


def test_ids_are_kept_outside_of_the_architecture(omni: dict[str, Any]) -> None:
    found = metadata(omni, "tiny", {})
    thinker = omni["thinker_config"]
    for key in ("audio_token_id", "image_token_id", "vision_end_token_id", "position_id_per_seconds"):
        assert found[f"qwen3omni.{key}"] == thinker[key]
    for key in ("im_start_token_id", "system_token_id", "assistant_token_id", "tts_eos_token_id"):
        assert found[f"qwen3omni.{key}"] == omni[key]
    assert found["qwen3omni.enable_audio_output"] is True


def test_transformers_5_spelling_is_the_same(tmp_path: Path) -> None:
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    spellings = []
    for style in ("legacy", "v5"):
        folder = tmp_path / style
        write_tiny_checkpoint(folder, np.random.default_rng(seed), config_style=style)
        spellings.append(metadata(read(folder), "tiny", {}))
    assert spellings[0] == spellings[1]


def test_thinker_alone(tmp_path: Path) -> None:
    """Thinking and Captioner: no talker."""
    write_tiny_checkpoint(tmp_path, np.random.default_rng(), speech=False)
    config = read(tmp_path)
    assert metadata(config, "Qwen3-Omni-30B-A3B-Thinking", {})["qwen3omni.enable_audio_output"] is False
    assert as_read(config).architecture == "qwen3vlmoe"


def test_plain_text_models() -> None:
    dense = as_read(DENSE)
    assert (dense.architecture, dense.ffn_dim, dense.tied_head, dense.qk_norm) == ("qwen3", 96, True, True)
    assert (dense.rope_theta, dense.norm_eps, dense.mrope_sections) == (500000.0, 1e-5, None)
    moe = as_read(MOE)
    assert (moe.architecture, moe.n_experts, moe.n_experts_used, moe.expert_dim) == ("qwen3moe", 8, 3, 48)
    assert moe.norm_topk
    # transformers does not normalise where config.json does not say so.
    assert not as_read(without(MOE, "norm_topk_prob")).norm_topk
    llama = as_read(DENSE, architectures=["LlamaForCausalLM"])
    assert (llama.architecture, llama.qk_norm, llama.rope_style) == ("llama", False, "interleaved")


def test_scaled_positions() -> None:
    assert as_read(DENSE, rope_scaling={"type": "linear", "factor": 4.0}).rope_scale == 4.0
    llama3 = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 1024,
    }
    assert as_read(DENSE, architectures=["LlamaForCausalLM"], rope_scaling=llama3).rope_scale == 1.0


def without(config: dict[str, Any], *path: str) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    place = changed
    for key in path[:-1]:
        place = place[key]
    del place[path[-1]]
    return changed


@pytest.mark.parametrize(
    ("name", "base", "size", "tune"),
    [
        ("Qwen3-Omni-30B-A3B-Instruct", "Qwen3-Omni", "30B-A3B", "Instruct"),
        ("Qwen3-0.6B", "Qwen3", "0.6B", None),
        ("tiny", None, None, None),
    ],
)
def test_names(name: str, base: str | None, size: str | None, tune: str | None) -> None:
    found = metadata(DENSE, name, {})
    assert found["general.name"] == name
    keys = ("general.basename", "general.size_label", "general.finetune")
    assert tuple(found.get(key) for key in keys) == (base, size, tune)


def test_generation_defaults(omni: dict[str, Any]) -> None:
    """As transformers' generate() does: greedy without do_sample, its own defaults with it."""
    talker_only = GenerationConfig().resolved(metadata(omni, "x", GENERATION))
    assert talker_only.temperature == 0
    given = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95, "repetition_penalty": 1.05}
    sampled = GenerationConfig().resolved(metadata(DENSE, "x", given))
    assert (sampled.temperature, sampled.top_k, sampled.top_p) == (0.6, 20, 0.95)
    assert (sampled.min_p, sampled.repeat_penalty) == (0.0, 1.05)
    usual = GenerationConfig().resolved(metadata(DENSE, "x", {"do_sample": True}))
    assert (usual.temperature, usual.top_k, usual.top_p, usual.min_p) == (1.0, 50, 1.0, 0.0)
    off = GenerationConfig().resolved(
        metadata(DENSE, "x", {"do_sample": True, "temperature": 0, "top_p": 0.0, "top_k": 0})
    )
    assert (off.temperature, off.top_k, off.top_p) == (0.0, 0, 0.0)
    own = {"thinker_do_sample": True, "thinker_temperature": 0.7, "thinker_max_new_tokens": 512, "temperature": 9.0}
    found = metadata(omni, "x", own)
    assert (found["general.sampling.temp"], found["qwen3omni.max_new_tokens"]) == (0.7, 512)
    assert not any("sampling" in key for key in metadata(DENSE, "x", {}))


TEXT = ("thinker_config", "text_config")


@pytest.mark.parametrize(
    "path",
    [
        ("thinker_config",),
        TEXT,
        (*TEXT, "hidden_size"),
        (*TEXT, "num_experts"),
        (*TEXT, "num_experts_per_tok"),
        (*TEXT, "rms_norm_eps"),
        (*TEXT, "max_position_embeddings"),
        (*TEXT, "rope_theta"),
        (*TEXT, "rope_scaling"),
    ],
)
def test_missing_entries_are_named(omni: dict[str, Any], path: tuple[str, ...]) -> None:
    with pytest.raises(InvalidModelFile) as caught:
        metadata(without(omni, *path), "x", {})
    message = str(caught.value)
    assert path[-1] in message
    assert "config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [0, -1, 1.5, "4", True, [1], 2**40, float("nan")])
@pytest.mark.parametrize("key", ["num_experts_per_tok", "max_position_embeddings", "hidden_size"])
def test_senseless_entries_are_named(key: str, value: Any) -> None:
    with pytest.raises(InvalidModelFile, match=key):
        metadata(MOE | {key: value}, "x", {})


def test_contradictions(omni: dict[str, Any]) -> None:
    with pytest.raises(InvalidModelFile, match="num_experts_per_tok"):
        metadata(MOE | {"num_experts_per_tok": 9}, "x", {})
    omni["im_end_token_id"] = 10**6
    with pytest.raises(InvalidModelFile, match="im_end_token_id"):
        metadata(omni, "x", {})
    for key, value in (("temperature", "hot"), ("min_p", False), ("repetition_penalty", 0), ("top_k", 2.5)):
        with pytest.raises(InvalidModelFile, match=rf"generation_config.json.*{key}"):
            metadata(DENSE, "x", {"do_sample": True, key: value})


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"decoder_sparse_step": 2}, "decoder_sparse_step"),
        ({"mlp_only_layers": [0]}, "mlp_only_layers"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "yarn"),
    ],
)
def test_what_we_do_not_implement(change: dict[str, Any], name: str) -> None:
    with pytest.raises(UnsupportedModel, match=name):
        metadata(MOE | change, "x", {})
