"""Live: the GPU against transformers on random models. Run with `pytest -m oracle`; needs torch and an adapter."""

import numpy as np
import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.sampler import GenerationConfig

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("wgpu")
from reference.gpu_engine import decode, open_engine, relative, same_until_a_tie

from oracle.hf_models import oracle

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

FLOAT32 = 1e-3  # of the largest logit, as in tests/models/test_text.py
CASES = [
    {"arch": "llama", "type": "q4_1", "dim": 192, "n_heads": 3, "n_kv_heads": 1},
    {"arch": "qwen3", "type": "q4_0", "head_dim": 128},
    {"arch": "qwen3moe", "type": "q8_0", "n_experts": 8, "n_experts_used": 2},
    {"arch": "qwen3moe", "type": "f16", "n_experts": 64, "n_experts_used": 4, "head_dim": 128, "n_layers": 1},
    {"arch": "qwen3vlmoe", "type": "q8_0", "n_experts": 16, "n_experts_used": 4},
    {"arch": "qwen3vlmoe", "type": "bf16", "n_experts": 128, "n_experts_used": 8, "n_layers": 1},
]


@pytest.mark.parametrize("seed", [201, 202])
@pytest.mark.parametrize("recipe", CASES, ids=lambda r: f"{r['arch']}-{r['type']}")
def test_engine(recipe, seed, tmp_path, device):
    file = read_gguf(write_tiny(tmp_path / "tiny.gguf", seed=seed, tokenizer=False, vocab=211, **recipe))
    ids = np.random.default_rng(seed).integers(0, 211, 23).tolist()
    live, engine = oracle(file), open_engine(file, device)
    expected = live.logits(ids)
    assert relative(engine.logits(ids), expected) < FLOAT32
    greedy, margins = live.greedy(ids, 12)
    same_until_a_tie(decode(engine, ids, 12), greedy, margins, near=2 * FLOAT32 * np.abs(expected).max())


def test_omni(tmp_path):
    """The same through the public API."""
    from qwen3omni_wgpu import Omni

    path = write_tiny(tmp_path / "tiny.gguf", arch="qwen3vlmoe", seed=5, type="q8_0")
    ids = np.random.default_rng(5).integers(0, 250, 19).tolist()
    live = oracle(read_gguf(path))
    with Omni.from_pretrained(path, cpu=True, activations="f32") as omni:
        assert relative(omni.logits(ids), live.logits(ids)) < 2 * FLOAT32  # f16 keys and values by default
        config = GenerationConfig(max_tokens=8, temperature=0, ignore_eos=True)
        found = omni.generate(ids, config=config).token_ids
    greedy, margins = live.greedy(ids, 8)
    assert same_until_a_tie(found, greedy, margins, near=0.05) >= 1
