"""Builds, from GGUF metadata, the part that cuts text into token ids."""

import logging
import re
from collections.abc import Mapping
from typing import Any

import tokenizers

from qwen3omni_wgpu.errors import InvalidModelFile
from qwen3omni_wgpu.inputs.pretokenizers import rule_for
from qwen3omni_wgpu.inputs.sentencepiece import ranked_merges
from qwen3omni_wgpu.inputs.vocabulary import PREFIX, Kind, Vocabulary, numbers, optional_text, short, strings

_log = logging.getLogger(__name__)


class GGUFEncoder:
    """Cuts out special tokens, then runs the model's BPE on what lies between them."""

    def __init__(self, vocabulary: Vocabulary, backend: tokenizers.Tokenizer):
        self._backend = backend
        self._is_spm = vocabulary.style == "sentencepiece"
        self._prefix = "\u2581" if vocabulary.space_prefix else ""
        self._ids = vocabulary.ids
        user = _texts(vocabulary, Kind.USER_DEFINED)
        self._always = _any_of(user)
        self._with_control = _any_of(user + _texts(vocabulary, Kind.CONTROL) + _texts(vocabulary, Kind.UNKNOWN))

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of the text; parse_special=False leaves control tokens as ordinary characters."""
        pattern = self._with_control if parse_special else self._always
        if pattern is None:
            return self._words(text)
        ids: list[int] = []
        at = 0
        for match in pattern.finditer(text):
            ids += self._words(text[at : match.start()])
            ids.append(self._ids[match[0]])
            at = match.end()
        return ids + self._words(text[at:])

    def _words(self, text: str) -> list[int]:
        if not text:
            return []
        if self._is_spm:
            # As llama.cpp and transformers' legacy mode do: a space before every stretch between special tokens.
            text = self._prefix + text.replace(" ", "\u2581")
        return self._backend.encode(text, add_special_tokens=False).ids


def build_encoder(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> GGUFEncoder:
    """The encoder for the vocabulary; InvalidModelFile when merges or scores do not fit it."""
    build = _sentencepiece if vocabulary.style == "sentencepiece" else _byte_level
    return GGUFEncoder(vocabulary, build(metadata, vocabulary))


def _byte_level(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    name = optional_text(metadata, "pre")
    if name is None:
        _log.warning("%spre is missing: words are cut by llama.cpp's default rule, it may not fit this model", PREFIX)
    rule = rule_for(name or "default")
    words = _words_of(vocabulary, (Kind.NORMAL,))
    merges = _read_merges(strings(metadata, "merges"), words, vocabulary.ids)
    model = tokenizers.models.BPE(vocab=words, merges=merges, ignore_merges=rule.ignore_merges)
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = rule.build()  # pyright: ignore[reportAttributeAccessIssue]
    if (normalizer := rule.normalizer()) is not None:
        backend.normalizer = normalizer  # pyright: ignore[reportAttributeAccessIssue]
    return backend


def _sentencepiece(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    scores = numbers(metadata, "scores", (int, float), len(vocabulary.tokens))
    if scores is None:
        raise InvalidModelFile(f"the model file lacks {PREFIX}scores, which a SentencePiece tokenizer needs")
    words = _words_of(vocabulary, (Kind.NORMAL, Kind.UNUSED, Kind.BYTE))
    if any(f"<0x{byte:02X}>" not in words for byte in range(256)):
        raise InvalidModelFile(f"{PREFIX}tokens lacks some of the 256 byte tokens <0x00> to <0xFF>")
    merges = ranked_merges(vocabulary.tokens, vocabulary.kinds, scores)
    return tokenizers.Tokenizer(tokenizers.models.BPE(vocab=words, merges=merges, byte_fallback=True))


def _words_of(vocabulary: Vocabulary, kinds: tuple[Kind, ...]) -> dict[str, int]:
    """The tokens that ordinary text may become. Control tokens are left out, so that no text can turn into one."""
    pairs = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    return {text: i for i, (text, kind) in enumerate(pairs) if text and kind in kinds}


def _read_merges(lines: list[str], words: dict[str, int], all_ids: Mapping[str, int]) -> list[tuple[str, str]]:
    """Pairs in rank order. A merge may use or make a token of another kind; that token then counts as a word."""
    merges: dict[tuple[str, str], None] = {}
    for rank, line in enumerate(lines):
        left, space, right = line.partition(" ")
        if not (left and space and right) or " " in right:
            raise InvalidModelFile(f"{PREFIX}merges[{rank}] is {short(line)}, expected two tokens with a space between")
        for text in (left, right, left + right):
            if text not in words:
                if text not in all_ids:
                    where = f"{PREFIX}merges[{rank}] ({short(line)})"
                    raise InvalidModelFile(f"{where} needs {short(text)}, which is not a token")
                words[text] = all_ids[text]
        merges[left, right] = None
    return list(merges)


def _texts(vocabulary: Vocabulary, wanted: Kind) -> list[str]:
    return [text for text, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True) if text and kind == wanted]


def _any_of(texts: list[str]) -> re.Pattern[str] | None:
    """Matches any of the texts, the longest where several begin at one place."""
    return re.compile("|".join(map(re.escape, sorted(texts, key=len, reverse=True)))) if texts else None
