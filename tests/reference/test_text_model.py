"""The NumPy text model against the answers of transformers, and the goldens against themselves."""

from dataclasses import replace

import numpy as np
import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu.formats.gguf import read_gguf
from reference.goldens import TextGolden, TinyGolden, read_prompts, read_text, read_tiny, tiny_names
from reference.text_model import TextModel, forward

# Two float32 implementations differ in the order of their sums: 1.4e-6 of the largest logit at most, 3.7e-6 on SmolLM2.
FLOAT32 = 1e-5


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest logit."""
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def model_of(golden: TinyGolden, folder) -> TextModel:
    file = read_gguf(write_tiny(folder / f"{golden.name}.gguf", **golden.recipe))
    golden.check(file)
    return TextModel(file)


def test_goldens_cover_what_they_should():
    recipes = [read_tiny(name).recipe for name in tiny_names()]
    assert {r["arch"] for r in recipes} == {"llama", "qwen3", "qwen3moe", "qwen3vlmoe"}
    assert {r.get("type", "f32") for r in recipes} == {"f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"}
    assert {(r.get("n_experts", 8), r.get("n_experts_used", 2)) for r in recipes} >= {(8, 2), (128, 8)}
    assert {r.get("head_dim", 64) for r in recipes} == {64, 128}


@pytest.mark.parametrize("name", tiny_names())
def test_numpy_model_equals_transformers(name, tmp_path):
    golden = read_tiny(name)
    model = model_of(golden, tmp_path)
    assert relative(model.forward(golden.ids), golden.logits) < FLOAT32
    if golden.positions is not None:
        assert relative(golden.mrope_logits, golden.logits) > 0.05, "these positions should matter"
        assert relative(model.forward(golden.ids, golden.positions), golden.mrope_logits) < FLOAT32


@pytest.mark.parametrize("name", tiny_names())
def test_numpy_model_continues_like_transformers(name, tmp_path):
    golden = read_tiny(name)
    logits = model_of(golden, tmp_path).forward(np.concatenate([golden.ids, golden.greedy[:-1]]))[len(golden.ids) - 1 :]
    best = np.sort(logits, axis=1)[:, ::-1]
    assert np.abs(best[:, 0] - best[:, 1] - golden.margins).max() < 2 * FLOAT32 * np.abs(logits).max()
    clear = golden.margins > 1e-3
    assert clear.sum() >= 15
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], golden.greedy[clear])


def test_another_tiny_model_is_noticed(tmp_path):
    golden = read_tiny("llama_f32")
    with pytest.raises(AssertionError, match=r"make_goldens\.py tiny"):
        model_of(replace(golden, recipe=golden.recipe | {"seed": 1000}), tmp_path)


@pytest.mark.model
def test_numpy_model_equals_transformers_on_smollm2(smollm2_path):
    file = read_gguf(smollm2_path)
    for i in (1, 4):
        golden = read_prompts()[i]
        logits = forward(file, golden.ids)[-1]
        assert relative(logits[golden.some_ids], golden.logits) < FLOAT32
        assert logits.argmax() == golden.greedy[0]


def fake_golden(p_logits: np.ndarray) -> TextGolden:
    ids = np.zeros(len(p_logits), dtype=np.uint16)
    return TextGolden.of("", ids, p_logits, top=32, drawn=16, rng=np.random.default_rng(5))


def exact_kl(p_logits: np.ndarray, q_logits: np.ndarray) -> np.ndarray:
    log_p, log_q = (x - np.log(np.exp(x).sum(axis=1, keepdims=True)) for x in map(np.float64, (p_logits, q_logits)))
    return (np.exp(log_p) * (log_p - log_q)).sum(axis=1)


@pytest.mark.parametrize("noise", [0.01, 0.1, 1.0])
def test_kl_from_stored_logits_is_the_exact_one(noise):
    rng = np.random.default_rng(0)
    p = (2.5 * rng.standard_normal((300, 4000))).astype(np.float32)
    q = p + np.float32(noise) * rng.standard_normal(p.shape).astype(np.float32)
    assert fake_golden(p).kl_divergence(q).mean() == pytest.approx(exact_kl(p, q).mean(), rel=0.05)


def test_a_text_agrees_with_itself_and_a_shifted_one_does_not():
    p = (2.5 * np.random.default_rng(0).standard_normal((50, 1000))).astype(np.float32)
    golden = fake_golden(p)
    assert golden.agreement(p) == 1.0
    assert np.abs(golden.kl_divergence(p + 3)).max() < 1e-5
    assert golden.agreement(np.roll(p, 1, axis=0)) < 0.1
    assert golden.kl_divergence(np.roll(p, 1, axis=0)).mean() > 1


def test_the_long_text_is_long_enough():
    golden = read_text()
    assert len(golden.ids) >= 520
    assert (np.diff(golden.logits[:, : golden.top], axis=1) <= 0).all()
