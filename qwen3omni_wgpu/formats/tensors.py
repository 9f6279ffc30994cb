"""Tensors as a file holds them, or as they shall be made from those: one interface to their bytes.

A `TensorInfo` lies in a GGUF or safetensors file. A `Derived` one is to be made: the values of its sources one behind
the other (experts stacked, say), in another type. Readers ask both for bytes and need not know which it is.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import FileIO
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import InvalidModelFile, ModelNotFound
from . import quants
from .quants import BLOCKS, CHUNK

_AGAIN = "download or convert it again"


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies.

    shape is row-major (GGUF's dimensions reversed), type a key of BLOCKS, offset in bytes from the start of the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    path: Path
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Derived:
    """A tensor to be made: what `sources` hold, one behind the other in row-major order, encoded as `type`.

    make: for the few tensors that are more than that: float32 arrays of the sources -> float32 array of `shape`.
    Those are computed whole, so they should be small.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    sources: tuple[TensorInfo, ...]
    make: Callable[[Sequence[npt.NDArray[np.float32]]], npt.NDArray[np.float32]] | None = None

    @property
    def nbytes(self) -> int:
        per_block, size = BLOCKS[self.type]
        return prod(self.shape) // per_block * size

    @property
    def path(self) -> Path:
        """The first file it comes from, for messages."""
        return self.sources[0].path if self.sources else Path()


Info = TensorInfo | Derived


def shown(value: object) -> str:
    """repr, cut to 80 characters: names and values from a file can be anything, a message is one short line."""
    text = repr(value)
    return text if len(text) <= 80 else text[:76] + "..." + text[-1]


def dequantize(info: Info) -> npt.NDArray[np.float32]:
    """All weights of one tensor as float32 of `info.shape`, on the host (for tests and small tensors)."""
    if isinstance(info, Derived):
        if info.make is not None:
            made = info.make([dequantize(source) for source in info.sources])
            values = np.ascontiguousarray(made, np.float32).reshape(-1)
        else:
            values = np.concatenate([dequantize(source).reshape(-1) for source in info.sources])
        if info.type != "f32":  # as it will be stored
            raw = np.empty(info.nbytes, np.uint8)
            encode(info, values, raw)
            values = quants.decode(raw, info.type)
        return values.reshape(info.shape)
    raw = np.empty(info.nbytes, np.uint8)
    read_bytes(info, 0, info.nbytes, raw.data)
    return quants.decode(raw, info.type).reshape(info.shape)


def read_bytes(info: Info, start: int, stop: int, out: memoryview) -> None:
    """Bytes start to stop of the tensor's encoding into `out` (writable bytes, as many); whole blocks of a Derived one.

    Raises ModelNotFound (the file is gone), InvalidModelFile (it became shorter, or NaN or infinity in weights that
    are converted).
    """
    if isinstance(info, TensorInfo):
        _read_stored(info, start, stop, out)
    elif info.make is not None:
        _make(info, start, stop, out)
    else:
        _convert(info, start, stop, out)


def read_rows(info: Info, indices: Sequence[int]) -> npt.NDArray[np.float32]:
    """Some rows of a matrix, dequantised: float32 [len(indices), columns]. Raises what read_bytes raises."""
    if not len(indices):
        return np.empty((0, info.shape[1]), np.float32)
    size = info.nbytes // info.shape[0]
    raw = np.empty((len(indices), size), np.uint8)
    for row, index in zip(raw, indices, strict=True):
        read_bytes(info, index * size, (index + 1) * size, row.data)
    return quants.decode(raw.reshape(-1), info.type).reshape(len(indices), info.shape[1])


def encode(
    info: Info, values: npt.NDArray[np.float32], out: npt.NDArray[np.uint8], source: TensorInfo | None = None
) -> None:
    """float32 values as `info.type`; InvalidModelFile names the source's file and tensor when one is not finite."""
    try:
        quants.encode(values, info.type, out)
    except quants.NotFinite as error:
        raise _refused(source or info, error) from None


def _refused(blame: Info, error: quants.NotFinite) -> InvalidModelFile:
    hint = "" if isinstance(error, quants.TooLarge) else f"; {_AGAIN}"
    return InvalidModelFile(f"{blame.path}: tensor {shown(blame.name)} {error}{hint}")


class _Buffers(threading.local):
    """Each thread's own chunk of a source, as it is stored and as float32."""

    def __init__(self) -> None:
        self.raw = np.empty(CHUNK * 4, np.uint8)
        self.values = np.empty(CHUNK, np.float32)


_buffers = _Buffers()


def _read_stored(info: TensorInfo, start: int, stop: int, out: memoryview) -> None:
    with open_file(info) as file:
        read_exactly(file, out, info.offset + start, info)


def _make(info: Derived, start: int, stop: int, out: memoryview) -> None:
    assert info.make is not None
    made = info.make([dequantize(source) for source in info.sources])
    if made.shape != info.shape:
        raise ValueError(f"{info.name}: made {made.shape}, wanted {info.shape}")
    whole = np.empty(info.nbytes, np.uint8)
    source = info.sources[0] if info.sources else None
    encode(info, np.ascontiguousarray(made, np.float32).reshape(-1), whole, source)
    out[:] = whole[start:stop].data


def _convert(info: Derived, start: int, stop: int, out: memoryview) -> None:
    """Source by source, in chunks, through float32; sources that have the type already are read as they are."""
    per_block, size = BLOCKS[info.type]
    first, last = start // size * per_block, stop // size * per_block
    target = np.frombuffer(out, np.uint8)
    at = 0  # values before this source
    for source in info.sources:
        count = prod(source.shape)
        low, high = max(first, at), min(last, at + count)
        if low < high:
            place = target[(low - first) // per_block * size : (high - first) // per_block * size]
            _convert_source(info, source, low - at, high - at, place)
        at += count


def _convert_source(info: Derived, source: TensorInfo, low: int, high: int, place: npt.NDArray[np.uint8]) -> None:
    from_block, from_size = BLOCKS[source.type]
    to_block, to_size = BLOCKS[info.type]
    with open_file(source) as file:
        for start in range(low, high, CHUNK):
            count = min(CHUNK, high - start)
            begin = (start - low) // to_block * to_size
            target = place[begin : begin + count // to_block * to_size]
            same = source.type == info.type
            raw = target if same else _buffers.raw[: count // from_block * from_size]
            read_exactly(file, raw.data, source.offset + start // from_block * from_size, source)
            if same:
                _check_copied(source, raw)
            else:
                encode(info, quants.decode(raw, source.type, _buffers.values[:count]), target, source)


def _check_copied(source: TensorInfo, raw: npt.NDArray[np.uint8]) -> None:
    try:
        quants.check_finite(raw, source.type)
    except quants.NotFinite as error:
        raise _refused(source, error) from None


def open_file(info: Info) -> FileIO:
    try:
        return FileIO(info.path)
    except OSError as error:
        raise ModelNotFound(f"{info.path}: cannot be opened any more ({error.strerror}); load it again") from error


def read_exactly(file: FileIO, out: memoryview, offset: int, info: Info) -> None:
    """Fill `out` from the file's bytes at `offset`."""
    done = 0
    while done < len(out):
        try:
            got = os.preadv(file.fileno(), [out[done:]], offset + done)
        except OSError as error:
            raise ModelNotFound(f"{info.path}: cannot be read ({error.strerror}); check the disk") from error
        if got == 0:
            raise InvalidModelFile(
                f"{info.path}: ends inside tensor {shown(info.name)} (it became shorter since it was opened); "
                "download it again"
            )
        done += got
