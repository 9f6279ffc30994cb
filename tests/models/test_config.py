"""text_config: what a good file says, and every way in which a bad one is refused by name."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType
from gguf.quants import dequantize as dequantize_blocks
from tiny_gguf import byte_symbols, q8_chunks, write_tiny

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.tensors import dequantize
from qwen3omni_wgpu.models.config import (
    ARCHITECTURES,
    TextConfig,
    kv_bytes_per_token,
    tensor_shapes,
    text_config,
    weight_bytes,
)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, GGUFFile]:
    folder = tmp_path_factory.mktemp("config")
    return {arch: read_gguf(write_tiny(folder / f"{arch}.gguf", arch=arch)) for arch in ARCHITECTURES}


def changed(file: GGUFFile, **metadata: Any) -> GGUFFile:
    """The file with other metadata; `__` stands for a dot, `arch__` for the architecture, None removes the key."""
    arch, merged = file.metadata["general.architecture"], dict(file.metadata)
    for key, value in metadata.items():
        merged[key.replace("arch__", f"{arch}.", 1).replace("__", ".")] = value
    return dataclasses.replace(file, metadata={key: value for key, value in merged.items() if value is not None})


def with_tensor(file: GGUFFile, name: str, **fields: Any) -> GGUFFile:
    template = file.tensors.get(name) or dataclasses.replace(file.tensors["output_norm.weight"], name=name)
    return dataclasses.replace(file, tensors={**file.tensors, name: dataclasses.replace(template, **fields)})


def without(file: GGUFFile, name: str) -> GGUFFile:
    return dataclasses.replace(file, tensors={key: info for key, info in file.tensors.items() if key != name})


def refused(file: GGUFFile, error: type[OmniError], *words: str) -> None:
    with pytest.raises(OmniError) as caught:
        text_config(file)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{file.path}: ")
    assert "\n" not in message
    for word in words:
        assert word in message, message


# --- what good files say


@pytest.mark.model
def test_smollm2(smollm2_path: Path) -> None:
    file = read_gguf(smollm2_path)
    config = text_config(file)
    assert config == TextConfig(
        architecture="llama",
        n_layers=30,
        dim=576,
        n_heads=9,
        n_kv_heads=3,
        head_dim=64,
        ffn_dim=1536,
        vocab_size=49152,
        norm_eps=pytest.approx(1e-5),
        rope_theta=100000.0,
        rope_dim=64,
        rope_style="interleaved",
        rope_scale=1.0,
        mrope_sections=None,
        qk_norm=False,
        n_experts=0,
        n_experts_used=0,
        expert_dim=0,
        norm_topk=False,
        context_length=8192,
        tied_head=True,
    )
    assert tensor_shapes(config) == {name: info.shape for name, info in file.tensors.items()}
    assert kv_bytes_per_token(config, "f16") == 23040
    assert kv_bytes_per_token(config, "f32") == 46080
    assert kv_bytes_per_token(config, "q8_0") == 26 * 6 * (42 + 34) + 4 * 6 * (64 + 64)  # four layers keep float16
    # What lies between the header and the end of the file, but for padding.
    first = min(info.offset for info in file.tensors.values())
    assert 0 <= smollm2_path.stat().st_size - first - weight_bytes(file) < 32 * len(file.tensors)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_tiny_files(tmp_path: Path, arch: str, tied: bool) -> None:
    path = write_tiny(
        tmp_path / "a.gguf", arch=arch, dim=96, n_layers=3, n_heads=6, n_kv_heads=2, head_dim=32, ffn_dim=160,
        expert_dim=96, n_experts=6, n_experts_used=3, vocab=384, tied=tied, norm_topk=arch == "qwen3vlmoe",
        context_length=77, rope_theta=5000.0,
    )  # fmt: skip
    file = read_gguf(path)
    config, moe = text_config(file), arch.endswith("moe")
    assert config == TextConfig(
        architecture=arch,
        n_layers=3,
        dim=96,
        n_heads=6,
        n_kv_heads=2,
        head_dim=32,
        ffn_dim=0 if moe else 160,
        vocab_size=384,
        norm_eps=pytest.approx(1e-6),
        rope_theta=5000.0,
        rope_dim=32,
        rope_style="interleaved" if arch == "llama" else "neox",
        rope_scale=1.0,
        mrope_sections=(6, 5, 5) if arch == "qwen3vlmoe" else None,
        qk_norm=arch != "llama",
        n_experts=6 if moe else 0,
        n_experts_used=3 if moe else 0,
        expert_dim=96 if moe else 0,
        norm_topk=arch == "qwen3vlmoe",
        context_length=77,
        tied_head=tied,
    )
    assert tensor_shapes(config) == {name: info.shape for name, info in file.tensors.items()}
    assert kv_bytes_per_token(config, "f16") == 3 * 2 * 32 * 2 * 2


def test_tensor_shapes_of_a_mixture_of_experts(files: dict[str, GGUFFile]) -> None:
    """Row-major, as the paper writes a matrix: [out, in]; written down once by hand."""
    shapes = tensor_shapes(text_config(files["qwen3vlmoe"]))
    assert {name: shape for name, shape in shapes.items() if not name.startswith("blk.1.")} == {
        "token_embd.weight": (320, 64),
        "blk.0.attn_norm.weight": (64,),
        "blk.0.attn_q.weight": (256, 64),
        "blk.0.attn_k.weight": (128, 64),
        "blk.0.attn_v.weight": (128, 64),
        "blk.0.attn_output.weight": (64, 256),
        "blk.0.attn_q_norm.weight": (64,),
        "blk.0.attn_k_norm.weight": (64,),
        "blk.0.ffn_norm.weight": (64,),
        "blk.0.ffn_gate_inp.weight": (8, 64),
        "blk.0.ffn_gate_exps.weight": (8, 64, 64),
        "blk.0.ffn_up_exps.weight": (8, 64, 64),
        "blk.0.ffn_down_exps.weight": (8, 64, 64),
        "output_norm.weight": (64,),
        "output.weight": (320, 64),
    }


def test_defaults_of_absent_keys(files: dict[str, GGUFFile]) -> None:
    """llama.cpp's: head dim = dim / heads, as many KV heads as heads, theta 10000, experts renormalised."""
    config = text_config(files["qwen3"])
    bare = changed(files["qwen3"], arch__rope__freq_base=None, arch__attention__value_length=None)
    assert text_config(bare) == config
    assert text_config(changed(files["qwen3moe"], arch__expert_weights_norm=None)).norm_topk is True
    assert text_config(changed(files["qwen3moe"], arch__expert_weights_norm=False)).norm_topk is False
    refused(changed(files["qwen3"], arch__attention__head_count_kv=None), InvalidModelFile, "blk.0.attn_k.weight")
    refused(changed(files["qwen3"], arch__attention__key_length=None), UnsupportedModel, "value_length")


