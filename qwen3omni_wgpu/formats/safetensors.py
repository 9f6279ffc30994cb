"""Safetensors files: the table of tensors in the header, checked before anything else relies on it.

Format: https://huggingface.co/docs/safetensors. The header is read here and not by the package `safetensors`, because
that tells no offsets, which weights need to be streamed in pieces, and its errors seldom name the tensor. The tests
compare: what is accepted here, the package accepts too, with the same shapes and bytes.
"""

from __future__ import annotations

import os
import re
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, NoReturn

from ..errors import InvalidModelFile, UnsupportedModel
from .files import AGAIN, check_regular, parse_json, unreadable, what_it_is
from .quants import BLOCKS
from .tensors import TensorInfo, shown

_TYPES = {"F32": "f32", "F16": "f16", "BF16": "bf16"}

# The format allows 100 MB, but Python needs up to 30 bytes for one of JSON. All of the 30B's tensors take 4 MB.
_MAX_HEADER = 8 << 20
_MAX_DIMS = 8
_SURROGATE = re.compile("[\ud800-\udfff]")  # JSON can spell half of a character, UTF-8 and so GGUF cannot
_FIELDS = ("dtype", "shape", "data_offsets")

_OTHER_FILES = (
    (b"GGUF", "it is a GGUF file; give it the suffix .gguf"),
    (b"PK", "it is a zip archive, perhaps of PyTorch; get the model as safetensors"),
    (b"\x80", "it is a Python pickle; get the model as safetensors"),
)


def read_safetensors(path: str | os.PathLike[str]) -> dict[str, TensorInfo]:
    """Name -> tensor, in the order of the file's header; tensor data are not touched.

    Raises ModelNotFound, InvalidModelFile (no safetensors, truncated, self-contradictory) or UnsupportedModel (a type
    other than F32, F16 and BF16).
    """
    path = Path(path)
    check_regular(path, "a safetensors file", ".safetensors")
    try:
        raw, size = _read_header(path)
    except OSError as error:
        raise unreadable(path, error) from error
    entries = parse_json(path, raw, "the header")
    _check_metadata(path, entries.pop("__metadata__", None))
    start = 8 + len(raw)
    tensors = {name: _tensor(path, name, entry, start, size) for name, entry in entries.items()}
    _check_cover(path, list(tensors.values()), start, size)
    return tensors


def _bad(path: Path, what: str) -> NoReturn:
    raise InvalidModelFile(f"{path}: {what}; {AGAIN}")


def _read_header(path: Path) -> tuple[bytes, int]:
    """The JSON text, and the size of the file."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        start = file.read(32)
        if len(start) < 9:
            _bad(path, f"truncated: the file has only {len(start)} bytes")
        if start[8:9] != b"{":
            hint = what_it_is(start, _OTHER_FILES) or "name a .safetensors file"
            raise InvalidModelFile(f"{path}: is not a safetensors file (it starts with {start[:8]!r}): {hint}")
        length = int.from_bytes(start[:8], "little")
        if 8 + length > size:
            _bad(path, f"truncated or damaged: the header goes on to byte {8 + length}, the file has {size}")
        if length > _MAX_HEADER:
            _bad(path, f"damaged: the header has {length} bytes, at most {_MAX_HEADER >> 20} MiB are read")
        file.seek(8)
        raw = file.read(length)
    if len(raw) < length:
        _bad(path, f"truncated: the header ends after {len(raw)} of {length} bytes")
    return raw, size


def _check_metadata(path: Path, metadata: Any) -> None:
    """Free text that nothing here uses; but a file that breaks this rule is not to be trusted with the others."""
    if metadata is None:
        return
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _bad(path, "damaged: __metadata__ in the header is not a table of texts")


def _tensor(path: Path, name: str, entry: Any, start: int, size: int) -> TensorInfo:
    """One entry; every number is checked before it is used."""
    label = f"tensor {shown(name)}"
    if _SURROGATE.search(name):
        _bad(path, f"damaged: the name of {label} is not valid Unicode")
    if not isinstance(entry, dict) or any(field not in entry for field in _FIELDS):
        _bad(path, f"damaged: {label} has no {' or '.join(_FIELDS)} in the header")
    dtype, shape, offsets = (entry[field] for field in _FIELDS)
    if not isinstance(dtype, str) or dtype not in _TYPES:
        hint = f"supported are {' '.join(_TYPES)}; get the model in one of these, for example BF16"
        raise UnsupportedModel(f"{path}: {label} has type {_told(dtype)}; {hint}")
    if not _are_counts(shape) or len(shape) > _MAX_DIMS or 0 in shape:
        _bad(path, f"damaged: {label} has shape {_told(shape)}, it must be up to {_MAX_DIMS} positive numbers")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        _bad(path, f"damaged: {label} has data_offsets {_told(offsets)}, they must be its start and end")
    low, high = offsets
    if start + high > size:
        _bad(path, f"truncated: {label} ends at byte {start + high} but the file has {size}")
    kind = _TYPES[dtype]
    nbytes = prod(shape) * BLOCKS[kind][1]
    if high - low != nbytes:
        wanted = f"its shape {shown(shape)} in {dtype} takes {shown(nbytes)}"
        _bad(path, f"damaged: {label} has {high - low} bytes, {wanted}")
    return TensorInfo(name, tuple(shape), kind, path, start + low, nbytes)


def _are_counts(value: Any) -> bool:
    """A list of whole numbers from 0; a truth value is an int for Python, but none here."""
    return isinstance(value, list) and all(type(number) is int and 0 <= number < 1 << 63 for number in value)


def _told(value: Any) -> str:
    """For messages: short plain values as they are; of others, which may be huge or deeply nested, the type."""
    plain = isinstance(value, (str, int, float, bool)) or value is None
    if plain or (isinstance(value, list) and len(value) <= 16 and not any(isinstance(v, (list, dict)) for v in value)):
        return shown(value)
    return f"a {type(value).__name__}"


def _check_cover(path: Path, tensors: list[TensorInfo], start: int, size: int) -> None:
    """The tensors fill the file exactly, as the format demands: anything else shows that header or data are damaged."""
    ordered = sorted(tensors, key=lambda info: info.offset)
    for first, second in pairwise(ordered):
        if first.offset + first.nbytes > second.offset:
            _bad(path, f"damaged: tensors {shown(first.name)} and {shown(second.name)} overlap")
    end = start
    for info in ordered:
        if end < info.offset:
            _bad(path, f"damaged: bytes {end} to {info.offset}, before tensor {shown(info.name)}, belong to no tensor")
        end = info.offset + info.nbytes
    if end < size:
        _bad(path, f"damaged: the tensors end at byte {end} but the file has {size}")
