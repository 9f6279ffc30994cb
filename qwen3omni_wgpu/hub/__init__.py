"""Models from the Hugging Face hub: `user/repo[:quant]` -> a path on this machine, from the cache or over the network.

Environment: HF_ENDPOINT, HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_HUB_OFFLINE, read by huggingface_hub when it is imported.
"""

import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, ModelNotFound, OmniError
from qwen3omni_wgpu.hub.choice import INDEX, PARTS, Choice, choose
from qwen3omni_wgpu.hub.problems import explained
from qwen3omni_wgpu.hub.transfer import bytes_here, cache_folder, check_space, get_file, readable

__all__ = ["PARTS", "HubFile", "Plan", "download", "fetch", "is_hub_id", "plan", "readable", "split_id"]

_ID = re.compile(r"([\w.-]+/[\w.-]+)(?::([\w./-]+))?")
_FILES = (".gguf", ".safetensors", ".json")

Progress = Callable[[int, int], None]  # bytes that are here, bytes in all


@dataclass(frozen=True)
class HubFile:
    """A file to have. part is "thinker", "mmproj", "talker" or "shared"; size in bytes, None where it is not told."""

    name: str
    part: str
    size: int | None
    sha256: str | None
    cached: bool


@dataclass(frozen=True)
class Plan:
    """What a model consists of, and what of it is in the cache. `path` is where it is, or will be."""

    repo: str
    revision: str
    commit: str
    path: Path
    files: tuple[HubFile, ...]

    @property
    def missing(self) -> tuple[HubFile, ...]:
        return tuple(file for file in self.files if not file.cached)

    @property
    def nbytes(self) -> int:
        return sum(file.size or 0 for file in self.files)


def is_hub_id(text: str) -> bool:
    """Whether `text` has the form user/repo or user/repo:quant. A path of that form that exists is not looked for."""
    match = _ID.fullmatch(text)
    return match is not None and not match[1].endswith(_FILES) and not match[1].startswith((".", "-"))


def split_id(model_id: str) -> tuple[str, str]:
    """("user/repo", "quant"), the second "" where none is named. InvalidRequest for any other form."""
    if not is_hub_id(model_id):
        raise InvalidRequest(f"{model_id!r} is no model of the hub; name one as user/repo or user/repo:Q8_0")
    repo, _, quant = model_id.partition(":")
    return repo, quant


def fetch(
    model_id: str,
    *,
    parts: tuple[str, ...] | None = ("thinker",),
    offline: bool = False,
    revision: str | None = None,
    progress: Progress | None = None,
) -> Path:
    """The thinker's GGUF file of `user/repo[:quant]`, with its companions beside it, or the folder of a checkpoint.

    quant: a type that the repository has (Q8_0, Q4_K_M, ..., in any case), or the name of one of its files; without
    it Q8_0, else F16, else BF16, else the only one. A checkpoint takes q8_0, f16, bf16, f32 (what to make of it while
    loading: the files are the same) or safetensors, which passes over GGUF files in the same repository.
    parts: any of PARTS, or None = all there are, for which the hub is always asked. What is complete in the cache is
    taken from there without asking the hub whether there is anything newer: that is what `plan` and `download` do.
    progress: called with the bytes that are here and the bytes in all. Raises ModelNotFound, InvalidRequest,
    UnsupportedModel, InvalidModelFile, or OmniError for network, server and disk; each says what to do.
    """
    if parts is not None or offline:
        try:
            return plan(model_id, parts=parts, offline=True, revision=revision).path
        except OmniError:
            if offline:
                raise
    return download(plan(model_id, parts=parts, revision=revision), progress=progress)


def plan(
    model_id: str, *, parts: tuple[str, ...] | None = None, offline: bool = False, revision: str | None = None
) -> Plan:
    """Which files make up a model, and which of them are here: by what the hub has now or, offline, by the cache.

    Errors as for `fetch`. Only the index of a sharded checkpoint is downloaded, because it says which shards to take.
    """
    repo, quant = split_id(model_id)
    if unknown := [part for part in parts or () if part not in PARTS]:
        raise InvalidRequest(f"there is no part {unknown[0]!r}; the parts are {', '.join(PARTS)}")
    if revision is not None and (not revision or ".." in revision):
        raise InvalidRequest(f"{revision!r} is no revision; name a branch, a tag or a commit")
    if offline or _told_offline():
        return _plan_from_cache(model_id, repo, quant, parts, revision or "main")
    return _plan_from_hub(repo, quant, parts, revision or "main")


