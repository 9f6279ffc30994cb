"""The tensor table: against the complete listing of the 30B release, and forwards and backwards on random sizes."""

import copy
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import DIMS, build_config
from tiny_checkpoint_shapes import shapes

from qwen3omni_wgpu.convert import names
from qwen3omni_wgpu.convert.dims import PARTS, Dims, dims
from qwen3omni_wgpu.convert.table import TABLE
from qwen3omni_wgpu.models.config import TextConfig, tensor_shapes

DATA = Path(__file__).parents[1] / "data"
CONFIG = json.loads((DATA / "config_30b.json").read_text())
RELEASE = json.loads((DATA / "tensors_30b.json").read_text())


def missing(present, sizes) -> Iterator[str]:
    """Names that the checkpoint must hold and that are not present, lazily."""
    return (name for name, _ in names.expected(sizes) if name not in present)


@pytest.fixture(scope="module")
def release() -> Dims:
    return dims(CONFIG)


@pytest.fixture(scope="module")
def listing() -> dict[str, tuple[tuple[int, ...], str]]:
    """Name -> (shape, component) of all 28,010 tensors."""
    found = {}
    for pattern, shape, count, ranges, component in RELEASE["tensors"]:
        places = [range(low, high + 1) for low, high in ranges.values()]
        made = {
            pattern.format(**dict(zip(ranges, at, strict=True))): (tuple(shape), component)
            for at in itertools.product(*places)
        }
        assert len(made) == count
        found |= made
    return found


def all_targets(sizes: Dims) -> list[names.Target]:
    return [target for part in PARTS for target in names.targets(sizes, part)]


def test_the_30b_has_exactly_the_tensors_of_the_release(release: Dims, listing: dict[str, Any]) -> None:
    assert len(listing) == 28010
    expected = list(names.expected(release))
    assert len(expected) == len(listing)
    assert dict(expected) == {name: shape for name, (shape, _) in listing.items()}


def test_components_have_the_tensors_and_parameters_of_the_release(release: Dims, listing: dict[str, Any]) -> None:
    tensors, parameters = Counter(), Counter()
    for target in all_targets(release):
        for name, shape in set(target.sources):
            if target.name.endswith(".weight.1"):  # the second frame of a kernel that is counted already
                continue
            assert listing[name][1] == target.component
            tensors[target.component] += 1
            parameters[target.component] += prod(shape)
    totals = RELEASE["components"]
    assert tensors == {name: values["tensors"] for name, values in totals.items()}
    assert parameters == {name: values["parameters"] for name, values in totals.items()}
    assert sum(parameters.values()) == 35_259_818_545


def test_gguf_tensors_hold_as_many_values_as_their_sources(release: Dims) -> None:
    for part in PARTS:
        made = sum(prod(target.shape) for target in names.targets(release, part))
        stored = sum(RELEASE["components"][name]["parameters"] for name in PARTS[part])
        sinusoids = 1500 * 1280 if part == "mmproj" else 0
        assert made == stored + sinusoids


