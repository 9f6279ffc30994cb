"""Tokenizer metadata: the same ids as the tokenizer.json gives, from either kind of files; and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_checkpoint import ADDED, CHAT_TEMPLATE, SPECIAL, write_json, write_tokenizer
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from qwen3omni_wgpu.convert.vocabulary import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from qwen3omni_wgpu.inputs.pretokenizers import RULES
from qwen3omni_wgpu.inputs.template import ChatTemplate
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.inputs.vocabulary import Kind

SIZE = 384
PIECES = [
    *SPECIAL,
    *ADDED,
    "hello world",
    " assistant",
    "It's",
    "don'T",
    " 42",
    "３.14",
    "\n\n\t ",
    "  \r\n",
    "def f(x):\n    return x**2\n",
    "e\u0301 é Å \u212b",
    "日本語と中文",
    "👩‍👩‍👧🚀",
    "\u00a0\u3000",
    "<|im_",
    "[PAD380]",
    "ß",
]
TEXTS = st.one_of(
    st.text(max_size=40), st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The release's kind of files, and a tokenizer.json of the same vocabulary in the folder "json" inside."""
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder, tokenizer_json=False)
    (folder / "json").mkdir()
    write_tokenizer(folder / "json", tokenizer_json=True)
    return folder


@pytest.fixture(scope="module")
def three(folder: Path) -> tuple[Tokenizer, Tokenizer, Tokenizer]:
    """From vocab.json and merges.txt, from tokenizer.json by way of metadata, and straight from tokenizer.json."""
    made = [Tokenizer.from_gguf(metadata(place, SIZE)) for place in (folder, folder / "json")]
    return made[0], made[1], Tokenizer.from_file(folder / "json" / "tokenizer.json")


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, parse_special=st.booleans())
def test_any_text(three: tuple[Tokenizer, Tokenizer, Tokenizer], text: str, parse_special: bool) -> None:
    slow, fast, expected = three
    ids = expected.encode(text, parse_special=parse_special)
    for tokenizer in (slow, fast):
        assert tokenizer.encode(text, parse_special=parse_special) == ids
        for skip in (False, True):
            assert tokenizer.decode(ids, skip_special=skip) == expected.decode(ids, skip_special=skip)


def test_both_kinds_of_files_say_the_same(folder: Path) -> None:
    assert metadata(folder, SIZE) == metadata(folder / "json", SIZE)


def test_what_stands_in_the_metadata(folder: Path) -> None:
    found = {key.removeprefix("tokenizer.ggml."): value for key, value in metadata(folder, SIZE).items()}
    tokens, kinds = found["tokens"], found["token_type"]
    assert (found["model"], found["pre"]) == ("gpt2", "qwen2")
    assert len(tokens) == len(kinds) == len(set(tokens)) == SIZE
    assert [kinds[tokens.index(text)] for text in SPECIAL] == [Kind.CONTROL] * len(SPECIAL)
    assert [kinds[tokens.index(text)] for text in ADDED] == [Kind.USER_DEFINED] * len(ADDED)
    assert kinds[tokens.index("hello")] == Kind.NORMAL
    used = SIZE - kinds.count(Kind.UNUSED)
    assert tokens[used:] == [f"[PAD{i}]" for i in range(used, SIZE)]
    assert found["merges"][:3] == ["u s", "us e", "use r"]
    assert tokens[found["eos_token_id"]] == "<|im_end|>"
    assert tokens[found["padding_token_id"]] == "<|endoftext|>"
    assert found["add_bos_token"] is False
    assert "bos_token_id" not in found
    assert "unknown_token_id" not in found
    assert found["tokenizer.chat_template"] == CHAT_TEMPLATE


def test_prompts(folder: Path) -> None:
    found = metadata(folder, SIZE)
    tokenizer = Tokenizer.from_gguf(found)
    template = ChatTemplate.from_gguf(found, tokenizer)
    text = template.render([{"role": "user", "content": "hello"}])
    assert text == "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\n"
    assert [tokenizer.token_text(i) for i in tokenizer.encode(text, add_special=True)][:2] == ["<|im_start|>", "user"]


