"""The audio tower on the GPU: against transformers' goldens, and against the NumPy tower for new random weights."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.audio_goldens import audio_names, features, kept, read_audio
from reference.audio_tower import AudioTower
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.encoders.audio import AudioEncoder
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.models.audio import AudioConfig, AudioModel
from qwen3omni_wgpu.runner import Runner

pytestmark = pytest.mark.gpu

# Of the largest value (1 to 3 here). Sums are in another order and every layer adds rounding errors: 1e-6 was measured
# on lavapipe for two layers. A frame too much at a chunk's border makes 1e-2, tanh for erf in GELU 2e-4.
TOLERANCE = 2e-5


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def new_seed() -> int:
    """Another one in every run; a failing test shows it among its local values."""
    return int(np.random.SeedSequence().generate_state(1)[0])


class Loaded:
    """An encoder with the model under it."""

    def __init__(self, file: GGUFFile, device) -> None:
        self.model = AudioModel.load(file, device)
        self.encoder = AudioEncoder(self.model, Runner(device))

    def __enter__(self) -> AudioEncoder:
        return self.encoder

    def __exit__(self, *_: object) -> None:
        self.encoder.free()
        self.model.free()


def mmproj(folder: Path, type: str = "f32") -> GGUFFile:
    return open_parts(folder, type=type)["mmproj"]


def write(folder: Path, seed: int, **recipe: Any) -> tuple[GGUFFile, AudioTower]:
    """A new random checkpoint and its twin."""
    arguments = {"dtype": "f32", "thinker_hidden": 32} | recipe
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), **arguments)
    config = json.loads((folder / "config.json").read_text())["thinker_config"]["audio_config"]
    return mmproj(folder, arguments["dtype"]), AudioTower(stored, config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """A model for tests that do not look at its answers."""
    return write(tmp_path_factory.mktemp("tiny"), 5)[0]


@pytest.fixture
def encoder(tiny: GGUFFile, device) -> Iterator[AudioEncoder]:
    with Loaded(tiny, device) as encoder:
        yield encoder


@pytest.mark.parametrize("name", audio_names())
def test_rows_equal_transformers(name, tmp_path, device):
    golden = read_audio(name)
    with Loaded(mmproj(golden.write(tmp_path / "model")), device) as encoder:
        for frames, expected in golden.rows.items():
            rows = encoder.encode(features(golden.recipe["seed"], frames))
            assert len(rows) == encoder.n_tokens(frames)
            assert relative(kept(rows), expected) < TOLERANCE, frames


def test_rows_equal_numpy(tmp_path, device):
    """Fresh weights, fresh features, lengths around every border there is."""
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed)
    rng = np.random.default_rng(seed)
    lengths = [*rng.integers(1, 100, 3), 100, *rng.integers(101, 600, 3)]
    with Loaded(file, device) as encoder:
        for frames in map(int, rng.permutation(lengths)):
            mel = features(seed, frames)
            assert relative(encoder.encode(mel), twin.forward(mel)) < TOLERANCE, frames


def test_the_twin_is_transformers(tmp_path):
    """So that the test above compares with the right thing; it needs no GPU to be wrong."""
    golden = read_audio("short")
    folder = golden.write(tmp_path / "model")
    arguments = dict(golden.recipe)
    stored = write_tiny_checkpoint(tmp_path / "again", np.random.default_rng(arguments.pop("seed")), **arguments)
    config = json.loads((folder / "config.json").read_text())["thinker_config"]["audio_config"]
    twin = AudioTower(stored, config)
    for frames, expected in golden.rows.items():
        assert relative(kept(twin.forward(features(golden.recipe["seed"], frames))), expected) < TOLERANCE


def test_a_clip_does_not_depend_on_those_before_it(encoder):
    """Buffers are used again: what an earlier, longer clip left in them must not be heard."""
    mels = {frames: features(9, frames) for frames in (57, 337)}
    first = {frames: encoder.encode(mel) for frames, mel in mels.items()}
    for frames in (57, 337, 57):
        np.testing.assert_array_equal(encoder.encode(mels[frames]), first[frames])


def test_every_op_agrees_with_its_twin(tiny, device, monkeypatch):
    """The debug runner: NaN in what an op does not write, its result against NumPy, for a clip with padding."""
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    with Loaded(tiny, device) as encoder:
        checked = encoder.encode(features(3, 301))
    monkeypatch.delenv("QWEN3OMNI_DEBUG")
    with Loaded(tiny, device) as encoder:
        np.testing.assert_array_equal(checked, encoder.encode(features(3, 301)))


def test_groups_of_windows(tmp_path, device, monkeypatch):
    """Several windows at a time, and their chunks four by four and one by one, as on a GPU."""
    monkeypatch.setattr("qwen3omni_wgpu.encoders.audio.GROUP_TOKENS_SOFTWARE", 85)  # three windows of 26
    monkeypatch.setattr("qwen3omni_wgpu.encoders.audio.MOST_CHUNKS", 4)
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed)
    with Loaded(file, device) as encoder:
        for frames in (57, 333, 1100, 1201):
            mel = features(seed, frames)
            assert relative(encoder.encode(mel), twin.forward(mel)) < TOLERANCE, frames


@pytest.mark.slow
def test_the_rules_for_gpus(tmp_path, device, monkeypatch):
    """Groups of many windows and the kernels of a real GPU, on the software adapter."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed)
    with Loaded(file, device) as encoder:
        for frames in (57, 1203, 5100):
            mel = features(seed, frames)
            assert relative(encoder.encode(mel), twin.forward(mel)) < TOLERANCE, frames