def test_gguf_names_are_unique_and_short(release: Dims) -> None:
    for part in PARTS:
        found = [target.name for target in names.targets(release, part)]
        assert len(set(found)) == len(found)
        assert max(map(len, found)) < 64  # the limit of ggml


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("thinker.model.layers.47.mlp.experts.127.down_proj.weight", "blk.47.ffn_down_exps.weight"),
        ("thinker.model.layers.0.self_attn.o_proj.weight", "blk.0.attn_output.weight"),
        ("thinker.audio_tower.conv2d3.bias", "a.conv2d.3.bias"),
        ("thinker.audio_tower.layers.31.final_layer_norm.bias", "a.blk.31.ln2.bias"),
        ("thinker.audio_tower.layers.5.fc1.weight", "a.blk.5.ffn_up.weight"),
        ("thinker.audio_tower.proj2.weight", "mm.a.mlp.2.weight"),
        ("thinker.visual.blocks.26.attn.qkv.bias", "v.blk.26.attn_qkv.bias"),
        ("thinker.visual.merger_list.1.mlp.2.weight", "v.deepstack.16.fc2.weight"),
        ("thinker.visual.merger_list.2.ln_q.bias", "v.deepstack.24.norm.bias"),
        ("thinker.visual.merger.ln_q.weight", "v.post_ln.weight"),
        ("thinker.visual.merger.mlp.2.bias", "mm.2.bias"),
        ("talker.model.layers.3.mlp.shared_expert_gate.weight", "blk.3.ffn_gate_inp_shexp.weight"),
        ("talker.hidden_projection.linear_fc2.bias", "hidden_proj.fc2.bias"),
        ("talker.code_predictor.lm_head.14.weight", "a.gen.code.head.weight"),
        ("talker.code_predictor.model.layers.4.post_attention_layernorm.weight", "a.gen.code.blk.4.ln2.weight"),
        ("code2wav.pre_transformer.layers.7.mlp_layer_scale.scale", "a.gen.wav.tfm.blk.7.ls2.weight"),
        ("code2wav.upsample.1.1.gamma", "a.gen.wav.up.blk.1.gamma"),
        ("code2wav.decoder.4.block.0.alpha", "a.gen.wav.dac.blk.3.snake.alpha"),
        ("code2wav.decoder.1.block.4.conv2.conv.weight", "a.gen.wav.dac.blk.0.res.2.conv2.weight"),
        ("code2wav.decoder.6.conv.bias", "a.gen.wav.dac.post_conv.bias"),
    ],
)
def test_names_are_llama_cpps(release: Dims, source: str, name: str) -> None:
    """Pairs written out from llama.cpp's loaders, apart from the table."""
    assert [target.name for target in all_targets(release) if source in dict(target.sources)] == [name]


def test_experts_and_code_groups_are_stacked_in_order(release: Dims) -> None:
    found = {target.name: target for target in all_targets(release)}
    experts = next(target for target in names.targets(release, "thinker") if target.name == "blk.7.ffn_up_exps.weight")
    assert experts.shape == (128, 768, 2048)
    assert [name for name, _ in experts.sources] == [
        f"thinker.model.layers.7.mlp.experts.{e}.up_proj.weight" for e in range(128)
    ]
    heads = found["a.gen.code.head.weight"]
    assert heads.shape == (15, 2048, 1024)
    assert [name for name, _ in heads.sources] == [f"talker.code_predictor.lm_head.{g}.weight" for g in range(15)]


def test_shapes_that_change_on_the_way(release: Dims) -> None:
    found = {target.name: target for target in names.targets(release, "mmproj")}
    assert found["a.conv2d.2.bias"].shape == (480, 1, 1)
    assert found["a.conv2d.2.bias"].make is None  # the same values
    assert found["v.patch_embd.weight"].shape == found["v.patch_embd.weight.1"].shape == (1152, 3, 16, 16)
    assert found["a.position_embd.weight"].sources == ()
    changed = {name for name, target in found.items() if target.make}
    assert changed == {"a.position_embd.weight", "v.patch_embd.weight", "v.patch_embd.weight.1"}
    for part in ("thinker", "talker"):
        assert not any(target.make for target in names.targets(release, part))


def test_layers_lie_together_in_the_file(release: Dims) -> None:
    order = [target.name for target in names.targets(release, "thinker")]
    assert order[0] == "token_embd.weight"
    assert order[-2:] == ["output_norm.weight", "output.weight"]
    layers = [int(name.split(".")[1]) for name in order if name.startswith("blk.")]
    assert layers == sorted(layers)
    units = [target.name for target in names.targets(release, "talker") if ".dac.blk." in target.name]
    assert [name.split(".")[5] for name in units] == sorted(name.split(".")[5] for name in units)


def test_every_row_of_the_table_makes_a_tensor(release: Dims) -> None:
    """Numbers aside: the whole table, row by row, is in the file."""
    lines = {
        (component, re.sub(r"\{.+?\}|(?<=\.)\d+", "#", line.split("|")[1].strip()))
        for component, text in TABLE.items()
        for line in text.strip().splitlines()
    }
    assert lines == {(target.component, re.sub(r"(?<=\.)\d+", "#", target.name)) for target in all_targets(release)}


