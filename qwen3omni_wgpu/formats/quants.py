"""Tensor types: how many weights lie in how many bytes, and float32 values to bytes and back.

Source: the block formats of ggml (ggml-common.h, ggml-quants.c); Q8_0 is byte for byte what its reference gives.
Written for speed with NumPy alone: every step is one pass over a chunk that stays in the core's second-level cache, in
buffers that each thread keeps, and the check for NaN and infinity is one look at the largest magnitude.
"""

import threading

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

# Values in one pass (a multiple of every block size); `bench/quantize.py --chunks` measures others.
CHUNK = 1 << 17

# f16 numbers at the start of a block
_SCALES = {"q8_0": 1, "q4_0": 1, "q4_1": 2}
_Q8_0 = np.dtype([("scale", "<f2"), ("weights", "V32")])
_MAGNITUDE, _SIGN = np.uint32(0x7FFFFFFF), np.uint32(0x80000000)
_INFINITY = 0x7F800000
_JUST_BELOW_HALF = np.uint32(0x3EFFFFFF)

# The smallest magnitude that no longer fits, as the bits of a float32, and the type to take instead. It is halfway from
# the largest number of the type to the next one, which would round to infinity; for q8_0 that goes for its f16 scale.
_TOO_LARGE = {
    "f16": (int(np.float32(65520).view(np.uint32)), "bf16"),
    "bf16": (0x7F7F8000, "f32"),
    "q8_0": (int(np.float32(127 * 65520).view(np.uint32)), "bf16"),
}


class NotFinite(ValueError):
    """A weight is NaN or infinite, or becomes infinite in the wanted type; the message ends a sentence about it."""


class TooLarge(NotFinite):
    """The weights are sound, but the wanted type cannot hold the largest; the message names one that can."""


class _Buffers(threading.local):
    """Each thread's own two chunks of scratch, so that converting allocates nothing."""

    def __init__(self) -> None:
        self.a = np.empty(CHUNK, np.uint32)
        self.b = np.empty(CHUNK, np.uint32)


_buffers = _Buffers()


