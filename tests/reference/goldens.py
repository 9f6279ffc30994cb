"""Readers for tests/goldens/*.npz: what transformers answers in float32. tools/make_goldens.py writes them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.formats.gguf import GGUFFile

FOLDER = Path(__file__).parent.parent / "goldens"
SMOLLM2 = FOLDER / "smollm2_q4_1.npz"


@dataclass(frozen=True)
class PromptGolden:
    """One prompt of the real model. `some_ids` and `logits` [C]: of the last position, all V of them or a choice."""

    text: str
    ids: np.ndarray
    greedy: np.ndarray
    margins: np.ndarray
    some_ids: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class TextGolden:
    """A text of N tokens, enough of its logits to compare others with them.

    Per position: best id, top-2 margin, logsumexp [N]; some_ids and logits [N, C]. The first `top` of the C ids are the
    most probable in falling order; the others were drawn from what is left, as often as their probability says.
    """

    text: str
    ids: np.ndarray
    top1: np.ndarray
    margins: np.ndarray
    logsumexp: np.ndarray
    some_ids: np.ndarray
    logits: np.ndarray
    top: int

    @classmethod
    def of(
        cls, text: str, ids: np.ndarray, logits: np.ndarray, top: int, drawn: int, rng: np.random.Generator
    ) -> "TextGolden":
        """From all logits float32 [N, V], V <= 65536."""
        order = np.argsort(-logits, axis=1, kind="stable")
        norm = _logsumexp(logits)
        some = []
        for row, best, total in zip(logits, order, norm, strict=True):
            tail = np.exp(row[best[top:]] - total)
            some.append(np.concatenate([best[:top], rng.choice(best[top:], drawn, p=tail / tail.sum())]))
        some_ids = np.stack(some)
        values = np.take_along_axis(logits, some_ids, axis=1)
        margins = values[:, 0] - values[:, 1]
        small = some_ids.astype(np.uint16)
        return cls(text, ids.astype(np.uint16), small[:, 0], margins, norm.astype(np.float32), small, values, top)

    def agreement(self, logits: np.ndarray) -> float:
        """Share of positions where the largest of the logits [N, V] is the golden best id."""
        return float(np.mean(logits.argmax(axis=1) == self.top1))

    def kl_divergence(self, logits: np.ndarray) -> np.ndarray:
        """KL divergence in nats of the logits [N, V] from the golden ones: float64 [N], unbiased.

        The top is summed up exactly and all ids outside it as one class. What that misses is
        rest * KL(p_tail || q_tail), estimated from the drawn ids as the mean of r - 1 - log r with r = q_tail / p_tail:
        never negative, and of small variance where p and q are near each other.
        """
        log_p = self.logits.astype(np.float64) - self.logsumexp[:, None]
        log_q = np.take_along_axis(logits, self.some_ids.astype(np.int64), axis=1) - _logsumexp(logits)[:, None]
        best_p, best_q = log_p[:, : self.top], log_q[:, : self.top]
        rest_p, rest_q = (np.maximum(1 - np.exp(best).sum(axis=1), 1e-9) for best in (best_p, best_q))
        shift = np.log(rest_p / rest_q)
        log_r = (log_q - log_p)[:, self.top :] + shift[:, None]
        tail = (np.exp(log_r) - 1 - log_r).mean(axis=1)
        return (np.exp(best_p) * (best_p - best_q)).sum(axis=1) + rest_p * (shift + tail)


def _logsumexp(logits: np.ndarray) -> np.ndarray:
    peak = logits.max(axis=1, keepdims=True).astype(np.float64)
    return np.log(np.exp(logits - peak).sum(axis=1)) + peak[:, 0]


@dataclass(frozen=True)
class TinyGolden:
    """A tiny random model: how to write it, what its tensors hash to, and its answers.

    logits [N, V] of `ids` [N]; greedy and margins [G] continue them; positions [N, 3] (t, h, w) with their own
    mrope_logits [N, V], or None.
    """

    name: str
    recipe: dict[str, Any]
    sha256: str
    ids: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
    margins: np.ndarray
    positions: np.ndarray | None
    mrope_logits: np.ndarray | None

    def check(self, file: GGUFFile) -> None:
        """Fail clearly when the model on disk is not the one that the golden answers belong to."""
        found = tensor_hash(file)
        assert found == self.sha256, (
            f"{self.name}: write_tiny now writes other tensors (SHA-256 {found[:12]}, golden {self.sha256[:12]}); "
            "if that is wanted, make the goldens again: python tools/make_goldens.py tiny"
        )


def tensor_hash(file: GGUFFile) -> str:
    """SHA-256 over name, type, shape and bytes of every tensor, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(file.tensors):
        info = file.tensors[name]
        digest.update(f"{name} {info.type} {info.shape}\n".encode())
        digest.update(np.fromfile(info.path, np.uint8, info.nbytes, offset=info.offset).tobytes())
    return digest.hexdigest()


