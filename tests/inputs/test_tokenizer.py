"""Token ids against transformers' goldens, round trips, special tokens, and damaged metadata."""

import time
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import sentencepiece_twin
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import SMALL, SPECIALS, goldens, plain, trained

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

# Any text without lone surrogates, with many of the characters on which word rules differ.
TEXT = st.text(
    st.one_of(
        st.sampled_from(list("aZé1 ²½٣\n\r\t'sSt.,_/<|>中の🙂\u0301\u00a0\u3000ſ")),
        st.characters(exclude_categories=["Cs"]),
    ),
    max_size=40,
)


@pytest.fixture(scope="session")
def smollm2(smollm2_path: Path) -> Tokenizer:
    return Tokenizer.from_gguf(read_gguf(smollm2_path).metadata)


@pytest.mark.parametrize("name", SMALL)
def test_ids_are_those_of_transformers(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(trained(name))
    for case in SMALL[name]["cases"]:
        assert tokenizer.encode(case["text"]) == case["ids"], case["text"]
        assert tokenizer.decode(case["ids"]) == case["decoded"]


@pytest.mark.model
def test_smollm2_ids_are_those_of_transformers(smollm2: Tokenizer) -> None:
    cases = goldens("smollm2")["cases"]
    assert len(cases) > 20
    for case in cases:
        assert smollm2.encode(case["text"]) == case["ids"], case["text"]
        assert smollm2.decode(case["ids"]) == case["decoded"]


@pytest.mark.model
def test_smollm2_roles(smollm2: Tokenizer) -> None:
    assert smollm2.vocab_size == 49152
    assert (smollm2.bos_id, smollm2.eos_id, smollm2.add_bos) == (1, 2, False)
    assert {smollm2.token_id("<|im_end|>"), smollm2.token_id("<|endoftext|>")} <= smollm2.eos_ids
    assert smollm2.special_ids == frozenset(range(17))
    assert smollm2.encode("hello", add_special=True) == smollm2.encode("hello")


@pytest.mark.model
@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_smollm2_round_trip(smollm2: Tokenizer, text: str) -> None:
    # Its vocabulary has no token for some bytes of characters that are not assigned; they get lost in transformers too.
    known = {smollm2.token_bytes(i) for i in range(17, smollm2.vocab_size)}
    text = "".join(c for c in text if all(bytes([b]) in known for b in c.encode()))
    assert smollm2.decode(smollm2.encode(text), skip_special=False) == text


@pytest.mark.parametrize("name", ["gpt-2", "qwen2", "qwen35"])
@settings(max_examples=200, deadline=None)
@given(text=TEXT, parse_special=st.booleans())
def test_round_trip(name: str, text: str, parse_special: bool) -> None:
    tokenizer = tokenizers_of()[name]
    expected = text if name == "gpt-2" else unicodedata.normalize("NFC", text)
    assert tokenizer.decode(tokenizer.encode(text, parse_special=parse_special), skip_special=False) == expected


@settings(max_examples=200, deadline=None)
@given(text=TEXT)
def test_sentencepiece_round_trip(text: str) -> None:
    tokenizer = tokenizers_of()["llama"]
    expected = text.replace("\u2581", " ")
    assert tokenizer.decode(tokenizer.encode(text, parse_special=False), skip_special=False) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(st.sampled_from(list("  abdehilnorstuwy,.0129éß日本🙂=\n")), max_size=60))
def test_sentencepiece_merges_by_score(text: str) -> None:
    metadata = SMALL["llama"]["metadata"]
    tokenizer = tokenizers_of()["llama"]
    fields = (metadata[f"tokenizer.ggml.{key}"] for key in ("tokens", "scores", "token_type"))
    score_of = {token: score for token, score, kind in zip(*fields, strict=True) if kind == 1}
    pieces = sentencepiece_twin.encode("\u2581" + text.replace(" ", "\u2581"), score_of) if text else []
    expected: list[int | None] = []
    for piece in pieces:
        known = tokenizer.token_id(piece)
        expected += [tokenizer.token_id(f"<0x{b:02X}>") for b in piece.encode()] if known is None else [known]
    assert tokenizer.encode(text, parse_special=False) == expected


