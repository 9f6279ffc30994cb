"""The vocabulary of a model: token texts, what kind each token is, and which ids mean begin, end and so on.

Field names and token types are those of the GGUF specification (`tokenizer.ggml.*`).
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from typing import Any, Literal

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.inputs.pretokenizers import rule_for

PREFIX = "tokenizer.ggml."
_GET_ONE = "Use a model file that has its tokenizer, or give the model's tokenizer.json with --tokenizer-file"

# Texts that end an answer wherever they are special tokens, also when the metadata do not name them.
_END_TEXTS = """
<|im_end|> <|endoftext|> </s> <eos> <end_of_turn> <turn|> <|eot_id|> <|eom_id|> <|end|> <|return|> <|call|> <|flush|>
<|calls|> <|end_of_text|> <end_of_utterance> <EOT> _<EOT> [EOT] [EOS] [e~[ <｜end▁of▁sentence｜>
<|fim_pad|> <fim_pad> <fim-pad> <|repo_name|> <|fim_repo|> <fim-repo> <reponame> <|file_sep|>
"""  # the last line is of code models: padding, or the next file begins
END_TEXTS = frozenset(_END_TEXTS.split())
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class Kind(IntEnum):
    """`tokenizer.ggml.token_type`."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_HIDDEN = frozenset((Kind.UNDEFINED, Kind.UNKNOWN, Kind.CONTROL, Kind.UNUSED))


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-in character of each byte -> the byte (printable Latin-1 stands for itself)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in set(plain)]
    return {chr(b): b for b in plain} | {chr(0x100 + i): b for i, b in enumerate(rest)}


_BYTE_OF = byte_alphabet()


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id. `style` says how a normal token's text stands for bytes: GPT-2's byte alphabet, or plain UTF-8
    with U+2581 for a space. `space_prefix`: a space is put before the text when encoding and dropped when decoding."""

    tokens: Sequence[str]
    kinds: Sequence[int]
    style: Literal["byte-level", "sentencepiece"]
    space_prefix: bool = False
    bos_id: int | None = None
    eos_id: int | None = None
    unk_id: int | None = None
    pad_id: int | None = None
    end_ids: frozenset[int] = frozenset()
    add_bos: bool = False
    add_eos: bool = False
    _bytes: dict[int, bytes] = field(default_factory=dict, init=False, repr=False, compare=False)

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token text -> id."""
        return {text: i for i, text in enumerate(self.tokens)}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Ids that are not part of a text: control, unknown and unused tokens."""
        return frozenset(i for i, kind in enumerate(self.kinds) if kind in _HIDDEN)

    @cached_property
    def eos_ids(self) -> frozenset[int]:
        """Every id that ends an answer: those the file names, and special tokens with a well-known end text."""
        ids = {i for text in END_TEXTS if (i := self.ids.get(text)) is not None and self._is_added(i)}
        # In the harmony format <|end|> closes one message of several; <|return|> and <|call|> close the answer.
        texts = {self.tokens[i] for i in ids}
        if "<|end|>" in texts and ({"<|return|>", "<|call|>"} <= texts or {"<|flush|>", "<|calls|>"} <= texts):
            ids.discard(self.ids["<|end|>"])
        if self.eos_id is not None:
            ids.add(self.eos_id)
        return frozenset(ids | self.end_ids)

    def _is_added(self, token_id: int) -> bool:
        return self.kinds[token_id] in (Kind.CONTROL, Kind.USER_DEFINED, Kind.UNKNOWN)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token stands for; special tokens give their text, ids past the vocabulary (padding rows of the
        model's table) give nothing. InvalidRequest for negative ids."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._spell(token_id)
        return known

    def _spell(self, token_id: int) -> bytes:
        if token_id < 0:
            raise InvalidRequest(f"token id {token_id} is negative; ids go from 0 to {len(self.tokens) - 1}")
        if token_id >= len(self.tokens):
            return b""
        text, kind = self.tokens[token_id], self.kinds[token_id]
        if kind == Kind.BYTE and (match := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(match[1], 16)])
        if kind in _HIDDEN or kind == Kind.USER_DEFINED:
            return text.encode()
        if self.style == "sentencepiece":
            return text.replace("\u2581", " ").encode()
        if all(character in _BYTE_OF for character in text):
            return bytes(_BYTE_OF[character] for character in text)
        return text.encode()


def read_metadata(metadata: Mapping[str, Any]) -> Vocabulary:
    """The vocabulary in a GGUF file's metadata.

    UnsupportedModel when there is no tokenizer or one of a kind that cannot be run; InvalidModelFile for wrong types,
    lengths and ids. Defaults for what a file leaves out are llama.cpp's.
    """
    model = _get(metadata, "model", str, None)
    if model is None:
        raise UnsupportedModel(f"the model file holds no tokenizer (no {PREFIX}model). {_GET_ONE}")
    if model not in ("gpt2", "llama"):
        raise UnsupportedModel(
            f"tokenizer.ggml.model is {model[:80]!r}; supported are 'gpt2' (byte-level BPE) and "
            "'llama' (SentencePiece BPE). If the model has a tokenizer.json, give it with --tokenizer-file"
        )
    tokens = strings(metadata, "tokens")
    if not tokens:
        raise InvalidModelFile(f"{PREFIX}tokens is empty. {_GET_ONE}")
    if len(set(tokens)) != len(tokens) and (twice := _first_repeated(tokens)):
        raise InvalidModelFile(f"{PREFIX}tokens holds {short(twice)} more than once")
    named = {name: _token_id(metadata, f"{name}_token_id", len(tokens)) for name in _NAMED}
    spm = model == "llama"
    if spm:  # the ids of the original LLaMA vocabulary
        for name, usual in (("bos", 1), ("eos", 2), ("unknown", 0)):
            if named[name] is None and usual < len(tokens):
                named[name] = usual
    # Where the file does not say: SentencePiece models want a begin token, the others as their family does.
    wants_bos = spm or (named["bos"] is not None and rule_for(optional_text(metadata, "pre") or "default").add_bos)
    vocabulary = Vocabulary(
        tokens=tokens,
        kinds=_kinds(metadata, tokens, named),
        style="sentencepiece" if spm else "byte-level",
        space_prefix=spm and bool(_get(metadata, "add_space_prefix", bool, True)),
        bos_id=named["bos"],
        eos_id=named["eos"],
        unk_id=named["unknown"],
        pad_id=named["padding"],
        end_ids=frozenset(i for name in ("eot", "eom") if (i := named[name]) is not None),
        add_bos=bool(_get(metadata, "add_bos_token", bool, wants_bos)),
        add_eos=bool(_get(metadata, "add_eos_token", bool, False)),
    )
    for flag, token_id in (("bos", vocabulary.bos_id), ("eos", vocabulary.eos_id)):
        if getattr(vocabulary, f"add_{flag}") and token_id is None:
            raise InvalidModelFile(f"{PREFIX}add_{flag}_token is true, but {PREFIX}{flag}_token_id is missing")
    return vocabulary


_NAMED = ("bos", "eos", "eot", "eom", "unknown", "padding")


def strings(metadata: Mapping[str, Any], name: str) -> list[str]:
    """A list of strings that must be there."""
    values = _get(metadata, name, list, None)
    if values is None:
        raise InvalidModelFile(f"the model file lacks {PREFIX}{name}. {_GET_ONE}")
    for i, value in enumerate(values):
        if not isinstance(value, str):
            raise InvalidModelFile(f"{PREFIX}{name}[{i}] is {type(value).__name__}, expected a string")
    return values


def numbers(metadata: Mapping[str, Any], name: str, kind: type | tuple[type, ...], length: int) -> list[Any] | None:
    """A list of `length` numbers, or None when the file has none."""
    values = _get(metadata, name, list, None)
    if values is None:
        return None
    if len(values) != length:
        raise InvalidModelFile(f"{PREFIX}{name} has {len(values)} entries, but there are {length} tokens")
    for i, value in enumerate(values):
        if not isinstance(value, kind) or isinstance(value, bool) or value != value:
            raise InvalidModelFile(f"{PREFIX}{name}[{i}] is {short(value)}, expected a number")
    return values


def short(value: Any) -> str:
    """repr, cut to what fits a message."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."


def optional_text(metadata: Mapping[str, Any], name: str) -> str | None:
    """A string, or None when the file has none."""
    return _get(metadata, name, str, None)


def _get(metadata: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = metadata.get(PREFIX + name)
    if value is None:
        return default
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InvalidModelFile(f"{PREFIX}{name} is {type(value).__name__}, expected {kind.__name__}")
    return value


def _token_id(metadata: Mapping[str, Any], name: str, count: int) -> int | None:
    value = _get(metadata, name, int, None)
    if value is not None and not 0 <= value < count:
        raise InvalidModelFile(f"{PREFIX}{name} is {value}, but the vocabulary has {count} tokens")
    return value


def _kinds(metadata: Mapping[str, Any], tokens: list[str], named: Mapping[str, int | None]) -> list[int]:
    kinds = numbers(metadata, "token_type", int, len(tokens))
    if kinds is None:
        # Nothing says which tokens are special: take those with a role, and those that end answers.
        roles = {i for i in named.values() if i is not None}
        return [Kind.CONTROL if i in roles or text in END_TEXTS else Kind.NORMAL for i, text in enumerate(tokens)]
    for i, kind in enumerate(kinds):
        if not 0 <= kind <= Kind.BYTE:
            raise InvalidModelFile(f"{PREFIX}token_type[{i}] is {kind}, expected 0 to 6")
        if kind == Kind.BYTE and not _BYTE_TOKEN.fullmatch(tokens[i]):
            raise InvalidModelFile(f"{PREFIX}tokens[{i}] is {short(tokens[i])}, a byte token must look like <0x0A>")
    return kinds


def _first_repeated(tokens: list[str]) -> str | None:
    seen: set[str] = set()
    for text in tokens:
        if text and text in seen:
            return text
        seen.add(text)
    return None
