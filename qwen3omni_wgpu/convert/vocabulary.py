"""GGUF metadata of a byte-level BPE tokenizer and of the chat template, from the files of a Hugging Face folder.

The tokens come from tokenizer.json, or from vocab.json and merges.txt, with the added tokens of tokenizer_config.json.
Keys and token types are those of the GGUF specification (`tokenizer.ggml.*`), as `inputs.vocabulary` and llama.cpp read
them.
"""

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import tokenizers

from ..errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from ..formats.checkpoint import read_json
from ..formats.files import check_regular, unreadable
from ..formats.tensors import shown
from ..inputs.pretokenizers import RULES
from ..inputs.tokenizer_json import read_tokenizer_json
from ..inputs.vocabulary import END_TEXTS, PREFIX, Kind

_log = logging.getLogger(__name__)

_AGAIN = "download it again"
_ADVICE = "give the model's own tokenizer.json with --tokenizer-file when you run the model, or use a GGUF of it"
# Without a tokenizer.json only the class says how words are cut.
_CLASSES = {
    "Qwen2Tokenizer": "qwen2",
    "Qwen2TokenizerFast": "qwen2",
    "GPT2Tokenizer": "gpt-2",
    "GPT2TokenizerFast": "gpt-2",
}
_ROLES = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}


def chat_templates(folder: Path) -> dict[str, Any]:
    """`tokenizer.chat_template` alone, for models whose tokenizer is given as a file of its own."""
    return _templates(folder, _optional(folder / "tokenizer_config.json"))