def test_sentencepiece_prefers_score_over_order() -> None:
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), "a", "b", "c", "ab", "bc", "\u2581"]
    scores = [0.0] * 259 + [-9.0, -9.0, -9.0, -5.0, -2.0, -9.0]
    metadata = spm(tokens, scores, add_space_prefix=False)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("abc")] == ["a", "bc"]
    metadata["tokenizer.ggml.scores"][262] = -1.0
    tokenizer = Tokenizer.from_gguf(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("abc")] == ["ab", "c"]


def test_sentencepiece_spaces_and_begin() -> None:
    tokenizer = tokenizers_of()["llama"]
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.add_bos) == (1, 2, True)
    assert tokenizer.encode("", add_special=True) == [1]
    assert tokenizer.encode("hello", add_special=True) == [1, *tokenizer.encode("hello")]
    assert tokenizer.token_bytes(tokenizer.encode("hello")[0])[:1] == b" "
    assert tokenizer.token_bytes(3 + 0xE4) == b"\xe4"
    bare = trained("llama") | {"tokenizer.ggml.add_space_prefix": False}
    tokenizer = Tokenizer.from_gguf(bare)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert tokenizer.decode(tokenizer.encode(" hello")) == " hello"
    assert tokenizer.token_bytes(tokenizer.encode("hello")[0])[:1] == b"h"


def test_control_tokens_only_where_asked() -> None:
    tokenizer = Tokenizer.from_gguf(plain())
    end = tokenizer.token_id("<|im_end|>")
    assert tokenizer.encode("a<|im_end|>b") == [*tokenizer.encode("a"), end, *tokenizer.encode("b")]
    as_text = tokenizer.encode("a<|im_end|>b", parse_special=False)
    assert end not in as_text
    assert len(as_text) == len("a<|im_end|>b")
    assert tokenizer.decode([end]) == ""
    assert tokenizer.decode([end], skip_special=False) == "<|im_end|>"


def test_user_defined_tokens_always_match() -> None:
    metadata = plain(specials=["<think>", "<|im_end|>", "ée"])
    metadata["tokenizer.ggml.token_type"][-3:] = [4, 3, 4]
    tokenizer = Tokenizer.from_gguf(metadata)
    think, accent = tokenizer.token_id("<think>"), tokenizer.token_id("ée")
    assert tokenizer.encode("<think>", parse_special=False) == [think]
    assert tokenizer.encode("xéex", parse_special=False)[1] == accent
    assert think not in tokenizer.special_ids
    assert tokenizer.decode([think, accent]) == "<think>ée"


def test_the_longest_special_token_wins() -> None:
    tokenizer = Tokenizer.from_gguf(plain(specials=["<a", "<a>", "<a>b"]))
    assert tokenizer.encode("<a>b<a><a") == [tokenizer.token_id(text) for text in ("<a>b", "<a>", "<a")]


def test_unused_tokens_are_never_made_nor_shown() -> None:
    metadata = plain("llama-bpe", specials=["[PAD0]", "zz"], bos_token_id=0)
    metadata["tokenizer.ggml.token_type"][-2:] = [5, 5]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.token_id("zz") not in tokenizer.encode("zz [PAD0]")
    assert tokenizer.decode([256, 257]) == ""


def test_words_that_are_tokens_need_no_merges_in_llama_3() -> None:
    extra = {"specials": ["zzz"], "merges": []}
    for pre, expected in (("llama-bpe", 1), ("qwen2", 3)):
        metadata = plain(pre, **extra)
        metadata["tokenizer.ggml.token_type"][-1] = 1
        assert len(Tokenizer.from_gguf(metadata).encode("zzz")) == expected


