"""The table of types: what is spared, what becomes the wanted type, and what llama.cpp insists on."""

import numpy as np
import pytest

from qwen3omni_wgpu.convert.policy import POLICY, describe, out_type, rule_for
from qwen3omni_wgpu.formats.tensors import BLOCKS

WANTED = ["q8_0", "f16", "bf16", "f32"]


def types(name: str, shape: tuple[int, ...], component: str, **options: bool) -> list[str]:
    return [out_type(name, shape, component, wanted, **options) for wanted in WANTED]


@pytest.mark.parametrize(
    ("name", "shape", "component"),
    [
        ("token_embd.weight", (512, 64), "thinker_text"),
        ("output.weight", (512, 64), "thinker_text"),
        ("blk.3.attn_q.weight", (128, 64), "thinker_text"),
        ("blk.3.ffn_down_exps.weight", (8, 64, 32), "thinker_text"),
        ("a.blk.1.ffn_up.weight", (128, 64), "audio_encoder"),
        ("mm.a.mlp.1.weight", (64, 64), "audio_encoder"),
        ("v.blk.1.attn_qkv.weight", (192, 64), "vision_encoder"),
        ("v.deepstack.8.fc1.weight", (256, 256), "vision_encoder"),
        ("blk.0.ffn_gate_shexp.weight", (64, 64), "talker"),
        ("text_proj.fc1.weight", (64, 64), "talker"),
    ],
)
def test_matrices_become_what_is_wanted(name: str, shape: tuple[int, ...], component: str) -> None:
    assert types(name, shape, component) == WANTED


@pytest.mark.parametrize(
    ("name", "shape", "component"),
    [
        ("output_norm.weight", (64,), "thinker_text"),
        ("blk.0.attn_q_norm.weight", (32,), "thinker_text"),
        ("blk.0.ffn_gate_inp.weight", (128, 64), "thinker_text"),
        ("blk.0.ffn_gate_inp.weight", (128, 64), "talker"),
        ("blk.0.ffn_gate_inp_shexp.weight", (64,), "talker"),
        ("blk.0.ffn_gate_inp_shexp.weight", (1, 64), "talker"),
        ("a.blk.0.attn_q.bias", (64,), "audio_encoder"),
        ("a.conv2d.1.bias", (32, 1, 1), "audio_encoder"),
        ("a.position_embd.weight", (1500, 64), "audio_encoder"),
        ("v.position_embd.weight", (64, 64), "vision_encoder"),
        ("v.patch_embd.bias", (64,), "vision_encoder"),
        ("a.gen.code.blk.0.ln1.weight", (64,), "code_predictor"),
        ("a.gen.wav.dac.blk.1.snake.alpha", (64,), "code2wav"),
        ("a.gen.wav.up.blk.0.gamma", (64,), "code2wav"),
        ("a.gen.wav.tfm.blk.0.ls1.weight", (64,), "code2wav"),
    ],
)
def test_small_and_delicate_tensors_stay_f32(name: str, shape: tuple[int, ...], component: str) -> None:
    assert types(name, shape, component) == ["f32"] * 4


@pytest.mark.parametrize(
    ("name", "shape", "component"),
    [
        ("a.conv2d.1.weight", (32, 1, 3, 3), "audio_encoder"),
        ("a.conv2d.2.weight", (32, 32, 3, 3), "audio_encoder"),
        ("a.conv_out.weight", (64, 512), "audio_encoder"),
        ("v.patch_embd.weight", (64, 3, 16, 16), "vision_encoder"),
        ("v.patch_embd.weight.1", (64, 3, 16, 16), "vision_encoder"),
        ("a.gen.wav.dac.entry.weight", (512, 64, 7), "code2wav"),
        ("a.gen.wav.up.blk.0.dwconv.weight", (64, 1, 7), "code2wav"),
        ("a.gen.wav.dac.blk.1.res.0.conv2.weight", (32, 32, 1), "code2wav"),
    ],
)
def test_convolutions_have_no_bf16(name: str, shape: tuple[int, ...], component: str) -> None:
    assert types(name, shape, component) == ["f16", "f16", "f16", "f32"]


def test_rows_of_broken_blocks() -> None:
    """The vision tower's ffn_down of the 30B: rows of 4304 = 134.5 blocks."""
    assert types("v.blk.0.ffn_down.weight", (1152, 4304), "vision_encoder") == ["f16", "f16", "bf16", "f32"]
    assert out_type("v.blk.0.ffn_down.weight", (1152, 4304), "vision_encoder", "q4_0") == "f16"


def test_the_code_predictor_is_spared_unless_asked() -> None:
    name, shape = "a.gen.code.blk.0.attn_q.weight", (64, 64)
    assert types(name, shape, "code_predictor") == ["f16", "f16", "bf16", "f32"]
    assert types("a.gen.code.head.weight", (15, 64, 64), "code_predictor") == ["f16", "f16", "bf16", "f32"]
    assert types(name, shape, "code_predictor", quantize_code_predictor=True) == WANTED
    # The products' inputs here do not fit f16: never that type, flag or not.
    down = "a.gen.code.blk.0.ffn_down.weight"
    assert types(down, shape, "code_predictor") == ["f32", "f32", "bf16", "f32"]
    assert types(down, shape, "code_predictor", quantize_code_predictor=True) == ["q8_0", "f32", "bf16", "f32"]


def test_code2wav_is_spared() -> None:
    for name in ("a.gen.wav.tfm.blk.0.ffn_up.weight", "a.gen.wav.embd.weight", "a.gen.wav.up.blk.0.pw1.weight"):
        assert types(name, (64, 64), "code2wav") == ["f16", "f16", "bf16", "f32"]


def test_any_tensor_gets_a_type_its_rows_fit() -> None:
    """Whatever the shape: a rule decides, and its type's blocks fit the rows."""
    rng = np.random.default_rng()
    components = sorted({c for rule in POLICY for c in rule.components} | {"thinker_text", "talker"})
    names = ["blk.1.ffn_up.weight", "blk.1.ffn_gate_inp.weight", "v.position_embd.weight", "a.conv_out.weight", "x"]
    for _ in range(500):
        shape = tuple(int(n) for n in rng.integers(1, 100, rng.integers(1, 5)))
        name, component, wanted = rng.choice(names), rng.choice(components), rng.choice([*WANTED, "q4_0"])
        flag = bool(rng.integers(2))
        kind = out_type(name, shape, component, wanted, quantize_code_predictor=flag)
        assert shape[-1] % BLOCKS[kind][0] == 0, (name, shape, component, wanted)


@pytest.mark.parametrize("wanted", WANTED)
def test_the_printed_table_says_what_happens(wanted: str) -> None:
    rows = describe(wanted)
    assert all(what and reason and kind in BLOCKS for what, kind, reason in rows)
    assert rows[-1][1] == wanted
    rule = rule_for("output_norm.weight", (64,), "thinker_text", wanted)
    assert (rule.what, "f32", rule.reason) in rows
    assert any("code predictor" in what for what, _, _ in rows)
    spared = [what for what, _, _ in describe("q8_0", quantize_code_predictor=True)]
    assert not any("code predictor" in what for what in spared)