def changed(source: Path, target: Path, name: str, change: dict[str, Any]) -> Path:
    """A copy of a tokenizer's files with some entries of one of them replaced."""
    target.mkdir(exist_ok=True)
    for path in source.iterdir():
        if path.is_file():
            (target / path.name).write_bytes(path.read_bytes())
    path = target / name
    write_json(path, (json.loads(path.read_text("utf-8")) if path.is_file() else {}) | change)
    return target


def named(found: dict[str, Any], role: str) -> str | None:
    token_id = found.get(f"tokenizer.ggml.{role}_token_id")
    return None if token_id is None else found["tokenizer.ggml.tokens"][token_id]


def test_end_tokens(folder: Path, tmp_path: Path) -> None:
    """generation_config.json first, then config.json, then tokenizer_config.json; several become eos, eot and eom."""
    tokens = metadata(folder, SIZE)["tokenizer.ggml.tokens"]
    end, text_end, think = (tokens.index(text) for text in ("<|im_end|>", "<|endoftext|>", "</think>"))

    def roles(**files: Any) -> list[str | None]:
        found = metadata(folder, SIZE, **files)
        return [named(found, role) for role in ("eos", "eot", "eom")]

    assert roles() == ["<|im_end|>", None, None]
    assert roles(config={"im_end_token_id": end}) == ["<|im_end|>", None, None]
    assert roles(config={"eos_token_id": text_end}) == ["<|endoftext|>", "<|im_end|>", None]
    assert roles(config={"thinker_config": {"text_config": {"eos_token_id": think}}})[0] == "</think>"
    several = {"eos_token_id": [end, text_end, think]}
    assert roles(generation=several, config={"im_end_token_id": 3}) == ["<|im_end|>", "<|endoftext|>", "</think>"]
    assert roles(generation={"eos_token_id": 0})[:2] == [tokens[0], "<|im_end|>"]
    by_file = changed(folder, tmp_path / "x", "generation_config.json", {"eos_token_id": [text_end]})
    found = metadata(by_file, SIZE)
    assert named(found, "eos") == "<|endoftext|>"
    assert {tokens[i] for i in Tokenizer.from_gguf(found).eos_ids} >= {"<|im_end|>", "<|endoftext|>"}


@pytest.mark.parametrize("value", [[SIZE], -1, "2", [True], 1.5, [[]]])
def test_senseless_end_tokens(folder: Path, value: Any) -> None:
    with pytest.raises(InvalidModelFile, match="eos_token_id"):
        metadata(folder, SIZE, generation={"eos_token_id": value})


def test_tokens_as_objects(folder: Path, tmp_path: Path) -> None:
    entry = {"content": "<|endoftext|>", "lstrip": False}
    found = metadata(changed(folder, tmp_path, "tokenizer_config.json", {"eos_token": entry, "bos_token": entry}), SIZE)
    assert named(found, "eos") == named(found, "bos") == "<|endoftext|>"


def test_begin_token(folder: Path, tmp_path: Path) -> None:
    wanted = {"bos_token": "<|im_start|>", "add_bos_token": True}
    found = metadata(changed(folder, tmp_path / "a", "tokenizer_config.json", wanted), SIZE)
    tokenizer = Tokenizer.from_gguf(found)
    assert tokenizer.encode("hello", add_special=True)[0] == tokenizer.token_id("<|im_start|>")
    # Without such a token there is nothing to begin with, whatever the flag says.
    found = metadata(changed(folder, tmp_path / "b", "tokenizer_config.json", {"add_bos_token": True}), SIZE)
    assert found["tokenizer.ggml.add_bos_token"] is False


def test_begin_token_of_a_template(folder: Path, tmp_path: Path) -> None:
    """Some tokenizer.json put the begin token in by themselves."""
    backend = tokenizers.Tokenizer.from_file(str(folder / "json" / "tokenizer.json"))
    start = backend.token_to_id("<|im_start|>")
    backend.post_processor = processors.TemplateProcessing("<|im_start|> $A", special_tokens=[("<|im_start|>", start)])
    backend.save(str(tmp_path / "tokenizer.json"))
    write_json(tmp_path / "tokenizer_config.json", {"bos_token": "<|im_start|>"})
    assert Tokenizer.from_gguf(metadata(tmp_path, SIZE)).encode("x", add_special=True)[0] == start


