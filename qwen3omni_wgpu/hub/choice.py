"""Which files of a repository make up the model that was asked for. Nothing in this file touches disk or network."""

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from qwen3omni_wgpu.convert.dims import PARTS as COMPONENTS
from qwen3omni_wgpu.convert.names import part_of
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, ModelNotFound, UnsupportedModel

PARTS = tuple(COMPONENTS)
SHARED = "shared"  # small files that belong to no part: config.json, tokenizer, ...
INDEX = "model.safetensors.index.json"

_DEFAULTS = ("q8_0", "f16", "bf16")  # which type to take when none is named, best first
_LOADABLE = ("q8_0", "f16", "bf16", "f32", "safetensors")  # what a checkpoint can be asked for as
_COMPANION_TYPES = ("q8_0", "f16", "bf16", "f32")
_SIDE_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    INDEX,
)
_PIECE = re.compile(r"-(\d{5})-of-(\d{5})\.(gguf|safetensors)$")
_TYPE = re.compile(r"(?:^|[-._/])((?:ud-)?(?:i?q\d\w*|tq\d_\d|mxfp4\w*|bf16|fp?16|fp?32))(?=$|[-./])", re.IGNORECASE)


@dataclass(frozen=True)
class Choice:
    """`model` is the thinker's GGUF file, or "" for a checkpoint, which is the folder as a whole. `files` gives the
    part of every file to fetch, in the order of fetching: one of PARTS, or SHARED."""

    model: str
    files: dict[str, str]


def choose(
    repo: str, names: Collection[str], quant: str, parts: tuple[str, ...] | None, index: Callable[[], Mapping[str, str]]
) -> Choice:
    """The files of `repo` (whose files are `names`) for one type and some parts; parts None = all there are.

    index: the weight_map of model.safetensors.index.json, tensor name -> file; called only where it is needed.
    Files named in the index, or missing from a row of numbered shards, are chosen though `names` lacks them: whether
    they are there is for the caller to check. Errors: InvalidRequest lists what the repository has.
    """
    ggufs = [name for name in names if name.endswith(".gguf") and _part(name)]
    if any(_part(name) == "thinker" for name in ggufs) and quant.lower() != "safetensors":
        return _gguf(repo, names, ggufs, quant, parts)
    shards = sorted(name for name in names if name.endswith(".safetensors") and "/" not in name)
    if shards or INDEX in names:
        return _checkpoint(repo, names, shards, quant, parts, index)
    if ggufs:
        raise ModelNotFound(f"{repo} holds no language model in GGUF, only {_listed(ggufs)}; name another repository")
    raise UnsupportedModel(
        f"{repo} holds neither GGUF nor safetensors files ({_listed(sorted(names)) or 'nothing'}); "
        "look for the same model in one of these formats"
    )


def _part(name: str) -> str | None:
    """Whose file a GGUF is; None for statistics of a quantiser, which hold no model."""
    base = name.rsplit("/", 1)[-1].lower()
    if "imatrix" in base:
        return None
    return "mmproj" if "mmproj" in base else "talker" if base.startswith("talker-") else "thinker"


def _gguf(repo: str, names: Collection[str], ggufs: list[str], quant: str, parts: tuple[str, ...] | None) -> Choice:
    model = _thinker(repo, sorted(name for name in ggufs if _part(name) == "thinker"), quant)
    folder = model.rpartition("/")[0]
    files = {name: SHARED for name in _side_files(names, folder) if name != f"{folder}/{INDEX}".lstrip("/")}
    wanted = PARTS if parts is None else parts
    if "thinker" in wanted:
        files[model] = "thinker"
    for part in wanted:
        if part == "thinker":
            continue
        candidates = [name for name in ggufs if _part(name) == part and not _PIECE.search(name)]
        if candidates:
            files[min(candidates, key=lambda name: _distance(name, model))] = part
        elif parts is not None:
            raise InvalidRequest(f"{repo} has no {part} file; it has: {_listed(ggufs)}")
    return Choice(model, files)


def _side_files(names: Collection[str], folder: str) -> list[str]:
    prefix = f"{folder}/" if folder else ""
    return [prefix + name for name in _SIDE_FILES if prefix + name in names]


def _thinker(repo: str, thinkers: list[str], quant: str) -> str:
    whole = [name for name in thinkers if not _PIECE.search(name)]
    for wanted in [quant] if quant else _DEFAULTS:
        if found := _matching(whole, wanted):
            return found[0] if len(found) == 1 else _several(repo, found)
    pieces = [name for name in thinkers if _PIECE.search(name)]
    if split := _matching(pieces, quant) if quant else [] if whole else pieces:
        _refuse_pieces(repo, split[0])
    if quant:
        raise InvalidRequest(f"{repo} has no {quant}; it has: {_types(thinkers)}; for example {_example(repo, whole)}")
    return whole[0] if len(whole) == 1 else _several(repo, whole)


