"""Tensors: bytes there and back, and rows in parts where a binding is too small for all."""

import gguf
import numpy as np
import pytest

from qwen3omni_wgpu.gpu import BLOCK, Device, Tensor, nbytes_of
from qwen3omni_wgpu.ops.guard import values

pytestmark = pytest.mark.gpu

RNG = np.random.default_rng(7)
ARRAYS = {
    "f32": RNG.standard_normal((3, 5)).astype(np.float32),
    "f16": RNG.standard_normal((3, 5)).astype(np.float16),  # 30 bytes: not a whole number of words
    "u32": RNG.integers(0, 2**32, (2, 3), np.uint32),
    "i32": RNG.integers(-(2**31), 2**31, (7,)).astype(np.int32),
}
WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")


def small_bindings(device: Device, monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setitem(device.limits, "max-storage-buffer-binding-size", nbytes)


@pytest.mark.parametrize("dtype", ARRAYS)
def test_values_survive(device, dtype):
    array = ARRAYS[dtype]
    tensor = Tensor.from_numpy(device, array, "x")
    assert tensor.dtype == dtype
    back = tensor.numpy()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)
    tensor.free()


def test_special_values_survive(device):
    array = np.array([np.nan, np.inf, -np.inf, -0.0, 1e-42, 3.4e38], np.float32)
    np.testing.assert_array_equal(Tensor.from_numpy(device, array).numpy().view(np.uint32), array.view(np.uint32))


def test_strided_values_arrive_in_order(device):
    array = ARRAYS["f32"].T
    np.testing.assert_array_equal(Tensor.from_numpy(device, array).numpy(), array)


@pytest.mark.parametrize("dtype", WEIGHTS)
def test_raw_bytes_survive(device, dtype):
    array = RNG.standard_normal((5, 96)).astype(np.float32)
    raw = gguf.quants.quantize(array, gguf.GGMLQuantizationType[dtype.upper()])
    tensor = Tensor.from_bytes(device, raw, (5, 96), dtype, "w")
    assert tensor.nbytes == raw.nbytes == nbytes_of((5, 96), dtype)
    np.testing.assert_array_equal(tensor.numpy().view(np.uint8).reshape(-1), raw.view(np.uint8).reshape(-1))
    expected = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[dtype.upper()])
    np.testing.assert_array_equal(values(tensor), expected.reshape(5, 96))


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows_that_fit", [1, 2, 63, 64, 65, 100, 200, 1000])
def test_parts_cover_all_rows_once(device, monkeypatch, dtype, rows_that_fit):
    rows, width = 333, 64
    row = nbytes_of((1, width), dtype)
    small_bindings(device, monkeypatch, rows_that_fit * row + row // 2)
    raw = RNG.integers(0, 256, (rows, row), np.uint8)
    before = device.allocated
    tensor = Tensor.from_bytes(device, raw, (rows, width), dtype, "w")
    at = 0
    for part in tensor.parts:
        assert part.start == at
        assert part.nbytes == (part.stop - part.start) * row <= device.max_binding
        assert part.storage.buffer.size >= part.nbytes
        assert part.offset == 0
        at = part.stop
    assert at == rows
    fewest = -(-rows // rows_that_fit)
    assert fewest <= len(tensor.parts) <= 2 * fewest
    np.testing.assert_array_equal(tensor.numpy().view(np.uint8).reshape(rows, row), raw)
    if len(tensor.parts) > 1:
        assert all(f"w[{part.start}:{part.stop}]" == part.storage.label for part in tensor.parts)
    tensor.free()
    assert device.allocated == before


def test_parts_of_a_tensor_of_experts(device, monkeypatch):
    small_bindings(device, monkeypatch, 3 * 8 * 32 * 4)
    array = RNG.standard_normal((8, 8, 32)).astype(np.float32)
    tensor = Tensor.from_bytes(device, array, (8, 8, 32), "f32", "experts")
    assert [part.stop - part.start for part in tensor.parts] == [3, 3, 2]
    np.testing.assert_array_equal(values(tensor), array)


def test_a_split_tensor_has_no_single_storage(device, monkeypatch):
    small_bindings(device, monkeypatch, 1024)
    tensor = Tensor.from_bytes(device, np.zeros((20, 32), np.float32), (20, 32), "f32", "output.weight")
    with pytest.raises(ValueError, match=r"output\.weight is split into 3 parts"):
        _ = tensor.storage
    with pytest.raises(ValueError, match="split"):
        tensor.view(640)


def test_views_and_first_rows_share_bytes(device):
    tensor = Tensor.from_numpy(device, np.arange(24, dtype=np.float32).reshape(6, 4), "x")
    np.testing.assert_array_equal(tensor.view(3, 8).numpy(), np.arange(24, dtype=np.float32).reshape(3, 8))
    np.testing.assert_array_equal(tensor.first(2).numpy(), np.arange(8, dtype=np.float32).reshape(2, 4))
    tensor.first(2).write(np.full((2, 4), -1, np.float32))
    np.testing.assert_array_equal(tensor.numpy()[:3, 0], [-1, -1, 8])


def test_writing_less_leaves_the_rest(device):
    tensor = Tensor.from_numpy(device, np.arange(6, dtype=np.uint32), "ids")
    tensor.write(np.array([9, 8], np.uint32))
    np.testing.assert_array_equal(tensor.numpy(), [9, 8, 2, 3, 4, 5])


def test_fill(device):
    tensor = Tensor.from_numpy(device, ARRAYS["f32"])
    tensor.fill(0xFF)
    assert np.isnan(tensor.numpy()).all()


def test_new_tensors_are_zero(device):
    np.testing.assert_array_equal(Tensor.empty(device, (4, 4)).numpy(), np.zeros((4, 4), np.float32))


@pytest.mark.parametrize(
    ("array", "dtype"),
    [
        (np.zeros(4, np.float64), "f32"),
        (np.zeros(4, np.uint32), "f32"),
        (np.zeros(5, np.float32), "f32"),
        (np.zeros(4, np.float32), "bf16"),
        (np.zeros(32, np.uint8), "q8_0"),
    ],
)
def test_wrong_values_are_not_written(device, array, dtype):
    tensor = Tensor.empty(device, (32,) if dtype == "q8_0" else (4,), dtype, "x")
    with pytest.raises(ValueError, match=f"x: cannot write {array.dtype}"):
        tensor.write(array)


def test_a_view_needs_as_many_values(device):
    with pytest.raises(ValueError, match=r"x: \(2, 3\) cannot be viewed as \(4, 2\)"):
        Tensor.empty(device, (2, 3), name="x").view(4, 2)


def test_no_more_rows_than_there_are(device):
    with pytest.raises(ValueError, match=r"x has 2 rows, not 3"):
        Tensor.empty(device, (2, 3), name="x").first(3)


def test_unknown_types_are_refused(device):
    with pytest.raises(KeyError):
        Tensor.from_numpy(device, np.zeros(3, np.complex64))


def test_block_sizes_are_those_of_gguf():
    for dtype, (weights, size) in BLOCK.items():
        if dtype not in ("u32", "kv_q10"):
            dtype = dtype.replace("kv_q8", "q8_0")  # the same bytes in another order
            assert gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[dtype.upper()]] == (weights, size)


def test_shown(device):
    assert repr(Tensor.empty(device, (2, 3), "f16", "cache")) == "Tensor(cache: f16[2, 3])"
