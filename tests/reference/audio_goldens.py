"""Readers for tests/goldens/audio_*.npz: rows that transformers' audio tower makes of random features, in float32.

tools/make_audio_goldens.py writes them.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import write_tiny_checkpoint

from .goldens import FOLDER, arrays_hash

STEP = 13  # of the outputs of long clips every so many rows are kept
LONG = 200  # tokens


def features(seed: int, frames: int) -> np.ndarray:
    """What a golden was made of: log-mel features float32 [128, frames], about as large as real ones."""
    return np.random.default_rng((seed, frames)).normal(0, 0.7, (128, frames)).astype(np.float32)


def kept(rows: np.ndarray) -> np.ndarray:
    """The rows of an output that a golden holds."""
    return rows if len(rows) < LONG else rows[::STEP]


@dataclass(frozen=True)
class AudioGolden:
    """A random checkpoint, and transformers' outputs for clips of several lengths: frames -> kept(rows)."""

    name: str
    recipe: dict[str, Any]
    sha256: str
    rows: dict[int, np.ndarray]

    def write(self, folder: Path) -> Path:
        """The checkpoint's folder; fails clearly when it is not the golden's any more."""
        recipe = dict(self.recipe)
        found = arrays_hash(write_tiny_checkpoint(folder, np.random.default_rng(recipe.pop("seed")), **recipe))
        assert found == self.sha256, (
            f"{self.name}: write_tiny_checkpoint now writes other tensors; "
            "if that is wanted, make the goldens again: python tools/make_audio_goldens.py"
        )
        return folder


def audio_names() -> list[str]:
    return sorted(path.stem.removeprefix("audio_") for path in FOLDER.glob("audio_*.npz"))


def read_audio(name: str) -> AudioGolden:
    with np.load(FOLDER / f"audio_{name}.npz") as file:
        rows = {int(key.removeprefix("rows_")): file[key] for key in file.files if key.startswith("rows_")}
        return AudioGolden(name, json.loads(str(file["recipe"])), str(file["sha256"]), rows)