def test_head_dim_from_dim(tmp_path: Path) -> None:
    file = read_gguf(write_tiny(tmp_path / "a.gguf", arch="llama", n_heads=2, n_kv_heads=1, head_dim=32))
    assert text_config(changed(file, arch__attention__key_length=None)).head_dim == 32
    bad = changed(
        file, arch__attention__key_length=None, arch__attention__head_count=3, arch__attention__head_count_kv=1
    )
    refused(bad, InvalidModelFile, "key_length' is missing, and 3 heads do not divide embedding_length 64")


ACCEPTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("llama", {"arch__attention__head_count": [4, 4]}, {}),
    ("llama", {"arch__feed_forward_length": [128, 128], "arch__attention__head_count_kv": [2, 2]}, {}),
    ("qwen3", {"arch__rope__scaling__type": "none", "arch__rope__scaling__factor": 4.0}, {}),
    ("qwen3", {"arch__rope__scaling__type": "linear", "arch__rope__scaling__factor": 4.0}, {"rope_scale": 4.0}),
    ("qwen3", {"arch__rope__scaling__factor": 2}, {"rope_scale": 2.0}),
    ("llama", {"arch__rope__scale_linear": 8.0}, {"rope_scale": 8.0}),
    ("llama", {"arch__rope__scaling__factor": 0.0}, {}),
    ("llama", {"arch__rope__dimension_count": 32}, {"rope_dim": 32}),
    ("llama", {"arch__rope__freq_base": 500000}, {"rope_theta": 500000.0}),
    ("llama", {"arch__attention__sliding_window": 512}, {}),
    ("llama", {"arch__attention__scale": 0.125, "arch__attention__causal": True}, {}),
    ("llama", {"arch__expert_count": 0, "arch__logit_scale": 1.0, "arch__something_new": 0}, {}),
    ("llama", {"arch__tensor_data_layout": "Meta AI original pth"}, {}),
    (
        "qwen3moe",
        {"arch__expert_gating_func": 1, "arch__expert_weights_scale": 1.0, "arch__expert_shared_count": 0},
        {},
    ),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [12, 10, 10]}, {}),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [30, 1, 1, 0]}, {"mrope_sections": (30, 1, 1)}),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [11, 11, 10, 0]}, {"mrope_sections": (11, 11, 10)}),
    ("qwen3", {"other__setting": 5, "general__quantization_version": 2}, {}),
]


