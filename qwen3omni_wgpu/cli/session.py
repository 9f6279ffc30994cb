"""What verbs share while they run: opening a model with a progress bar, Ctrl-C, messages on stderr, JSON on stdout."""

import json
import logging
import os
import secrets
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from qwen3omni_wgpu.cli.verbs import Common, Sampling
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Event, Progress, Reply, TokenLogprob

if TYPE_CHECKING:
    from qwen3omni_wgpu.gpu import Profiler
    from qwen3omni_wgpu.omni import Omni
    from qwen3omni_wgpu.sampler import GenerationConfig

_STARTED = datetime.now()


def note(text: str, common: Common) -> None:
    """A muted line on stderr, unless -q."""
    if common.quiet:
        return
    muted = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    print(f"\x1b[2m{text}\x1b[0m" if muted else text, file=sys.stderr, flush=True)


def print_json(document: Any) -> None:
    """The one JSON document of --json."""
    print(json.dumps(document, ensure_ascii=False, default=_plain))


def _plain(value: Any) -> Any:
    if isinstance(value, TokenLogprob):
        return asdict(value)
    if hasattr(value, "tolist"):  # NumPy scalars and arrays
        return value.tolist()
    return str(value)


def set_up_logging(common: Common) -> None:
    level = logging.DEBUG if common.debug else logging.INFO if common.verbose else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(name)s: %(message)s", stream=sys.stderr, force=True)
    logging.getLogger("qwen3omni_wgpu").setLevel(logging.ERROR if common.quiet else level)


@contextmanager
def opened(common: Common, **arguments: Any) -> "Iterator[Omni]":
    """The model of the common options, loaded with a progress bar, closed at the end."""
    from qwen3omni_wgpu.omni import Omni

    set_up_logging(common)
    with Bar(common) as bar:
        omni = Omni.from_pretrained(
            common.model,
            mmproj=common.mmproj,
            talker=common.talker,
            config=common.config,
            type=common.type,
            offline=common.offline,
            device=common.device,
            cpu=common.cpu,
            ctx_size=common.ctx_size,
            tokenizer_file=common.tokenizer_file,
            kv_type=common.kv_type or "f16",
            progress=bar.show,
            **({"tune": "off"} if common.no_tune else {}),
            **arguments,
        )
    with omni:
        if omni.device.info.software and not common.cpu:
            note(f"{omni.device.info.name} is a software adapter, which is slow; see `qwen3omni doctor`", common)
        if common.verbose:
            note(f"{omni.path} on {omni.device.info}, loaded in {omni.load_s:.2f} s", common)
        profiler = _profiler(omni, common)
        yield omni
        if profiler is not None:
            profiler.write(_trace_path(common))
            note(f"trace written to {_trace_path(common)}; open it in chrome://tracing or ui.perfetto.dev", common)


def _profiler(omni: "Omni", common: Common) -> "Profiler | None":
    if not (common.trace or common.tracing):
        return None
    from qwen3omni_wgpu.gpu import Profiler

    omni.runner.profiler = Profiler(omni.device)
    return omni.runner.profiler


def _trace_path(common: Common) -> Path:
    return common.trace or Path(f"trace-{_STARTED:%Y%m%d-%H%M%S}.json")


def generation_config(
    options: Sampling, raw: bool = False, logprobs: int = 0, speech: dict[str, Any] | None = None
) -> "GenerationConfig":
    """The options as settings, with a seed of its own where none was given, so that an answer can be repeated.

    speech: settings of speech, by their names.
    """
    from qwen3omni_wgpu.sampler import GenerationConfig

    return GenerationConfig(
        max_tokens=None if options.max_tokens == -1 else options.max_tokens,
        temperature=options.temp,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repeat_penalty=options.repeat_penalty,
        repeat_last_n=options.repeat_last_n,
        presence_penalty=options.presence_penalty,
        frequency_penalty=options.frequency_penalty,
        seed=secrets.randbits(32) if options.seed is None else options.seed,
        stop=tuple(options.stop or ()),
        ignore_eos=options.ignore_eos,
        raw=raw,
        logprobs=logprobs,
        **(speech or {}),
    )


def read_text(path: Path, what: str) -> str:
    """A text file, or stdin for `-`, without the line end at its end."""
    try:
        data = sys.stdin.buffer.read() if str(path) == "-" else path.read_bytes()
        text = data.decode("utf-8")
    except OSError as error:
        raise InvalidRequest(f"could not read {what} {str(path)!r}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{what} {str(path)!r} is not UTF-8 text (byte {error.start})") from error
    return text.removesuffix("\n").removesuffix("\r")


def timing_line(reply: Reply) -> str:
    times = reply.timings
    return (
        f"[prompt {times['prompt_n']:.0f} tokens, {times['prompt_per_second']:.1f}/s; "
        f"answer {times['predicted_n']:.0f} tokens, {times['predicted_per_second']:.1f}/s; {reply.finish_reason}]"
    )


PHASES = {
    "load": "loading",
    "prefill": "reading the prompt",
    "quantize": "writing",
    "pull": "downloading",
    "tune": "tuning kernels",
    "audio": "listening",
    "vision": "looking",
}


class Interrupt:
    """Ctrl-C inside a `with` block only sets `pressed`, so that the GPU's work ends in order. A second one raises."""

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> "Interrupt":
        self._before = signal.signal(signal.SIGINT, self._handle)
        return self

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def __exit__(self, *exc: object) -> None:
        signal.signal(signal.SIGINT, self._before)


class Bar:
    """A progress bar on stderr for Progress events; silent when stderr is no terminal, or with -q."""

    def __init__(self, common: Common) -> None:
        self._on = sys.stderr.isatty() and not common.quiet
        self._bar: Any = None
        self._phase = ""
        self._task: Any = None

    def show(self, event: Event) -> None:
        if not self._on:
            return
        if not isinstance(event, Progress):
            self.close()
            return
        if event.phase != self._phase:
            self._start(event)
        self._bar.update(self._task, completed=event.done, total=event.total)
        if event.done >= event.total:  # parts are also loaded later, where nobody waits for this bar's end
            self.close()

    def _start(self, event: Progress) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            DownloadColumn,
            MofNCompleteColumn,
            TaskProgressColumn,
            TextColumn,
            TimeRemainingColumn,
            TransferSpeedColumn,
        )
        from rich.progress import Progress as RichProgress

        self.close()
        columns: dict[str, list[Any]] = {
            "prefill": [MofNCompleteColumn()],
            "tune": [MofNCompleteColumn()],
            "audio": [TaskProgressColumn(), TimeRemainingColumn()],
            "vision": [TaskProgressColumn(), TimeRemainingColumn()],
        }
        in_bytes = [DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        amounts = columns.get(event.phase, in_bytes)
        text = PHASES[event.phase]
        self._bar = RichProgress(TextColumn(text), BarColumn(), *amounts, console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task, self._phase = self._bar.add_task(text, total=event.total), event.phase

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar, self._phase = None, ""

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