@pytest.mark.parametrize(
    ("pre", "fields", "expected"),
    [
        ("llama-bpe", {"bos_token_id": 256}, True),
        ("llama-bpe", {"bos_token_id": 256, "add_bos_token": False}, False),
        ("llama-bpe", {}, False),
        ("tekken", {"bos_token_id": 256}, True),
        ("qwen2", {"bos_token_id": 256}, False),
        ("qwen2", {"bos_token_id": 256, "add_bos_token": True}, True),
    ],
)
def test_begin_token(pre: str, fields: dict[str, Any], expected: bool) -> None:
    tokenizer = Tokenizer.from_gguf(plain(pre, **fields))
    assert tokenizer.add_bos is expected
    ids = tokenizer.encode("x", add_special=True)
    assert ids == ([256] if expected else []) + tokenizer.encode("x")
    assert 256 not in tokenizer.encode("x")
    # A prompt that already begins with it gets no second one.
    assert tokenizer.encode("<|endoftext|>x", add_special=True) == tokenizer.encode("<|endoftext|>x")


def test_end_token_is_appended_where_wanted() -> None:
    tokenizer = Tokenizer.from_gguf(plain(eos_token_id=258, add_eos_token=True))
    assert tokenizer.encode("x", add_special=True) == [*tokenizer.encode("x"), 258]
    assert tokenizer.encode("x")[-1] != 258


@pytest.mark.parametrize(
    ("specials", "fields", "expected"),
    [
        (SPECIALS, {}, {"<|endoftext|>", "<|im_end|>"}),
        (
            ["<A>", "<B>", "<C>", "<D>"],
            {"eos_token_id": 256, "eot_token_id": 257, "eom_token_id": 258},
            {"<A>", "<B>", "<C>"},
        ),
        (["<|eot_id|>", "<|eom_id|>", "<|start|>"], {"eos_token_id": 256}, {"<|eot_id|>", "<|eom_id|>"}),
        (["<end_of_turn>", "<start_of_turn>"], {}, {"<end_of_turn>"}),
        (["<|end|>", "<|user|>"], {}, {"<|end|>"}),
        (["<|end|>", "<|return|>", "<|call|>"], {}, {"<|return|>", "<|call|>"}),
        (["<｜end▁of▁sentence｜>", "</s>"], {}, {"<｜end▁of▁sentence｜>", "</s>"}),
        (["<x>"], {}, set()),
    ],
)
def test_end_ids(specials: list[str], fields: dict[str, Any], expected: set[str]) -> None:
    tokenizer = Tokenizer.from_gguf(plain(specials=specials, **fields))
    assert {tokenizer.token_text(i) for i in tokenizer.eos_ids} == expected


def test_an_end_text_that_is_an_ordinary_token_ends_nothing() -> None:
    metadata = plain(specials=["</s>"])
    metadata["tokenizer.ggml.token_type"][-1] = 1
    assert Tokenizer.from_gguf(metadata).eos_ids == frozenset()


def test_without_token_types_roles_are_special() -> None:
    metadata = plain(token_type=None, specials=["<s>", "<|im_end|>", "<other>"], bos_token_id=256)
    tokenizer = Tokenizer.from_gguf(metadata)
    assert tokenizer.special_ids == {256, 257}
    assert tokenizer.encode("<s>") == [256]