@pytest.mark.parametrize(("arch", "metadata", "fields"), ACCEPTED)
def test_accepted(files: dict[str, GGUFFile], arch: str, metadata: dict[str, Any], fields: dict[str, Any]) -> None:
    wanted = dataclasses.replace(text_config(files[arch]), **fields)
    assert text_config(changed(files[arch], **metadata)) == wanted


# --- what is refused


def test_architecture(files: dict[str, GGUFFile]) -> None:
    file = files["llama"]
    refused(changed(file, general__architecture=None), InvalidModelFile, "no metadata 'general.architecture'")
    refused(changed(file, general__architecture=7), InvalidModelFile, "no metadata 'general.architecture'")
    refused(
        changed(file, general__architecture="gemma3"),
        UnsupportedModel,
        "'gemma3'",
        "llama, qwen3, qwen3moe, qwen3vlmoe",
    )
    refused(changed(file, general__architecture="clip"), UnsupportedModel, "mmproj")
    refused(changed(file, general__architecture="a\nb" * 99), UnsupportedModel, r"'a\nba")
    refused(changed(file, general__type="adapter"), UnsupportedModel, "'adapter'")


REQUIRED = (
    "block_count",
    "context_length",
    "embedding_length",
    "attention.head_count",
    "attention.layer_norm_rms_epsilon",
)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_missing_or_senseless_metadata(files: dict[str, GGUFFile], arch: str) -> None:
    extra = (
        ("expert_count", "expert_used_count", "expert_feed_forward_length")
        if arch.endswith("moe")
        else ("feed_forward_length",)
    )
    extra += ("rope.dimension_sections",) if arch == "qwen3vlmoe" else ()
    for key in REQUIRED + extra:
        name = f"arch__{key.replace('.', '__')}"
        refused(changed(files[arch], **{name: None}), InvalidModelFile, f"'{arch}.{key}' is missing")
        for value in (0, -1, "3", True, [], float("nan"), float("inf"), 2**31):
            refused(changed(files[arch], **{name: value}), InvalidModelFile, f"'{arch}.{key}' is ")


