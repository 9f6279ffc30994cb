"""Tensors of a model file to GPU tensors: their bytes, read or converted straight into memory that shaders can see.

On a UMA device a buffer is made mapped and the file is read into the mapping: no staging copy, no second copy. On a
discrete GPU the bytes go through small staging writes. Tensors larger than a binding become several buffers. Tensors
that are still to be made (a Hugging Face checkpoint's, quantised) are converted chunk by chunk on the way.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from . import env
from .errors import OutOfDeviceMemory
from .formats.gguf import GGUFFile
from .formats.quants import BLOCKS
from .formats.tensors import Info, dequantize, read_bytes
from .gpu import Device, Part, Tensor

Progress = Callable[[int, int], None]  # bytes done, bytes in all

STAGING_BYTES = 32 << 20
# Making a mapped buffer costs more than filling it (the driver faults in and clears every page), so several are made
# at once; more threads than this gained nothing on 2 cores and would only raise the peak on many.
THREADS = max(2, min(4, os.cpu_count() or 2))
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Piece:
    """One part of one tensor, still to be read: runs of bytes [start, stop) of tensors, one behind the other."""

    part: Part
    runs: tuple[tuple[Info, int, int], ...]


def load_weights(
    device: Device,
    file: GGUFFile,
    names: Iterable[str],
    progress: Progress | None = None,
    joined: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Tensor]:
    """Read the named tensors of a model file into GPU memory, in the types they have there; vectors become float32.

    `joined` names matrices that shall lie in one tensor, row after row (name -> members): one matmul then serves them
    all. Those whose types or row lengths differ stay apart, under their own names.
    Raises OutOfDeviceMemory, and InvalidModelFile when the file changed or cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    pieces: list[_Piece] = []
    try:
        for name, infos in _groups(file, names, joined or {}).items():
            info = infos[0]
            if len(info.shape) == 1 and info.type != "f32":
                tensors[name] = Tensor.from_numpy(device, dequantize(info), name)
                continue
            shape = (sum(member.shape[0] for member in infos), *info.shape[1:])
            # Buffers are made by the readers, one thread each.
            tensors[name] = Tensor.split(device, shape, info.type, name, lambda size, label: None)
            pieces += _pieces(tensors[name], infos)
        _read_all(device, pieces, progress)
    except BaseException:
        for tensor in tensors.values():
            tensor.free()
        raise
    return tensors


def _groups(file: GGUFFile, names: Iterable[str], joined: Mapping[str, Sequence[str]]) -> dict[str, list[Info]]:
    """Name on the device -> tensors of the file that go into it."""
    groups = {name: [file.tensors[name]] for name in names}
    for name, members in joined.items():
        infos = [file.tensors[member] for member in members]
        if len({(info.type, info.shape[1:]) for info in infos}) == 1:
            for member in members:
                del groups[member]
            groups[name] = infos
    return groups


def _pieces(tensor: Tensor, infos: Sequence[Info]) -> list[_Piece]:
    row = infos[0].nbytes // infos[0].shape[0]
    pieces = []
    for part in tensor.parts:
        runs, at = [], 0  # `at`: the member's first row in the joined tensor
        for info in infos:
            start, stop = max(part.start, at), min(part.stop, at + info.shape[0])
            if start < stop:
                runs.append((info, (start - at) * row, (stop - at) * row))
            at += info.shape[0]
        pieces.append(_Piece(part, tuple(runs)))
    return pieces


def _read_all(device: Device, pieces: list[_Piece], progress: Progress | None) -> None:
    read = _read_mapped if _mapped_wanted(device) else _read_staged
    total = sum(piece.part.nbytes for piece in pieces)
    done = 0
    with ThreadPoolExecutor(THREADS if read is _read_mapped else 1) as pool:
        # Largest first, so that no thread is left with a long tail.
        jobs = [pool.submit(read, device, piece) for piece in sorted(pieces, key=lambda piece: -piece.part.nbytes)]
        try:
            for job in jobs:
                done += job.result()
                if progress:
                    progress(done, total)
        except BaseException:
            for job in jobs:
                job.cancel()
            raise


def _mapped_wanted(device: Device) -> bool:
    choice = env.get("QWEN3OMNI_UPLOAD")
    if choice == "mapped" and "mappable-primary-buffers" not in device.features:
        raise OutOfDeviceMemory(
            f"QWEN3OMNI_UPLOAD=mapped, but {device.info.name} cannot map buffers that shaders read; use auto or staged"
        )
    return device.uma if choice == "auto" else choice == "mapped"


def _read_mapped(device: Device, piece: _Piece) -> int:
    """Make the part's buffer mapped and read the file into it."""
    part = piece.part
    try:
        buffer = device.create_mapped(part.nbytes, part.storage.label)
    except OutOfDeviceMemory as error:
        # The heap that the host can map may be smaller than the device's own.
        _log.warning("%s; loading it through staging instead", error)
        return _read_staged(device, piece)
    part.storage.buffer = buffer
    view, at = device.mapped_view(buffer), 0
    for info, start, stop in piece.runs:
        read_bytes(info, start, stop, view[at : at + stop - start])
        at += stop - start
    buffer.unmap()
    return part.nbytes


def _read_staged(device: Device, piece: _Piece) -> int:
    """Make the part's buffer and write it in chunks that the driver stages."""
    part = piece.part
    part.storage.buffer = device.create_buffer(part.nbytes, part.storage.label)
    # Whole blocks, because tensors that are converted come in them, and whole words, because writes do.
    unit = math.lcm(4, BLOCKS[piece.runs[0][0].type][1])
    chunk = bytearray(min(STAGING_BYTES // unit * unit, (part.nbytes + 3) // 4 * 4))
    for start in range(0, part.nbytes, len(chunk)):
        size = min(len(chunk), part.nbytes - start)
        at = 0
        for info, low, high in _cut(piece.runs, start, size):
            read_bytes(info, low, high, memoryview(chunk)[at : at + high - low])
            at += high - low
        padded = (size + 3) // 4 * 4
        device.write_buffer(part.storage.buffer, memoryview(chunk)[:padded], start)
        # The driver keeps staged bytes until the next submit is done: without this, a second copy of the model.
        device.wait()
    return part.nbytes


def _cut(runs: Sequence[tuple[Info, int, int]], start: int, size: int) -> list[tuple[Info, int, int]]:
    """The runs of `size` bytes from byte `start` of their concatenation."""
    result, at = [], 0
    for info, first, last in runs:
        low, high = max(start, at), min(start + size, at + last - first)
        if low < high:
            result.append((info, first + low - at, first + high - at))
        at += last - first
    return result