def config_of(family: str) -> dict[str, Any]:
    text = copy.deepcopy(CONFIG["thinker_config"]["text_config"])
    architecture = {"qwen3": "Qwen3ForCausalLM", "qwen3moe": "Qwen3MoeForCausalLM", "llama": "LlamaForCausalLM"}
    return {**text, "architectures": [architecture[family]], "num_hidden_layers": 2, "rope_scaling": None}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["qwen3omni", "qwen3moe", "qwen3", "llama"])
def test_the_thinker_is_what_the_forward_pass_wants(family: str, tied: bool) -> None:
    """The same names and shapes as models/config.py asks of a GGUF file."""
    if family == "qwen3omni":
        config: dict[str, Any] = copy.deepcopy(CONFIG)
        text = config["thinker_config"]["text_config"]
    else:
        text = config = config_of(family)
    text["tie_word_embeddings"] = tied
    moe = family in ("qwen3omni", "qwen3moe")
    wanted = TextConfig(
        architecture={"qwen3omni": "qwen3vlmoe"}.get(family, family),
        n_layers=text["num_hidden_layers"],
        dim=2048,
        n_heads=32,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=0 if moe else 768,
        vocab_size=152064,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_dim=128,
        rope_style="neox",
        rope_scale=1.0,
        mrope_sections=None,
        qk_norm=family != "llama",
        n_experts=128 if moe else 0,
        n_experts_used=8 if moe else 0,
        expert_dim=768 if moe else 0,
        norm_topk=True,
        context_length=1024,
        tied_head=tied,
    )
    sizes = dims(config)
    assert {target.name: target.shape for target in names.targets(sizes, "thinker")} == tensor_shapes(wanted)
    if family != "qwen3omni":
        assert sizes.parts == ("thinker",)
        heads = {name for name, _ in names.expected(sizes) if not name.startswith("model.")}
        assert heads == (set() if tied else {"lm_head.weight"})
    if tied:  # some checkpoints hold it all the same
        assert names.unknown(["thinker.lm_head.weight" if family == "qwen3omni" else "lm_head.weight"], sizes) == []


# Random sizes ------------------------------------------------------------------------------------------------------

small = st.integers(1, 3)


@st.composite
def tiny_configs(draw: st.DrawFn) -> dict[str, Any]:
    """A consistent config.json with all counts drawn."""
    depth = draw(st.integers(1, 4))
    taps = draw(st.sets(st.integers(0, depth - 1), max_size=depth))
    chosen = {
        "thinker_layers": draw(small),
        "thinker_kv_heads": draw(st.sampled_from([1, 2, 4])),
        "experts": draw(st.integers(2, 12)),
        "audio_layers": draw(small),
        "audio_conv": draw(st.sampled_from([8, 24, 32])),
        "vision_depth": depth,
        "vision_ffn": draw(st.integers(1, 99)),
        "deepstack": sorted(taps),
        "talker_layers": draw(small),
        "groups": draw(st.integers(2, 16)),
        "predictor_layers": draw(small),
        "wav_layers": draw(small),
        "speech": draw(st.booleans()),
    }
    config = build_config({**DIMS, **chosen}, _Vocabulary())
    if chosen["speech"]:
        rates = draw(st.lists(st.integers(2, 9), min_size=1, max_size=5))
        config["code2wav_config"] |= {"upsample_rates": rates}
        if len(rates) == 4:  # the other description of the shapes knows only the release's four
            config["code2wav_config"] |= {"upsampling_ratios": draw(st.lists(small, min_size=2, max_size=2))}
    return config


class _Vocabulary(dict[str, int]):
    """Any token has some id."""

    def __missing__(self, key: str) -> int:
        return self.setdefault(key, len(self))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(config=tiny_configs())