REFUSED: list[tuple[str, dict[str, Any], type[OmniError], str]] = [
    ("llama", {"arch__attention__head_count": [4, 2]}, UnsupportedModel, "head_count' differs from layer to layer"),
    ("llama", {"arch__feed_forward_length": [128, 64]}, UnsupportedModel, "feed_forward_length' differs"),
    (
        "llama",
        {"arch__attention__head_count_kv": 3},
        InvalidModelFile,
        "head_count' is 4, no multiple of head_count_kv 3",
    ),
    ("llama", {"arch__attention__value_length": 32}, UnsupportedModel, "value_length' is 32 and key_length 64"),
    ("llama", {"arch__attention__scale": 0.1}, UnsupportedModel, "attention.scale' is 0.1"),
    ("llama", {"arch__attention__sliding_window": 128}, UnsupportedModel, "sliding_window' is 128"),
    ("llama", {"arch__attention__causal": False}, UnsupportedModel, "attention.causal' is False"),
    ("llama", {"arch__attention__layer_norm_rms_epsilon": 1.0}, InvalidModelFile, "less than 1"),
    ("llama", {"arch__logit_scale": 0.5}, UnsupportedModel, "logit_scale' is 0.5"),
    ("llama", {"arch__embedding_scale": 12.0}, UnsupportedModel, "embedding_scale' is 12.0"),
    ("llama", {"arch__attn_logit_softcapping": 50.0}, UnsupportedModel, "attn_logit_softcapping' is 50.0"),
    ("llama", {"arch__use_parallel_residual": True}, UnsupportedModel, "use_parallel_residual"),
    ("llama", {"arch__something_new": "x" * 500}, UnsupportedModel, "something_new"),
    ("llama", {"arch__expert_count": 8}, UnsupportedModel, "expert_count' is 8"),
    (
        "llama",
        {"arch__vocab_size": 100},
        InvalidModelFile,
        "vocab_size' is 100, but tensor 'token_embd.weight' has shape",
    ),
    ("llama", {"arch__rope__dimension_count": 66}, InvalidModelFile, "dimension_count' is 66"),
    ("llama", {"arch__rope__dimension_count": 31}, InvalidModelFile, "dimension_count' is 31"),
    ("llama", {"arch__rope__freq_base": 0.0}, InvalidModelFile, "freq_base' is 0.0"),
    (
        "llama",
        {"arch__rope__scaling__type": "yarn"},
        UnsupportedModel,
        "rope.scaling.type' is 'yarn'; only 'none' or 'linear'",
    ),
    ("qwen3", {"arch__rope__scaling__type": "longrope"}, UnsupportedModel, "'longrope'"),
    ("qwen3", {"arch__rope__scaling__attn_factor": 1.2}, UnsupportedModel, "attn_factor' is 1.2"),
    ("qwen3", {"arch__rope__scaling__factor": -2.0}, InvalidModelFile, "factor' is -2.0"),
    ("qwen3", {"arch__rope__dimension_sections": [12, 10, 10, 0]}, UnsupportedModel, "dimension_sections"),
    ("qwen3moe", {"arch__expert_used_count": 9}, InvalidModelFile, "expert_used_count' is 9, more than expert_count 8"),
    ("qwen3moe", {"arch__expert_gating_func": 2}, UnsupportedModel, "expert_gating_func' is 2"),
    ("qwen3moe", {"arch__expert_weights_scale": 2.5}, UnsupportedModel, "expert_weights_scale' is 2.5"),
    ("qwen3moe", {"arch__expert_shared_count": 1}, UnsupportedModel, "expert_shared_count' is 1"),
    ("qwen3moe", {"arch__leading_dense_block_count": 1}, UnsupportedModel, "leading_dense_block_count"),
    ("qwen3moe", {"arch__expert_weights_norm": 1}, InvalidModelFile, "expert_weights_norm' is 1"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [12, 10, 9, 0]}, InvalidModelFile, "does not fit 32"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [10, 10, 10, 2]}, InvalidModelFile, "does not fit 32"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [10, 12, 10, 0]}, InvalidModelFile, "does not fit 32"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [10, 11, 11, 0]}, InvalidModelFile, "does not fit 32"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [12, 20]}, InvalidModelFile, "3 or 4 whole numbers"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": [12.0, 10, 10]}, InvalidModelFile, "3 or 4 whole numbers"),
    ("qwen3vlmoe", {"arch__rope__dimension_sections": 32}, InvalidModelFile, "3 or 4 whole numbers"),
    (
        "qwen3",
        {"tokenizer__ggml__tokens": ["x"] * 321},
        InvalidModelFile,
        "321 tokens but 'token_embd.weight' has only 320",
    ),
    ("qwen3", {"arch__block_count": 3}, InvalidModelFile, "tensor 'blk.2.attn_norm.weight' is missing"),
    ("qwen3", {"arch__block_count": 2**31 - 1}, InvalidModelFile, "tensor 'blk.2.attn_norm.weight' is missing"),
    ("qwen3", {"arch__block_count": 1}, UnsupportedModel, "with 1 layers"),
    (
        "qwen3",
        {"arch__embedding_length": 128},
        InvalidModelFile,
        "'token_embd.weight' has shape [320, 64], expected [320, 128]",
    ),
    (
        "qwen3moe",
        {"arch__expert_count": 16},
        InvalidModelFile,
        "ffn_gate_inp.weight' has shape [8, 64], expected [16, 64]",
    ),
]


