"""GGUF model files: metadata and the tensor table, checked before anything else relies on them.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Reading is `gguf.GGUFReader`'s job; `_CheckedReader`
replaces the hooks that trust the file (bounds, counts, lengths, names) and the slow one (a vocabulary's strings).
"""

import os
import struct
from dataclasses import dataclass, field
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
from gguf.constants import GGMLQuantizationType, GGUFValueType
from gguf.gguf_reader import GGUFReader, ReaderField

from ..errors import InvalidModelFile, UnsupportedModel
from .files import AGAIN, check_regular, unreadable, what_it_is
from .quants import BLOCKS, TYPES
from .tensors import Info, TensorInfo, shown

_NAMES = {value: name for name, value in TYPES.items()}
SUPPORTED_TYPES = "F32 F16 BF16 Q8_0 Q4_0 Q4_1"

# Above any real header: a vocabulary of 262,144 tokens with types, scores and merges takes 25 MB and 1.3 million
# elements, the 30B with its experts one by one has 28,010 tensors. What is hostile can take 2 kB a tensor or entry, 90
# bytes an element and four times the length of a long text: with these limits less than the file's size + 300 MB.
_MAX_HEADER = 28 << 20
_MAX_ENTRIES = 1 << 12
_MAX_TENSORS = 1 << 15
_MAX_ELEMENTS = 5 << 18
_MAX_DIMS = 4
_MIN_ENTRY = 13  # key length, value type and a one-byte value
_MIN_TENSOR = 32  # name length, dimension count, one dimension, type, offset

_SCALARS: dict[GGUFValueType, str] = {
    GGUFValueType.UINT8: "<u1",
    GGUFValueType.INT8: "<i1",
    GGUFValueType.UINT16: "<u2",
    GGUFValueType.INT16: "<i2",
    GGUFValueType.UINT32: "<u4",
    GGUFValueType.INT32: "<i4",
    GGUFValueType.FLOAT32: "<f4",
    GGUFValueType.UINT64: "<u8",
    GGUFValueType.INT64: "<i8",
    GGUFValueType.FLOAT64: "<f8",
    GGUFValueType.BOOL: "<u1",
}

_OTHER_FILES = (
    (b"lmgg", "it is a GGML file from before GGUF; get the model as GGUF"),
    (b"tjgg", "it is a GGML file from before GGUF; get the model as GGUF"),
    (b"PK", "it is a zip archive; get the model as GGUF"),
)


@dataclass(frozen=True)
class GGUFFile:
    """A checked header: every tensor lies wholly inside the file, none overlaps another, every type is one we run.

    The same for a file that is still to be made, from a Hugging Face folder say: then `path` is where it comes from.
    kinds: metadata key -> GGUF value type, for arrays ARRAY and the type of the elements; empty when not from a file.
    """

    path: Path
    metadata: dict[str, Any]
    tensors: dict[str, Info]
    kinds: dict[str, tuple[GGUFValueType, ...]] = field(default_factory=dict)


def read_gguf(path: str | os.PathLike[str]) -> GGUFFile:
    """Read the header of a GGUF file (version 2 or 3, little-endian); tensor data are not touched.

    Raises ModelNotFound, InvalidModelFile (not GGUF, truncated, self-contradictory) or UnsupportedModel (tensor type,
    version, split file).
    """
    path = Path(path)
    check_regular(path, "a GGUF file", ".gguf")
    try:
        _check_start(path)
        reader = _CheckedReader(path)
    except OSError as error:
        raise unreadable(path, error) from error
    return GGUFFile(path, reader.metadata, dict(reader.infos), reader.kinds)


def _check_start(path: Path) -> None:
    """Magic and version, with a hint where the file is something else that people often have at hand."""
    with path.open("rb") as file:
        start = file.read(24)
    if not start.startswith(b"GGUF"):
        hint = what_it_is(start, _OTHER_FILES) or "name a .gguf file"
        if len(start) < 4 and b"GGUF".startswith(start):
            hint = f"it has {len(start)} bytes; {AGAIN}"
        raise InvalidModelFile(f"{path}: is not a GGUF file (it starts with {start[:4]!r}): {hint}")
    if len(start) < 24:
        raise InvalidModelFile(f"{path}: truncated: the file has only {len(start)} bytes; {AGAIN}")
    (version,) = struct.unpack_from("<I", start, 4)
    if version and version & 0xFFFF == 0:
        raise UnsupportedModel(f"{path}: is a big-endian GGUF file; convert it with the command `gguf-convert-endian`")
    if version not in (2, 3):
        raise UnsupportedModel(f"{path}: is GGUF version {version}, supported are 2 and 3; convert the model again")


def _boxed(value: Any) -> npt.NDArray[Any]:
    box = np.empty(1, object)
    box[0] = value
    return box


