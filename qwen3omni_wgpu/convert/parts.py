"""A model's parts, whatever they come from: GGUF files, a Hugging Face folder, or one GGUF with Hugging Face names.

Every part is a GGUFFile: one that lies on disk, or one that is made from the checkpoint while it is read. Only headers
are read here, and only of the parts that are asked for.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

from ..errors import InvalidModelFile, InvalidRequest, ModelNotFound, UnsupportedModel
from ..formats.checkpoint import Checkpoint, missing_shard, read_checkpoint, read_json
from ..formats.gguf import GGUFFile, read_gguf
from ..formats.tensors import Derived, Info, TensorInfo, shown
from . import mmproj, names, talker, thinker, vocabulary
from .dims import PARTS as COMPONENTS
from .dims import Dims, dims
from .policy import out_type

PARTS = tuple(COMPONENTS)
TYPES = ("q8_0", "f16", "bf16", "f32")

# general.file_type of llama.cpp (llama_ftype): "mostly" this type.
_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
_TYPE_SUFFIX = re.compile(r"[-._](q\d\w*|iq\d\w*|f16|f32|bf16|mxfp4\w*)$", re.IGNORECASE)
# general.architecture of the files beside the thinker's.
_ARCHITECTURES = {"mmproj": "clip", "talker": "qwen3omni-talker"}
# What tensors of a checkpoint are called; GGUF's own names never begin so.
_HUGGING_FACE = ("thinker.", "talker.", "code2wav.", "model.")
_AGAIN = "download it again"


class ModelParts(Mapping[str, GGUFFile]):
    """Part name -> GGUFFile, opened when first asked for. `path`: the file or folder that they come from.

    absent: parts that belong to the model but are not all here, with the reason.
    """

    def __init__(
        self,
        path: Path,
        openers: Mapping[str, Callable[[], GGUFFile]],
        absent: Mapping[str, ModelNotFound] | None = None,
    ):
        self.path = path
        self.absent = dict(absent or {})
        self._openers = dict(openers)
        self._opened: dict[str, GGUFFile] = {}

    def __getitem__(self, part: str) -> GGUFFile:
        if part not in self._opened:
            self._opened[part] = self._openers[part]()
        return self._opened[part]

    def __iter__(self) -> Iterator[str]:
        return iter(self._openers)

    def __len__(self) -> int:
        return len(self._openers)

    def put(self, part: str, file: GGUFFile) -> None:
        """Take this file for a part."""
        self._openers[part] = lambda: file
        self._opened[part] = file

    def need(self, part: str) -> GGUFFile:
        """The part, or ModelNotFound saying how to get it."""
        if part in self.absent:
            raise self.absent[part]
        if part not in self:
            have = ", ".join(self)
            raise ModelNotFound(
                f"{self.path}: this model has no {part} part (it has: {have}); put {part}-NAME-TYPE.gguf beside the "
                f"thinker's file or name it with --{part}"
            )
        return self[part]


def open_parts(
    path: Path,
    *,
    type: str | None = None,
    config: Path | None = None,
    mmproj: Path | None = None,
    talker: Path | None = None,
    quantize_code_predictor: bool = False,
    tokenizer: bool = True,
) -> ModelParts:
    """The parts of the model at `path`: a .gguf file, or a Hugging Face checkpoint folder.

    type: weight type of what is made from a checkpoint (default q8_0); GGUF files keep theirs. config: a config.json
    that is not beside the weights. mmproj, talker: files of these parts that do not lie beside the thinker's.
    tokenizer: False leaves out the tokenizer of a checkpoint, which may be one that GGUF metadata cannot describe.
    Raises ModelNotFound, InvalidModelFile, UnsupportedModel, InvalidRequest.
    """
    if type is not None and type not in TYPES:
        raise InvalidRequest(f"type is {type!r}, but must be one of {', '.join(TYPES)}")
    if path.is_dir():
        checkpoint = read_checkpoint(path, config)
        parts = _from_hugging_face(path, path, checkpoint, type or "q8_0", quantize_code_predictor, tokenizer)
    else:
        file = read_gguf(path)
        if any(name.startswith(_HUGGING_FACE) for name in file.tensors):
            parts = _single_file(file, config, type, tokenizer)
        else:
            if type is not None:
                raise InvalidRequest(
                    f"{path}: has its types already, so a type cannot be chosen; convert it with `qwen3omni quantize`"
                )
            if config is not None:
                raise InvalidRequest(f"{path}: has its own metadata, so --config is not needed; leave it out")
            parts = ModelParts(path, {"thinker": lambda: file, **_companions(path)})
    # Files that were named are looked at now: a wrong name should not wait for its first use.
    for part, at in (("mmproj", mmproj), ("talker", talker)):
        if at is not None:
            parts.put(part, _checked(read_gguf(at), part))
    return parts


def component_of(part: str, name: str) -> str:
    """The component of the network that a GGUF tensor of a part belongs to."""
    if part == "thinker":
        return "thinker_text"
    if part == "mmproj":
        return "audio_encoder" if name.startswith(("a.", "mm.a.")) else "vision_encoder"
    if name.startswith("a.gen.code."):
        return "code_predictor"
    return "code2wav" if name.startswith("a.gen.wav.") else "talker"


def retype(
    part: str, file: GGUFFile, type: str, *, again: bool = False, quantize_code_predictor: bool = False
) -> GGUFFile:
    """The same part with its weights in another type, as the policy has it; what fits already stays as it is.

    again: also weights that are quantised already, which loses more than quantising the original once.
    """
    tensors: dict[str, Info] = {}
    for name, info in file.tensors.items():
        component = component_of(part, name)
        wanted = out_type(name, info.shape, component, type, quantize_code_predictor=quantize_code_predictor)
        if wanted == info.type or not isinstance(info, TensorInfo):
            tensors[name] = info
            continue
        if info.type in ("q8_0", "q4_0", "q4_1") and not again:
            raise InvalidRequest(
                f"{info.path}: tensor {shown(name)} is {info.type} already; start from the original weights, "
                "or add --allow-requantize"
            )
        tensors[name] = Derived(name, info.shape, wanted, (info,))
    return GGUFFile(file.path, file.metadata | {"general.file_type": _FILE_TYPES[type]}, tensors, file.kinds)


# GGUF files side by side -------------------------------------------------------------------------------------------


def base_name(path: Path) -> str:
    """NAME of `NAME-TYPE.gguf`, `mmproj-NAME-TYPE.gguf` and so on."""
    if path.parent.name == "snapshots" and path.parent.parent.name.startswith("models--"):
        return path.parent.parent.name.split("--")[-1]  # a repository in huggingface_hub's cache
    stem = path.resolve().name if path.name in ("", ".", "..") else path.name
    stem = stem.removesuffix(".gguf")
    for part in PARTS[1:]:
        stem = stem.removeprefix(f"{part}-")
    return _TYPE_SUFFIX.sub("", stem)


def sibling(path: Path, part: str) -> Path | None:
    """The file of another part beside `path`: the same name and type, else the only one of the same NAME."""
    prefix = "" if part == "thinker" else f"{part}-"
    plain = path.name
    for other in PARTS[1:]:
        plain = plain.removeprefix(f"{other}-")
    exact = path.with_name(prefix + plain)
    if exact.is_file():
        return exact
    same = [
        other
        for other in sorted(path.parent.glob(f"{prefix}*.gguf"))
        if base_name(other).lower() == base_name(path).lower()
        and (prefix or not other.name.startswith(tuple(f"{p}-" for p in PARTS[1:])))
    ]
    if len(same) > 1:
        listed = ", ".join(other.name for other in same[:4])
        option = f"--{part}" if prefix else "-m"
        raise InvalidRequest(
            f"{path.parent} has several {part} files for this model ({listed}): name one with {option}"
        )
    return same[0] if same else None


def _companions(path: Path) -> dict[str, Callable[[], GGUFFile]]:
    found = {part: sibling(path, part) for part in PARTS[1:]}
    return {part: _reader(at, part) for part, at in found.items() if at is not None and at != path}


def _reader(path: Path, part: str) -> Callable[[], GGUFFile]:
    return lambda: _checked(read_gguf(path), part)


def _checked(file: GGUFFile, part: str) -> GGUFFile:
    """Refuse another kind of file under a part's name."""
    found, wanted = file.metadata.get("general.architecture"), _ARCHITECTURES[part]
    if found != wanted:
        raise UnsupportedModel(
            f"{file.path}: is no {part} file: its architecture is {shown(found)}, expected {wanted!r}; "
            f"name another with --{part}"
        )
    return file


