"""The vision tower against transformers, live: fresh weights and patches, grids of every kind, true dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.vision_goldens import Grid, pixels
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.encoders.vision import VisionEncoder
from qwen3omni_wgpu.models.vision import VisionModel
from qwen3omni_wgpu.runner import Runner

pytest.importorskip("torch")
pytest.importorskip("transformers")
from oracle.vision_tower import VisionOracle

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

# As in tests/models/test_vision.py.
TOLERANCE = 2e-5
# The least picture, lines, squares, the table's own size (4 x 4) and far beyond it, several chunks, films.
GRIDS: tuple[Grid, ...] = (
    (1, 2, 2), (1, 2, 4), (1, 4, 2), (1, 4, 4), (1, 2, 60), (1, 60, 2), (1, 6, 10), (1, 20, 22), (1, 34, 30),
    (2, 2, 2), (2, 4, 6), (3, 8, 4), (5, 12, 14), (2, 18, 16), (40, 2, 2),
)  # fmt: skip


def compare(folder: Path, device, seed: int, grids: tuple[Grid, ...], dtype: str = "f32", **recipe: Any) -> None:
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), dtype=dtype, **recipe)
    oracle = VisionOracle(folder, stored)
    model = VisionModel.load(open_parts(folder, type=dtype)["mmproj"], device)
    encoder = VisionEncoder(model, Runner(device))
    for grid in grids:
        patches = pixels(seed, grid)
        found = encoder.encode(grid, lambda start, stop, patches=patches: patches[start:stop])
        for mine, theirs, name in zip(found, oracle.rows(patches, grid), ("rows", "deepstack"), strict=True):
            assert mine.shape == theirs.shape
            error = np.abs(mine - theirs).max() / np.abs(theirs).max()
            print(f"seed {seed}, grid {grid}, {name} {list(mine.shape)}: {error:.1e}")
            assert error < TOLERANCE
    encoder.free()
    model.free()


@pytest.mark.parametrize("number", range(3))
def test_every_grid(number, tmp_path, device):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    compare(tmp_path / "model", device, seed, GRIDS)


@pytest.mark.parametrize(
    "sizes",
    [
        {"vision_dim": 144, "vision_heads": 2, "vision_ffn": 148, "vision_depth": 4, "deepstack": (1, 2, 3)},
        {
            "vision_dim": 128,
            "vision_heads": 1,
            "vision_ffn": 64,
            "vision_depth": 1,
            "deepstack": (0,),
            "vision_side": 1,
        },
        {"vision_dim": 64, "vision_heads": 8, "vision_depth": 2, "vision_side": 9, "deepstack": (1,)},
    ],
)
def test_other_sizes(sizes, tmp_path, device):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    compare(tmp_path / "model", device, seed, ((1, 8, 6), (2, 4, 4)), **sizes)


def test_true_dimensions(tmp_path, device):
    """The 30B's tower with two of its 27 blocks and one tap."""
    sizes = {"vision_dim": 1152, "vision_heads": 16, "vision_ffn": 4304, "vision_side": 48, "thinker_hidden": 2048}
    cut = {"vision_depth": 2, "deepstack": (0,), "thinker_heads": 2, "experts": 2, "thinker_layers": 1}
    compare(tmp_path / "model", device, 7, ((1, 6, 10), (2, 4, 4), (1, 16, 18)), "f16", **sizes, **cut)
