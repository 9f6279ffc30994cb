"""From a MODEL argument to a model on a device: files found, headers read, the thinker's weights loaded."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from qwen3omni_wgpu import env, hub, tuner
from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Progress
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.locate import hub_id, locate, type_in_name
from qwen3omni_wgpu.models.config import text_config, weight_bytes
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.resident import Resident, Settle
from qwen3omni_wgpu.runner import Runner

DEFAULT_CONTEXT = 8192  # tokens; a model's own context length where that is smaller
TALKER_FRAMES = 4096  # of speech that fit the talker's context behind a prompt: five and a half minutes


def open_model(
    model: str | Path | None,
    *,
    mmproj: str | Path | None,
    talker: str | Path | None,
    config: str | Path | None,
    device: str | int | None,
    ctx_size: int | None,
    type: str | None,
    activations: str,
    kv_type: str,
    cpu: bool,
    tokenizer_file: str | Path | None,
    offline: bool,
    lazy: bool,
    tune: str,
    progress: Callable[[Progress], None] | None,
) -> tuple[Resident, Tokenizer]:
    """The model, its thinker loaded unless lazy, and its tokenizer. Arguments and errors: see Omni.from_pretrained."""
    chosen, tuning = _activations(activations), _tuning(tune)
    path = locate(model, offline=offline, progress=_reporter(progress, "pull"))
    parts = open_parts(
        path,
        type=type or type_in_name(model, path),
        config=_path(config),
        mmproj=_path(mmproj),
        talker=_path(talker),
        tokenizer=tokenizer_file is None,
    )
    file = parts["thinker"]
    tokens = context_size(ctx_size, text_config(file).context_length)
    # Before the weights: a missing tokenizer should not be found after minutes of loading.
    tokenizer = Tokenizer.from_file(tokenizer_file) if tokenizer_file else Tokenizer.from_gguf(file.metadata)
    opened = Device.open(device, cpu=cpu)
    try:
        report = _reporter(progress, "load")
        settle = _settler(opened, tuning, _reporter(progress, "tune"))
        resident = Resident(
            opened,
            parts,
            lambda runner: _engine(file, opened, tokens, chosen, kv_type, runner, report, settle),
            fetch=_fetcher(model, type, offline, _reporter(progress, "pull")),
            progress=report,
            activations=chosen,
            talker_context=tokens + TALKER_FRAMES,
            settle=settle,
        )
        if not lazy:
            resident.engine()
        return resident, tokenizer
    except BaseException:
        opened.close()
        raise


def _reporter(
    progress: Callable[[Progress], None] | None, phase: Literal["load", "pull", "tune"]
) -> Callable[[int, int], None] | None:
    return (lambda done, total: progress(Progress(phase, done, total))) if progress else None


def _engine(
    file: GGUFFile,
    device: Device,
    ctx_size: int,
    activations: str,
    kv_type: str,
    runner: Runner,
    report: Callable[[int, int], None] | None,
    settle: Settle,
) -> Engine:
    """The text model's weights on the device, its kernels chosen, and an engine for them."""
    if report:
        report(0, weight_bytes(file))  # the clock of a progress bar starts before the first tensor is there
    model = TextModel.load(file, device, activations=activations, progress=report)
    try:
        engine = Engine(model, ctx_size, kv_type=kv_type, runner=runner)
        settle(engine.rehearse)
        return engine
    except BaseException:
        model.free()
        raise


def _settler(device: Device, mode: str, report: Callable[[int, int], None] | None) -> Settle:
    """Chooses the kernels of one part of a model, before it records its first plan."""
    return lambda problems: tuner.settle(device, mode, problems, report)


def _fetcher(
    model: str | Path | None, type: str | None, offline: bool, progress: Callable[[int, int], None] | None
) -> Callable[[str], GGUFFile] | None:
    """Gets a further part of a model that is named by its hub id; None for one that is on this machine."""
    named = hub_id(model)
    if named is None:
        return None

    def fetch(part: str) -> GGUFFile:
        path = hub.fetch(named, parts=("thinker", part), offline=offline, progress=progress)
        return open_parts(path, type=type or type_in_name(model, path)).need(part)

    return fetch


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value).expanduser()


def _activations(wanted: str) -> str:
    if wanted not in ("auto", "f32", "q8"):
        raise InvalidRequest(f"activations is {wanted!r}, but must be auto, f32 or q8")
    return env.get("QWEN3OMNI_ACTIVATIONS") if wanted == "auto" else wanted


def _tuning(wanted: str) -> str:
    if wanted not in ("auto", "on", "off"):
        raise InvalidRequest(f"tune is {wanted!r}, but must be auto, on or off")
    return env.get("QWEN3OMNI_TUNE") if wanted == "auto" else wanted


def context_size(wanted: int | None, limit: int) -> int:
    """Tokens the context shall hold: what is wanted, else the model's own limit up to DEFAULT_CONTEXT."""
    if wanted is None:
        return min(limit, DEFAULT_CONTEXT)
    if not 1 <= wanted <= limit:
        raise InvalidRequest(f"--ctx-size {wanted} is not possible: this model holds between 1 and {limit} tokens")
    return wanted
