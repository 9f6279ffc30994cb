"""Reads a Hugging Face tokenizer.json (and the tokenizer_config.json beside it)."""

import json
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import tokenizers

from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from qwen3omni_wgpu.inputs.vocabulary import Kind, Vocabulary


class JsonEncoder:
    """Encodes as the file says, special tokens included."""

    def __init__(self, backend: tokenizers.Tokenizer, source: str):
        self._backend = backend
        self._source = source

    @cached_property
    def _literal(self) -> tokenizers.Tokenizer:
        """A second copy that takes special tokens as ordinary text: the switch is a state, calls must not share it."""
        backend = _load(self._source)
        backend.encode_special_tokens = True
        return backend

    def encode(self, text: str, parse_special: bool) -> list[int]:
        """Ids of the text; parse_special=False leaves special tokens as ordinary characters."""
        backend = self._backend if parse_special else self._literal
        return backend.encode(text, add_special_tokens=False).ids


def read_tokenizer_json(path: Path) -> tuple[Vocabulary, JsonEncoder]:
    """Vocabulary and encoder of a tokenizer.json, or of the folder that holds one."""
    path = path / "tokenizer.json" if path.is_dir() else path
    source = _read_text(path)
    description = _parse(path, source)
    try:
        backend = _load(source)
    except BaseException as error:
        # The library raises plain Exception for what it cannot read; what it did not foresee makes its Rust part panic.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InvalidModelFile(f"{path} is not a tokenizer.json that can be read: {error}") from error
    return _vocabulary(path, description, backend), JsonEncoder(backend, source)


def _load(source: str) -> tokenizers.Tokenizer:
    """Without the lengths that some files cut or fill texts to."""
    backend = tokenizers.Tokenizer.from_str(source)
    backend.no_padding()
    backend.no_truncation()
    return backend


def _vocabulary(path: Path, description: dict[str, Any], backend: tokenizers.Tokenizer) -> Vocabulary:
    added = backend.get_added_tokens_decoder()
    texts = {i: text for text, i in backend.get_vocab(with_added_tokens=True).items()}
    tokens = [texts.get(i, "") for i in range(max(texts, default=-1) + 1)]
    kinds = [Kind.NORMAL if i in texts else Kind.UNUSED for i in range(len(tokens))]
    for i, token in added.items():
        kinds[i] = Kind.CONTROL if token.special else Kind.USER_DEFINED
    style, strips = _style(path, description)
    if style == "sentencepiece":
        for byte in range(256):
            if (i := backend.token_to_id(f"<0x{byte:02X}>")) is not None and kinds[i] == Kind.NORMAL:
                kinds[i] = Kind.BYTE
    config = _config_beside(path)
    wrapped = backend.encode("", add_special_tokens=True).ids
    bos_id, eos_id = (_named_id(config, f"{name}_token", backend) for name in ("bos", "eos"))
    if bos_id is None and wrapped and wrapped[0] != eos_id:
        bos_id = wrapped[0]
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        style=style,
        space_prefix=strips,
        bos_id=bos_id,
        eos_id=eos_id,
        add_bos=bool(config.get("add_bos_token", bos_id is not None and wrapped[:1] == [bos_id])),
        add_eos=bool(config.get("add_eos_token", eos_id is not None and wrapped[-1:] == [eos_id])),
    )


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ModelNotFound(f"there is no tokenizer file at {path}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelFile(f"{path} cannot be read as text: {error}") from error


def _parse(path: Path, source: str) -> dict[str, Any]:
    try:
        value = json.loads(source)
    except (ValueError, RecursionError) as error:
        raise InvalidModelFile(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{path} holds {type(value).__name__}, expected a JSON object")
    return value


def _style(path: Path, description: dict[str, Any]) -> tuple[Literal["byte-level", "sentencepiece"], bool]:
    """How tokens stand for bytes, and whether decoding drops a leading space."""
    steps = list(_steps(description.get("decoder"))) + list(_steps(description.get("pre_tokenizer")))
    types = {step.get("type") for step in steps}
    if "ByteLevel" in types:
        return "byte-level", False
    if types & {"ByteFallback", "Metaspace"}:
        strips = any(step.get("type") == "Strip" and step.get("content") == " " and step.get("start") for step in steps)
        metaspace = any(
            step.get("type") == "Metaspace" and step.get("prepend_scheme", "always") != "never" for step in steps
        )
        return "sentencepiece", strips or metaspace
    kind = (description.get("model") or {}).get("type")
    raise UnsupportedModel(
        f"{path} is a {kind} tokenizer; supported are byte-level BPE and SentencePiece (BPE or Unigram)"
    )


def _steps(part: Any) -> Iterator[dict[str, Any]]:
    """The steps of a decoder or pre-tokenizer description, those inside sequences too."""
    if isinstance(part, dict):
        yield part
        for value in part.values():
            yield from _steps(value)
    elif isinstance(part, list):
        for value in part:
            yield from _steps(value)


def _config_beside(path: Path) -> dict[str, Any]:
    beside = path.with_name("tokenizer_config.json")
    return _parse(beside, _read_text(beside)) if beside.is_file() else {}


def _named_id(config: dict[str, Any], name: str, backend: tokenizers.Tokenizer) -> int | None:
    """The id of config[name], which is a text or an object with the text under "content"."""
    value = config.get(name)
    text = value.get("content") if isinstance(value, dict) else value
    if not isinstance(text, str) or text != text.encode("utf-8", "ignore").decode():
        return None  # JSON can write half a character, which is in no vocabulary
    return backend.token_to_id(text)
