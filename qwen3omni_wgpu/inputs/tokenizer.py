"""Text to token ids and back, from a GGUF file's metadata or a Hugging Face tokenizer.json."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.encoder import build_encoder
from qwen3omni_wgpu.inputs.tokenizer_json import read_tokenizer_json
from qwen3omni_wgpu.inputs.vocabulary import Vocabulary, read_metadata


class Encoder(Protocol):
    """The part that cuts text into ids; it adds no begin or end tokens."""

    def encode(self, text: str, parse_special: bool) -> list[int]: ...


class Tokenizer:
    """Encodes and decodes the text of one model. Not changed after it is built; safe to share between threads.

    bos_id, eos_id: the model's begin and end tokens, or None. eos_ids: every id that ends an answer. special_ids: ids
    that are not shown in a text. add_bos: the model expects bos_id at the start of its input.
    """

    def __init__(self, vocabulary: Vocabulary, encoder: Encoder):
        self.vocabulary = vocabulary
        self._encoder = encoder
        self.bos_id, self.eos_id = vocabulary.bos_id, vocabulary.eos_id
        self.eos_ids: frozenset[int] = vocabulary.eos_ids
        self.special_ids: frozenset[int] = vocabulary.special_ids
        self.add_bos, self.add_eos = vocabulary.add_bos, vocabulary.add_eos
        self.vocab_size = len(vocabulary.tokens)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """From `tokenizer.ggml.*` of GGUF metadata: byte-level BPE (`gpt2`) or SentencePiece BPE (`llama`).

        UnsupportedModel when the file holds no tokenizer or one of another kind, InvalidModelFile when it is damaged.
        """
        vocabulary = read_metadata(metadata)
        return cls(vocabulary, build_encoder(metadata, vocabulary))

    @classmethod
    def from_file(cls, path: str | Path) -> "Tokenizer":
        """From a tokenizer.json; a tokenizer_config.json beside it names the begin and end tokens.

        ModelNotFound, InvalidModelFile or UnsupportedModel when that cannot be done.
        """
        return cls(*read_tokenizer_json(Path(path)))

    def encode(self, text: str, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """Token ids of a text.

        add_special: put bos_id first and eos_id last where the model wants them (never a second bos_id).
        parse_special: special tokens written in the text count as such; else they are ordinary characters.
        InvalidRequest when the text has half a surrogate pair, which no UTF-8 has.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidRequest(
                f"the text is not valid Unicode: character {error.start} is {text[error.start]!r}, half of a pair. "
                "Give the text as UTF-8"
            ) from error
        ids = self._encoder.encode(text, parse_special)
        if add_special and self.add_bos and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of token ids; bytes that are not UTF-8 become U+FFFD."""
        hidden = self.special_ids if skip_special else frozenset()
        data = b"".join(self.token_bytes(i) for i in ids if i not in hidden)
        return self.strip_prefix(data).decode("utf-8", errors="replace")

    def strip_prefix(self, data: bytes) -> bytes:
        """A text's bytes without the one space that encoding put in front, if this model does that."""
        return data[1:] if self.vocabulary.space_prefix and data[:1] == b" " else data

    def token_bytes(self, token_id: int) -> bytes:
        """The UTF-8 bytes one token stands for, perhaps half a character. Empty for padding ids past the vocabulary."""
        return self.vocabulary.token_bytes(token_id)

    def token_id(self, text: str) -> int | None:
        """The id of the token with exactly this text as the vocabulary writes it, or None."""
        return self.vocabulary.ids.get(text)

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary writes it; InvalidRequest when there is no such id."""
        if not 0 <= token_id < self.vocab_size:
            raise InvalidRequest(f"token id {token_id} is outside the vocabulary of {self.vocab_size} tokens")
        return self.vocabulary.tokens[token_id]