def test_added_tokens_json(folder: Path, tmp_path: Path) -> None:
    """Older checkpoints: text -> id, the kinds stand elsewhere."""
    config = {"additional_special_tokens": ["<new>"]}
    place = changed(changed(folder, tmp_path, "tokenizer_config.json", config), tmp_path / "b", "added_tokens.json", {})
    write_json(place / "added_tokens.json", {"<new>": 360, "<other>": 361, "<think>": metadata_id(folder, "<think>")})
    found = metadata(place, SIZE)
    assert found["tokenizer.ggml.token_type"][360:362] == [Kind.CONTROL, Kind.USER_DEFINED]
    assert found["tokenizer.ggml.tokens"][359:362] == ["[PAD359]", "<new>", "<other>"]


def metadata_id(folder: Path, text: str) -> int:
    return metadata(folder, SIZE)["tokenizer.ggml.tokens"].index(text)


def test_holes_are_filled_and_named_apart(folder: Path, tmp_path: Path) -> None:
    """As llama.cpp does; a token that is called like the filling keeps its name."""
    place = changed(folder, tmp_path, "added_tokens.json", {"[PAD370]": 380})
    found = metadata(place, SIZE)
    tokens, kinds = found["tokenizer.ggml.tokens"], found["tokenizer.ggml.token_type"]
    assert tokens[369:371] == ["[PAD369]", "[[PAD370]]"]
    assert tokens[380:382] == ["[PAD370]", "[PAD381]"]
    assert kinds[369:371] == [Kind.UNUSED] * 2
    assert len(set(tokens)) == SIZE
    assert Tokenizer.from_gguf(found).decode([370]) == ""


# Chat templates ----------------------------------------------------------------------------------------------------


def test_places_of_the_chat_template(folder: Path, tmp_path: Path) -> None:
    place = changed(folder, tmp_path, "tokenizer_config.json", {"chat_template": "three"})
    key = "tokenizer.chat_template"
    assert metadata(place, SIZE)[key] == CHAT_TEMPLATE
    (place / "chat_template.jinja").write_text("one ü", encoding="utf-8")
    assert metadata(place, SIZE)[key] == "one ü"
    (place / "chat_template.jinja").unlink()
    (place / "chat_template.json").unlink()
    assert metadata(place, SIZE)[key] == "three"
    both = [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]
    for form in (both, {"default": "d", "tool_use": "t"}):
        found = metadata(changed(place, tmp_path / "n", "tokenizer_config.json", {"chat_template": form}), SIZE)
        assert (found[key], found[f"{key}.tool_use"], found["tokenizer.chat_templates"]) == ("d", "t", ["tool_use"])
    assert key not in metadata(changed(place, tmp_path / "m", "tokenizer_config.json", {"chat_template": None}), SIZE)


@pytest.mark.parametrize("value", [3, [3], {"default": None}, "\ud800"])
def test_senseless_chat_templates(folder: Path, tmp_path: Path, value: Any) -> None:
    place = changed(folder, tmp_path / "a", "tokenizer_config.json", {})
    (place / "chat_template.json").write_text(json.dumps({"chat_template": value}), encoding="utf-8")
    if value == [3]:
        assert "tokenizer.chat_template" not in metadata(place, SIZE)
        return
    with pytest.raises(InvalidModelFile, match=r"chat_template\.json"):
        metadata(place, SIZE)


# Other tokenizers --------------------------------------------------------------------------------------------------


def write_backend(folder: Path, pre: Any, normalizer: Any = None, ignore_merges: bool = False) -> Path:
    """A tokenizer.json without merges around a pre-tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    model = models.BPE(vocab={text: i for i, text in enumerate(alphabet)}, merges=[], ignore_merges=ignore_merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre
    if normalizer is not None:
        backend.normalizer = normalizer
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken("<|im_end|>", normalized=False)])
    folder.mkdir(exist_ok=True)
    backend.save(str(folder / "tokenizer.json"))
    return folder


@pytest.mark.parametrize("name", RULES)
def test_every_known_rule_is_recognised(tmp_path: Path, name: str) -> None:
    """By its own name or by one of the same meaning."""
    rule = RULES[name]
    place = write_backend(tmp_path, rule.build(), rule.normalizer(), rule.ignore_merges)
    found = RULES[metadata(place, 300)["tokenizer.ggml.pre"]]
    same = (found.splits, found.nfc, found.ignore_merges, type(found))
    assert same == (rule.splits, rule.nfc, rule.ignore_merges, type(rule))


def test_other_spellings_of_a_rule(tmp_path: Path) -> None:
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert metadata(write_backend(tmp_path / "a", gpt2), 300)["tokenizer.ggml.pre"] == "gpt-2"
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), gpt2])
    assert metadata(write_backend(tmp_path / "b", digits), 300)["tokenizer.ggml.pre"] == "smollm"
    nfc = normalizers.Sequence([normalizers.NFC()])
    assert metadata(write_backend(tmp_path / "c", RULES["qwen2"].build(), nfc), 300)["tokenizer.ggml.pre"] == "qwen2"


def spelled(behavior: str, invert: bool = False) -> Any:
    """The Qwen2 rule's expression, but not to cut by it."""
    split = pre_tokenizers.Split(Regex(RULES["qwen2"].splits[0]), behavior, invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])


