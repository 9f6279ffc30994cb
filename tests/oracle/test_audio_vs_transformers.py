"""The audio tower against transformers, live: fresh weights and features, every border of length, true dimensions."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reference.audio_goldens import features  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

from oracle.audio_tower import AudioOracle  # noqa: E402
from qwen3omni_wgpu.convert.parts import open_parts  # noqa: E402
from qwen3omni_wgpu.encoders.audio import AudioEncoder  # noqa: E402
from qwen3omni_wgpu.models.audio import AudioModel  # noqa: E402
from qwen3omni_wgpu.runner import Runner  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

# As in tests/models/test_audio_tower.py.
TOLERANCE = 2e-5
LENGTHS = (1, 2, 7, 8, 9, 50, 99, 100, 101, 108, 199, 200, 201, 300, 337, 399, 400, 401, 800, 3100)


def compare(folder: Path, device, seed: int, lengths: tuple[int, ...], dtype: str = "f32", **recipe: Any) -> None:
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), dtype=dtype, **recipe)
    oracle = AudioOracle(folder, stored)
    model = AudioModel.load(open_parts(folder, type=dtype)["mmproj"], device)
    encoder = AudioEncoder(model, Runner(device))
    for frames in lengths:
        mel = features(seed, frames)
        found, expected = encoder.encode(mel), oracle.rows(mel)
        assert found.shape == expected.shape
        error = np.abs(found - expected).max() / np.abs(expected).max()
        print(f"seed {seed}, {frames} frames, {len(found)} tokens: {error:.1e}")
        assert error < TOLERANCE
    encoder.free()
    model.free()


@pytest.mark.parametrize("number", range(3))
def test_every_length(number, tmp_path, device):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    compare(tmp_path / "model", device, seed, LENGTHS)


@pytest.mark.parametrize(
    "sizes",
    [
        {"audio_dim": 96, "audio_heads": 3, "audio_ffn": 100, "audio_conv": 12, "audio_layers": 3},
        {"audio_dim": 128, "audio_heads": 1, "audio_ffn": 64, "audio_conv": 20, "audio_layers": 1},
    ],
)
def test_other_sizes(sizes, tmp_path, device):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    compare(tmp_path / "model", device, seed, (57, 337), **sizes)


def test_true_dimensions(tmp_path, device):
    """The 30B's tower with one of its 32 layers."""
    sizes = {"audio_dim": 1280, "audio_heads": 20, "audio_ffn": 5120, "audio_conv": 480, "thinker_hidden": 2048}
    small = {"audio_layers": 1, "thinker_heads": 2, "experts": 2}
    compare(tmp_path / "model", device, 7, (40, 101, 830), "f16", **sizes, **small)
