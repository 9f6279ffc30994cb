"""Readers for tests/goldens/talker_*.npz: what transformers' talker says, in float32.

tools/make_talker_goldens.py writes them.
"""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import write_tiny_checkpoint

from .goldens import FOLDER, arrays_hash

# Of the tiny checkpoints, and transformers' default.
CODES, EOS = 48, 50
PENALTY = np.float32(1.05)


@dataclass(frozen=True)
class Spoken:
    """One greedy speech. Thinker: ids [N], positions [N, 3], answer [n], hidden states [M, T] of its media's tokens.

    Talker: rows [P, D] and their positions [P, 3] of its prompt, trailing [n - 1, D] and pad [D] of the text;
    hidden [F + 1, D] and logits [F + 1, V] that each frame, and what comes after the last, was chosen from; residual
    [F, G - 1, codes]; codes [F, G]. A golden keeps `residual` of the first frames only.
    """

    ids: np.ndarray
    positions: np.ndarray
    answer: np.ndarray
    states: np.ndarray
    rows: np.ndarray
    row_positions: np.ndarray
    trailing: np.ndarray
    pad: np.ndarray
    hidden: np.ndarray
    logits: np.ndarray
    residual: np.ndarray
    codes: np.ndarray

    def text(self, frame: int) -> np.ndarray | None:
        """What is given with a frame; None when the text is at its end."""
        return self.trailing[frame] if frame < len(self.trailing) else None


@dataclass(frozen=True)
class TalkerGolden:
    """A random checkpoint and a speech of it. margin: the least difference of the two best, over all choices."""

    name: str
    recipe: dict[str, Any]
    sha256: str
    margin: float
    spoken: Spoken

    def write(self, folder: Path) -> dict[str, np.ndarray]:
        """The checkpoint; fails clearly when it is not the golden's any more. Returns its tensors."""
        recipe = dict(self.recipe)
        stored = write_tiny_checkpoint(folder, np.random.default_rng(recipe.pop("seed")), **recipe)
        assert arrays_hash(stored) == self.sha256, (
            f"{self.name}: write_tiny_checkpoint now writes other tensors; "
            "if that is wanted, make the goldens again: python tools/make_talker_goldens.py"
        )
        return stored


def talker_names() -> list[str]:
    return sorted(path.stem.removeprefix("talker_") for path in FOLDER.glob("talker_*.npz"))


def read_talker(name: str) -> TalkerGolden:
    with np.load(FOLDER / f"talker_{name}.npz") as data:
        spoken = Spoken(**{field.name: data[field.name] for field in fields(Spoken)})
        return TalkerGolden(name, json.loads(str(data["recipe"])), str(data["sha256"]), float(data["margin"]), spoken)


def margin(spoken: Spoken, eos: int = EOS, codes: int = CODES) -> float:
    """The least difference between the two best, over all choices; those of code 0 after the penalty."""
    seen: set[int] = set()
    differences = np.diff(np.partition(spoken.residual, -2, axis=2)[..., -2:], axis=2).min(initial=np.inf)
    for row, frame in zip(spoken.logits, [*spoken.codes, None], strict=True):
        scores = row.astype(np.float32).copy()
        for code in seen:
            scores[code] *= PENALTY if scores[code] < 0 else 1 / PENALTY
        best = np.sort([*scores[:codes], scores[eos]])[-2:]
        differences = min(differences, best[1] - best[0])
        if frame is not None:
            seen.add(int(frame[0]))
    return float(differences)
