"""Tensors: shape, element type and where the bytes lie."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .device import Device

# (weights, bytes) of one block; an element type that is not quantised has blocks of one.
BLOCK = {
    "f32": (1, 4),
    "u32": (1, 4),
    "i32": (1, 4),
    "f16": (1, 2),
    "bf16": (1, 2),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
    "q4_1": (32, 20),
    "kv_q8": (32, 34),  # rows of values in a KV cache: all integers, then all scales
    "kv_q10": (32, 42),  # rows of its keys: upper 8 bits of all integers, their lower 2 bits, all scales
}
_NUMPY = {"f32": np.float32, "u32": np.uint32, "i32": np.int32, "f16": np.float16}


def nbytes_of(shape: tuple[int, ...], dtype: str) -> int:
    """Bytes of a tensor; the last axis must be whole blocks."""
    weights, size = BLOCK[dtype]
    return math.prod(shape) // weights * size


class Storage:
    """Bytes on the device; a plan's intermediate results get their buffer only when the plan is finished."""

    __slots__ = ("buffer", "label", "nbytes")

    def __init__(self, nbytes: int, label: str = "", buffer: Any = None):
        self.nbytes = nbytes
        self.label = label
        self.buffer = buffer


@dataclass(frozen=True)
class Part:
    """Rows `start` to `stop` (along the first axis) of a tensor, as one binding can show them."""

    storage: Storage
    offset: int
    nbytes: int
    start: int
    stop: int


class Tensor:
    """A row-major array on the device: one part, or several where it exceeds what a binding can show."""

    __slots__ = ("device", "dtype", "name", "parts", "shape")

    def __init__(self, device: Device, shape: tuple[int, ...], dtype: str, parts: list[Part], name: str = ""):
        self.device = device
        self.shape = shape
        self.dtype = dtype
        self.parts = parts
        self.name = name

    @classmethod
    def pending(cls, device: Device, shape: tuple[int, ...], dtype: str, name: str) -> Tensor:
        """A tensor whose buffer is decided later (Plan.finish)."""
        size = nbytes_of(shape, dtype)
        return cls(device, shape, dtype, [Part(Storage(size, name), 0, size, 0, shape[0])], name)

    @classmethod
    def empty(cls, device: Device, shape: tuple[int, ...], dtype: str = "f32", name: str = "") -> Tensor:
        """A tensor with a buffer of its own (zeros)."""
        tensor = cls.pending(device, shape, dtype, name)
        tensor.storage.buffer = device.create_buffer(tensor.nbytes, name)
        return tensor

    @classmethod
    def from_numpy(cls, device: Device, array: np.ndarray, name: str = "") -> Tensor:
        """Upload float32, float16, uint32 or int32 values."""
        dtype = {np.dtype(value): key for key, value in _NUMPY.items()}[array.dtype]
        tensor = cls.empty(device, array.shape, dtype, name)
        tensor.write(array)
        return tensor

    @classmethod
    def from_bytes(
        cls, device: Device, data: np.ndarray, shape: tuple[int, ...], dtype: str, name: str = ""
    ) -> Tensor:
        """Upload the raw bytes of a file's tensor, in as many parts as the device needs."""
        raw = np.ascontiguousarray(data).view(np.uint8).reshape(-1)
        tensor = cls.split(device, shape, dtype, name, lambda size, label: device.create_buffer(size, label))
        for part in tensor.parts:
            start = part.start * (tensor.nbytes // shape[0])
            piece = raw[start : start + part.nbytes]
            device.write_buffer(part.storage.buffer, np.pad(piece, (0, -len(piece) % 4)))
        return tensor

    @classmethod
    def split(
        cls, device: Device, shape: tuple[int, ...], dtype: str, name: str, create: Callable[[int, str], Any]
    ) -> Tensor:
        """A tensor in equal slices of rows that each fit a binding; `create(nbytes, label)` makes the buffers."""
        row = nbytes_of(shape, dtype) // shape[0]
        rows = max(1, min(shape[0], device.max_binding // row))
        # Even slices, so that the last dispatch is not a sliver; multiples of 64 rows keep kernels' tiles whole.
        pieces = -(-shape[0] // rows)
        rows = min(rows, -(-shape[0] // pieces))
        if pieces > 1 and rows > 64:
            rows = min(device.max_binding // row, -(-rows // 64) * 64)
            rows -= rows % 64
        parts = []
        for start in range(0, shape[0], rows):
            stop = min(shape[0], start + rows)
            size = (stop - start) * row
            label = name if pieces == 1 else f"{name}[{start}:{stop}]"
            parts.append(Part(Storage(size, label, create(size, label)), 0, size, start, stop))
        return cls(device, shape, dtype, parts, name)

    @property
    def storage(self) -> Storage:
        if len(self.parts) != 1:
            raise ValueError(f"{self.name} is split into {len(self.parts)} parts; only matmul-like ops take it")
        return self.parts[0].storage

    @property
    def nbytes(self) -> int:
        return nbytes_of(self.shape, self.dtype)

    def view(self, *shape: int) -> Tensor:
        """The same bytes under another shape."""
        if math.prod(shape) != math.prod(self.shape):
            raise ValueError(f"{self.name}: {self.shape} cannot be viewed as {shape}")
        part = self.parts[0]
        return Tensor(
            self.device, shape, self.dtype, [Part(self.storage, part.offset, part.nbytes, 0, shape[0])], self.name
        )

    def first(self, rows: int) -> Tensor:
        """The first rows, on the same bytes."""
        if rows > self.shape[0]:
            raise ValueError(f"{self.name} has {self.shape[0]} rows, not {rows}")
        shape = (rows, *self.shape[1:])
        part = Part(self.storage, self.parts[0].offset, nbytes_of(shape, self.dtype), 0, rows)
        return Tensor(self.device, shape, self.dtype, [part], self.name)

    def write(self, array: np.ndarray) -> None:
        """Overwrite the first `array.nbytes` bytes; takes effect before the next submit."""
        if array.dtype != _NUMPY.get(self.dtype) or array.nbytes > self.nbytes:
            raise ValueError(f"{self.name}: cannot write {array.dtype}{array.shape} into {self.dtype}{self.shape}")
        data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        data = np.pad(data, (0, -len(data) % 4)) if len(data) % 4 else data
        self.device.write_buffer(self.storage.buffer, data, self.parts[0].offset)

    def numpy(self) -> np.ndarray:
        """Read the values back (raw bytes [rows, bytes] for quantised types); waits for pending work."""
        raw = b"".join(
            self.device.read_buffer(part.storage.buffer, part.nbytes, part.offset) for part in self.parts
        )
        if self.dtype in _NUMPY:
            return np.frombuffer(raw, _NUMPY[self.dtype]).reshape(self.shape).copy()
        return np.frombuffer(raw, np.uint8).reshape(math.prod(self.shape[:-1]), -1).copy()

    def fill(self, byte: int) -> None:
        """Overwrite every byte (0xFF makes NaN of floats)."""
        for part in self.parts:
            data = np.full((part.nbytes + 3) // 4 * 4, byte, np.uint8)
            self.device.write_buffer(part.storage.buffer, data, part.offset)

    def free(self) -> None:
        for part in self.parts:
            if part.storage.buffer is not None:
                self.device.free_buffer(part.storage.buffer)
                part.storage.buffer = None

    def __repr__(self) -> str:
        return f"Tensor({self.name or '?'}: {self.dtype}{list(self.shape)})"
