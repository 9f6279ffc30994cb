"""Readers for tests/goldens/code2wav.npz: samples that transformers' Code2Wav makes of random codes, in float32.

tools/make_code2wav_goldens.py writes it.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tiny_checkpoint import DIMS, write_tiny_checkpoint

from .goldens import FOLDER, arrays_hash

FILE = FOLDER / "code2wav.npz"
# Of chunked decoding, in goldens: 300 and 25 would make long files of the same.
CHUNK, CONTEXT = 30, 5
STEP = 29  # every so many samples are kept; no factor of a frame's 1920


def codes_of(seed: int, frames: int, codes: int = DIMS["codes"]) -> np.ndarray:
    """What a golden was made of: int64 [16, frames]."""
    return np.random.default_rng((seed, frames)).integers(0, codes, (16, frames))


def kept(samples: np.ndarray) -> np.ndarray:
    """The samples of an utterance that a golden holds: the start, where a stream is special, and some of the rest."""
    return np.concatenate([samples[:200], samples[200::STEP]])


@dataclass(frozen=True)
class Code2WavGolden:
    """A random checkpoint and transformers' samples for several lengths, frames -> kept(samples).

    at_once: of one decode; chunked: of chunked_decode with CHUNK and CONTEXT; lengths: samples in all, of both.
    """

    recipe: dict[str, Any]
    sha256: str
    at_once: dict[int, np.ndarray]
    chunked: dict[int, np.ndarray]
    lengths: dict[str, int]

    @property
    def seed(self) -> int:
        return self.recipe["seed"]

    def write(self, folder: Path) -> dict[str, np.ndarray]:
        """The checkpoint's folder; fails clearly when it is not the golden's any more. Returns its tensors."""
        recipe = dict(self.recipe)
        stored = write_tiny_checkpoint(folder, np.random.default_rng(recipe.pop("seed")), **recipe)
        assert arrays_hash(stored) == self.sha256, (
            "write_tiny_checkpoint now writes other tensors; "
            "if that is wanted, make the goldens again: python tools/make_code2wav_goldens.py"
        )
        return stored


def read_code2wav() -> Code2WavGolden:
    with np.load(FILE) as file:
        kinds: dict[str, dict[int, np.ndarray]] = {"at_once": {}, "chunked": {}}
        for key in file.files:
            kind, _, frames = key.rpartition("_")
            if kind in kinds:
                kinds[kind][int(frames)] = file[key]
        return Code2WavGolden(
            json.loads(str(file["recipe"])), str(file["sha256"]), **kinds, lengths=json.loads(str(file["lengths"]))
        )
