"""Code2Wav on the device against transformers' goldens and a NumPy twin: lengths, streams, memory, types, messages."""

import dataclasses
import gc
import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.code2wav import Code2Wav
from reference.code2wav_goldens import CHUNK, CONTEXT, Code2WavGolden, codes_of, kept, read_code2wav
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.models.code2wav import Code2WavModel
from qwen3omni_wgpu.models.code2wav_config import Code2WavConfig
from qwen3omni_wgpu.runner import Runner
from qwen3omni_wgpu.voice.code2wav import Vocoder

pytestmark = pytest.mark.gpu

# Of full scale. The network multiplies differences: rounding errors of 6e-8 at its start are 6e-6 at its end for these
# weights (measured; between transformers and NumPy in float64, too). A row too much at a chunk's border makes 1e-1, a
# key too much in a window 1e-3.
TOLERANCE = 5e-5
FRAME, LOST = 1920, 555


def new_seed() -> int:
    """Another one in every run; a failing test shows it among its local values."""
    return int(np.random.SeedSequence().generate_state(1)[0])


class Loaded:
    """A vocoder with the model under it."""

    def __init__(self, file: GGUFFile, device: Device, **changes: Any) -> None:
        self.model = Code2WavModel.load(file, device)
        self.model.config = dataclasses.replace(self.model.config, **changes)
        self.vocoder = Vocoder(self.model, Runner(device))

    def __enter__(self) -> Vocoder:
        return self.vocoder

    def __exit__(self, *_: object) -> None:
        self.vocoder.free()
        self.model.free()


def speech(folder: Path, type: str = "f32") -> GGUFFile:
    return open_parts(folder, type=type)["talker"]


def write(folder: Path, seed: int, **recipe: Any) -> tuple[GGUFFile, Code2Wav]:
    """A new random checkpoint and its twin."""
    arguments = {"dtype": "f32"} | recipe
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), **arguments)
    config = json.loads((folder / "config.json").read_text())["code2wav_config"]
    return speech(folder, arguments["dtype"]), Code2Wav(stored, config)


@pytest.fixture(scope="module")
def golden() -> Code2WavGolden:
    return read_code2wav()


