"""Hugging Face checkpoint folders: config.json and every tensor of the safetensors files, in all three layouts.

Layouts: shards named by model.safetensors.index.json; one model.safetensors; numbered shards without an index.
Only headers are read.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InvalidModelFile, ModelNotFound, UnsupportedModel
from .files import AGAIN, check_regular, parse_json, unreadable, what_it_is
from .safetensors import read_safetensors
from .tensors import TensorInfo, shown

# Far above any real one (a tokenizer.json takes 17 MB, the 30B's index 3 MB): bounds time and memory, of which Python
# needs up to 30 bytes for one of JSON.
_MAX_JSON = 32 << 20
_MAX_SMALL = 8 << 20

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_NUMBERED = re.compile(r"(.*?)([0-9]{1,9})-of-([0-9]{1,9})\.safetensors")
_PLAIN_NAME = re.compile(r"[^/\\.][^/\\]{0,254}")
_FETCH = "run `hf download REPO --local-dir {folder}` again, it gets only what is missing"


@dataclass(frozen=True)
class Checkpoint:
    """A folder whose tensors are found: each one lies wholly inside a shard, and no name occurs twice.

    absent: tensors that the index places in shards that are not there, with those shards' paths. Not all of them may be
    needed: text alone runs without the shards of the speech part.
    """

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, TensorInfo]
    absent: dict[str, Path] = field(default_factory=dict)


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
    """Whether a path is a folder that looks like a Hugging Face checkpoint, complete and readable or not."""
    try:
        names = {name for name in os.listdir(path) if not name.startswith(".")}
    except (OSError, ValueError):
        return False
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names) or _pickles(names):
        return True
    return "config.json" in names and not any(name.endswith(".gguf") for name in names)


def read_checkpoint(folder: str | os.PathLike[str], config: str | os.PathLike[str] | None = None) -> Checkpoint:
    """Read config.json and the headers of all shards; `config` names another file than the folder's config.json.

    Raises ModelNotFound (folder, config.json, all shards or a numbered one are missing), InvalidModelFile (damaged or
    contradictory) or UnsupportedModel (PyTorch files only, a tensor type that is not read), each naming the file and,
    where it is one tensor's fault, the tensor.
    """
    folder = Path(folder)
    names = _list(folder)
    tensors, absent = _read_tensors(folder, names)
    if not tensors:
        raise InvalidModelFile(f"{folder}: its safetensors files hold no tensors; {AGAIN}")
    if config is None and "config.json" not in names:
        raise ModelNotFound(f"{folder}: has no config.json; download it too, or name one with --config")
    return Checkpoint(folder, read_json(config or folder / "config.json", _MAX_SMALL), tensors, absent)


def missing_shard(path: Path, tensor: str) -> ModelNotFound:
    """The error for a tensor that is needed and absent."""
    return ModelNotFound(f"{path}: is missing, and holds tensor {shown(tensor)}; " + _FETCH.format(folder=path.parent))


def read_json(path: str | os.PathLike[str], limit: int = _MAX_JSON) -> dict[str, Any]:
    """The object in a JSON file: config.json, generation_config.json, preprocessor_config.json, ...

    limit: the largest size in bytes that is read. Raises ModelNotFound (no such file) or InvalidModelFile (larger, not
    a JSON object, a key twice). NaN and Infinity pass as numbers, as they do in transformers.
    """
    path = Path(path)
    check_regular(path, "a JSON file", ".json")
    try:
        with path.open("rb") as file:
            raw = file.read(limit + 1)
    except OSError as error:
        raise unreadable(path, error) from error
    if len(raw) > limit:
        raise InvalidModelFile(f"{path}: is larger than {limit >> 20} MiB; {AGAIN}")
    if hint := what_it_is(raw):
        raise InvalidModelFile(f"{path}: is not a JSON file: {hint}")
    return parse_json(path, raw, "the file")


def _list(folder: Path) -> set[str]:
    """Names in the folder, without hidden ones (macOS leaves `._model.safetensors`) and those no message can show."""
    try:
        return {name for name in os.listdir(folder) if not name.startswith(".") and name.isprintable()}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelNotFound(f"{folder}: {reason}; name the folder of a Hugging Face checkpoint") from error


def _pickles(names: set[str]) -> list[str]:
    """PyTorch's own files, which can run code when they are loaded and are not read here."""
    return sorted(name for name in names if name.endswith((".bin", ".pt", ".pth")) and name != "training_args.bin")


def _read_tensors(folder: Path, names: set[str]) -> tuple[dict[str, TensorInfo], dict[str, Path]]:
    if index := _find_index(folder, names):
        return _read_indexed(folder, names, index)
    tensors: dict[str, TensorInfo] = {}
    for shard in _without_index(folder, names):
        _add(tensors, read_safetensors(folder / shard))
    return tensors, {}


def _add(tensors: dict[str, TensorInfo], more: dict[str, TensorInfo]) -> None:
    for name, info in more.items():
        if name in tensors:
            raise InvalidModelFile(
                f"{info.path}: tensor {shown(name)} is also in {tensors[name].path.name}; "
                "the folder mixes two models or a shard has the wrong name, so download it again into an empty one"
            )
        tensors[name] = info


