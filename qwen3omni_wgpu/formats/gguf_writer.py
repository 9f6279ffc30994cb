"""Writing GGUF files: tensors are converted piece by piece on a few threads, straight from where their sources lie.

Memory does not depend on the tensors' sizes, the same input gives the same bytes, and nothing half-written is ever seen
under the file's name (part_file.py). The header is `gguf.GGUFWriter`'s work.
"""

import hashlib
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from struct import error as StructError
from typing import Any

import numpy as np
from gguf import GGUFWriter
from gguf.constants import GGUF_DEFAULT_ALIGNMENT, GGUFValueType
from gguf.gguf_writer import WriterState

from ..errors import InvalidModelFile, InvalidRequest, ModelNotFound
from .gguf import GGUFFile
from .part_file import PartFile, check_target
from .quants import BLOCKS, CHUNK, TYPES
from .tensors import Derived, Info, TensorInfo, read_bytes, shown

# Values converted by one task: enough to make its overhead small, little enough to keep the threads' memory small.
_PIECE = 8 * CHUNK

# Part of the fingerprint: another number when the same inputs come to give other bytes, so that no file becomes a mix.
_VERSION = 1

Progress = Callable[[int, int], None]
"""Called from the writing thread with (bytes written, bytes of the whole file), first where a resumed run starts."""


