"""Tensor types: how many weights lie in how many bytes, and float32 values to bytes and back.

Source: the block formats of ggml (ggml-common.h, ggml-quants.c); Q8_0 is byte for byte what its reference gives.
"""

import numpy as np
import numpy.typing as npt
from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize as _dequantize
from gguf.quants import quantize as _quantize

TYPES = {
    "f32": GGMLQuantizationType.F32,
    "f16": GGMLQuantizationType.F16,
    "bf16": GGMLQuantizationType.BF16,
    "q8_0": GGMLQuantizationType.Q8_0,
    "q4_0": GGMLQuantizationType.Q4_0,
    "q4_1": GGMLQuantizationType.Q4_1,
}

BLOCKS: dict[str, tuple[int, int]] = {name: GGML_QUANT_SIZES[value] for name, value in TYPES.items()}
"""Tensor type -> (weights per block, bytes per block). A row is a whole number of blocks."""


class NotFinite(ValueError):
    """A weight is NaN or infinite, or becomes infinite in the wanted type; the message ends a sentence about it."""


def decode(raw: npt.NDArray[np.uint8], type: str) -> npt.NDArray[np.float32]:
    """Bytes of whole blocks -> float32 [n]."""
    return _dequantize(raw, TYPES[type]).astype(np.float32, copy=False).reshape(-1)


def encode(values: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> None:
    """float32 [n] -> the bytes of whole blocks, into `out`. Raises NotFinite."""
    if not np.isfinite(values).all():
        raise NotFinite("holds NaN or infinity")
    out[:] = _quantize(values, TYPES[type]).reshape(-1).view(np.uint8)
