"""The vision tower on the GPU: against transformers' goldens, and against the NumPy tower for new random weights."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.vision_goldens import Grid, kept, pixels, read_vision, vision_names
from reference.vision_tower import VisionTower
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.encoders import vision
from qwen3omni_wgpu.encoders.vision import VisionEncoder
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, OutOfDeviceMemory, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.models.vision import VisionConfig, VisionModel
from qwen3omni_wgpu.runner import Runner

pytestmark = pytest.mark.gpu

# Of the largest value (2 to 3 here). Sums are in another order and every block adds rounding errors: 1e-6 was measured
# on lavapipe for three blocks. Rows and columns exchanged make 1e-1, a neighbour in the table too far 1e-2, tanh for
# erf in the mergers' GELU 1e-4.
TOLERANCE = 2e-5
Rows = tuple[np.ndarray, np.ndarray]


def relative(found: Rows, expected: Rows) -> float:
    """The worse of the rows and the deepstack rows."""
    errors = []
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        errors.append(float(np.abs(mine - theirs).max() / np.abs(theirs).max()))
    return max(errors)


def new_seed() -> int:
    """Another one in every run; a failing test shows it among its local values."""
    return int(np.random.SeedSequence().generate_state(1)[0])


class Loaded:
    """An encoder with the model under it."""

    def __init__(self, file: GGUFFile, device) -> None:
        self.model = VisionModel.load(file, device)
        self.encoder = VisionEncoder(self.model, Runner(device))

    def __enter__(self) -> VisionEncoder:
        return self.encoder

    def __exit__(self, *_: object) -> None:
        self.encoder.free()
        self.model.free()


def see(encoder: VisionEncoder, seed: int, grid: Grid, **options: Any) -> Rows:
    patches = pixels(seed, grid)
    return encoder.encode(grid, lambda start, stop: patches[start:stop], **options)


def mmproj(folder: Path, type: str = "f32") -> GGUFFile:
    return open_parts(folder, type=type)["mmproj"]


def write(folder: Path, seed: int, **recipe: Any) -> tuple[GGUFFile, VisionTower]:
    """A new random checkpoint and its twin."""
    arguments = {"dtype": "f32", "thinker_hidden": 32} | recipe
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), **arguments)
    config = json.loads((folder / "config.json").read_text())["thinker_config"]["vision_config"]
    return mmproj(folder, arguments["dtype"]), VisionTower(stored, config)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> GGUFFile:
    """A model for tests that do not look at its answers."""
    return write(tmp_path_factory.mktemp("tiny"), 5)[0]


@pytest.fixture
def encoder(tiny: GGUFFile, device) -> Iterator[VisionEncoder]:
    with Loaded(tiny, device) as encoder:
        yield encoder


@pytest.mark.parametrize("name", vision_names())
def test_rows_equal_transformers(name, tmp_path, device):
    golden = read_vision(name)
    with Loaded(mmproj(golden.write(tmp_path / "model")), device) as encoder:
        for grid, expected in golden.rows.items():
            rows, taps = see(encoder, golden.recipe["seed"], grid)
            assert len(rows) == encoder.n_tokens(grid)
            assert relative((kept(rows), kept(taps)), expected) < TOLERANCE, grid


def test_rows_equal_numpy(tmp_path, device):
    """Fresh weights and fresh grids: pictures below, at and above the position table's size, and films."""
    seed = new_seed()
    rng = np.random.default_rng(seed)
    taps = tuple(sorted(rng.permutation(4)[: rng.integers(1, 4)].tolist()))
    file, twin = write(tmp_path / "model", seed, vision_depth=4, deepstack=taps, vision_side=int(rng.integers(1, 9)))
    with Loaded(file, device) as encoder:
        for most in ((1, 3, 3), (1, 10, 10), (4, 6, 6)):
            t, height, width = (int(rng.integers(1, size + 1)) for size in most)
            grid = (t, 2 * height, 2 * width)
            assert relative(see(encoder, seed, grid), twin.forward(pixels(seed, grid), grid)) < TOLERANCE, grid


