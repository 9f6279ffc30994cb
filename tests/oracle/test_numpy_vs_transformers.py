"""Live: the NumPy model and some twins against torch and transformers. Run with `pytest -m oracle`."""

from dataclasses import replace

import numpy as np
import pytest
from reference.goldens import read_prompts, read_text
from reference.text_model import TextModel, forward
from tiny_gguf import write_tiny

from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.tensors import TensorInfo
from qwen3omni_wgpu.reference.attention import attention
from qwen3omni_wgpu.reference.moe import moe_gate
from qwen3omni_wgpu.reference.rope import rope_frequencies

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch

from oracle.hf_models import oracle

pytestmark = pytest.mark.oracle

FLOAT32 = 1e-5  # of the largest logit; 1.4e-6 was measured on tiny models, 3.7e-6 on SmolLM2
SHAPES = {
    "llama": [{"dim": 128, "n_heads": 2, "head_dim": 64}, {"dim": 512, "n_heads": 4, "head_dim": 128}],
    "qwen3": [{"n_heads": 6, "n_kv_heads": 3}, {"head_dim": 128, "n_kv_heads": 4, "tied": True}],
    "qwen3moe": [{"n_experts": 64, "n_experts_used": 8}, {"n_experts": 9, "n_experts_used": 9}],
    "qwen3vlmoe": [{"n_experts": 128, "n_experts_used": 8}, {"head_dim": 128, "n_experts_used": 3}],
}
CASES = [(arch, shape) for arch, shapes in SHAPES.items() for shape in shapes]


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def tiny(folder, **recipe) -> GGUFFile:
    return read_gguf(write_tiny(folder / "tiny.gguf", **({"vocab": 223, "tokenizer": False} | recipe)))


@pytest.mark.parametrize("seed", [101, 102, 103])
@pytest.mark.parametrize(("arch", "shape"), CASES)
def test_tiny_models(arch, shape, seed, tmp_path):
    file = tiny(tmp_path, arch=arch, seed=seed, type="q8_0", **shape)
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 223, 20 + seed % 7)
    model = oracle(file)
    assert relative(forward(file, ids), model.logits(ids)) < FLOAT32
    if model.mrope:
        positions = rng.uniform(0, 200, (len(ids), 3)).astype(np.float32)
        # angles of 200 radians are good to 200 * 2^-24 only
        assert relative(forward(file, ids, positions), model.logits(ids, positions)) < 3 * FLOAT32


def test_linear_rope_scaling(tmp_path):
    file = tiny(tmp_path, arch="llama", seed=7, dim=256)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    scaled = replace(file, metadata=file.metadata | scaling)
    ids = np.arange(30)
    assert relative(forward(scaled, ids), forward(file, ids)) > 0.01
    assert relative(forward(scaled, ids), oracle(scaled).logits(ids)) < FLOAT32


def test_llama_3_rope_factors(tmp_path):
    file = tiny(tmp_path, arch="llama", seed=8, dim=256)
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    factors.tofile(tmp_path / "factors")
    info = TensorInfo("rope_freqs.weight", (32,), "f32", tmp_path / "factors", 0, factors.nbytes)
    with_factors = replace(file, tensors=file.tensors | {info.name: info})
    ids = np.arange(30)
    assert relative(forward(with_factors, ids), forward(file, ids)) > 0.01
    assert relative(forward(with_factors, ids), oracle(with_factors).logits(ids)) < FLOAT32


def test_frequencies_are_those_of_transformers(tmp_path):
    for theta in (1e4, 1e5, 1e6):
        model = oracle(tiny(tmp_path, arch="qwen3", head_dim=128, rope_theta=theta)).model
        theirs = model.model.rotary_emb.inv_freq.numpy()
        # NumPy's and torch's pow differ in the last bit
        np.testing.assert_array_max_ulp(rope_frequencies(128, theta), theirs, 2)


def test_attention_equals_torch():
    rng = np.random.default_rng(3)
    q, k, v = (rng.standard_normal(shape).astype(np.float32) for shape in ((7, 6, 32), (7, 2, 32), (7, 2, 32)))
    heads = [torch.from_numpy(a).transpose(0, 1)[None] for a in (q, k, v)]
    theirs = torch.nn.functional.scaled_dot_product_attention(*heads, is_causal=True, enable_gqa=True)
    assert relative(attention(q, k, v, 0, 32**-0.5), theirs[0].transpose(0, 1).numpy()) < FLOAT32


def test_gate_equals_torch():
    logits = np.random.default_rng(4).standard_normal((50, 128)).astype(np.float32)
    values, indices = torch.softmax(torch.from_numpy(logits), -1).topk(8, -1)
    ids, weights = moe_gate(logits, 8, renormalise=True)
    np.testing.assert_array_equal(ids, indices.numpy())
    np.testing.assert_allclose(weights, (values / values.sum(-1, keepdim=True)).numpy(), rtol=1e-5)


@pytest.mark.model
def test_smollm2_and_its_goldens(smollm2_path):
    file = read_gguf(smollm2_path)
    live, ours = oracle(file), TextModel(file)
    for golden in read_prompts():
        logits = live.logits(golden.ids.tolist())
        assert np.abs(logits[-1][golden.some_ids] - golden.logits).max() < 1e-3
        assert relative(ours.forward(golden.ids), logits) < FLOAT32


@pytest.mark.model
@pytest.mark.slow
def test_stored_logits_measure_kl_as_all_logits_do(smollm2_path):
    """8-bit activations in NumPy: KL divergence and agreement from the golden file and from everything."""
    golden, file = read_text(), read_gguf(smollm2_path)
    p = torch.from_numpy(oracle(file).logits(golden.ids.tolist())).log_softmax(-1).double()
    packed = TextModel(file, activations="q8").forward(golden.ids)
    q = torch.from_numpy(packed).double().log_softmax(-1)
    exact = float((p.exp() * (p - q)).sum(-1).mean())
    print(f"exact {exact:.3e}, from the golden file {golden.kl_divergence(packed).mean():.3e}")
    assert golden.kl_divergence(packed).mean() == pytest.approx(exact, rel=0.03)
    assert golden.agreement(packed) == float((p.argmax(-1) == q.argmax(-1)).double().mean())