def metadata(
    folder: Path,
    vocab_size: int,
    *,
    config: Mapping[str, Any] | None = None,
    generation: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """`tokenizer.ggml.*` and `tokenizer.chat_template` of the checkpoint in `folder`.

    vocab_size: rows of the embedding; ids without a token become unused ones. config, generation: config.json and
    generation_config.json, read from the folder by default; they name the tokens that end an answer.
    Raises ModelNotFound (no tokenizer files), InvalidModelFile (damaged or contradictory) or UnsupportedModel (a kind
    of tokenizer that GGUF metadata cannot describe for us).
    """
    settings = _optional(folder / "tokenizer_config.json")
    config = _optional(folder / "config.json") if config is None else config
    generation = _optional(folder / "generation_config.json") if generation is None else generation
    book = _read(folder, settings)
    found: dict[str, Any] = {"model": "gpt2", "pre": book.pre}
    found["tokens"], found["token_type"] = book.table(vocab_size)
    found["merges"] = book.merges
    roles = {name: book.named(settings.get(f"{name}_token")) for name in _ROLES}
    found |= {f"{_ROLES[name]}_token_id": i for name, i in roles.items() if i is not None}
    found |= _ends(config, generation, found)
    found |= _wrapping(settings, book, found)
    return {PREFIX + key: value for key, value in found.items()} | _templates(folder, settings)


@dataclass
class _Book:
    """Tokens as they are collected: id -> text and kind. `path`: the file to blame."""

    path: Path
    pre: str
    words: Mapping[str, int]
    merges: list[str]
    add_bos: bool = False
    add_eos: bool = False
    texts: dict[int, str] = field(default_factory=dict)
    kinds: dict[int, Kind] = field(default_factory=dict)
    ids: dict[str, int] = field(default_factory=dict)

    def add(self, text: Any, token_id: Any, kind: Kind, path: Path) -> None:
        """One token; the same again is no harm, and an added token says what kind a word is."""
        if not isinstance(text, str) or isinstance(token_id, bool) or not isinstance(token_id, int) or token_id < 0:
            _bad(path, f"token {shown(text)} has id {shown(token_id)}, expected a whole number from 0")
        if self.texts.get(token_id, text) != text:
            _bad(path, f"id {token_id} belongs to two tokens, {shown(self.texts[token_id])} and {shown(text)}")
        if self.ids.get(text, token_id) != token_id:
            _bad(path, f"token {shown(text)} has two ids, {self.ids[text]} and {token_id}")
        self.texts[token_id], self.ids[text], self.kinds[token_id] = text, token_id, kind

    def named(self, value: Any) -> int | None:
        """The id of a token written as tokenizer_config.json does."""
        text = _content(value)
        return None if text is None else self.ids.get(text)

    def table(self, vocab_size: int) -> tuple[list[str], list[int]]:
        """Text and kind of every id below vocab_size; those nobody uses get a text of their own, as in llama.cpp."""
        last = max(self.texts, default=-1)
        if last >= vocab_size:
            what = f"token {shown(self.texts[last])} has id {last}, but the model's vocab_size is {vocab_size}"
            _bad(self.path, what)
        tokens, kinds = [], []
        for i in range(vocab_size):
            text = self.texts.get(i)
            tokens.append(self._unused(i) if text is None else text)
            kinds.append(int(Kind.UNUSED if text is None else self.kinds[i]))
        return tokens, kinds

    def _unused(self, token_id: int) -> str:
        text = f"[PAD{token_id}]"
        while text in self.ids:
            text = f"[{text}]"
        return text

    def check_text(self) -> None:
        for text in (*self.ids, *self.merges):
            _check_unicode(self.path, text)


def _content(token: Any) -> str | None:
    """The text of a token in tokenizer_config.json: a text, or an object that has it under "content"."""
    text = token.get("content") if isinstance(token, Mapping) else token
    return text if isinstance(text, str) else None


def _read(folder: Path, settings: Mapping[str, Any]) -> _Book:
    path = folder / "tokenizer.json"
    for role in _ROLES:
        if (text := _content(settings.get(f"{role}_token"))) is not None:
            _check_unicode(folder / "tokenizer_config.json", text)
    if path.is_file():
        book = _from_tokenizer_json(path)
    elif (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file():
        book = _from_vocab_json(folder, settings)
    else:
        raise ModelNotFound(
            f"{folder}: has no tokenizer.json, and not both vocab.json and merges.txt; download them with the weights"
        )
    _add_from_settings(book, folder / "tokenizer_config.json", settings)
    _add_old_ones(book, folder / "added_tokens.json", settings)
    _check_merges(book)
    book.check_text()
    if path.is_file():  # not before: the library breaks down over some of what is refused above
        vocabulary, _ = read_tokenizer_json(path)
        book.add_bos, book.add_eos = vocabulary.add_bos, vocabulary.add_eos
    return book


def _from_tokenizer_json(path: Path) -> _Book:
    description = read_json(path)
    model = description.get("model")
    if not isinstance(model, dict) or model.get("type", "BPE") != "BPE":
        raise UnsupportedModel(f"{path}: only byte-level BPE can be converted; {_ADVICE}")
    for key in ("continuing_subword_prefix", "end_of_word_suffix", "byte_fallback", "dropout"):
        if model.get(key):
            raise UnsupportedModel(f"{path}: model.{key} is {shown(model[key])}, which GGUF cannot say; {_ADVICE}")
    words, merges = model.get("vocab"), model.get("merges")
    if not isinstance(words, dict) or not isinstance(merges, list):
        _bad(path, "lacks model.vocab or model.merges")
    pre = _pre_tokenizer(path, description)
    lines = [_merge(path, rank, pair) for rank, pair in enumerate(merges)]
    book = _Book(path, pre, words, lines)
    for text, token_id in words.items():
        book.add(text, token_id, Kind.NORMAL, path)
    added = description.get("added_tokens") or []
    for token in added if isinstance(added, list) else [added]:
        _add(book, token, token.get("id") if isinstance(token, dict) else None, path)
    return book


def _from_vocab_json(folder: Path, settings: Mapping[str, Any]) -> _Book:
    name = settings.get("tokenizer_class")
    pre = _CLASSES.get(name) if isinstance(name, str) else None
    if pre is None:
        known = ", ".join(_CLASSES)
        raise UnsupportedModel(
            f"{folder / 'tokenizer_config.json'}: tokenizer_class is {shown(name)}; without a tokenizer.json only "
            f"{known} can be converted: {_ADVICE}"
        )
    path, lines = folder / "vocab.json", _text(folder / "merges.txt").split("\n")
    words = read_json(path)
    # The first line is a version comment; "#" may also begin a merge.
    merges = [line.strip(" \r") for line in lines[lines[0].startswith("#version") :] if line.strip()]
    book = _Book(path, pre, words, merges)
    for text, token_id in words.items():
        book.add(text, token_id, Kind.NORMAL, path)
    return book


def _add_from_settings(book: _Book, path: Path, settings: Mapping[str, Any]) -> None:
    """The added tokens that tokenizer_config.json lists by id; all of them where there is no tokenizer.json."""
    listed = settings.get("added_tokens_decoder") or {}
    if not isinstance(listed, dict):
        _bad(path, f"added_tokens_decoder is {shown(listed)}, expected an object")
    for token_id, token in listed.items():
        _add(book, token, int(token_id) if token_id.isascii() and token_id.isdecimal() else token_id, path)


def _add_old_ones(book: _Book, path: Path, settings: Mapping[str, Any]) -> None:
    """added_tokens.json, text -> id, says nothing of kinds; tokens with a role are control tokens."""
    listed = settings.get("additional_special_tokens") or settings.get("extra_special_tokens") or []
    special = [*(listed.values() if isinstance(listed, dict) else listed), *settings.values()]
    for text, token_id in _optional(path).items():
        if book.ids.get(text) != token_id or book.kinds[token_id] == Kind.NORMAL:
            book.add(text, token_id, Kind.CONTROL if text in special else Kind.USER_DEFINED, path)


def _add(book: _Book, token: Any, token_id: Any, path: Path) -> None:
    if not isinstance(token, dict) or not token.get("content"):
        _bad(path, f"the added token with id {shown(token_id)} is {shown(token)}, expected an object with a text")
    if token.get("lstrip") or token.get("rstrip") or token.get("single_word"):
        _log.warning("%s: token %s takes the spaces around it; that is left out", path, shown(token["content"]))
    book.add(token["content"], token_id, Kind.CONTROL if token.get("special") else Kind.USER_DEFINED, path)


def _merge(path: Path, rank: int, pair: Any) -> str:
    """A merge as GGUF has it: two tokens with a space between; tokenizer.json writes a text or a pair."""
    parts = pair.split(" ") if isinstance(pair, str) else pair
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
        _bad(path, f"merge {rank} is {shown(pair)}, expected two tokens")
    if any(" " in part for part in parts):
        raise UnsupportedModel(
            f"{path}: merge {rank} is {shown(pair)}; only byte-level BPE can be converted: {_ADVICE}"
        )
    return " ".join(parts)


def _check_merges(book: _Book) -> None:
    for rank, line in enumerate(book.merges):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            _bad(book.path.with_name("merges.txt"), f"merge {rank} is {shown(line)}, expected two tokens")
        for text in (left, right, left + right):
            if text not in book.ids:
                _bad(book.path, f"merge {rank} ({shown(line)}) needs {shown(text)}, which is not a token")


# How words are cut -------------------------------------------------------------------------------------------------


def _pre_tokenizer(path: Path, description: Mapping[str, Any]) -> str:
    """The `tokenizer.ggml.pre` whose rule is the file's; UnsupportedModel when none is."""
    model = description["model"]
    words, nfc = _normalised(description.get("pre_tokenizer")), _normaliser(description.get("normalizer"))
    for name, rule in RULES.items():
        if (words, nfc, bool(model.get("ignore_merges"))) == (_steps_of(name), rule.nfc, rule.ignore_merges):
            return name
    raise UnsupportedModel(
        f"{path}: cuts words by a rule that no pre-tokenizer known here has ({', '.join(RULES)}); {_ADVICE}"
    )


@cache
def _steps_of(name: str) -> tuple[Any, ...] | None:
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = RULES[name].build()  # pyright: ignore[reportAttributeAccessIssue]
    return _normalised(json.loads(backend.to_str())["pre_tokenizer"])


def _normalised(part: Any) -> tuple[Any, ...] | None:
    """The steps of a pre-tokenizer in one spelling, or None for one with a step that no rule has."""
    steps = tuple(_steps(part))
    return None if None in steps else steps


def _steps(part: Any) -> Iterator[tuple[Any, ...] | None]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "Sequence" and isinstance(part.get("pretokenizers"), list):
        for step in part["pretokenizers"]:
            yield from _steps(step)
    elif kind == "Split" and not part.get("invert"):
        pattern = part.get("pattern")
        regex = pattern.get("Regex") if isinstance(pattern, dict) else None
        # "Removed" would lose text; what "MergedWith..." does is no rule's.
        yield ("Split", regex) if regex and part.get("behavior") == "Isolated" else None
    elif kind == "Digits":
        yield ("Split", r"\p{N}") if part.get("individual_digits") else ("Digits",)
    elif kind == "Punctuation":
        yield ("Punctuation", part.get("behavior"))
    elif kind == "ByteLevel" and not part.get("add_prefix_space"):
        if part.get("use_regex", True):
            yield ("Split", RULES["gpt-2"].splits[0])
        yield ("ByteLevel",)
    else:
        yield None


def _normaliser(part: Any) -> bool | None:
    """True for NFC, False for none, None for anything else."""
    if isinstance(part, dict) and part.get("type") == "Sequence" and isinstance(part.get("normalizers"), list):
        inner = part["normalizers"]
        part = None if not inner else inner[0] if len(inner) == 1 else part
    if part is None:
        return False
    return True if isinstance(part, dict) and part.get("type") == "NFC" else None


# Roles and templates -----------------------------------------------------------------------------------------------


def _ends(config: Mapping[str, Any], generation: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, int]:
    """eos, eot and eom: the ids that generation_config.json or else config.json names, in that order."""
    thinker = config.get("thinker_config")
    text = thinker.get("text_config") if isinstance(thinker, Mapping) else None
    places = [(generation, "eos_token_id"), (config, "im_end_token_id"), (config, "eos_token_id")]
    if isinstance(text, Mapping):
        places.append((text, "eos_token_id"))
    given = (_ids(place[key], key, len(found["tokens"])) for place, key in places if place.get(key) is not None)
    ids = next(given, [])
    first = found.get("eos_token_id")
    if first is not None and first not in ids:
        ids.append(first)
    named: dict[str, int] = dict(zip(("eos_token_id", "eot_token_id", "eom_token_id"), ids, strict=False))
    for i in ids[3:]:
        if found["tokens"][i] not in END_TEXTS:
            _log.warning("GGUF names three end tokens at most; %s is left out", shown(found["tokens"][i]))
    return named


def _ids(value: Any, key: str, count: int) -> list[int]:
    values = value if isinstance(value, list) else [value]
    for i in values:
        if isinstance(i, bool) or not isinstance(i, int) or not 0 <= i < count:
            raise InvalidModelFile(
                f"generation_config.json or config.json: {key} is {shown(value)}, expected ids below {count}; {_AGAIN}"
            )
    return list(dict.fromkeys(values))


def _wrapping(settings: Mapping[str, Any], book: _Book, found: Mapping[str, Any]) -> dict[str, bool]:
    """Whether prompts begin and end with bos and eos; only where there is such a token."""
    wants = {"bos": settings.get("add_bos_token"), "eos": settings.get("add_eos_token")}
    usual = {"bos": book.add_bos, "eos": book.add_eos}
    return {
        f"add_{name}_token": bool(usual[name] if want is None else want) and f"{name}_token_id" in found
        for name, want in wants.items()
    }


def _templates(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The chat template and, where a model has several, the others under their names."""
    jinja, boxed = folder / "chat_template.jinja", folder / "chat_template.json"
    where, value = folder / "tokenizer_config.json", settings.get("chat_template")
    if jinja.is_file():
        where, value = jinja, _text(jinja)
    elif boxed.is_file():
        where, value = boxed, read_json(boxed).get("chat_template")
    if value is None:
        return {}
    if isinstance(value, list):
        value = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
    named = value if isinstance(value, dict) else {"default": value}
    for name, text in named.items():
        if not isinstance(name, str) or not isinstance(text, str):
            _bad(where, f"the chat template is {shown(value)}, expected a text")
        _check_unicode(where, text)
    found = {f"tokenizer.chat_template.{name}": text for name, text in named.items() if name != "default"}
    if found:
        found["tokenizer.chat_templates"] = [name for name in named if name != "default"]
    if "default" in named:
        found["tokenizer.chat_template"] = named["default"]
    return found


# Files -------------------------------------------------------------------------------------------------------------


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _text(path: Path) -> str:
    check_regular(path, "a text file", path.suffix)
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise unreadable(path, error) from error
    except UnicodeDecodeError as error:
        _bad(path, f"is not valid UTF-8 at byte {error.start}")


def _check_unicode(path: Path, text: str) -> None:
    """JSON can spell half a surrogate pair, which no UTF-8 has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        _bad(path, f"{shown(text)} is not valid Unicode")


def _bad(path: Path, what: str) -> NoReturn:
    raise InvalidModelFile(f"{path}: {what}; {_AGAIN}")
