"""What the tests of whole models on the GPU share: an engine for a file, and answers laid beside expected logits."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.sampler import GenerationConfig

if TYPE_CHECKING:
    from qwen3omni_wgpu.gpu import Device


def open_engine(
    file: GGUFFile, device: "Device", *, ctx_size: int = 128, kv_type: str = "f32", activations: str = "f32"
) -> Engine:
    return Engine(TextModel.load(file, device, activations=activations), ctx_size, kv_type=kv_type)


def greedy_config(max_tokens: int, logprobs: int = 0) -> GenerationConfig:
    config = GenerationConfig(max_tokens=max_tokens, temperature=0, seed=0, ignore_eos=True, logprobs=logprobs)
    return config.resolved({})


def decode(engine: Engine, ids: Sequence[int], count: int) -> list[int]:
    """`count` greedy tokens after `ids`, whatever they are."""
    return [token.id for token in engine.generate(list(map(int, ids)), greedy_config(count), frozenset())]


def decode_logprobs(engine: Engine, ids: Sequence[int], count: int, top: int = 20) -> list[dict[int, float]]:
    """The `top` most likely tokens and their log-probabilities at each of `count` greedy steps."""
    tokens = engine.generate(list(map(int, ids)), greedy_config(count, top), frozenset())
    return [dict(token.top or []) for token in tokens]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [N, V]."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=1, keepdims=True))


def relative(actual: np.ndarray, expected: np.ndarray) -> float:
    """Largest error over the largest expected logit."""
    assert actual.shape == expected.shape
    assert actual.dtype == np.float32
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


def same_until_a_tie(found: Sequence[int], golden: np.ndarray, margins: np.ndarray, near: float) -> int:
    """How many greedy tokens were compared, all of them equal; ends where they part at a margin below `near`.

    After such a near tie both go on with different tokens, so nothing behind it can be compared.
    """
    assert len(found) == len(golden)
    for i, (ours, theirs) in enumerate(zip(found, golden, strict=True)):
        if ours != theirs:
            assert margins[i] < near, f"token {i}: {ours} instead of {theirs} at a margin of {margins[i]:.4f}"
            return i
    return len(golden)