@pytest.mark.parametrize(("arch", "metadata", "error", "words"), REFUSED)
def test_refused(
    files: dict[str, GGUFFile], arch: str, metadata: dict[str, Any], error: type[OmniError], words: str
) -> None:
    refused(changed(files[arch], **metadata), error, words)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_missing_and_misshapen_tensors(files: dict[str, GGUFFile], arch: str) -> None:
    file = files[arch]
    for info in file.tensors.values():
        if info.name != "output.weight":  # absent means tied
            refused(without(file, info.name), InvalidModelFile, f"tensor '{info.name}' is missing")
        if info.name != "token_embd.weight":  # tells the size of the vocabulary
            wrong = (info.shape[0] + 32, *info.shape[1:])
            bad = with_tensor(file, info.name, shape=wrong)
            refused(bad, InvalidModelFile, f"'{info.name}' has shape {list(wrong)}, expected {list(info.shape)}")
        refused(with_tensor(file, info.name, shape=(1, *info.shape)), InvalidModelFile, f"'{info.name}' has shape")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_unused_tensors(files: dict[str, GGUFFile], arch: str) -> None:
    for name in ("blk.0.attn_q.bias", "blk.2.attn_norm.weight", "output_norm.bias", "blk.0.ffn_gate_inp_shexp.weight"):
        refused(with_tensor(files[arch], name), UnsupportedModel, f"wrong: '{name}'", arch)
    many = files[arch]
    for layer in range(2):
        for part in "qkv":
            many = with_tensor(many, f"blk.{layer}.attn_{part}.bias")
    refused(many, UnsupportedModel, "'blk.1.attn_q.bias' and 2 more")


def test_rope_factors_only_for_llama(files: dict[str, GGUFFile]) -> None:
    for arch in ARCHITECTURES:
        with_factors = with_tensor(files[arch], "rope_freqs.weight", shape=(32,))
        if arch == "llama":
            assert text_config(with_factors) == text_config(files[arch])
        else:
            refused(with_factors, UnsupportedModel, "rope_freqs.weight")
    refused(with_tensor(files["llama"], "rope_freqs.weight"), InvalidModelFile, "has shape [64], expected [32]")


def test_types_of_vectors(files: dict[str, GGUFFile]) -> None:
    for kind in ("f32", "f16", "bf16"):
        text_config(with_tensor(files["qwen3"], "output_norm.weight", type=kind))
    refused(with_tensor(files["qwen3"], "output_norm.weight", type="q8_0"), UnsupportedModel, "f32 f16 bf16")


# --- the tiny files themselves


def test_tiny_tokenizer_is_byte_level() -> None:
    symbols = byte_symbols()
    assert sorted(symbols) == list(range(256))
    assert len(set(symbols.values())) == 256
    assert (symbols[ord(" ")], symbols[ord("\n")], symbols[ord("a")]) == ("Ġ", "Ċ", "a")


def test_tiny_files_depend_on_the_seed_only(tmp_path: Path) -> None:
    first, again, other = (write_tiny(tmp_path / f"{i}.gguf", seed=i // 2).read_bytes() for i in range(3))
    assert first == again != other


def test_values_keep_activations_near_one(files: dict[str, GGUFFile]) -> None:
    for info in files["qwen3moe"].tensors.values():
        values = dequantize(info)
        if len(info.shape) == 1:
            assert abs(values.mean() - 1) < 0.1
            continue
        gain = {"output": 3, "ffn_gate_inp": 2, "token_embd": info.shape[-1] ** 0.5}.get(info.name.split(".")[-2], 1.2)
        assert values.std() * info.shape[-1] ** 0.5 == pytest.approx(gain, rel=0.1)


def test_random_q8_blocks_have_the_wanted_deviation() -> None:
    """What the layer slice of the 30B is made of; the chunks join seamlessly and leave out -128, as ggml does."""
    chunks = list(q8_chunks(np.random.default_rng(0), 600_000, 0.02))
    assert [len(chunk) for chunk in chunks] == [470588, 129412]
    assert min(chunk["quants"].min() for chunk in chunks) == -127
    values = dequantize_blocks(chunks[1].view(np.uint8).reshape(-1, 34), GGMLQuantizationType.Q8_0)
    assert values.std() == pytest.approx(0.02, rel=0.05)
