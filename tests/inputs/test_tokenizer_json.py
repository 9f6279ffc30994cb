"""tokenizer.json files: the same answers as from GGUF metadata, and refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from vocabularies import SMALL, SPECIALS

from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

# As in transformers' Qwen2 tokenizer; written out here so that it does not come from the code under test.
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def write_qwen2(folder: Path, config: dict[str, Any] | None = None) -> Path:
    metadata = SMALL["qwen2"]["metadata"]
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(line.split(" ")) for line in metadata["tokenizer.ggml.merges"]]
    words = {text: i for i, text in enumerate(tokens) if text not in SPECIALS}
    backend = tokenizers.Tokenizer(models.BPE(vocab=words, merges=merges))
    split = pre_tokenizers.Split(Regex(QWEN2), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    backend.normalizer = normalizers.NFC()
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(text, normalized=False) for text in SPECIALS])
    backend.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    backend.enable_truncation(4)
    return write(folder, backend, config)


def write_llama(folder: Path) -> Path:
    metadata = SMALL["llama"]["metadata"]
    tokens = metadata["tokenizer.ggml.tokens"]
    learned = tokens[259:]
    merges = [(t[:i], t[i:]) for t in learned for i in range(1, len(t)) if t[:i] in learned and t[i:] in learned]
    vocab = {text: i for i, text in enumerate(tokens)}
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges, byte_fallback=True, unk_token="<unk>"))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    backend.add_special_tokens(["<unk>", "<s>", "</s>"])
    backend.post_processor = processors.TemplateProcessing("<s> $A", special_tokens=[("<s>", 1)])
    return write(folder, backend, None)


def write(folder: Path, backend: tokenizers.Tokenizer, config: dict[str, Any] | None) -> Path:
    backend.save(str(folder / "tokenizer.json"))
    if config is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder / "tokenizer.json"


def test_byte_level_file(tmp_path: Path) -> None:
    config = {"bos_token": None, "eos_token": {"content": "<|im_end|>"}, "add_bos_token": False}
    path = write_qwen2(tmp_path, config)
    for place in (path, tmp_path, str(path)):
        tokenizer = Tokenizer.from_file(place)
        for case in SMALL["qwen2"]["cases"]:
            assert tokenizer.encode(case["text"]) == case["ids"]
            assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.bos_id is None
    assert tokenizer.eos_id == tokenizer.token_id("<|im_end|>")
    assert {tokenizer.token_text(i) for i in tokenizer.eos_ids} == {"<|im_end|>", "<|endoftext|>"}
    assert {tokenizer.token_text(i) for i in tokenizer.special_ids} == set(SPECIALS)
    think = tokenizer.token_id("<think>")
    assert tokenizer.encode("<think>", parse_special=False) == [think]
    assert tokenizer.decode([think]) == "<think>"


def test_special_tokens_as_text(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(write_qwen2(tmp_path))
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.encode("a<|im_end|>")[-1] == end
    as_text = tokenizer.encode("a<|im_end|>", parse_special=False)
    assert end not in as_text
    assert tokenizer.decode(as_text) == "a<|im_end|>"
    assert tokenizer.encode("a<|im_end|>")[-1] == end


def test_sentencepiece_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer.from_file(write_llama(tmp_path))
    reference = Tokenizer.from_gguf(SMALL["llama"]["metadata"])
    for case in SMALL["llama"]["cases"]:
        assert tokenizer.decode(case["ids"]) == case["decoded"]
    assert tokenizer.encode("日本 €", add_special=True)[0] == 1
    assert (tokenizer.bos_id, tokenizer.add_bos) == (1, True)
    for i in range(reference.vocab_size):
        assert tokenizer.token_bytes(i) == reference.token_bytes(i)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match="no tokenizer file"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"3", b"{}", b'{"model": 3}', b"\xff\xfe", b'{"model": null}'])
def test_files_that_are_none(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(InvalidModelFile, match=r"tokenizer\.json"):
        Tokenizer.from_file(path)


def test_a_broken_config_beside(tmp_path: Path) -> None:
    path = write_qwen2(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("{")
    with pytest.raises(InvalidModelFile, match=r"tokenizer_config\.json is not JSON"):
        Tokenizer.from_file(path)


def test_a_file_that_makes_the_library_panic(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    backend = tokenizers.Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "ab": 2}, merges=[("a", "b")]))
    description = json.loads(backend.to_str())
    description["model"]["continuing_subword_prefix"] = "###"
    (tmp_path / "tokenizer.json").write_text(json.dumps(description))
    with pytest.raises(InvalidModelFile, match=r"tokenizer\.json is not a tokenizer\.json that can be read"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    capfd.readouterr()  # the panic's own message


def test_half_a_character_beside(tmp_path: Path) -> None:
    path = write_qwen2(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"bos_token": "\\ud83d", "eos_token": "<|im_end|>"}')
    assert Tokenizer.from_file(path).bos_id is None


def test_other_kinds_are_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece(vocab={"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(UnsupportedModel, match="WordPiece tokenizer"):
        Tokenizer.from_file(write(tmp_path, backend, None))