@pytest.mark.slow
def test_true_dimensions(tmp_path, device):
    """The 30B's tower with one of its 32 layers: its sizes of rows, heads and kernels, in f16 as it is stored."""
    seed = new_seed()
    sizes = {"audio_dim": 1280, "audio_heads": 20, "audio_ffn": 5120, "audio_conv": 480, "thinker_hidden": 2048}
    file, twin = write(tmp_path / "model", seed, dtype="f16", audio_layers=1, thinker_heads=2, experts=2, **sizes)
    assert {file.tensors[f"a.{name}.weight"].type for name in ("conv2d.2", "conv_out", "blk.0.attn_q")} == {"f16"}
    mel = features(seed, 101)
    with Loaded(file, device) as encoder:
        assert relative(encoder.encode(mel), twin.forward(mel)) < TOLERANCE


@pytest.mark.parametrize(("type", "tolerance"), [("f16", 2e-3), ("q8_0", 3e-2)])
def test_smaller_types(type, tolerance, tmp_path, device):
    """Weights rounded to 11 bits, and to 8: the answer moves by about their error, and does move."""
    golden = read_audio("short")
    with Loaded(mmproj(golden.write(tmp_path / "model"), type), device) as encoder:
        off = relative(encoder.encode(features(golden.recipe["seed"], 99)), golden.rows[99])
    assert tolerance / 100 < off < tolerance