# --- with an index


def _find_index(folder: Path, names: set[str]) -> str | None:
    """The standard name before any other; several others are nothing to guess about."""
    found = sorted(name for name in names if name.endswith(".safetensors.index.json"))
    if _INDEX in found:
        return _INDEX
    if len(found) > 1:
        raise InvalidModelFile(f"{folder}: has several indexes ({_some(found)}); keep only the one that you want")
    return found[0] if found else None


def _read_indexed(folder: Path, names: set[str], index: str) -> tuple[dict[str, TensorInfo], dict[str, Path]]:
    path = folder / index
    placed = _weight_map(path)
    shards = sorted(set(placed.values()))
    if _SINGLE in names and _SINGLE not in shards:  # transformers would take this one, so it matters which is meant
        raise InvalidModelFile(f"{folder}: has both {_SINGLE} and {index} for other files; remove one of them")
    present = [shard for shard in shards if shard in names]
    if not present:
        raise ModelNotFound(
            f"{folder / shards[0]}: is missing, with all {len(shards)} shards that {index} names; "
            + _FETCH.format(folder=folder)
        )
    held: dict[str, TensorInfo] = {}
    for shard in present:
        _add(held, read_safetensors(folder / shard))
    absent = {name: folder / shard for name, shard in placed.items() if shard not in names}
    for name, shard in placed.items():
        if name in absent:
            continue
        if name not in held or held[name].path.name != shard:
            where = f", it is in {held[name].path.name}" if name in held else ""
            raise InvalidModelFile(f"{folder / shard}: {index} says that it holds tensor {shown(name)}{where}; {AGAIN}")
    # What a shard holds beyond the index is left alone, as transformers does: fine-tuning tools leave such buffers.
    return {name: held[name] for name in placed if name not in absent}, absent


def _weight_map(path: Path) -> dict[str, str]:
    """Tensor name -> file name, each one a plain name: an index must not lead out of its folder."""
    placed = read_json(path, _MAX_SMALL).get("weight_map")
    if not isinstance(placed, dict) or not placed:
        raise InvalidModelFile(f"{path}: has no table weight_map of tensors and files; {AGAIN}")
    for name, shard in placed.items():
        label = f"{path}: tensor {shown(name)} shall be in"
        if not isinstance(shard, str):
            raise InvalidModelFile(f"{label} a JSON {type(shard).__name__}, which is no file name; {AGAIN}")
        if not _PLAIN_NAME.fullmatch(shard) or not shard.isprintable():
            raise InvalidModelFile(f"{label} {shown(shard)}, which is not a file of this folder; {AGAIN}")
        if not shard.endswith(".safetensors"):
            raise UnsupportedModel(f"{label} {shown(shard)}, only safetensors are read; get the model as safetensors")
    return placed


# --- without an index


def _without_index(folder: Path, names: set[str]) -> list[str]:
    """The files of the one model in the folder, in order."""
    files = sorted(name for name in names if name.endswith(".safetensors"))
    sets: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in files:
        if match := _NUMBERED.fullmatch(name):
            sets[match[1], match[3]].append(name)
    models = list(sets.values()) + ([[_SINGLE]] if _SINGLE in files else [])
    if not models and len(files) == 1:
        return files
    if len(models) > 1 or (files and not models):
        found = [model[0] for model in models] or files
        raise InvalidModelFile(
            f"{folder}: holds several models ({_some(found)}) and no {_INDEX}; move all but one elsewhere"
        )
    if not files:
        _explain_absence(folder, names)
    if sets:
        _check_complete(folder, *next(iter(sets.items())))
    return models[0]


def _check_complete(folder: Path, key: tuple[str, str], shards: list[str]) -> None:
    """Shard 00001 to the last, each once."""
    stem, total = key
    numbers: dict[int, str] = {}
    for shard in shards:
        match = _NUMBERED.fullmatch(shard)
        number = int(match[2]) if match else 0
        if number in numbers or not 1 <= number <= int(total):
            raise InvalidModelFile(
                f"{folder / shard}: is no part of a sequence that has 1 to {int(total)} once each; {AGAIN}"
            )
        numbers[number] = shard
    absent = int(total) - len(numbers)
    if absent:
        first = next(number for number in range(1, int(total) + 1) if number not in numbers)
        name = f"{stem}{first:0{len(total)}}-of-{total}.safetensors"
        raise ModelNotFound(
            f"{folder / name}: is missing ({absent} of {int(total)} shards are); " + _FETCH.format(folder=folder)
        )


def _explain_absence(folder: Path, names: set[str]) -> None:
    if pickles := _pickles(names):
        raise UnsupportedModel(
            f"{folder}: has only PyTorch files ({_some(pickles)}), which are not read because loading one can run any "
            "code; get the model as safetensors, or save it with transformers' save_pretrained"
        )
    raise ModelNotFound(f"{folder}: holds no .safetensors files; {_FETCH.format(folder=folder)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
