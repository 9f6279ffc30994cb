"""The real SmolLM2-135M-Instruct (Q4_1) on the GPU against transformers on the dequantised weights."""

import numpy as np
import pytest
from reference.goldens import read_prompts, read_text
from reference.gpu_engine import decode, open_engine, same_until_a_tie

from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

pytestmark = [pytest.mark.gpu, pytest.mark.model]

# Absolute, on logits of up to 35. Float order alone makes 1e-4; the f16 cache makes up to 1.4e-2 (measured in NumPy).
LAST_LOGITS = 2e-2
NEAR_TIE = 0.05
PROMPTS = read_prompts()
SHORT = [i for i, prompt in enumerate(PROMPTS) if len(prompt.ids) < 60]


@pytest.fixture(scope="module")
def floats(smollm2_path, device):
    return open_engine(read_gguf(smollm2_path), device, ctx_size=1024, kv_type="f16")


@pytest.fixture(scope="module")
def packed(smollm2_path, device):
    return open_engine(read_gguf(smollm2_path), device, ctx_size=1024, kv_type="f16", activations="q8")


@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_the_tokenizer_makes_the_golden_ids(i, smollm2_path):
    tokenizer = Tokenizer.from_gguf(read_gguf(smollm2_path).metadata)
    assert tokenizer.encode(PROMPTS[i].text) == PROMPTS[i].ids.tolist()


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(PROMPTS)))
def test_logits_after_the_prompt_and_along_the_answer(i, floats):
    """Last logits of the prompt, and the best token at every step of the answer, in one prefill."""
    golden = PROMPTS[i]
    logits = floats.logits([*golden.ids.tolist(), *golden.greedy[:-1].tolist()])[len(golden.ids) - 1 :]
    assert np.abs(logits[0, golden.some_ids] - golden.logits).max() < LAST_LOGITS
    clear = golden.margins > NEAR_TIE
    assert clear.sum() >= 40
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], golden.greedy[clear])


@pytest.mark.slow
@pytest.mark.parametrize("i", SHORT)
def test_decoded_ids_are_those_of_transformers(i, floats, record_property):
    golden = PROMPTS[i]
    found = decode(floats, golden.ids, len(golden.greedy))
    compared = same_until_a_tie(found, golden.greedy, golden.margins, NEAR_TIE)
    record_property("compared", f"{compared} of {len(golden.greedy)}")
    print(f"prompt {i}: {compared} of {len(golden.greedy)} greedy ids compared, all equal")
    assert compared >= 8


@pytest.mark.slow
def test_a_cache_of_8_bits_is_near_one_of_16(floats, smollm2_path, device):
    """In the mean square of a prompt's logits, 9.6e-3 in NumPy; keys that were not mixed would make 2e-2 of it."""
    ids = PROMPTS[SHORT[0]].ids.tolist()
    blocks = open_engine(read_gguf(smollm2_path), device, ctx_size=len(ids), kv_type="q8_0")
    half, found = floats.logits(ids), blocks.logits(ids)
    blocks.free()
    assert 1e-5 < np.linalg.norm(found - half) / np.linalg.norm(half) < 1.5e-2


@pytest.mark.slow
def test_float_activations_keep_the_best_token_of_a_long_text(floats):
    golden = read_text()
    logits = floats.logits(golden.ids.tolist())
    clear = golden.margins > NEAR_TIE
    np.testing.assert_array_equal(logits.argmax(axis=1)[clear], golden.top1[clear])
    assert golden.kl_divergence(logits).mean() < 1e-5


@pytest.mark.slow
def test_packed_activations_over_a_long_text(packed, record_property):
    golden = read_text()
    assert len(golden.ids) >= 500
    logits = packed.logits(golden.ids.tolist())
    agreement, kl = golden.agreement(logits), golden.kl_divergence(logits).mean()
    record_property("top1_agreement", agreement)
    record_property("mean_kl", kl)
    print(f"packed activations: top-1 agreement {agreement:.4f}, mean KL {kl:.2e} over {len(golden.ids)} positions")
    assert agreement >= 0.97
    assert kl < 5e-3
