"""Rows of a stored or still to be made matrix are those of the whole."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from qwen3omni_wgpu.formats.tensors import Derived, TensorInfo, dequantize, read_rows


def stored(folder: Path, shape: tuple[int, int], type: str) -> TensorInfo:
    values = np.random.default_rng().standard_normal(shape, dtype=np.float32)
    raw = gguf.quantize(values, gguf.GGMLQuantizationType[type.upper()]).tobytes()
    path = folder / f"{type}.bin"
    path.write_bytes(b"head" + raw)
    return TensorInfo(type, shape, type, path, 4, len(raw))


@pytest.mark.parametrize("type", ["f32", "f16", "bf16", "q8_0", "q4_1"])
def test_rows_of_a_stored_matrix(type, tmp_path):
    info = stored(tmp_path, (37, 96), type)
    np.testing.assert_array_equal(read_rows(info, [36, 0, 5, 5]), dequantize(info)[[36, 0, 5, 5]])
    assert read_rows(info, []).shape == (0, 96)


@pytest.mark.parametrize("type", ["q8_0", "f16"])
def test_rows_of_a_matrix_that_is_still_to_be_made(type, tmp_path):
    info = Derived("w", (37, 96), type, (stored(tmp_path, (37, 96), "bf16"),))
    np.testing.assert_array_equal(read_rows(info, [1, 36]), dequantize(info)[[1, 36]])