def test_random_sizes_forwards_and_backwards(config: dict[str, Any]) -> None:
    sizes = dims(config)
    expected = dict(names.expected(sizes))
    assert expected == dict(shapes(config))
    assert list(missing(expected, sizes)) == []
    assert names.unknown(expected, sizes) == []
    for part in PARTS:
        found = list(names.targets(sizes, part))
        assert len({target.name for target in found}) == len(found)
        for target in found:
            if target.make is None:
                assert prod(target.shape) == sum(prod(shape) for _, shape in target.sources)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_missing_and_unknown_names_are_found(data: st.DataObject) -> None:
    sizes = dims(data.draw(tiny_configs()))
    present = [name for name, _ in names.expected(sizes)]
    lost = data.draw(st.sets(st.sampled_from(present), min_size=1, max_size=4))
    assert set(missing(set(present) - lost, sizes)) == lost
    strangers = {_changed(data, data.draw(st.sampled_from(present))) for _ in range(3)} - set(present)
    assert set(names.unknown([*present, *strangers], sizes)) == strangers


def _changed(data: st.DataObject, name: str) -> str:
    """A name that differs in one word, one number or its length."""
    pieces = name.split(".")
    at = data.draw(st.integers(0, len(pieces) - 1))
    if pieces[at].isdecimal():
        pieces[at] = data.draw(st.sampled_from(["0" + pieces[at], "99", "-1", "9" * 30, "٣", "", "x", "{i}"]))
    else:
        pieces[at] = data.draw(st.sampled_from([pieces[at] + "s", "", "Weight", pieces[at] + ".weight", "{i}"]))
    return ".".join(pieces)


def test_counts_end_where_the_config_says(release: Dims) -> None:
    pairs = {
        "thinker.model.layers.{}.input_layernorm.weight": 48,
        "thinker.model.layers.0.mlp.experts.{}.up_proj.weight": 128,
        "thinker.audio_tower.layers.{}.fc1.bias": 32,
        "thinker.visual.blocks.{}.norm1.bias": 27,
        "thinker.visual.merger_list.{}.ln_q.bias": 3,
        "talker.code_predictor.lm_head.{}.weight": 15,
        "code2wav.upsample.{}.1.gamma": 2,
        "code2wav.decoder.{}.block.0.alpha": 5,  # from 1, for 0 is a convolution
        "code2wav.decoder.1.block.{}.act1.beta": 5,  # from 2
        "code2wav.decoder.{}.alpha": 6,  # only 5
    }
    for pattern, end in pairs.items():
        assert names.unknown([pattern.format(end - 1)], release) == []
        assert names.unknown([pattern.format(end)], release) == [pattern.format(end)]
    for name in (
        "code2wav.decoder.0.block.0.alpha",
        "code2wav.decoder.1.block.1.act1.beta",
        "code2wav.decoder.4.alpha",
    ):
        assert names.unknown([name], release) == [name]


def test_harmless_leftovers_and_switched_off_components(release: Dims) -> None:
    leftovers = [
        "model.layers.3.self_attn.rotary_emb.inv_freq",
        "thinker.model.rotary_emb.original_inv_freq",
        "thinker.visual.rotary_pos_emb.inv_freq",
        "thinker.audio_tower.positional_embedding.positional_embedding",
        "code2wav.code_offset",
    ]
    assert names.unknown(leftovers, release) == []
    strangers = ["code2wav.code_offset.x", "thinker.inv_freq", "", ".", "-"]
    assert names.unknown(strangers, release) == strangers
    silent = dims({**CONFIG, "enable_audio_output": False})
    assert silent.parts == ("thinker", "mmproj")
    assert not list(names.targets(silent, "talker"))
    spoken = [name for name, _ in names.expected(release) if name.startswith(("talker.", "code2wav."))]
    assert names.unknown(spoken, silent) == []
    assert names.unknown(["talker.model.layers.0.mlp.other.weight"], silent) != []


def test_absurd_counts_fail_at_the_first_missing_tensor() -> None:
    config = copy.deepcopy(CONFIG)
    config["thinker_config"]["text_config"]["num_hidden_layers"] = 2**16
    config["thinker_config"]["vision_config"]["depth"] = 2**16
    sizes = dims(config)
    present = {name for name, _ in names.expected(dims(CONFIG))}
    assert next(missing(present, sizes)) == "thinker.model.layers.48.input_layernorm.weight"
    assert names.unknown(present, sizes) == []
    assert len(list(itertools.islice(names.targets(sizes, "mmproj"), 1000))) == 1000