def test_progress_counts_frames(encoder):
    seen: list[tuple[int, int]] = []
    encoder.encode(features(1, 777), lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (777, 777)
    assert len(seen) >= 2


def test_an_error_in_progress_leaves_the_encoder_usable(encoder, device):
    mel = features(1, 777)
    expected = encoder.encode(mel)
    allocated = device.allocated

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            encoder.encode(mel, stop)
    assert device.allocated == allocated
    np.testing.assert_array_equal(encoder.encode(mel), expected)


def test_memory_does_not_grow_with_the_clip(encoder, device):
    encoder.encode(features(1, 600))
    allocated = device.allocated
    encoder.encode(features(1, 2600))
    assert device.allocated == allocated


def test_free_returns_all_memory(tiny, device):
    before = device.allocated
    with Loaded(tiny, device) as encoder:
        encoder.encode(features(1, 250))
        assert device.allocated > before
    assert device.allocated == before


@pytest.mark.parametrize(
    "mel",
    [
        np.zeros((128, 0), np.float32),
        np.zeros((80, 100), np.float32),
        np.zeros((128, 100)),
        np.zeros(128, np.float32),
    ],
)
def test_features_of_another_shape(encoder, mel):
    message = r"^mel features are float\d\d \[.*\], but this model takes float32 \[128, frames\]$"
    with pytest.raises(InvalidRequest, match=message):
        encoder.encode(mel)


# The file ------------------------------------------------------------------------------------------------------------


def changed(
    file: GGUFFile, metadata: Mapping[str, Any] = {}, without: tuple[str, ...] = (), add: Mapping[str, Any] = {}
) -> GGUFFile:
    kept_keys = {key: value for key, value in {**file.metadata, **metadata}.items() if value is not None}
    tensors = {name: info for name, info in {**file.tensors, **add}.items() if name not in without}
    return dataclasses.replace(file, metadata=kept_keys, tensors=tensors)


def test_config(tiny):
    config = AudioConfig.from_gguf(tiny)
    assert (config.dim, config.n_heads, config.ffn_dim, config.channels, config.n_layers) == (64, 2, 96, 32, 2)
    assert (config.n_mels, config.output_dim, config.norm_eps) == (128, 32, pytest.approx(1e-5))
    assert (config.chunk, config.chunk_tokens, config.window_chunks, config.window_tokens) == (100, 13, 2, 26)
    # Qwen3-Omni's own examples
    lengths = {50: 7, 99: 13, 100: 13, 101: 14, 337: 44, 1000: 130, 3000: 390}
    assert {frames: config.n_tokens(frames) for frames in lengths} == lengths


def test_what_llama_cpp_does_not_write_has_a_default(tiny):
    ours = ("n_window", "n_window_infer", "activation_function")
    config = AudioConfig.from_gguf(changed(tiny, {f"clip.audio.{key}": None for key in ours}))
    assert (config.chunk, config.window_chunks) == (100, 8)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"clip.has_audio_encoder": False}, UnsupportedModel, "has no audio tower, so it cannot listen; name a file"),
        ({"clip.audio.projector_type": "ultravox"}, UnsupportedModel, "'ultravox'; only 'qwen3a' is supported"),
        ({"clip.audio.activation_function": "relu"}, UnsupportedModel, "'relu'; only 'gelu' is supported"),
        ({"clip.audio.embedding_length": None}, InvalidModelFile, "'clip.audio.embedding_length' is missing"),
        ({"clip.audio.n_window_infer": 130}, InvalidModelFile, "is 130, no multiple of twice n_window 50"),
        ({"clip.audio.attention.head_count": 3}, UnsupportedModel, "is 3 for embedding_length 64; only heads of 4, 8"),
        ({"clip.audio.block_count": 3}, InvalidModelFile, r"a\.blk\.2\.attn_q\.weight"),
        ({"clip.audio.block_count": 1}, UnsupportedModel, r"1 layers does not use.*'a\.blk\.1\.attn_q"),
        ({"clip.audio.num_mel_bins": 80}, InvalidModelFile, r"a\.conv_out\.weight' has shape \[64, 512\], expected"),
    ],
)
def test_metadata_that_cannot_be(tiny, metadata, error, message):
    with pytest.raises(error, match=message) as caught:
        AudioConfig.from_gguf(changed(tiny, metadata))
    assert str(tiny.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_missing_or_too_many(tiny):
    with pytest.raises(InvalidModelFile, match=r"a\.position_embd\.weight"):
        AudioConfig.from_gguf(changed(tiny, without=("a.position_embd.weight",)))
    short = dataclasses.replace(tiny.tensors["a.position_embd.weight"], shape=(12, 64))
    with pytest.raises(InvalidModelFile, match=r"a\.position_embd\.weight' has shape \[12, 64\], expected \[13, 64\]"):
        AudioConfig.from_gguf(changed(tiny, add={"a.position_embd.weight": short}))
    extra = tiny.tensors["a.post_ln.weight"]
    with pytest.raises(UnsupportedModel, match=r"the result would be wrong: 'mm\.a\.norm\.weight'; use another model"):
        AudioConfig.from_gguf(changed(tiny, add={"mm.a.norm.weight": extra}))