# Hugging Face names ------------------------------------------------------------------------------------------------


def _single_file(file: GGUFFile, config: Path | None, type: str | None, tokenizer: bool) -> ModelParts:
    """A GGUF whose tensors have Hugging Face names: config.json and the tokenizer lie beside it."""
    at = config or file.path.with_name("config.json")
    if not at.is_file():
        raise ModelNotFound(
            f"{file.path}: its tensors have Hugging Face names, and there is no config.json beside it; "
            "put it there or name it with --config"
        )
    stored = {name: info for name, info in file.tensors.items() if isinstance(info, TensorInfo)}
    return _from_hugging_face(
        file.path, at.parent, Checkpoint(at.parent, read_json(at), stored), type, False, tokenizer
    )


def _from_hugging_face(
    path: Path,
    folder: Path,
    checkpoint: Checkpoint,
    type: str | None,
    quantize_code_predictor: bool,
    tokenizer: bool,
) -> ModelParts:
    """Parts made from tensors under Hugging Face names. folder: where the tokenizer's and other settings' files are.

    type None: weights stay as they are stored, where that can be run.
    """
    config = checkpoint.config
    sizes = dims(config, folder / "config.json")
    _check_known(path, checkpoint.tensors, sizes)
    generation = _optional(folder / "generation_config.json")
    preprocessor = _optional(folder / "preprocessor_config.json")
    name = base_name(path)

    def build(part: str) -> GGUFFile:
        infos = dict(_tensors(path, sizes, part, checkpoint, type, quantize_code_predictor))
        if part == "thinker":
            metadata = thinker.metadata(config, name, generation, folder / "config.json")
            rows = metadata[f"{metadata['general.architecture']}.vocab_size"]
            if tokenizer:
                metadata |= vocabulary.metadata(folder, rows, config=config, generation=generation)
            else:
                metadata |= vocabulary.chat_templates(folder)
        elif part == "mmproj":
            metadata = mmproj.metadata(config, preprocessor, name, folder / "config.json")
        else:
            metadata = talker.metadata(config, generation, name, folder / "config.json")
        return GGUFFile(path, metadata | {"general.file_type": _FILE_TYPES[type or _most(infos)]}, infos)

    absent: dict[str, ModelNotFound] = {}
    for tensor, shard in checkpoint.absent.items():
        absent.setdefault(names.part_of(tensor), missing_shard(shard, tensor))
    whole = [part for part in sizes.parts if part not in absent or part == "thinker"]
    return ModelParts(path, {part: _builder(build, part) for part in whole}, absent)