def test_the_twin_is_transformers(tmp_path):
    """So that the test above compares with the right thing; it needs no GPU to be wrong."""
    golden = read_vision("heads_of_72")
    arguments = dict(golden.recipe)
    stored = write_tiny_checkpoint(tmp_path, np.random.default_rng(arguments.pop("seed")), **arguments)
    twin = VisionTower(stored, json.loads((tmp_path / "config.json").read_text())["thinker_config"]["vision_config"])
    for grid, expected in golden.rows.items():
        rows, taps = twin.forward(pixels(golden.recipe["seed"], grid), grid)
        assert relative((kept(rows), kept(taps)), expected) < TOLERANCE


@pytest.mark.parametrize("chunks", [(12,), (20, 64)])
def test_chunks_do_not_show(tiny, chunks, device, monkeypatch):
    """A picture in many chunks is what it is in one, and so is a film whose steps end inside of chunks."""
    grids = ((1, 6, 12), (3, 6, 4), (7, 2, 2))
    with Loaded(tiny, device) as encoder:
        whole = [see(encoder, 1, grid) for grid in grids]
    monkeypatch.setattr(vision, "CHUNKS", chunks)
    monkeypatch.setattr(vision, "CHUNKS_GPU", chunks)
    with Loaded(tiny, device) as encoder:
        for grid, expected in zip(grids, whole, strict=True):
            assert relative(see(encoder, 1, grid), expected) < TOLERANCE, grid


def test_a_picture_does_not_depend_on_those_before_it(encoder):
    """Buffers are used again: what an earlier, larger picture left in them must not be seen."""
    grids = ((1, 4, 2), (1, 18, 20), (2, 8, 8))
    first = {grid: see(encoder, 9, grid) for grid in grids}
    for grid in (grids[1], grids[0], grids[2], grids[0]):
        for found, expected in zip(see(encoder, 9, grid), first[grid], strict=True):
            np.testing.assert_array_equal(found, expected)