def test_the_spelling_used_below() -> None:
    assert spelled("isolated").pre_tokenize_str("a b") == RULES["qwen2"].build().pre_tokenize_str("a b")


@pytest.mark.parametrize(
    ("pre", "normalizer"),
    [
        (pre_tokenizers.ByteLevel(add_prefix_space=True), None),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "isolated"), RULES["qwen2"].build()]), None),
        (spelled("removed"), None),
        (spelled("merged_with_previous"), None),
        (spelled("isolated", invert=True), None),
        (RULES["qwen2"].build(), normalizers.Lowercase()),
        (RULES["qwen2"].build(), normalizers.NFKC()),
        (pre_tokenizers.Sequence([pre_tokenizers.Split(Regex("x"), "removed"), pre_tokenizers.ByteLevel(False)]), None),
        (pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(False)]), None),
    ],
)
def test_unknown_rules_are_refused_with_advice(tmp_path: Path, pre: Any, normalizer: Any) -> None:
    with pytest.raises(UnsupportedModel, match="--tokenizer-file"):
        metadata(write_backend(tmp_path, pre, normalizer), 300)


def test_other_kinds_of_tokenizers(folder: Path, tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.Unigram([("a", 0.0)], unk_id=0))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="byte-level BPE"):
        metadata(tmp_path, 300)
    for name in ("LlamaTokenizer", None, 3):
        place = changed(folder, tmp_path / "b", "tokenizer_config.json", {"tokenizer_class": name})
        with pytest.raises(UnsupportedModel, match="tokenizer_class"):
            metadata(place, SIZE)


def test_parts_of_words_are_refused(folder: Path, tmp_path: Path) -> None:
    description = json.loads((folder / "json" / "tokenizer.json").read_text("utf-8"))
    for key, value in (("continuing_subword_prefix", "##"), ("end_of_word_suffix", "</w>")):
        write_json(tmp_path / "tokenizer.json", description | {"model": description["model"] | {key: value}})
        with pytest.raises(UnsupportedModel, match=key):
            metadata(tmp_path, SIZE)


# Damage ------------------------------------------------------------------------------------------------------------


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"tokenizer\.json.*vocab\.json"):
        metadata(tmp_path, SIZE)
    place = changed(folder, tmp_path / "b", "tokenizer_config.json", {})
    (place / "merges.txt").unlink()
    with pytest.raises(ModelNotFound, match=r"merges\.txt"):
        metadata(place, SIZE)


@pytest.mark.parametrize("name", ["vocab.json", "tokenizer_config.json", "chat_template.json", "merges.txt"])
def test_damaged_files_are_named(folder: Path, tmp_path: Path, name: str) -> None:
    for start, damage in enumerate((b"\xff\xfe", b"", b"{" if name.endswith("json") else b"a\n", b"[1]")):
        place = changed(folder, tmp_path / str(start), "tokenizer_config.json", {})
        (place / name).write_bytes(damage)
        with pytest.raises(InvalidModelFile) as caught:
            metadata(place, SIZE)
        message = str(caught.value)
        assert name in message or "merge 0" in message
        assert "\n" not in message


