"""Small vocabularies as GGUF metadata, and the goldens made from transformers."""

import json
from pathlib import Path
from typing import Any

from tokenizers import pre_tokenizers

DATA = Path(__file__).parents[1] / "data"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def goldens(name: str) -> dict[str, Any]:
    return json.loads((DATA / f"tokenizer_{name}.json").read_text(encoding="utf-8"))


SMALL: dict[str, dict[str, Any]] = {
    item["metadata"].get("tokenizer.ggml.pre", "llama"): item for item in goldens("small")["tokenizers"]
}


def trained(name: str) -> dict[str, Any]:
    """A fresh copy of the metadata of one of the small trained vocabularies: qwen2, qwen35, gpt-2 or llama."""
    return json.loads(json.dumps(SMALL[name]["metadata"]))


def plain(pre: str = "gpt-2", specials: list[str] | None = None, **fields: Any) -> dict[str, Any]:
    """The 256 byte tokens without merges, then control tokens. Fields are named without `tokenizer.ggml.`."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    specials = SPECIALS if specials is None else specials
    metadata = {
        "model": "gpt2",
        "pre": pre,
        "tokens": alphabet + specials,
        "token_type": [1] * len(alphabet) + [3] * len(specials),
        "merges": [],
        **fields,
    }
    return {f"tokenizer.ggml.{key}": value for key, value in metadata.items() if value is not None}