def test_missing_pre_warns(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = Tokenizer.from_gguf(plain(pre=None))
    assert "tokenizer.ggml.pre is missing" in caplog.text
    assert tokenizer.decode(tokenizer.encode("a, 1234")) == "a, 1234"


def test_bytes_that_are_no_text() -> None:
    tokenizer = Tokenizer.from_gguf(plain())
    euro = [tokenizer.encode("€")[0], tokenizer.encode("x")[0]]
    assert tokenizer.token_bytes(euro[0]) == b"\xe2"
    assert tokenizer.decode(euro) == "\ufffdx"


def test_ids_outside_the_vocabulary() -> None:
    tokenizer = Tokenizer.from_gguf(plain())
    assert tokenizer.vocab_size == 259
    assert tokenizer.token_bytes(259) == b""  # a padding row of the embedding
    with pytest.raises(InvalidRequest, match="-1 is negative"):
        tokenizer.token_bytes(-1)
    with pytest.raises(InvalidRequest, match="259"):
        tokenizer.token_text(259)
    assert tokenizer.token_id("no such token") is None


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="character 1"):
        Tokenizer.from_gguf(plain()).encode("a\udc80")


def spm(tokens: list[str], scores: list[float], **fields: Any) -> dict[str, Any]:
    types = [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)
    metadata = {"model": "llama", "tokens": tokens, "scores": scores, "token_type": types, **fields}
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}


DAMAGED: list[tuple[str, Any, str]] = [
    ("model", 7, "model is int, expected str"),
    ("tokens", None, "lacks tokenizer.ggml.tokens"),
    ("tokens", [], "tokens is empty"),
    ("tokens", "abc", "tokens is str, expected list"),
    ("tokens", ["a", 5], r"tokens\[1\] is int"),
    ("tokens", ["a", "a"], "'a' more than once"),
    ("token_type", [1, 2], "has 2 entries, but there are 259"),
    ("token_type", [9] * 259, r"token_type\[0\] is 9"),
    ("token_type", ["x"] * 259, r"token_type\[0\] is 'x'"),
    ("token_type", [6] * 259, "must look like <0x0A>"),
    ("token_type", 3, "token_type is int"),
    ("merges", None, "lacks tokenizer.ggml.merges"),
    ("merges", [1], r"merges\[0\] is int"),
    ("merges", ["ab"], r"merges\[0\] is 'ab', expected two tokens"),
    ("merges", ["a b c"], "expected two tokens"),
    ("merges", ["a b"], "needs 'ab', which is not a token"),
    ("merges", ["qq a"], "needs 'qq', which is not a token"),
    ("bos_token_id", 259, "is 259, but the vocabulary has 259"),
    ("eos_token_id", -1, "is -1"),
    ("eot_token_id", 10**12, "but the vocabulary has 259"),
    ("eos_token_id", "2", "is str, expected int"),
    ("eos_token_id", True, "is bool, expected int"),
    ("add_bos_token", True, "bos_token_id is missing"),
    ("add_bos_token", 1, "is int, expected bool"),
    ("pre", 3, "pre is int"),
    ("merges", ["x" * 3000], r"merges\[0\] is 'xxx.*\.\.\., expected two tokens"),
]


@pytest.mark.parametrize(("field", "value", "message"), DAMAGED)
def test_damaged_metadata(field: str, value: Any, message: str) -> None:
    with pytest.raises(InvalidModelFile, match=message) as caught:
        Tokenizer.from_gguf(plain(**{field: value}))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scores", None, "lacks tokenizer.ggml.scores"),
        ("scores", [1.0], "has 1 entries"),
        ("scores", [float("nan")] * 500, "expected a number"),
        ("tokens", ["<unk>", "<s>", "</s>"], "has"),
    ],
)
def test_damaged_sentencepiece(field: str, value: Any, message: str) -> None:
    metadata = trained("llama")
    metadata["tokenizer.ggml." + field] = value
    if field == "scores" and isinstance(value, list) and len(value) == 500:
        metadata["tokenizer.ggml.scores"] = [float("nan")] * len(metadata["tokenizer.ggml.tokens"])
    with pytest.raises(InvalidModelFile, match=message):
        Tokenizer.from_gguf(metadata)


def test_sentencepiece_needs_all_byte_tokens() -> None:
    metadata = trained("llama")
    metadata["tokenizer.ggml.token_type"][3] = 5
    metadata["tokenizer.ggml.tokens"][3] = "gone"
    with pytest.raises(InvalidModelFile, match="byte tokens"):
        Tokenizer.from_gguf(metadata)