@pytest.fixture(scope="module")
def tiny(golden: Code2WavGolden, tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """The goldens' model."""
    folder = tmp_path_factory.mktemp("code2wav")
    golden.write(folder)
    return speech(folder)


@pytest.fixture
def vocoder(tiny: GGUFFile, device: Device) -> Iterator[Vocoder]:
    with Loaded(tiny, device) as vocoder:
        yield vocoder


def same(found: np.ndarray, expected: np.ndarray, device) -> None:
    """Bit for bit; but on a GPU a plan of 4 frames has other kernels than one of 16, which sum in another order."""
    if device.info.software:
        np.testing.assert_array_equal(found, expected)
    else:
        assert far(found, expected) < TOLERANCE


def far(found: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference."""
    assert found.dtype == np.float32
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max())


# Against transformers and NumPy ------------------------------------------------------------------------------------


def test_samples_equal_transformers(golden, vocoder):
    for frames, expected in golden.at_once.items():
        samples = vocoder.decode(codes_of(golden.seed, frames))
        assert len(samples) == golden.lengths[f"at_once_{frames}"] == FRAME * frames - LOST
        assert far(kept(samples), expected) < TOLERANCE, frames


def test_reference_mode_equals_transformers(golden, tiny, device):
    with Loaded(tiny, device, chunk=CHUNK, left_context=CONTEXT) as vocoder:
        for frames, expected in golden.chunked.items():
            samples = vocoder.decode(codes_of(golden.seed, frames), "reference")
            assert len(samples) == golden.lengths[f"chunked_{frames}"] == FRAME * frames - LOST * -(-frames // CHUNK)
            assert far(kept(samples), expected) < TOLERANCE, frames


def test_samples_equal_numpy(tmp_path, device):
    """Fresh weights, fresh codes; enough frames for several windows of attention and chunks."""
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed)
    with Loaded(file, device) as vocoder:
        for frames in map(int, np.random.default_rng(seed).permutation([1, 8, 19])):
            codes = codes_of(seed, frames)
            assert far(vocoder.decode(codes), twin.forward(codes)) < TOLERANCE, frames


def test_the_twin_is_transformers(golden, tmp_path):
    """So that the test above compares with the right thing; it needs no GPU to be wrong."""
    stored = golden.write(tmp_path)
    twin = Code2Wav(stored, json.loads((tmp_path / "config.json").read_text())["code2wav_config"])
    for frames in (1, 15):
        found = kept(twin.forward(codes_of(golden.seed, frames)))
        assert np.abs(found - golden.at_once[frames]).max() < TOLERANCE


@pytest.mark.parametrize(
    "sizes",
    [
        {"wav_ratios": (3,), "wav_rates": (4, 2)},
        {"wav_ratios": (1,), "wav_rates": (2, 2, 2), "wav_window": 1},
    ],
)
def test_other_factors(sizes, tmp_path, device):
    """Other rates than the releases': nothing counts on 1920, on even factors or on a start within the first frame."""
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed, **sizes)
    codes = codes_of(seed, 11)
    with Loaded(file, device) as vocoder:
        expected = twin.forward(codes)
        assert far(vocoder.decode(codes), expected) < TOLERANCE
        pieces = [vocoder.push(codes[:, i : i + 1]) for i in range(11)]
        assert far(np.concatenate(pieces), expected) < TOLERANCE


@pytest.mark.slow
def test_true_dimensions(tmp_path, device):
    """The 30B's sizes with one of its 8 layers, in f16 as it is stored."""
    seed = new_seed()
    sizes = {"wav_hidden": 1024, "wav_heads": 16, "wav_ffn": 3072, "wav_decoder_dim": 1536, "wav_window": 72}
    file, twin = write(tmp_path / "model", seed, dtype="f16", wav_layers=1, experts=2, **sizes)
    assert file.tensors["a.gen.wav.dac.entry.weight"].type == "f16"
    codes = codes_of(seed, 3)
    with Loaded(file, device) as vocoder:
        assert far(vocoder.decode(codes), twin.forward(codes)) < TOLERANCE


@pytest.mark.parametrize(("type", "tolerance"), [("f16", 3e-2), ("bf16", 2e-1)])
def test_smaller_types(type, tolerance, golden, tmp_path, device):
    """Weights rounded to 11 bits, and to 8: the answer moves by about their error, and does move."""
    golden.write(tmp_path)
    with Loaded(speech(tmp_path, type), device) as vocoder:
        off = far(kept(vocoder.decode(codes_of(golden.seed, 9))), golden.at_once[9])
    assert tolerance / 300 < off < tolerance


# Streams -------------------------------------------------------------------------------------------------------------


def pieces_of(rng: np.random.Generator, frames: int, most: int = 20) -> list[slice]:
    """Random cuts, with pieces of no frame, of one, and of more than a plan takes."""
    cuts = [0, *np.sort(rng.integers(0, frames + 1, rng.integers(1, most))).tolist(), frames]
    return [slice(*pair) for pair in itertools.pairwise(cuts)]


def test_a_stream_in_random_pieces_is_one_decode(vocoder, device):
    seed = new_seed()
    rng = np.random.default_rng(seed)
    codes = codes_of(seed, 45)
    expected = vocoder.decode(codes)
    for _ in range(3):
        pieces = pieces_of(rng, 45)
        found = [vocoder.push(codes[:, piece]) for piece in pieces]
        vocoder.reset()
        for piece, samples in zip(pieces, found, strict=True):
            lost = LOST if piece.start == 0 < piece.stop else 0
            assert len(samples) == FRAME * (piece.stop - piece.start) - lost
        # Every value is made by the same sums in the same order, however the frames arrive.
        same(np.concatenate(found), expected, device)


def test_a_stream_longer_than_the_caches(tiny, device, monkeypatch):
    """The window of keys moves back to the start of its buffer again and again, in the middle of anything."""
    seed = new_seed()
    codes = codes_of(seed, 90)
    with Loaded(tiny, device) as vocoder:
        expected = vocoder.decode(codes)
    monkeypatch.setattr("qwen3omni_wgpu.voice.code2wav.ROOM", 1)
    with Loaded(tiny, device) as vocoder:
        moves = []
        monkeypatch.setattr(vocoder, "_move_window", lambda made=vocoder._move_window: (moves.append(1), made()))
        found = [vocoder.push(codes[:, piece]) for piece in pieces_of(np.random.default_rng(seed), 90)]
        same(np.concatenate(found), expected, device)
        assert len(moves) >= 90 // vocoder._sizes[-1] - 3


def test_samples_do_not_depend_on_later_frames(vocoder):
    codes = codes_of(new_seed(), 12)
    other = codes.copy()
    other[:, 7:] = (other[:, 7:] + 1) % 48
    first, second = vocoder.decode(codes), vocoder.decode(other)
    end = 7 * FRAME - LOST
    np.testing.assert_array_equal(first[:end], second[:end])
    assert far(first[end : end + FRAME], second[end : end + FRAME]) > 0.01


def test_samples_depend_on_frames_long_ago(vocoder):
    """So that the tests of streams can see what is forgotten: two layers of windows of 6 reach back 10 frames."""
    codes = codes_of(new_seed(), 12)
    other = codes.copy()
    other[:, 0] = (other[:, 0] + 1) % 48
    assert far(vocoder.decode(codes)[9 * FRAME :], vocoder.decode(other)[9 * FRAME :]) > 1e-4


def test_reset_forgets_everything(vocoder):
    codes = codes_of(3, 9)
    expected = vocoder.push(codes)
    again = vocoder.push(codes)
    assert len(again) == len(expected) + LOST
    vocoder.reset()
    np.testing.assert_array_equal(vocoder.push(codes), expected)


def test_a_decode_ends_a_stream(vocoder):
    codes = codes_of(4, 5)
    expected = vocoder.decode(codes)
    vocoder.push(codes_of(5, 9))
    np.testing.assert_array_equal(vocoder.decode(codes), expected)
    np.testing.assert_array_equal(vocoder.push(codes), expected)


def test_a_chunk_is_one_submit(vocoder, device, monkeypatch):
    codes = codes_of(6, 8)
    vocoder.push(codes)
    submits: list[int] = []
    submit = device.submit
    monkeypatch.setattr(device, "submit", lambda commands: (submits.append(1), submit(commands))[1])
    vocoder.push(codes)
    assert len(submits) == 1


def test_dispatches(vocoder):
    """8 a layer, 6 a ratio, 11 a block and the ends: 126 for the 30B's 8 layers, 2 ratios and 4 blocks."""
    assert vocoder.dispatches(1) == vocoder.dispatches(8) == 2 + 8 * 2 + 6 * 2 + 11 * 4 + 2 * 2


def test_no_frames(vocoder):
    none = np.zeros((16, 0), np.int64)
    assert vocoder.push(none).shape == (0,)
    assert vocoder.decode(none).shape == vocoder.decode(none, "reference").shape == (0,)
    assert vocoder.push(none).dtype == np.float32


def test_every_op_agrees_with_its_twin(tiny, device, monkeypatch):
    """The debug runner: NaN in what an op does not write, its result against NumPy; a first chunk and a later one."""
    codes = codes_of(7, 5)
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    with Loaded(tiny, device) as vocoder:
        checked = [vocoder.push(codes[:, :2]), vocoder.push(codes[:, 2:])]
    monkeypatch.delenv("QWEN3OMNI_DEBUG")
    with Loaded(tiny, device) as vocoder:
        same(np.concatenate(checked), vocoder.push(codes), device)


@pytest.mark.slow
def test_the_rules_for_gpus(golden, tiny, device, monkeypatch):
    """Plans of 4 and of 16 frames and the kernels of a real GPU, on the software adapter."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    with Loaded(tiny, device) as vocoder:
        for frames, expected in golden.at_once.items():
            codes = codes_of(golden.seed, frames)
            samples = vocoder.decode(codes)
            assert far(kept(samples), expected) < TOLERANCE, frames
            pieces = pieces_of(np.random.default_rng(frames), frames)
            found = np.concatenate([vocoder.push(codes[:, piece]) for piece in pieces])
            # A plan of 4 frames has other kernels than one of 16, which sum in another order.
            assert far(found, samples) < TOLERANCE
            vocoder.reset()


# Memory, progress, requests ------------------------------------------------------------------------------------------


def test_memory_does_not_grow_with_the_stream(vocoder, device):
    for frames in (1, 17):  # plans of every size, and results on their way
        vocoder.push(codes_of(1, frames))
    allocated = device.allocated
    for i in range(40):
        vocoder.push(codes_of(i, 1 + i % 17))
    assert vocoder._done > 300  # the window has moved, too
    shift = 0 if vocoder._shift is None else sum(buffer.size for buffer in vocoder._shift._scratch)
    assert device.allocated == allocated + shift == allocated


def resident_bytes() -> int:
    """Of this process."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_ten_minutes(vocoder, device):
    """7500 frames: nothing grows, and positions far out give what they give at the start of a stream."""
    codes = codes_of(1, 7500)
    for start in range(0, 7500, 25):
        samples = vocoder.push(codes[:, start : start + 25])
        if start == 500:
            allocated, resident = device.allocated, resident_bytes()
    assert device.allocated == allocated
    # A command buffer or a read-back that is not given back would be 1 KB to 60 KB for each of 1,100 submits.
    assert resident_bytes() - resident < 8 << 20
    # The last 25 frames see 10 frames back through the layers, and 2 through the convolutions.
    alone = vocoder.decode(codes[:, -45:])[-len(samples) :]
    # An angle of 7500 rad is rounded to 2e-4, at both ends of what is turned alike; sin and cos of it to 1e-6.
    assert far(samples, alone) < 2e-3  # 1.3e-4 was measured


def test_free_returns_all_memory(tiny, device):
    before = device.allocated
    with Loaded(tiny, device) as vocoder:
        vocoder.push(codes_of(1, 20))
        assert device.allocated > before
    assert device.allocated == before


def steps(windows: list[int], most: int) -> list[tuple[int, int]]:
    """(frames done, all) after each step of at most so many frames; no step goes beyond its window."""
    sizes = [min(most, window - start) for window in windows for start in range(0, window, most)]
    return [(done, sum(sizes)) for done in np.cumsum(sizes).tolist()]


def test_progress_counts_frames(tiny, device):
    with Loaded(tiny, device, chunk=20, left_context=5) as vocoder:
        seen: list[tuple[int, int]] = []
        vocoder.decode(codes_of(1, 30), "gapless", lambda *step: seen.append(step))
        assert seen == steps([30], vocoder._sizes[-1])
        seen.clear()
        vocoder.decode(codes_of(1, 30), "reference", lambda *step: seen.append(step))
        assert seen == steps([20, 15], vocoder._sizes[-1])


def test_an_error_in_progress_leaves_the_vocoder_usable(vocoder, device):
    codes = codes_of(1, 30)
    expected = vocoder.decode(codes)
    allocated = device.allocated

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            vocoder.decode(codes, "gapless", stop)
    assert device.allocated == allocated
    np.testing.assert_array_equal(vocoder.push(codes), expected)


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((15, 4), int), r"^codes are int64 \[15, 4\], but this model takes whole numbers \[16, frames\]$"),
        (np.zeros((16, 4)), r"^codes are float64 \[16, 4\], but this model takes whole numbers \[16, frames\]$"),
        (np.zeros(16, int), r"^codes are int64 \[16\], but this model takes whole numbers \[16, frames\]$"),
        (np.full((16, 2), 48), r"^code 48 is not in the codebook; codes are 0 to 47$"),
        (np.full((16, 2), -1), r"^code -1 is not in the codebook; codes are 0 to 47$"),
        (np.full((16, 2), 2**63, np.uint64), r"^code 9223372036854775808 is not in the codebook; codes are 0 to 47$"),
    ],
)
def test_codes_that_cannot_be(vocoder, codes, message):
    for call in (vocoder.push, vocoder.decode):
        with pytest.raises(InvalidRequest, match=message):
            call(codes)
    assert vocoder._done == 0