def write_gguf(
    path: str | os.PathLike[str],
    file: GGUFFile,
    *,
    resume: bool = False,
    overwrite: bool = False,
    threads: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write metadata and tensors of `file`, which may be on disk or still to be made, as a GGUF file, in its order.

    Grows as `path`.part; `path` appears when it is complete. A stopped run keeps its .part: resume=True continues it,
    or starts, or does nothing when `path` is complete; overwrite=True starts again and replaces `path` at the end.
    threads: that convert and write; default: one a core, at most 8.
    Raises InvalidRequest (the name is taken, it does not fit on the disk, writing failed), InvalidModelFile,
    ModelNotFound (a source).
    """
    path = Path(path)
    if resume and overwrite:
        raise InvalidRequest(f"{path}: --resume continues a stopped run, --overwrite starts again; choose one")
    _check_not_a_source(path, check_target(path), file)
    layout = _plan(file)
    if resume and _is_complete(path, file, layout):
        return
    fingerprint = _fingerprint(file, layout)
    with PartFile(path, layout.header, layout.total, fingerprint, resume=resume, overwrite=overwrite) as part:
        _write_tensors(part, layout, threads or min(8, len(os.sched_getaffinity(0))), progress or _silent)
        part.finish()


def written_size(file: GGUFFile) -> int:
    """Bytes of the file that `write_gguf` would make."""
    return _plan(file).total


@dataclass(frozen=True)
class _Layout:
    """header: all bytes before the first tensor. offsets: where each tensor goes, from the start of the file."""

    header: bytes
    tensors: tuple[Info, ...]
    offsets: tuple[int, ...]
    total: int


@dataclass(frozen=True)
class _Piece:
    """Bytes start to stop of a tensor's encoding, which go to `offset` in the file."""

    info: Info
    start: int
    stop: int
    offset: int


def _plan(file: GGUFFile) -> _Layout:
    alignment = int(file.metadata.get("general.alignment", GGUF_DEFAULT_ALIGNMENT))
    header = _header(file, alignment)
    end = len(header)
    offsets = []
    for info in file.tensors.values():
        offsets.append(end)
        end += GGUFWriter.ggml_pad(info.nbytes, alignment)
    return _Layout(header, tuple(file.tensors.values()), tuple(offsets), end)


def _header(file: GGUFFile, alignment: int) -> bytes:
    """Magic, counts, metadata and tensor table, padded to where the first tensor starts."""
    buffer = BytesIO()
    writer = GGUFWriter(None, str(file.metadata.get("general.architecture", "")))
    writer.data_alignment = alignment
    for key, value in file.metadata.items():
        if not (isinstance(value, list) and not value):  # GGUFWriter cannot write an empty array
            writer.kv_data[0].pop(key, None)
            kinds = file.kinds.get(key) or _kinds(file.path, key, value)
            writer.add_key_value(key, value, *kinds)
    for info in file.tensors.values():
        if not 1 <= len(info.shape) <= 4:
            raise ValueError(f"{info.name}: {len(info.shape)} dimensions; GGUF has 1 to 4")
        # An element type that the writer's own logic leaves alone; TYPES says what the tensor is.
        writer.add_tensor_info(info.name, info.shape, np.dtype(np.float32), info.nbytes, TYPES[info.type])
    writer.fout, writer.state = [buffer], WriterState.EMPTY  # type: ignore[list-item]  # a file that is already open
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
    except (StructError, UnicodeEncodeError, OverflowError) as error:
        raise InvalidModelFile(f"{file.path}: its metadata cannot be written as GGUF ({error}); check them") from error
    buffer.write(bytes(-buffer.tell() % alignment))
    return buffer.getvalue()


def _kinds(path: Path, key: str, value: Any) -> tuple[GGUFValueType, ...]:
    """GGUF value types of a plain Python value: of a list ARRAY and the type of its elements."""
    if isinstance(value, bool):
        return (GGUFValueType.BOOL,)
    if isinstance(value, int):
        if value < 0:
            return (GGUFValueType.INT32 if value >= -(1 << 31) else GGUFValueType.INT64,)
        return (GGUFValueType.UINT32 if value < 1 << 32 else GGUFValueType.UINT64,)
    if isinstance(value, float):
        return (GGUFValueType.FLOAT32,)
    if isinstance(value, str):
        return (GGUFValueType.STRING,)
    if isinstance(value, list):
        kinds = {type(element) for element in value}
        for kind, gguf in (
            (str, GGUFValueType.STRING),
            (bool, GGUFValueType.BOOL),
            (int, GGUFValueType.INT32),
            (float, GGUFValueType.FLOAT32),
        ):
            if kinds <= {kind} or (kind is float and kinds <= {int, float}):
                return GGUFValueType.ARRAY, gguf
    raise InvalidModelFile(f"{path}: the value of {key}, {shown(value)}, has no form in GGUF; check it")


def _pieces(layout: _Layout, done: int) -> Iterator[_Piece]:
    """What is still to be written, in the file's order."""
    for info, offset in zip(layout.tensors, layout.offsets, strict=True):
        per_block, size = BLOCKS[info.type]
        step = _PIECE // per_block * size
        if isinstance(info, Derived) and info.make is not None:
            step = info.nbytes  # it is computed as a whole anyway
        elif isinstance(info, TensorInfo):  # the same, but looks for NaN
            info = Derived(info.name, info.shape, info.type, (info,))
        for start in range(0, info.nbytes, step):
            stop = min(start + step, info.nbytes)
            if offset + stop > done:
                yield _Piece(info, start, stop, offset + start)


def _write_tensors(part: PartFile, layout: _Layout, threads: int, progress: Progress) -> None:
    """A window of pieces is in work; they are waited for in order, so that all before the oldest one are written."""
    window: deque[tuple[_Piece, Future[None]]] = deque()

    def wait_for_oldest() -> None:
        piece, future = window.popleft()
        future.result()
        done = piece.offset + piece.stop - piece.start
        part.reached(done)
        progress(done, layout.total)

    progress(part.done, layout.total)
    with ThreadPoolExecutor(threads, "convert") as pool:
        try:
            for piece in _pieces(layout, part.done):
                if len(window) >= 4 * threads:
                    wait_for_oldest()
                window.append((piece, pool.submit(_write_piece, part, piece)))
            while window:
                wait_for_oldest()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


class _Buffer(threading.local):
    """Each thread's own, as large as any piece of a tensor that is not computed as a whole."""

    def __init__(self) -> None:
        self.data = memoryview(bytearray(_PIECE * 4))


_buffer = _Buffer()


def _write_piece(part: PartFile, piece: _Piece) -> None:
    size = piece.stop - piece.start
    data = _buffer.data[:size] if size <= len(_buffer.data) else memoryview(bytearray(size))
    read_bytes(piece.info, piece.start, piece.stop, data)
    part.write(piece.offset, data)


def _silent(done: int, total: int) -> None:
    pass


def _sources(file: GGUFFile) -> Iterator[TensorInfo]:
    for info in file.tensors.values():
        yield from (info,) if isinstance(info, TensorInfo) else info.sources


def _check_not_a_source(path: Path, status: os.stat_result | None, file: GGUFFile) -> None:
    for source, other in _statuses(file) if status else ():
        if status and os.path.samestat(status, other):
            raise InvalidRequest(f"{path}: is the same file as {source}, which is read; choose another name to write")


def _statuses(file: GGUFFile) -> list[tuple[Path, os.stat_result]]:
    paths = sorted({info.path for info in _sources(file)})
    try:
        return [(path, path.stat()) for path in paths]
    except OSError as error:
        raise ModelNotFound(f"{error.filename}: cannot be read any more ({error.strerror}); check the path") from error


def _fingerprint(file: GGUFFile, layout: _Layout) -> str:
    """Of all that the bytes depend on: the header, where each tensor comes from, and the state of those files."""
    digest = hashlib.sha256(layout.header)
    for path, status in _statuses(file):
        digest.update(f"{path.name} {status.st_size} {status.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    for info in layout.tensors:
        digest.update(f"{info.name} {_VERSION} {isinstance(info, Derived) and info.make is not None}\n".encode())
        for source in (info,) if isinstance(info, TensorInfo) else info.sources:
            line = f"{source.path.name} {source.offset} {source.nbytes} {source.type} {source.shape}\n"
            digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _is_complete(path: Path, file: GGUFFile, layout: _Layout) -> bool:
    """For a resumed run: `path` has this size and header, is not older than its sources, and nothing is left over."""
    try:
        status = path.stat()
        if path.with_name(path.name + ".part").exists() or status.st_size != layout.total:
            return False
        with path.open("rb") as opened:
            same = opened.read(len(layout.header)) == layout.header
    except OSError:
        return False
    if not same or any(source.st_mtime_ns > status.st_mtime_ns for _, source in _statuses(file)):
        return False
    path.with_name(path.name + ".part.json").unlink(missing_ok=True)  # killed just before its last step
    return True
