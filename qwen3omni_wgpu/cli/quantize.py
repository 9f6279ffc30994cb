"""`qwen3omni quantize`: a checkpoint or GGUF files to GGUF files of another type, tensor by tensor."""

import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.session import Bar, note, print_json, set_up_logging
from qwen3omni_wgpu.cli.tables import size_of
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Progress

if TYPE_CHECKING:
    from qwen3omni_wgpu.convert.parts import ModelParts
    from qwen3omni_wgpu.formats.gguf import GGUFFile


@verb("quantize")
def quantize(
    common: Common,
    source: Annotated[str, typer.Argument(metavar="IN", help="Hugging Face folder, .gguf file, or any other MODEL")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder for the files, or NAME.gguf of the thinker's")],
    parts: Annotated[
        str, typer.Option("--parts", metavar="LIST", help="thinker, mmproj, talker, or all (with commas between)")
    ] = "all",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="print what would be written, and why so")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="go on where an earlier run was cut off")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace files that exist already")] = False,
    code_predictor: Annotated[
        bool,
        typer.Option("--quantize-code-predictor", help="the code predictor, too (known to degrade long speech)"),
    ] = False,
    again: Annotated[
        bool, typer.Option("--allow-requantize", help="accept weights that are quantised already")
    ] = False,
) -> int:
    """Write a model's parts as GGUF files with weights of --type."""
    set_up_logging(common)
    if resume and overwrite:
        raise InvalidRequest("--resume continues files and --overwrite starts them again; use one of them")
    type = common.type or "q8_0"
    jobs = _jobs(source, out, type, parts, common, code_predictor, again)
    if dry_run:
        _print_plan(jobs, type, code_predictor, common)
        return 0
    results = []
    with Bar(common) as bar:
        _check_targets([path for path, _ in jobs], resume, overwrite)
        for path, file in jobs:
            # With --resume, the writer finds out by itself whether a file is complete and made from this.
            results.append(_write(path, file, resume, overwrite, bar))
            note(_summary(results[-1]), common)
    if common.json:
        print_json({"type": type, "files": results})
    return 0


def _jobs(
    source: str, out: Path, type: str, wanted: str, common: Common, code_predictor: bool, again: bool
) -> "list[tuple[Path, GGUFFile]]":
    """Target path and content of every file, with every header read and every tensor found."""
    from qwen3omni_wgpu.convert.parts import TYPES, base_name, open_parts, retype
    from qwen3omni_wgpu.locate import locate

    if type not in TYPES:
        raise InvalidRequest(f"--type {type} cannot be written; choose one of {', '.join(TYPES)}")
    with Bar(common) as bar:
        path = locate(source, offline=common.offline, progress=lambda d, t: bar.show(Progress("pull", d, t)))
    checkpoint = path.is_dir()
    model = open_parts(
        path,
        type=type if checkpoint else None,
        config=Path(common.config) if common.config else None,
        mmproj=Path(common.mmproj) if common.mmproj else None,
        talker=Path(common.talker) if common.talker else None,
        quantize_code_predictor=code_predictor,
    )
    jobs = []
    for part in _chosen(wanted, model):
        file = model.need(part)
        if not checkpoint:
            file = retype(part, file, type, again=again, quantize_code_predictor=code_predictor)
        jobs.append((_target(out, part, base_name(path), type), file))
    return jobs


def _chosen(wanted: str, model: "ModelParts") -> list[str]:
    """Parts of a checkpoint whose shards are missing count: leaving them out of "all" must be said, not guessed."""
    from qwen3omni_wgpu.convert.parts import PARTS

    have = [part for part in PARTS if part in model or part in model.absent]
    if wanted == "all":
        return have
    names = [name.strip() for name in wanted.split(",")]
    if unknown := [name for name in names if name not in PARTS]:
        raise InvalidRequest(f"--parts {wanted}: there is no part {unknown[0]!r}; parts are {', '.join(PARTS)}, or all")
    if missing := [name for name in names if name not in have]:
        raise InvalidRequest(f"--parts {wanted}: this model has no {missing[0]}; it has {', '.join(have)}")
    return [name for name in PARTS if name in names]


def _target(out: Path, part: str, name: str, type: str) -> Path:
    prefix = "" if part == "thinker" else f"{part}-"
    out = out.expanduser()
    if out.suffix == ".gguf" and not out.is_dir():
        return out.with_name(prefix + out.name)
    return out / f"{prefix}{name}-{type.upper()}.gguf"


def _check_targets(paths: list[Path], resume: bool, overwrite: bool) -> None:
    """Before the first byte: an hour's work must not end at a file that was in the way from the start."""
    folder = paths[0].parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequest(f"cannot make the folder {folder}: {error.strerror}; choose another OUT") from error
    if resume or overwrite:
        return
    for path in paths:
        if path.exists():
            raise InvalidRequest(f"{path} exists already; choose another OUT, or add --overwrite to replace it")


def _write(path: Path, file: "GGUFFile", resume: bool, overwrite: bool, bar: Bar) -> dict[str, Any]:
    from qwen3omni_wgpu.formats.gguf_writer import write_gguf

    start = time.perf_counter()
    write_gguf(
        path,
        file,
        resume=resume,
        overwrite=overwrite,
        progress=lambda done, total: bar.show(Progress("quantize", done, total)),
    )
    seconds = time.perf_counter() - start
    nbytes = path.stat().st_size
    return {
        "path": str(path),
        "bytes": nbytes,
        "tensors": len(file.tensors),
        "types": _types(file),
        "seconds": seconds,
        "bytes_per_second": nbytes / seconds,
    }


def _types(file: "GGUFFile") -> dict[str, int]:
    """Type -> bytes."""
    sizes: Counter[str] = Counter()
    for info in file.tensors.values():
        sizes[info.type] += info.nbytes
    return dict(sizes.most_common())


def _summary(result: dict[str, Any]) -> str:
    types = ", ".join(f"{type} {size_of(nbytes)}" for type, nbytes in result["types"].items())
    rate = result["bytes_per_second"] / 1e6
    return (
        f"{result['path']}: {size_of(result['bytes'])}, {result['tensors']} tensors ({types}) "
        f"in {result['seconds']:.1f} s, {rate:.0f} MB/s"
    )


def _print_plan(jobs: "list[tuple[Path, GGUFFile]]", type: str, code_predictor: bool, common: Common) -> None:
    from qwen3omni_wgpu.convert.policy import describe
    from qwen3omni_wgpu.formats.gguf_writer import written_size

    files = [
        {"path": str(path), "bytes": written_size(file), "tensors": len(file.tensors), "types": _types(file)}
        for path, file in jobs
    ]
    if common.json:
        print_json({"type": type, "dry_run": True, "files": files})
        return
    for what, kept, reason in describe(type, quantize_code_predictor=code_predictor):
        print(f"{kept:<6}{what}: {reason}")
    print()
    for file in files:
        types = ", ".join(f"{kind} {size_of(nbytes)}" for kind, nbytes in file["types"].items())
        print(f"{size_of(file['bytes']):>12}  {file['path']}  ({file['tensors']} tensors: {types})")
    print(f"{size_of(sum(file['bytes'] for file in files)):>12}  in all; nothing was written (--dry-run)")