def test_a_mode_that_is_not_there(vocoder):
    with pytest.raises(InvalidRequest, match=r"^there is no mode 'fast' of Code2Wav; use gapless or reference$"):
        vocoder.decode(codes_of(1, 2), "fast")


def test_loading_reports_all_bytes(tiny, device):
    seen: list[tuple[int, int]] = []
    Code2WavModel.load(tiny, device, lambda *step: seen.append(step)).free()
    size = sum(info.nbytes for name, info in tiny.tensors.items() if name.startswith("a.gen.wav."))
    assert seen == sorted(seen)
    assert seen[-1] == (size, size)
    assert {total for _, total in seen} == {size}


# The file ------------------------------------------------------------------------------------------------------------

KEYS = "qwen3omni-talker.code2wav"


def changed(
    file: GGUFFile, metadata: Mapping[str, Any] = {}, without: tuple[str, ...] = (), add: Mapping[str, Any] = {}
) -> GGUFFile:
    left = {key: value for key, value in {**file.metadata, **metadata}.items() if value is not None}
    tensors = {name: info for name, info in {**file.tensors, **add}.items() if name not in without}
    return dataclasses.replace(file, metadata=left, tensors=tensors)


def test_config(tiny):
    c = Code2WavConfig.from_gguf(tiny)
    assert (c.n_layers, c.dim, c.n_heads, c.n_kv_heads, c.head_dim, c.ffn_dim, c.window) == (2, 32, 2, 2, 16, 64, 6)
    assert (c.codebook_size, c.n_codebooks, c.decoder_dim, c.ratios, c.rates) == (48, 16, 64, (2, 2), (8, 5, 4, 3))
    assert (c.sampling_rate, c.chunk, c.left_context) == (24000, 300, 25)
    assert (c.norm_eps, c.layer_norm_eps, c.snake_eps) == pytest.approx((1e-5, 1e-6, 1e-9))
    assert (c.samples_per_frame, c.lost_samples, c.hidden) == (1920, 555, (0, 8, 45, 184, 555))


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"general.architecture": "qwen3vlmoe"}, UnsupportedModel, "no talker-.*gguf, so it has no Code2Wav; name a"),
        ({f"{KEYS}.hidden_act": "relu"}, UnsupportedModel, "'relu'; only 'silu' is supported"),
        ({f"{KEYS}.attention.sliding_window": None}, InvalidModelFile, "sliding_window' is missing"),
        ({f"{KEYS}.upsample_rates": []}, InvalidModelFile, r"is \[\], expected a list of whole numbers of 1 or more"),
        ({f"{KEYS}.upsample_rates": 8}, InvalidModelFile, "is 8, expected a list of whole numbers of 1 or more"),
        ({f"{KEYS}.upsample_rates": [8, 5, 4, 0]}, InvalidModelFile, "expected a list of whole numbers"),
        ({f"{KEYS}.upsample_rates": [8, 5, 4, 4]}, InvalidModelFile, "is 1920, but its factors make 2560"),
        ({f"{KEYS}.upsampling_ratios": [2, 64], f"{KEYS}.samples_per_frame": None}, UnsupportedModel, "at most 32768"),
        ({f"{KEYS}.embedding_length": 48}, UnsupportedModel, "is 48; only multiples of 32 are supported"),
        ({f"{KEYS}.feed_forward_length": 63}, UnsupportedModel, "is 63; only multiples of 4 are supported"),
        ({f"{KEYS}.decoder_length": 96}, UnsupportedModel, "is 96 for 4 blocks; only multiples of 64 are supported"),
        ({f"{KEYS}.attention.head_count_kv": 3}, UnsupportedModel, "is 16 for 2 and 3 heads"),
        ({f"{KEYS}.block_count": 3}, InvalidModelFile, r"a\.gen\.wav\.tfm\.blk\.2\.attn_q\.weight"),
        (
            {f"{KEYS}.block_count": 1},
            UnsupportedModel,
            r"1 layers and 4 blocks does not use.*'a\.gen\.wav\.tfm\.blk\.1",
        ),
        ({f"{KEYS}.codebook_size": 40}, InvalidModelFile, r"embd\.weight' has shape \[768, 32\], expected \[640, 32\]"),
    ],
)
def test_metadata_that_cannot_be(tiny, metadata, error, message):
    with pytest.raises(error, match=message) as caught:
        Code2WavConfig.from_gguf(changed(tiny, metadata))
    assert str(tiny.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_missing_too_many_or_of_other_types(tiny):
    with pytest.raises(InvalidModelFile, match=r"a\.gen\.wav\.dac\.post_snake\.beta"):
        Code2WavConfig.from_gguf(changed(tiny, without=("a.gen.wav.dac.post_snake.beta",)))
    extra = tiny.tensors["a.gen.wav.dac.post_snake.beta"]
    with pytest.raises(UnsupportedModel, match=r"the result would be wrong: 'a\.gen\.wav\.more'; use another model"):
        Code2WavConfig.from_gguf(changed(tiny, add={"a.gen.wav.more": extra}))
    quantised = dataclasses.replace(tiny.tensors["a.gen.wav.up.blk.0.pw1.weight"], type="q8_0")
    with pytest.raises(UnsupportedModel, match=r"pw1\.weight' has type q8_0; convolutions are f32 f16 bf16"):
        Code2WavConfig.from_gguf(changed(tiny, add={"a.gen.wav.up.blk.0.pw1.weight": quantised}))