def arrays_hash(arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over name, type, shape and bytes of every array, in the order of their names."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}\n".encode())
        digest.update(arrays[name].tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class OmniGolden:
    """A random Qwen3-Omni checkpoint folder: how to write it, its tensors' hash, and transformers' answers to it.

    logits [N, V] of `ids` [N]; greedy and margins [G] continue them; q8_0_logits [N, V] after a round trip of the
    text model's matrices through Q8_0.
    """

    name: str
    recipe: dict[str, Any]
    sha256: str
    ids: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
    margins: np.ndarray
    q8_0_logits: np.ndarray

    def write(self, folder: Path, layout: str) -> Path:
        """The checkpoint in one of its three layouts; fails clearly when it is not the golden's any more."""
        recipe = dict(self.recipe)
        rng = np.random.default_rng(recipe.pop("seed"))
        found = arrays_hash(write_tiny_checkpoint(folder, rng, layout, **recipe))
        assert found == self.sha256, (
            f"{self.name}: write_tiny_checkpoint now writes other tensors; "
            "if that is wanted, make the goldens again: python tools/make_goldens.py omni"
        )
        return folder


def omni_names() -> list[str]:
    return sorted(path.stem.removeprefix("omni_") for path in FOLDER.glob("omni_*.npz"))


def read_omni(name: str) -> OmniGolden:
    with np.load(FOLDER / f"omni_{name}.npz") as data:
        arrays = {key: data[key] for key in data.files}
    recipe, digest = json.loads(str(arrays.pop("recipe"))), str(arrays.pop("sha256"))
    return OmniGolden(name=name, recipe=recipe, sha256=digest, **arrays)


def tiny_names() -> list[str]:
    """Names of all tiny goldens, without reading more than the folder."""
    return sorted(path.stem.removeprefix("tiny_") for path in FOLDER.glob("tiny_*.npz"))


def read_tiny(name: str) -> TinyGolden:
    with np.load(FOLDER / f"tiny_{name}.npz") as data:
        arrays = {key: data[key] for key in data.files}
    recipe = json.loads(str(arrays.pop("recipe")))
    digest = str(arrays.pop("sha256"))
    arrays.setdefault("positions", None)
    arrays.setdefault("mrope_logits", None)
    return TinyGolden(name=name, recipe=recipe, sha256=digest, **arrays)


def read_prompts() -> list[PromptGolden]:
    """The prompts of SmolLM2-135M-Instruct.Q4_1.gguf."""
    fields = ("ids", "greedy", "margins", "some_ids", "logits")
    with np.load(SMOLLM2) as data:
        texts = [str(text) for text in data["prompts"]]
        return [PromptGolden(text, *(data[f"prompt{i}_{f}"] for f in fields)) for i, text in enumerate(texts)]


def read_text() -> TextGolden:
    """The long text of SmolLM2-135M-Instruct.Q4_1.gguf."""
    fields = ("ids", "top1", "margins", "logsumexp", "some_ids", "logits")
    with np.load(SMOLLM2) as data:
        return TextGolden(str(data["text"]), *(data[f"text_{f}"] for f in fields), top=int(data["text_top"]))
