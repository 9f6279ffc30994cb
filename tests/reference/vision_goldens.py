"""Readers for tests/goldens/vision_*.npz: rows that transformers' vision tower makes of random patches, in float32.

tools/make_vision_goldens.py writes them.
"""

import json
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import write_tiny_checkpoint

from .goldens import FOLDER, arrays_hash

STEP = 7  # of the outputs of large pictures every so many rows are kept
LARGE = 60  # rows

Grid = tuple[int, int, int]


def pixels(seed: int, grid: Grid) -> np.ndarray:
    """What a golden was made of: patches float32 [N, 1536] as a picture of random 8-bit pixels gives them."""
    levels = np.random.default_rng((seed, *grid)).integers(0, 256, (prod(grid), 1536))
    return levels.astype(np.float32) / np.float32(127.5) - np.float32(1)


def kept(rows: np.ndarray) -> np.ndarray:
    """The rows of an output [..., M, O] that a golden holds."""
    return rows if rows.shape[-2] < LARGE else rows[..., ::STEP, :]


@dataclass(frozen=True)
class VisionGolden:
    """A random checkpoint, and transformers' outputs for several grids: grid -> kept rows and deepstack rows."""

    name: str
    recipe: dict[str, Any]
    sha256: str
    rows: dict[Grid, tuple[np.ndarray, np.ndarray]]

    def write(self, folder: Path) -> Path:
        """The checkpoint's folder; fails clearly when it is not the golden's any more."""
        recipe = dict(self.recipe)
        found = arrays_hash(write_tiny_checkpoint(folder, np.random.default_rng(recipe.pop("seed")), **recipe))
        assert found == self.sha256, (
            f"{self.name}: write_tiny_checkpoint now writes other tensors; "
            "if that is wanted, make the goldens again: python tools/make_vision_goldens.py"
        )
        return folder


def vision_names() -> list[str]:
    return sorted(path.stem.removeprefix("vision_") for path in FOLDER.glob("vision_*.npz"))


def read_vision(name: str) -> VisionGolden:
    with np.load(FOLDER / f"vision_{name}.npz") as file:
        keys = [key.removeprefix("rows_") for key in file.files if key.startswith("rows_")]
        rows = {}
        for key in keys:
            t, height, width = map(int, key.split("x"))
            rows[t, height, width] = file[f"rows_{key}"], file[f"taps_{key}"]
        return VisionGolden(name, json.loads(str(file["recipe"])), str(file["sha256"]), rows)