def decode(
    raw: npt.NDArray[np.uint8], type: str, out: npt.NDArray[np.float32] | None = None
) -> npt.NDArray[np.float32]:
    """Bytes of whole blocks -> float32 [n], into `out` when given."""
    per_block, size = BLOCKS[type]
    if out is None:
        out = np.empty(raw.size // size * per_block, np.float32)
    if type == "f32":
        out.view(np.uint8)[:] = raw
    elif type == "f16":
        out[:] = raw.view(np.float16)
    elif type == "bf16":
        bits = out.view(np.uint32)
        bits[:] = raw.view(np.uint16)
        np.left_shift(bits, 16, out=bits)
    elif type == "q8_0":
        _decode_q8_0(raw, out)
    else:
        out[:] = _dequantize(raw, TYPES[type]).reshape(-1)
    return out


def encode(values: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> None:
    """float32 [n] (contiguous) -> the bytes of whole blocks, into `out`. Raises NotFinite."""
    per_block, size = BLOCKS[type]
    for start in range(0, values.size, CHUNK):
        chunk = values[start : start + CHUNK]
        begin = start // per_block * size
        _encode_chunk(chunk, type, out[begin : begin + chunk.size // per_block * size])


def check_finite(raw: npt.NDArray[np.uint8], type: str) -> None:
    """NotFinite when bytes of whole blocks, which are copied as they are, hold NaN or infinity (also as a scale)."""
    if type == "f32":
        bits, exponent = raw.view(np.uint32), np.uint32(_INFINITY)
    else:
        bits, exponent = raw.view(np.uint16), np.uint16(0x7F80 if type == "bf16" else 0x7C00)
    if type in _SCALES:
        bits = bits.reshape(-1, BLOCKS[type][1] // 2)[:, : _SCALES[type]].reshape(-1)
    scratch = _buffers.a.view(bits.dtype)
    for start in range(0, bits.size, scratch.size):
        chunk = bits[start : start + scratch.size]
        if np.bitwise_and(chunk, exponent, out=scratch[: chunk.size]).max() == exponent:
            raise NotFinite("holds NaN or infinity")


def _encode_chunk(values: npt.NDArray[np.float32], type: str, out: npt.NDArray[np.uint8]) -> None:
    if values.size == 0:
        return
    if type == "q8_0":
        _encode_q8_0(values, out)
        return
    bits = values.view(np.uint32)
    scratch = _buffers.a[: values.size]
    _check(np.bitwise_and(bits, _MAGNITUDE, out=scratch).max(), type)
    if type == "f32":
        out[:] = values.view(np.uint8)
    elif type == "f16":
        out.view(np.float16)[:] = values
    elif type == "bf16":  # to nearest, ties to even: add half of what is cut off, or a little less for even numbers
        np.right_shift(bits, 16, out=scratch)
        np.bitwise_and(scratch, 1, out=scratch)
        np.add(scratch, 0x7FFF, out=scratch)
        np.add(scratch, bits, out=scratch)
        np.right_shift(scratch, 16, out=scratch)
        np.copyto(out.view(np.uint16), scratch, casting="unsafe")
    else:
        out[:] = _quantize(values, TYPES[type]).reshape(-1).view(np.uint8)


def _check(largest: np.uint32, type: str) -> None:
    """largest: the bits of the largest magnitude; those of NaN and infinity are above all numbers'."""
    if largest >= _INFINITY:
        raise NotFinite("holds NaN or infinity")
    limit, instead = _TOO_LARGE.get(type, (_INFINITY, ""))
    if largest >= limit:
        raise TooLarge(f"holds {largest.view(np.float32):.2g}, too large for {type}; use {instead}")


def _decode_q8_0(raw: npt.NDArray[np.uint8], out: npt.NDArray[np.float32]) -> None:
    blocks = raw.view(_Q8_0)
    for start in range(0, blocks.size, CHUNK // 32):
        chunk = blocks[start : start + CHUNK // 32]
        packed = _buffers.a.view("V32")[: chunk.size]
        packed[:] = chunk["weights"]
        rows = out[start * 32 :][: chunk.size * 32].reshape(-1, 32)
        rows[:] = packed.view(np.int8).reshape(-1, 32)
        np.multiply(rows, chunk["scale"].astype(np.float32)[:, None], out=rows)


def _encode_q8_0(values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8]) -> None:
    """Blocks of 32: scale = largest magnitude / 127 as f16, weights = round(x * (1 / scale)), halves away from zero."""
    n = values.size
    a, b = _buffers.a[:n], _buffers.b[:n]
    np.bitwise_and(values.view(np.uint32), _MAGNITUDE, out=a)
    largest = _largest_of_32(a, b)
    _check(largest.max(), "q8_0")
    scales = largest.view(np.float32) / np.float32(127)
    # A scale that is zero, or so small that 1 / scale is infinite, is zero in f16: weights of zero, as ggml's are then.
    with np.errstate(divide="ignore", over="ignore"):
        inverse = np.float32(1) / scales
    inverse[np.isinf(inverse)] = 0

    scaled = a.view(np.float32)
    np.multiply(values.reshape(-1, 32), inverse[:, None], out=scaled.reshape(-1, 32))
    # Cutting off after adding almost a half with the number's sign rounds halves away from zero. A full half would
    # turn 0.49999997 into 1; with the float just below it every sum up to 127.5 falls on the right side (tested).
    np.bitwise_and(a, _SIGN, out=b)
    np.bitwise_or(b, _JUST_BELOW_HALF, out=b)
    np.add(scaled, b.view(np.float32), out=scaled)
    weights = b.view(np.int8)[:n]
    np.copyto(weights, scaled, casting="unsafe")
    blocks = out.view(_Q8_0)
    blocks["scale"] = scales
    blocks["weights"] = weights.view("V32")


def _largest_of_32(bits: npt.NDArray[np.uint32], scratch: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """The largest of each 32 magnitudes, by pairs: three times as fast as a reduction over short rows."""
    for _ in range(5):
        half = scratch[: bits.size // 2]
        np.maximum(bits[0::2], bits[1::2], out=half)
        bits, scratch = half, scratch[bits.size // 2 :]
    return bits
