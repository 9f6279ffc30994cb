"""`qwen3omni pull`: bring a model from the Hugging Face hub into the cache of this machine."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.session import Bar, note, print_json, set_up_logging
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Progress

if TYPE_CHECKING:
    from qwen3omni_wgpu.hub import Plan


@verb("pull")
def pull(
    common: Common,
    name: Annotated[str | None, typer.Argument(metavar="USER/REPO[:QUANT]", help="the same as -m")] = None,
    parts: Annotated[
        str, typer.Option("--parts", metavar="LIST", help="thinker, mmproj, talker (with commas), or all there are")
    ] = "all",
    text_only: Annotated[bool, typer.Option("--text-only", help="the same as --parts thinker")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="R", help="branch, tag or commit; default: main")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="list the files and their sizes, fetch none")] = False,
) -> int:
    """Download a model, going on where an earlier run stopped, and print where it is."""
    from qwen3omni_wgpu import hub

    set_up_logging(common)
    if name is not None and common.model is not None:
        raise InvalidRequest("name the model once: as USER/REPO or with -m")
    model = name if name is not None else common.model
    if model is None:
        raise InvalidRequest("name a model of the hub, as user/repo or user/repo:Q8_0")
    plan = hub.plan(model, parts=_parts(parts, text_only), offline=common.offline, revision=revision)
    if dry_run:
        _print_plan(plan, common)
        return 0
    fetched = sum(file.size or 0 for file in plan.missing)
    if common.offline:
        note(f"{plan.repo}: complete in the cache", common)
    elif plan.missing:
        note(f"fetching {_summary(plan)} of {plan.repo}", common)
        try:
            with Bar(common) as bar:
                hub.download(plan, progress=lambda done, total: bar.show(Progress("pull", done, total)))
        except KeyboardInterrupt:
            note("interrupted; the same command goes on from here", common)
            return 130
    else:
        hub.download(plan)  # notes that this is what the revision stands for now
        note(f"{plan.repo}: all of it is here", common)
    if common.json:
        print_json(_document(plan, fetched))
    else:
        print(plan.path)
    return 0


def _parts(text: str, text_only: bool) -> tuple[str, ...] | None:
    if text_only and text not in ("all", "thinker"):
        raise InvalidRequest("--text-only means --parts thinker; give one of them")
    if text_only:
        return ("thinker",)
    return None if text == "all" else tuple(part.strip() for part in text.split(",") if part.strip()) or ("",)


def _summary(plan: "Plan") -> str:
    from qwen3omni_wgpu.hub import readable

    names = [file.name for file in plan.missing if file.part != "shared"]
    count = f"{len(plan.missing)} file{'s' if len(plan.missing) > 1 else ''}"
    shown = ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")
    return f"{count}, {readable(sum(file.size or 0 for file in plan.missing))}" + (f" ({shown})" if shown else "")


def _document(plan: "Plan", fetched: int) -> dict[str, Any]:
    return {
        "path": str(plan.path),
        "repo": plan.repo,
        "revision": plan.revision,
        "commit": plan.commit,
        "files": [
            {key: value for key, value in asdict(file).items() if key != "size"} | {"bytes": file.size}
            for file in plan.files
        ],
        "bytes": plan.nbytes,
        "fetched_bytes": fetched,
    }


def _print_plan(plan: "Plan", common: Common) -> None:
    from qwen3omni_wgpu.hub import readable

    if common.json:
        print_json(_document(plan, 0) | {"dry_run": True})
        return
    for file in plan.files:
        size = "?" if file.size is None else readable(file.size)
        print(f"{size:>12}  {file.part:<8} {file.name}{'  (here)' if file.cached else ''}")
    missing = sum(file.size or 0 for file in plan.missing)
    print(f"{readable(plan.nbytes):>12}  in all, {readable(missing)} to fetch into {plan.path}")