JUNK = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-5, 400), st.floats(), st.text(max_size=3), st.binary(max_size=3)),
    lambda inner: st.lists(inner, max_size=300),
    max_leaves=300,
)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(["plain", "llama"]), field=st.integers(0, 20), value=JUNK, index=st.integers(0, 300))
def test_junk_in_metadata_raises_our_errors_only(name: str, field: int, value: Any, index: int) -> None:
    metadata = trained("llama") if name == "llama" else plain(merges=["a b"], eos_token_id=258)
    key = sorted(metadata)[field % len(metadata)]
    if isinstance(metadata[key], list) and not isinstance(value, list):
        metadata[key][index % len(metadata[key])] = value
    else:
        metadata[key] = value
    try:
        tokenizer = Tokenizer.from_gguf(metadata)
    except OmniError as error:
        message = str(error)
    else:
        message = ""
        assert isinstance(tokenizer.decode(tokenizer.encode("a b<|im_end|>€", add_special=True)), str)
    assert "\n" not in message
    assert len(message) < 900


def test_no_text_turns_into_a_control_token() -> None:
    pieces = ["<", "s", ">", "<s", "s>"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *pieces, "\u2581"]
    tokenizer = Tokenizer.from_gguf(spm(tokens, [0.0] * 259 + [-5.0] * 6, add_space_prefix=False))
    ids = tokenizer.encode("<s>", parse_special=False)
    assert [tokenizer.token_text(i) for i in ids] == ["<s", ">"]
    assert tokenizer.encode("<s>") == [1]


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv", "no_vocab", "plamo2"])
def test_other_tokenizers_are_refused_by_name(model: str) -> None:
    with pytest.raises(UnsupportedModel, match=rf"'{model}'.*'gpt2'.*'llama'.*--tokenizer-file"):
        Tokenizer.from_gguf(plain(model=model))


def test_no_tokenizer_at_all() -> None:
    with pytest.raises(UnsupportedModel, match=r"holds no tokenizer.*--tokenizer-file"):
        Tokenizer.from_gguf({"general.architecture": "llama"})


def test_a_merge_given_twice_keeps_its_first_rank() -> None:
    metadata = plain(specials=["ab", "bc"], merges=["a b", "b c", "a b"])
    metadata["tokenizer.ggml.token_type"][-2:] = [1, 1]
    tokenizer = Tokenizer.from_gguf(metadata)
    assert [tokenizer.token_text(i) for i in tokenizer.encode("abc")] == ["ab", "c"]


def test_building_is_fast() -> None:
    """A vocabulary of Qwen's size; CPU time, as other work may share the machine."""
    metadata = plain("qwen2")
    alphabet = metadata["tokenizer.ggml.tokens"][:256]
    pairs = [(left, right) for left in alphabet for right in alphabet]
    rest = range(151_936 - 259 - len(pairs))
    triples = [("".join(pairs[i % len(pairs)]), alphabet[i // len(pairs)]) for i in rest]
    merges = pairs + triples
    metadata["tokenizer.ggml.tokens"] = alphabet + ["".join(pair) for pair in merges] + SPECIALS
    metadata["tokenizer.ggml.token_type"] = [1] * (256 + len(merges)) + [3] * 3
    metadata["tokenizer.ggml.merges"] = [" ".join(pair) for pair in merges]
    began = time.process_time()
    tokenizer = Tokenizer.from_gguf(metadata)
    took = time.process_time() - began
    assert tokenizer.vocab_size == 151_936
    assert took < 1.5


_BUILT: dict[str, Tokenizer] = {}


def tokenizers_of() -> dict[str, Tokenizer]:
    """The small vocabularies, built once."""
    if not _BUILT:
        _BUILT.update({name: Tokenizer.from_gguf(trained(name)) for name in SMALL})
    return _BUILT