def download(plan: Plan, *, progress: Progress | None = None) -> Path:
    """Bring what a plan lacks, resuming what an earlier run began; then the path of the model."""
    total, done = sum(file.size or 0 for file in plan.missing), 0

    def report(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, max(total, done))

    with explained(plan.repo, plan.revision):
        check_space(plan.repo, sum((file.size or 0) - bytes_here(plan.repo, file.sha256) for file in plan.missing))
        for file in plan.missing:
            get_file(plan.repo, file.name, plan.commit, report)
        if plan.revision != plan.commit:
            _note_commit(plan)
    return plan.path


def _told_offline() -> bool:
    from huggingface_hub import constants

    return constants.HF_HUB_OFFLINE


def _plan_from_hub(repo: str, quant: str, parts: tuple[str, ...] | None, revision: str) -> Plan:
    with explained(repo, revision):
        commit, listing = _listing(repo, revision)
        snapshot = cache_folder(repo) / "snapshots" / commit
        choice = choose(
            repo, listing, quant, parts, lambda: _weight_map(get_file(repo, INDEX, commit, lambda more: None))
        )
    if lost := [name for name in choice.files if name not in listing]:
        raise InvalidModelFile(f"{repo} is incomplete: it lacks {lost[0]}; tell its owner, or name another repository")
    files = tuple(
        HubFile(name, part, *listing[name], cached=(snapshot / name).exists()) for name, part in choice.files.items()
    )
    return Plan(repo, revision, commit, snapshot / _main_file(choice), files)


def _listing(repo: str, revision: str) -> "tuple[str, dict[str, tuple[int | None, str | None]]]":
    """The commit that a revision stands for, and its files: name -> (size, SHA-256 where the hub tells it)."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError

    api = HfApi(endpoint=constants.ENDPOINT)
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT)
    except HFValidationError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError):  # an answer, but not that of a hub: a login page, perhaps
        raise OmniError(
            f"{constants.ENDPOINT} does not answer as the hub does; check the network and HF_ENDPOINT"
        ) from None
    if not info.sha or not re.fullmatch("[0-9a-f]{40}", info.sha):
        raise OmniError(f"{constants.ENDPOINT} names no commit of {repo}; check HF_ENDPOINT")
    return info.sha, {
        file.rfilename: (file.size, file.lfs.sha256 if file.lfs else None) for file in info.siblings or ()
    }


def _plan_from_cache(model_id: str, repo: str, quant: str, parts: tuple[str, ...] | None, revision: str) -> Plan:
    reason, snapshot = "nothing of it is there", _snapshot(repo, revision)
    if snapshot is not None:
        # is_file() passes over names whose contents were deleted.
        names = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
        try:
            choice = choose(repo, names, quant, parts, lambda: _weight_map(snapshot / INDEX))
            lost = [name for name in choice.files if name not in names]
            if not lost:
                files = (
                    HubFile(name, part, names[name].stat().st_size, None, True) for name, part in choice.files.items()
                )
                return Plan(repo, revision, snapshot.name, snapshot / _main_file(choice), tuple(files))
            reason = f"{len(lost)} of {len(choice.files)} files are missing, {lost[0]} among them"
        except OmniError as error:
            reason = str(error)
    online = "without HF_HUB_OFFLINE" if _told_offline() else "without --offline"
    option = "" if revision == "main" else f" --revision {revision}"
    raise ModelNotFound(
        f"{model_id} is not complete in the cache {cache_folder(repo)} ({reason}); "
        f"get it with `qwen3omni pull {model_id}{option}` {online}"
    )


def _main_file(choice: Choice) -> str:
    """What to name of a choice: the thinker, or a companion where only that was wanted; "" = the folder."""
    if not choice.model or choice.model in choice.files:
        return choice.model
    return next(name for name, part in choice.files.items() if part in PARTS)


def _snapshot(repo: str, revision: str) -> Path | None:
    """The folder of a revision in the cache."""
    root = cache_folder(repo)
    ref = root / "refs" / revision
    commit = ref.read_text(encoding="utf-8").strip() if ref.is_file() else revision
    folder = root / "snapshots" / commit
    return folder if commit and folder.is_dir() else None


def _note_commit(plan: Plan) -> None:
    """Let the branch or tag of a plan lead to its commit, now that its files are there."""
    ref = cache_folder(plan.repo) / "refs" / plan.revision
    if ref.is_file() and ref.read_text(encoding="utf-8").strip() == plan.commit:
        return
    ref.parent.mkdir(parents=True, exist_ok=True)
    new = ref.with_name(f"{ref.name}.{os.getpid()}")
    new.write_text(plan.commit, encoding="utf-8")
    new.replace(ref)


def _weight_map(path: Path) -> Mapping[str, str]:
    try:
        index = json.loads(path.read_bytes())
    except ValueError as error:
        raise InvalidModelFile(f"{path} is no JSON ({error}); delete it and pull again") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict):
        raise InvalidModelFile(f"{path} has no weight_map; tell the repository's owner")
    return weight_map
