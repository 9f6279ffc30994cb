"""Small safetensors files and checkpoint folders for tests, sound ones and ones that lie."""

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

DTYPES = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2"), "BF16": np.dtype(ml_dtypes.bfloat16)}
INDEX = "model.safetensors.index.json"


def pack(header: bytes | Mapping[str, Any], data: bytes = b"", length: int | None = None) -> bytes:
    """A file from a header (JSON, or bytes that need not be), with a true length in front unless another is given."""
    raw = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    return struct.pack("<Q", len(raw) if length is None else length) + raw + data


def entry(shape: Any, low: Any, high: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [low, high]}


def sound(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None, padding: int = 0) -> bytes:
    """A sound file; metadata comes first and spaces after the header, as the package writes them."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    names = {dtype: name for name, dtype in DTYPES.items()}
    data = b""
    for name, values in tensors.items():
        raw = values.tobytes()
        header[name] = entry(list(values.shape), len(data), len(data) + len(raw), names[values.dtype])
        data += raw
    return pack(json.dumps(header).encode() + b" " * padding, data)


def some_tensors(rng: np.random.Generator, count: int = 6) -> dict[str, np.ndarray]:
    """Random shapes of one to five dimensions, in every type that is read, shuffled names."""
    tensors = {}
    for number in rng.permutation(count):
        shape = rng.integers(1, 5, size=rng.integers(1, 6))
        dtype = list(DTYPES.values())[rng.integers(3)]
        tensors[f"model.layers.{number}.weight"] = rng.standard_normal(shape).astype(dtype)
    return tensors


def write_checkpoint(
    folder: Path,
    tensors: Mapping[str, np.ndarray],
    layout: str = "index",
    shards: int = 3,
    config: Mapping[str, Any] | None = None,
) -> Path:
    """layout: "index", "numbered" (shards without an index) or "single"."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config if config is not None else {"model_type": "tiny"}))
    if layout == "single":
        (folder / "model.safetensors").write_bytes(sound(tensors))
        return folder
    names, placed = list(tensors), {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        (folder / file).write_bytes(sound(part))
        placed |= dict.fromkeys(part, file)
    if layout == "index":
        (folder / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return folder
