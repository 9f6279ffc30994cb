"""Code2Wav against transformers, live: fresh weights and codes, every border of length, streams, true dimensions."""

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reference.code2wav_goldens import codes_of  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

from oracle.code2wav import Code2WavOracle  # noqa: E402
from qwen3omni_wgpu.convert.parts import open_parts  # noqa: E402
from qwen3omni_wgpu.models.code2wav import Code2WavModel  # noqa: E402
from qwen3omni_wgpu.runner import Runner  # noqa: E402
from qwen3omni_wgpu.voice.code2wav import Vocoder  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

# As in tests/voice/test_vocoder.py.
TOLERANCE = 5e-5
LENGTHS = (1, 2, 3, 7, 8, 9, 16, 17, 71, 72, 73, 100)
# Around the border of a chunk of 300, and around 25 frames behind it, where a chunk's context ends.
CHUNKED = (24, 25, 26, 299, 300, 301, 324, 325, 326, 600, 601)


class Pair:
    """transformers' Code2Wav and ours with the same new weights."""

    def __init__(self, folder: Path, device, seed: int, dtype: str = "f32", **recipe: Any) -> None:
        stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), dtype=dtype, **recipe)
        self.oracle = Code2WavOracle(folder, stored)
        self.model = Code2WavModel.load(open_parts(folder, type=dtype)["talker"], device)
        self.vocoder = Vocoder(self.model, Runner(device))

    def __enter__(self) -> "Pair":
        return self

    def __exit__(self, *_: object) -> None:
        self.vocoder.free()
        self.model.free()


def far(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


def new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


@pytest.mark.parametrize("number", range(2))
def test_every_length(number, tmp_path, device):
    seed = new_seed()
    with Pair(tmp_path, device, seed, wav_window=(6, 72)[number]) as pair:
        for frames in LENGTHS:
            codes = codes_of(seed, frames)
            error = far(pair.vocoder.decode(codes), pair.oracle.at_once(codes))
            print(f"seed {seed}, {frames} frames at once: {error:.1e}")
            assert error < TOLERANCE


def test_chunked_decode(tmp_path, device):
    """The reference mode with the releases' chunks of 300 frames and 25 of context."""
    seed = new_seed()
    with Pair(tmp_path, device, seed) as pair:
        for frames in CHUNKED:
            codes = codes_of(seed, frames)
            error = far(pair.vocoder.decode(codes, "reference"), pair.oracle.chunked(codes))
            print(f"seed {seed}, {frames} frames in chunks: {error:.1e}")
            assert error < TOLERANCE


def test_a_stream(tmp_path, device):
    """Frames as they come, for longer than the keys' buffer, against one decode of all of them."""
    seed = new_seed()
    rng, codes = np.random.default_rng(seed), codes_of(seed, 330)
    with Pair(tmp_path, device, seed, wav_window=72) as pair:
        samples, at = [], 0
        while at < 330:
            n = int(rng.integers(1, 30))
            samples.append(pair.vocoder.push(codes[:, at : at + n]))
            at += n
        error = far(np.concatenate(samples), pair.oracle.at_once(codes))
        print(f"seed {seed}, a stream of 330 frames: {error:.1e}")
        assert error < TOLERANCE


def test_true_dimensions(tmp_path, device):
    """The 30B's Code2Wav: 216 million weights, 100 frames, 191,445 samples."""
    sizes = {"wav_hidden": 1024, "wav_heads": 16, "wav_ffn": 3072, "wav_decoder_dim": 1536, "wav_layers": 8}
    sizes |= {"wav_window": 72}
    small = {"experts": 2, "codes": 2048, "talker_vocab": 2100, "talker_hidden": 32}
    with Pair(tmp_path, device, 7, "f16", **sizes, **small) as pair:
        codes = codes_of(7, 100, 2048)
        start, allocated = time.perf_counter(), device.allocated
        found = pair.vocoder.decode(codes)
        seconds = time.perf_counter() - start
        assert len(found) == 191_445
        error = far(found, pair.oracle.at_once(codes))
        speed, dispatches = 8 / seconds, pair.vocoder.dispatches(8)
        print(f"100 frames: {error:.1e} off, {speed:.3f} x real time, {dispatches} dispatches a chunk,")
        print(f"{allocated / 1e6:.0f} MB with the weights, {(device.allocated - allocated) / 1e6:.0f} MB for the plan")
        assert error < TOLERANCE
        allocated = device.allocated
        pair.vocoder.push(codes[:, :20])
        assert device.allocated == allocated