class _CheckedReader(GGUFReader):
    """GGUFReader that checks every length against the file and keeps plain Python values instead of array views."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.where = "at its start"
        self.metadata: dict[str, Any] = {}
        self.infos: dict[str, TensorInfo] = {}
        self.kinds: dict[str, tuple[GGUFValueType, ...]] = {}
        self.header_end = 0
        self.elements = 0
        super().__init__(path, "r")

    def _bad(self, what: str) -> NoReturn:
        raise InvalidModelFile(f"{self.path}: {what}; {AGAIN}")

    def _end(self) -> int:
        """First byte that the header may not touch."""
        return min(self.data.size, _MAX_HEADER)

    def _need(self, offset: int, nbytes: int) -> None:
        if offset + nbytes <= self._end():
            return
        if offset + nbytes <= self.data.size:
            self._bad(f"header is larger than {_MAX_HEADER >> 20} MiB ({self.where})")
        size = self.data.size
        self._bad(
            f"truncated or damaged: the header {self.where} goes on to byte {offset + nbytes}, the file has {size}"
        )

    def _get(self, offset: int, dtype: npt.DTypeLike, count: int = 1, override_order: Any = None) -> npt.NDArray[Any]:
        little = np.dtype(dtype).newbyteorder("<")
        count = int(count)
        self._need(offset, little.itemsize * count)
        return np.frombuffer(self.data, little, count, offset)

    def _get_str(self, offset: int) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint8]]:
        """Only keys and tensor names come here, values go through `_texts`."""
        length, data = super()._get_str(offset)
        self._decode(data.data, "a name")
        return length, data

    def _decode(self, data: memoryview, what: str) -> str:
        try:
            return str(data, "utf-8")
        except UnicodeDecodeError as error:
            self._bad(f"{what} {self.where} is not valid UTF-8 ({error.reason})")

    def _push_field(self, field: ReaderField, skip_sum: bool = False) -> int:
        if not skip_sum:  # version and counts, which are no metadata
            return super()._push_field(field)
        if field.name in self.metadata:
            self._bad(f"metadata key {shown(field.name)} occurs twice")
        self.metadata[field.name] = field.parts[-1][0]
        self.fields[field.name] = field
        self.kinds[field.name] = tuple(field.types)
        self.where = f"after key {shown(field.name)}"
        return 0

    def _build_fields(self, offs: int, count: int) -> int:
        self._check_count("metadata entries", int(count), _MIN_ENTRY, offs, _MAX_ENTRIES)
        return super()._build_fields(offs, count)

    def _check_count(self, what: str, count: int, smallest: int, offset: int, most: int) -> None:
        if count * smallest > self._end() - offset:
            size = self.data.size
            self._bad(f"truncated or damaged: {count} {what} {self.where} cannot fit into the file's {size} bytes")
        if count > most:
            self._bad(f"damaged: {count} {what} {self.where}, more than any model has")

    def _get_field_parts(
        self, orig_offs: int, raw_type: int
    ) -> tuple[int, list[npt.NDArray[Any]], list[int], list[GGUFValueType]]:
        kind = self._value_type(raw_type)
        kinds = [kind]
        if kind == GGUFValueType.ARRAY:
            value, size, element = self._array(orig_offs)
            kinds.append(element)
        elif kind == GGUFValueType.STRING:
            (value,), size = self._texts(orig_offs, 1)
        else:
            (value,), size = self._scalars(orig_offs, kind, 1)
        return size, [_boxed(value)], [0], kinds

    def _value_type(self, raw: int) -> GGUFValueType:
        try:
            return GGUFValueType(int(raw))
        except ValueError:
            self._bad(f"damaged: unknown value type {int(raw)} {self.where}")

    def _array(self, offset: int) -> tuple[list[Any], int, GGUFValueType]:
        kind = self._value_type(self._get(offset, np.uint32)[0])
        count = int(self._get(offset + 4, np.uint64)[0])
        if kind == GGUFValueType.ARRAY:
            raise UnsupportedModel(f"{self.path}: an array of arrays {self.where} is not supported; convert it again")
        smallest = 8 if kind == GGUFValueType.STRING else np.dtype(_SCALARS[kind]).itemsize
        self._check_count("array elements", count, smallest, offset + 12, _MAX_ELEMENTS - self.elements)
        self.elements += count
        is_text = kind == GGUFValueType.STRING
        values, size = self._texts(offset + 12, count) if is_text else self._scalars(offset + 12, kind, count)
        return values, size + 12, kind

    def _scalars(self, offset: int, kind: GGUFValueType, count: int) -> tuple[list[Any], int]:
        values = self._get(offset, _SCALARS[kind], count)
        if kind == GGUFValueType.BOOL:
            if count and values.max() > 1:
                self._bad(f"damaged: a truth value {self.where} is neither 0 nor 1")
            return values.astype(bool).tolist(), count
        return values.tolist(), values.nbytes

    def _texts(self, start: int, count: int) -> tuple[list[str], int]:
        """`count` strings in a row; one loop over plain bytes, because a vocabulary has 150,000 of them."""
        view, end, unpack = self.data.data, self._end(), struct.Struct("<Q").unpack_from
        texts: list[str] = []
        offset = start
        for _ in range(count):
            if offset + 8 > end:
                self._need(offset, 8)
            stop = offset + 8 + unpack(view, offset)[0]
            if stop > end:
                self._need(offset, stop - offset)
            texts.append(self._decode(view[offset + 8 : stop], "a string"))
            offset = stop
        return texts, offset - start

    def _build_tensor_info(self, offs: int, count: int) -> tuple[int, list[ReaderField]]:
        parts = self.metadata.get("split.count", 1)
        if parts not in (0, 1):
            hint = "join them with `llama-gguf-split --merge FIRST_PART OUT.gguf`"
            raise UnsupportedModel(f"{self.path}: is one part of a model split into {shown(parts)} files; {hint}")
        self._check_alignment()
        self.where = "in the tensor table"
        self._check_count("tensors", int(count), _MIN_TENSOR, offs, _MAX_TENSORS)
        end, fields = super()._build_tensor_info(offs, count)
        self.header_end = end
        return end, fields

    def _check_alignment(self) -> None:
        field = self.fields.get("general.alignment")
        if field is None:
            return
        value = field.parts[-1][0]
        if field.types != [GGUFValueType.UINT32] or value == 0 or value & (value - 1):
            self._bad(f"damaged: general.alignment is {shown(value)}, it must be a power of two (uint32)")

    def _get_tensor_info_field(self, orig_offs: int) -> ReaderField:
        length, name = self._get_str(orig_offs)
        self.where = f"at tensor {shown(bytes(name).decode())}"
        n_dims = int(self._get(orig_offs + 8 + int(length[0]), np.uint32)[0])
        if not 1 <= n_dims <= _MAX_DIMS:
            self._bad(f"damaged: {n_dims} dimensions {self.where}, expected 1 to {_MAX_DIMS}")
        return super()._get_tensor_info_field(orig_offs)

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        # Anything but zeros here means a wrong tensor count, which would shift the data of all tensors.
        if self.data[self.header_end : min(start_offs, self.header_end + _MIN_TENSOR)].any():
            self._bad("damaged: the padding after the tensor table is not zero")
        for entry in fields:
            if entry.name in self.infos:
                self._bad(f"tensor {shown(entry.name)} occurs twice")
            self.infos[entry.name] = self._tensor(start_offs, entry)
        self._check_overlap()

    def _tensor(self, start: int, field: ReaderField) -> TensorInfo:
        _, _, _, dims, raw_type, relative = field.parts
        shape = tuple(int(d) for d in reversed(dims))
        name, kind, offset = field.name, self._tensor_type(field.name, int(raw_type[0])), int(relative[0])
        per_block, block_bytes = BLOCKS[kind]
        if min(shape) < 1:
            self._bad(f"damaged: tensor {shown(name)} has shape {list(shape)}, every dimension must be positive")
        if shape[-1] % per_block:
            self._bad(f"tensor {shown(name)} ({kind}) has rows of {shape[-1]} weights, not whole blocks of {per_block}")
        if offset % self.alignment:
            self._bad(
                f"damaged: tensor {shown(name)} starts at {offset}, no multiple of the alignment {self.alignment}"
            )
        nbytes = prod(shape) // per_block * block_bytes
        end = start + offset + nbytes
        if end > self.data.size:
            self._bad(f"truncated: tensor {shown(name)} ends at byte {end} but the file has {self.data.size}")
        return TensorInfo(name, shape, kind, self.path, start + offset, nbytes)

    def _tensor_type(self, name: str, raw: int) -> str:
        if raw not in GGMLQuantizationType.__members__.values():
            self._bad(f"damaged, or newer than this version: tensor {shown(name)} has the unknown type id {raw}")
        kind = GGMLQuantizationType(raw)
        if kind not in _NAMES:
            hint = f"supported are {SUPPORTED_TYPES}; get the model in one of these, for example Q8_0"
            raise UnsupportedModel(f"{self.path}: tensor {shown(name)} has type {kind.name}; {hint}")
        return _NAMES[kind]

    def _check_overlap(self) -> None:
        ordered = sorted(self.infos.values(), key=lambda info: info.offset)
        for first, second in pairwise(ordered):
            if first.offset + first.nbytes > second.offset:
                self._bad(f"damaged: tensors {shown(first.name)} and {shown(second.name)} overlap")