def _matching(names: list[str], wanted: str) -> list[str]:
    """Files of one type; its name stands at the end in most repositories, further ahead or in a folder's name in a few.

    A whole file name is a match, too.
    """
    wanted = _plain(wanted)
    if exact := [name for name in names if wanted in (_plain(name), _plain(name).removesuffix(".gguf"))]:
        return exact
    for after in ("$", r"[-./]"):
        pattern = re.compile(rf"(^|[-._/]){re.escape(wanted)}{after}")
        if found := [name for name in names if pattern.search(_PIECE.sub("", _plain(name)).removesuffix(".gguf"))]:
            return found
    return []


def _plain(text: str) -> str:
    return re.sub(r"fp(16|32)", r"f\1", text.lower())


def _type(name: str) -> str:
    found = _TYPE.findall(_PIECE.sub("", name).removesuffix(".gguf"))
    return _plain(found[-1]) if found else ""


def _types(names: list[str]) -> str:
    return _listed(sorted({_type(name).upper() or name for name in names}))


def _listed(names: Collection[str]) -> str:
    return ", ".join(list(names)[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")


def _example(repo: str, names: list[str]) -> str:
    return f"{repo}:{_type(names[0]).upper() or names[0]}" if names else f"{repo}:Q8_0"


def _several(repo: str, names: list[str]) -> str:
    if len({_type(name) for name in names}) == len(names):
        raise InvalidRequest(
            f"{repo} has several types: {_types(names)}; name one, for example {_example(repo, names)}"
        )
    raise InvalidRequest(f"{repo} has several models: {_listed(names)}; name one, for example {repo}:{names[0]}")


def _refuse_pieces(repo: str, name: str) -> None:
    piece = _PIECE.search(name)
    assert piece is not None
    stem, folder = name[: piece.start()], repo.split("/")[-1]
    raise UnsupportedModel(
        f"{stem}.gguf of {repo} is split into {int(piece[2])} pieces, and this version reads whole files; get and join "
        f"them with: hf download {repo} --include '{stem}-*.gguf' --local-dir {folder} and llama.cpp's "
        f"llama-gguf-split --merge {folder}/{stem}-00001-of-{piece[2]}.gguf {folder}/{stem}.gguf"
    )


def _distance(name: str, model: str) -> tuple[bool, bool, bool, int, str]:
    """How badly a companion fits a thinker, smallest first: folder, model name and type, each of which may differ."""
    folder, _, base = _plain(model).rpartition("/")
    own_folder, _, own = _plain(name).rpartition("/")
    own_type, type = _type(name), _type(model)
    title = base.removesuffix(".gguf").removesuffix(type).rstrip("-._")
    rank = _COMPANION_TYPES.index(own_type) if own_type in _COMPANION_TYPES else len(_COMPANION_TYPES)
    return (own_folder != folder, title not in own, own_type != type, rank, name)


def _checkpoint(
    repo: str,
    names: Collection[str],
    shards: list[str],
    quant: str,
    parts: tuple[str, ...] | None,
    index: Callable[[], Mapping[str, str]],
) -> Choice:
    if quant and _plain(quant) not in _LOADABLE:
        raise InvalidRequest(
            f"{repo} holds safetensors and no GGUF of type {quant}; it can be loaded as "
            + ", ".join(f"{repo}:{type}" for type in _LOADABLE[:-1])
        )
    files = dict.fromkeys(_side_files(names, ""), SHARED)
    if INDEX in names:
        return Choice("", files | _indexed(repo, index(), parts))
    if "model.safetensors" in shards:
        return Choice("", files | {"model.safetensors": "thinker"})
    return Choice("", files | dict.fromkeys(_whole_rows(shards), "thinker"))


def _indexed(repo: str, weight_map: Mapping[str, str], parts: tuple[str, ...] | None) -> dict[str, str]:
    """The shards that hold a tensor of the wanted parts. A plain text model is all thinker."""
    shards: dict[str, set[str]] = {}
    for tensor, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise InvalidModelFile(f"{repo}: {INDEX} says that {tensor} is in {shard!r}, which is no safetensors file")
        shards.setdefault(part_of(tensor), set()).add(shard)
    files: dict[str, str] = {}
    for part in PARTS if parts is None else parts:
        if parts is not None and part not in shards:
            raise InvalidRequest(f"{repo} has no {part}; it has: {_listed([part for part in PARTS if part in shards])}")
        for shard in sorted(shards.get(part, ())):
            files.setdefault(shard, part)
    return files


def _whole_rows(shards: list[str]) -> list[str]:
    """Every shard of the numbered rows that any of `shards` belongs to, also those that are not there."""
    names: set[str] = set()
    for shard in shards:
        piece = _PIECE.search(shard)
        count = min(int(piece[2]), 9999) if piece else 0  # a hostile name cannot ask for more
        names |= (
            {f"{shard[: piece.start()]}-{i + 1:05}-of-{piece[2]}.safetensors" for i in range(count)}
            if piece
            else {shard}
        )
    return sorted(names)