# Values that are computed ------------------------------------------------------------------------------------------


def made(sizes: Dims, part: str, name: str, *sources: np.ndarray) -> np.ndarray:
    target = next(target for target in names.targets(sizes, part) if target.name == name)
    assert target.make is not None
    values = target.make(list(sources))
    assert values.shape == target.shape
    assert values.dtype == np.float32
    return values


def test_two_frames_make_the_video_kernel() -> None:
    """Sum of two 2-D products = one 3-D product, exactly the same numbers."""
    rng = np.random.default_rng()
    config = copy.deepcopy(CONFIG)
    config["thinker_config"]["vision_config"]["hidden_size"] = 32
    sizes = dims(config)
    kernel = rng.standard_normal((32, 3, 2, 16, 16), dtype=np.float32)
    frames = [made(sizes, "mmproj", f"v.patch_embd.weight{end}", kernel) for end in ("", ".1")]
    patch = rng.standard_normal((3, 2, 16, 16))
    whole = np.einsum("dctyx,ctyx->d", kernel, patch)
    split = sum(np.einsum("dcyx,cyx->d", frame, patch[:, t]) for t, frame in enumerate(frames))
    np.testing.assert_allclose(split, whole, rtol=1e-9, atol=1e-9)


def test_sinusoids(release: Dims) -> None:
    table = made(release, "mmproj", "a.position_embd.weight")
    j = np.arange(640)
    angles = np.arange(1500)[:, None] * np.exp(-j * np.log(10000) / 639)
    # float32 holds angles up to 1500 only to 6e-5, and transformers computes them in float32 too
    np.testing.assert_allclose(table[:, :640], np.sin(angles), atol=3e-4)
    np.testing.assert_allclose(table[:, 640:], np.cos(angles), atol=3e-4)
    np.testing.assert_allclose(table[:13, :640], np.sin(angles)[:13], atol=3e-6)  # the rows the tower reads


@pytest.mark.parametrize(("name", "heads"), [("attn_q", 4), ("attn_k", 2)])
def test_llamas_rows_turn_in_neighbouring_pairs(name: str, heads: int) -> None:
    """Rotating neighbours after the change gives the rotated halves of before, in the changed order."""
    rng = np.random.default_rng()
    text = config_of("llama") | {"hidden_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
    weight = rng.standard_normal((heads * 8, 48), dtype=np.float32)
    changed = made(dims(text), "thinker", f"blk.1.{name}.weight", weight)
    x, angle = rng.standard_normal(48), rng.uniform(0, 6, 4)
    a, b = np.moveaxis((weight @ x).reshape(heads, 2, 4), 1, 0)  # Hugging Face: pairs half a head apart
    rotated = [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
    p, q = np.moveaxis((changed @ x).reshape(heads, 4, 2), 2, 0)  # llama.cpp: neighbours
    np.testing.assert_allclose(p * np.cos(angle) - q * np.sin(angle), rotated[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(q * np.cos(angle) + p * np.sin(angle), rotated[1], rtol=1e-9, atol=1e-9)


def test_llama_3_gets_its_frequency_factors() -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    text = config_of("llama") | {"rope_theta": 500000.0, "head_dim": 64, "rope_scaling": scaling}
    sizes = dims(text)
    factors = made(sizes, "thinker", "rope_freqs.weight")
    assert factors.shape == (32,)
    wave = 2 * np.pi * 500000.0 ** (np.arange(32) / 32)
    np.testing.assert_array_equal(factors[wave < 8192 / 4], 1)
    np.testing.assert_allclose(factors[wave > 8192], 32, rtol=1e-6)
    between = factors[(wave > 8192 / 4) & (wave < 8192)]
    assert between.size
    assert np.all((between > 1) & (between < 32))
    assert "rope_freqs.weight" not in {t.name for t in names.targets(dims(config_of("llama")), "thinker")}