def damage(folder: Path, **change: Any) -> Path:
    words = json.loads((folder / "vocab.json").read_text("utf-8"))
    target = folder / "vocab.json"
    target.write_text(json.dumps(words | change), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"new": 5}, "id 5 belongs to two tokens"),
        ({"new": SIZE}, f"id {SIZE}, but the model's vocab_size is {SIZE}"),
        ({"new": 10**9}, "vocab_size"),
        ({"new": -1}, "expected a whole number"),
        ({"new": "5"}, "expected a whole number"),
        ({"new": 370.0}, "expected a whole number"),
        ({"new": True}, "expected a whole number"),
        ({"new": None}, "expected a whole number"),
        ({"<think>": 370}, "has two ids"),
        ({"\ud800": 370}, "not valid Unicode"),
    ],
)
def test_contradictory_vocabularies(folder: Path, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    place = damage(changed(folder, tmp_path / "x", "tokenizer_config.json", {}), **change)
    with pytest.raises(InvalidModelFile, match=message):
        metadata(place, SIZE)


def test_too_few_rows(folder: Path) -> None:
    used = SIZE - metadata(folder, SIZE)["tokenizer.ggml.token_type"].count(Kind.UNUSED)
    assert len(metadata(folder, used)["tokenizer.ggml.tokens"]) == used
    with pytest.raises(InvalidModelFile, match="vocab_size"):
        metadata(folder, used - 1)


@pytest.mark.parametrize("line", ["h", "h e l", "h zz", "zz e", "h  e", "e h"])
def test_senseless_merges(folder: Path, tmp_path: Path, line: str) -> None:
    place = changed(folder, tmp_path / "x", "tokenizer_config.json", {})
    lines = (folder / "merges.txt").read_text("utf-8").split("\n")
    rank = int(np.random.default_rng().integers(1, len(lines)))
    (place / "merges.txt").write_text("\n".join([*lines[:rank], line, *lines[rank:]]), encoding="utf-8")
    with pytest.raises(InvalidModelFile, match=f"merge {rank - 1} "):
        metadata(place, SIZE)


@pytest.mark.parametrize(
    "listed", [3, {"x": {"content": "<a>"}}, {"370": "<a>"}, {"370": {"content": ""}}, {"5": {"content": "<a>"}}]
)
def test_senseless_added_tokens(folder: Path, tmp_path: Path, listed: Any) -> None:
    place = changed(folder, tmp_path / "x", "tokenizer_config.json", {"added_tokens_decoder": listed})
    with pytest.raises(InvalidModelFile, match=r"tokenizer_config\.json"):
        metadata(place, SIZE)


def test_windows_line_ends(folder: Path, tmp_path: Path) -> None:
    place = changed(folder, tmp_path / "x", "tokenizer_config.json", {})
    (place / "merges.txt").write_bytes((folder / "merges.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert metadata(place, SIZE) == metadata(folder, SIZE)


JUNK = [None, True, -1, 1.5, "", "x", "\ud800", [], {}, [1], {"a": 1}, 10**30, "<|im_end|>", [["a", "b"]], "Sequence"]


@pytest.mark.parametrize("seed", range(4))
def test_damaged_entries_are_refused_or_harmless(folder: Path, tmp_path: Path, seed: int) -> None:
    """A random entry of a random file made senseless: a tokenizer that works, or one line of ours."""
    rng = np.random.default_rng(seed)
    source = folder / "json"
    names = ["tokenizer.json", "tokenizer_config.json", "chat_template.json", "vocab.json"]
    for name in rng.choice(names, 40, p=[0.5, 0.3, 0.05, 0.15]):
        place = changed(folder if name == "vocab.json" else source, tmp_path / "x", "tokenizer_config.json", {})
        value = json.loads((place / name).read_text("utf-8"))
        spoil(rng, value)
        (place / name).write_text(json.dumps(value), encoding="utf-8")
        try:
            found = metadata(place, SIZE)
        except (InvalidModelFile, UnsupportedModel) as error:
            assert "\n" not in str(error)  # noqa: PT017
        else:
            Tokenizer.from_gguf(found).encode("hello <|im_end|> 42")
        (place / "tokenizer.json").unlink(missing_ok=True)


def spoil(rng: np.random.Generator, value: Any) -> None:
    """Walk down to some entry and replace it."""
    keys = list(value) if isinstance(value, dict) else range(len(value))
    key = keys[int(rng.integers(len(keys)))]
    if isinstance(value[key], (dict, list)) and value[key] and rng.random() < 0.8:
        spoil(rng, value[key])
    else:
        value[key] = json.loads(json.dumps(JUNK[int(rng.integers(len(JUNK)))]))