def test_steps_in_time_do_not_see_each_other(encoder):
    grid = (3, 6, 8)
    patches = pixels(2, grid)
    rows, taps = encoder.encode(grid, lambda start, stop: patches[start:stop])
    patches[48:96] = 0.5
    others, other_taps = encoder.encode(grid, lambda start, stop: patches[start:stop])
    changed = np.abs(others - rows).max(axis=1) > 0
    np.testing.assert_array_equal(changed, np.arange(36) // 12 == 1)
    np.testing.assert_array_equal(np.abs(other_taps - taps).max(axis=(0, 2)) > 0, changed)


def test_every_op_agrees_with_its_twin(tiny, device, monkeypatch):
    """The debug runner: NaN in what an op does not write, its result against NumPy, for a picture with padding."""
    monkeypatch.setattr(vision, "CHUNKS", (24,))
    monkeypatch.setattr(vision, "CHUNKS_GPU", (24,))
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    with Loaded(tiny, device) as encoder:
        checked = see(encoder, 3, (1, 6, 6))
    monkeypatch.delenv("QWEN3OMNI_DEBUG")
    with Loaded(tiny, device) as encoder:
        for found, expected in zip(see(encoder, 3, (1, 6, 6)), checked, strict=True):
            np.testing.assert_array_equal(found, expected)


@pytest.mark.slow
def test_the_rules_for_gpus(tmp_path, device, monkeypatch):
    """Chunks and kernels of a real GPU, on the software adapter."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    seed = new_seed()
    file, twin = write(tmp_path / "model", seed)
    with Loaded(file, device) as encoder:
        for grid in ((1, 6, 8), (1, 40, 30), (3, 18, 22)):
            assert relative(see(encoder, seed, grid), twin.forward(pixels(seed, grid), grid)) < TOLERANCE, grid


@pytest.mark.slow
def test_true_dimensions(tmp_path, device):
    """The 30B's tower with two of its 27 blocks and one tap: its rows, heads and table, in f16 as it is stored."""
    seed = new_seed()
    sizes = {"vision_dim": 1152, "vision_heads": 16, "vision_ffn": 4304, "vision_side": 48, "thinker_hidden": 2048}
    cut = {"vision_depth": 2, "deepstack": (0,), "thinker_heads": 2, "experts": 2, "thinker_layers": 1}
    file, twin = write(tmp_path / "model", seed, dtype="f16", **sizes, **cut)
    assert {file.tensors[f"{name}.weight"].type for name in ("v.patch_embd", "v.blk.0.ffn_down", "mm.0")} == {"f16"}
    grid = (1, 6, 10)
    with Loaded(file, device) as encoder:
        assert relative(see(encoder, seed, grid), twin.forward(pixels(seed, grid), grid)) < TOLERANCE


@pytest.mark.parametrize(("type", "tolerance"), [("f16", 2e-3), ("q8_0", 4e-2)])
def test_smaller_types(type, tolerance, tmp_path, device):
    """Weights rounded to 11 bits, and to 8: the answer moves by about their error, and does move."""
    golden = read_vision("small")
    with Loaded(mmproj(golden.write(tmp_path / "model"), type), device) as encoder:
        off = relative(see(encoder, golden.recipe["seed"], (1, 6, 10)), golden.rows[1, 6, 10])
    assert tolerance / 100 < off < tolerance


def test_progress_counts_chunks_of_blocks(encoder):
    for grid in ((1, 2, 2), (1, 24, 24), (40, 4, 4)):
        seen: list[tuple[int, int]] = []
        see(encoder, 1, grid, progress=lambda done, total, seen=seen: seen.append((done, total)))
        total = seen[0][1]
        assert seen == [(done, total) for done in range(1, total + 1)]
        assert total >= 3  # blocks


def test_an_error_in_progress_leaves_the_encoder_usable(encoder, device):
    expected = see(encoder, 1, (1, 8, 6))
    allocated = device.allocated

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            see(encoder, 1, (1, 8, 6), progress=stop)
    assert device.allocated == allocated
    for found, rows in zip(see(encoder, 1, (1, 8, 6)), expected, strict=True):
        np.testing.assert_array_equal(found, rows)


def test_patches_are_asked_for_in_pieces(encoder):
    """A large picture's patches are six times its pixels: they are made a chunk at a time."""
    asked: list[tuple[int, int]] = []

    def patches(start: int, stop: int) -> np.ndarray:
        asked.append((start, stop))
        return np.zeros((stop - start, 1536), np.float32)

    encoder.encode((1, 30, 38), patches)
    most = max(vision.CHUNKS if encoder.model.device.info.software else vision.CHUNKS_GPU)
    assert [start for start, _ in asked] == list(range(0, 1140, most))
    assert [stop for _, stop in asked] == [*range(most, 1140, most), 1140]


def test_memory_does_not_grow_with_the_film(encoder, device):
    see(encoder, 1, (16, 4, 4))
    allocated = device.allocated
    see(encoder, 1, (70, 4, 4))
    assert device.allocated == allocated


def test_free_returns_all_memory(tiny, device):
    before = device.allocated
    with Loaded(tiny, device) as encoder:
        see(encoder, 1, (1, 4, 4))
        see(encoder, 1, (1, 36, 36))  # larger buffers
        assert device.allocated > before
    assert device.allocated == before


@pytest.mark.parametrize("grid", [(1, 3, 4), (1, 4, 5), (0, 2, 2), (1, 0, 2), (1, -2, 2)])
def test_grids_that_cannot_be(encoder, grid):
    message = r"^a grid of .* patches is not possible: give sides that are multiples of 2$"
    with pytest.raises(InvalidRequest, match=message):
        encoder.encode(grid, lambda start, stop: np.zeros(0))


@pytest.mark.parametrize(("shape", "kind"), [((4, 1535), "f4"), ((3, 1536), "f4"), ((4, 1536), "f8")])
def test_patches_of_another_shape(encoder, shape, kind):
    message = r"^patches are float\d\d \[\d+, \d+\], expected float32 \[4, 1536\]$"
    with pytest.raises(InvalidRequest, match=message):
        encoder.encode((1, 2, 2), lambda start, stop: np.zeros(shape, kind))


def test_a_picture_too_large_for_the_device(tiny, device, monkeypatch):
    """Refused before anything is computed, with the size that would do; a smaller one still works."""
    monkeypatch.setitem(device.limits, "max-storage-buffer-binding-size", 1 << 20)  # 4096 rows of 64
    with Loaded(tiny, device) as encoder:
        allocated = device.allocated
        with pytest.raises(OutOfDeviceMemory, match=r"4,100 patches .* takes 4,096: give one of at most 1\.0 million"):
            see(encoder, 1, (1, 2, 2050))
        assert device.allocated == allocated
        see(encoder, 1, (1, 4, 4))


# The file ------------------------------------------------------------------------------------------------------------


def changed(
    file: GGUFFile, metadata: Mapping[str, Any] = {}, without: tuple[str, ...] = (), add: Mapping[str, Any] = {}
) -> GGUFFile:
    kept_keys = {key: value for key, value in {**file.metadata, **metadata}.items() if value is not None}
    tensors = {name: info for name, info in {**file.tensors, **add}.items() if name not in without}
    return dataclasses.replace(file, metadata=kept_keys, tensors=tensors)


def test_config(tiny):
    config = VisionConfig.from_gguf(tiny)
    assert (config.dim, config.n_heads, config.head_dim, config.ffn_dim, config.n_layers) == (64, 2, 32, 80, 3)
    assert (config.output_dim, config.side, config.patch, config.patch_dim) == (32, 4, 16, 1536)
    assert (config.merge, config.unit, config.taps) == (2, 4, (0, 2))
    assert (config.rope_theta, config.norm_eps) == (10000, pytest.approx(1e-6))


def test_what_llama_cpp_does_not_write_has_a_default(tiny):
    names = ("hidden_act", "temporal_patch_size", "in_channels", "num_position_embeddings", "rope.freq_base")
    file = changed(tiny, {f"clip.vision.{name}": None for name in names})
    assert VisionConfig.from_gguf(file) == VisionConfig.from_gguf(tiny)


V = "clip.vision."


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"clip.has_vision_encoder": False}, UnsupportedModel, "has no vision tower, so it cannot see; name a file"),
        ({f"{V}projector_type": "mlp"}, UnsupportedModel, "'mlp'; only 'qwen3vl_merger' is supported"),
        ({f"{V}hidden_act": "relu"}, UnsupportedModel, "'relu'; only 'gelu_pytorch_tanh' is supported"),
        ({f"{V}temporal_patch_size": 1}, UnsupportedModel, "is 1; only 2 is supported"),
        ({f"{V}embedding_length": None}, InvalidModelFile, "'clip.vision.embedding_length' is missing"),
        ({f"{V}attention.head_count": 3}, UnsupportedModel, "is 3 for embedding_length 64; only heads of 4, 8"),
        ({f"{V}attention.head_count": 32}, UnsupportedModel, "is 32 for embedding_length 64; only heads of 4, 8"),
        ({f"{V}feed_forward_length": 81}, UnsupportedModel, "is 81; only multiples of 4 are supported"),
        ({f"{V}is_deepstack_layers": [True]}, InvalidModelFile, "expected a yes or no for each of 3 blocks"),
        ({f"{V}is_deepstack_layers": [True, False, 1]}, InvalidModelFile, "expected a yes or no for each of 3 blocks"),
        ({f"{V}is_deepstack_layers": [True, True, True]}, InvalidModelFile, r"v\.deepstack\.1\.norm\.weight"),
        ({f"{V}is_deepstack_layers": [True, False, False]}, UnsupportedModel, r"not use.*'v\.deepstack\.2\.norm"),
        ({f"{V}num_position_embeddings": 25}, InvalidModelFile, r"v\.position_embd.* \[16, 64\], expected \[25, 64\]"),
    ],
)
def test_metadata_that_cannot_be(tiny, metadata, error, message):
    with pytest.raises(error, match=message) as caught:
        VisionConfig.from_gguf(changed(tiny, metadata))
    assert str(tiny.path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tensors_that_are_missing_or_unknown(tiny):
    for name in ("v.patch_embd.weight.1", "v.position_embd.weight", "v.blk.2.ln2.bias", "mm.2.bias"):
        with pytest.raises(InvalidModelFile, match=name.replace(".", r"\.")):
            VisionConfig.from_gguf(changed(tiny, without=(name,)))
    add = {"v.blk.0.attn_gate.weight": tiny.tensors["v.blk.0.attn_out.weight"]}
    with pytest.raises(UnsupportedModel, match=r"3 blocks does not use.*'v\.blk\.0\.attn_gate\.weight'; use another"):
        VisionConfig.from_gguf(changed(tiny, add=add))