def _builder(build: Callable[[str], GGUFFile], part: str) -> Callable[[], GGUFFile]:
    return lambda: build(part)


def _check_known(path: Path, stored: Mapping[str, TensorInfo], sizes: Dims) -> None:
    """Refuse tensors that no part would use: leaving them out would make another model of it."""
    unknown = names.unknown(stored, sizes)
    if unknown:
        listed = ", ".join(shown(name) for name in unknown[:3]) + (
            f" and {len(unknown) - 3} more" if len(unknown) > 3 else ""
        )
        raise UnsupportedModel(f"{path}: holds tensors that this version does not know: {listed}; use another model")


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _tensors(
    path: Path,
    sizes: Dims,
    part: str,
    checkpoint: Checkpoint,
    type: str | None,
    quantize_code_predictor: bool,
) -> Iterator[tuple[str, Info]]:
    for target in names.targets(sizes, part):
        sources = tuple(_source(path, checkpoint, name, shape) for name, shape in target.sources)
        wanted = type or _kept(sources)
        final = out_type(
            target.name, target.shape, target.component, wanted, quantize_code_predictor=quantize_code_predictor
        )
        yield target.name, Derived(target.name, target.shape, final, sources, target.make)


def _kept(sources: tuple[TensorInfo, ...]) -> str:
    """The type that all sources have; float32 holds whatever a mixture holds."""
    types = {source.type for source in sources}
    return types.pop() if len(types) == 1 else "f32"


def _source(path: Path, checkpoint: Checkpoint, name: str, shape: tuple[int, ...]) -> TensorInfo:
    stored = checkpoint.tensors
    info = stored.get(name)
    if name in checkpoint.absent:
        raise missing_shard(checkpoint.absent[name], name)
    if info is None:
        near = difflib.get_close_matches(name, stored, n=1, cutoff=0.9) if len(stored) < 5000 else []
        hint = f" (there is {shown(near[0])})" if near else ""
        raise InvalidModelFile(f"{path}: tensor {shown(name)} is missing{hint}; {_AGAIN}")
    if info.shape != shape:
        # GGUF holds four dimensions at most, so a file with Hugging Face names has the video patch kernel flattened.
        if len(shape) <= 4 or prod(info.shape) != prod(shape):
            raise InvalidModelFile(
                f"{info.path}: tensor {shown(name)} has shape {list(info.shape)}, but config.json says {list(shape)}; "
                f"{_AGAIN}"
            )
        info = replace(info, shape=shape)
    return info


def _most(tensors: Mapping[str, Info]) -> str:
    """The type that holds most bytes, as far as llama.cpp has a file type for it."""
    size = {type: sum(info.nbytes for info in tensors.values() if info.type == type) for type in _FILE_TYPES}
    return max(size, key=lambda type: size[type])
