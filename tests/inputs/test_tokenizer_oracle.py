"""Live against transformers (`pytest -m oracle`): any text, the vocabulary of the real SmolLM2."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.model]

WORDS = ["<|im_start|>", "<|im_end|>", "user\n", "It's", " 42", "\n\n", "é", " "]
MARKED = st.lists(st.sampled_from(WORDS), max_size=12)


@pytest.fixture(scope="session")
def both(smollm2_path: Path) -> tuple[Tokenizer, Any]:
    transformers = pytest.importorskip("transformers")
    reference = transformers.AutoTokenizer.from_pretrained(smollm2_path.parent, gguf_file=smollm2_path.name)
    # The GGUF loader knows GPT-2's word rule only; this is the one in the published tokenizer.json.
    reference.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return Tokenizer.from_gguf(read_gguf(smollm2_path).metadata), reference


@settings(max_examples=1000, deadline=None)
@given(text=st.one_of(st.text(max_size=60), MARKED.map("".join)))
def test_smollm2_against_transformers(both: tuple[Tokenizer, Any], text: str) -> None:
    ours, reference = both
    ids = reference.encode(text, add_special_tokens=False)
    assert ours.encode(text) == ids
    assert ours.decode(ids, skip_special=False) == reference.decode(ids, clean_up_tokenization_spaces=False)
