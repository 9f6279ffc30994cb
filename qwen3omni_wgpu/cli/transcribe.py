"""`qwen3omni transcribe`: speech to text."""

import sys
from contextlib import closing
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.media import MediaOptions
from qwen3omni_wgpu.cli.session import Bar, Interrupt, generation_config, note, opened, print_json
from qwen3omni_wgpu.cli.verbs import Common, Sampling, verb
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Progress, TextDelta

if TYPE_CHECKING:
    from qwen3omni_wgpu.omni import Omni
    from qwen3omni_wgpu.transcribe import Segment, Transcript, TranscriptStream


@verb("transcribe")
def transcribe(
    common: Common,
    sampling: Sampling,
    file: Annotated[str, typer.Argument(metavar="FILE", help="sound of any format and length; - = stdin")],
    language: Annotated[
        str | None, typer.Option("--language", metavar="L", help="its language, English or en; default: heard from it")
    ] = None,
    window: Annotated[
        float, typer.Option("--window", metavar="S", help="long sound is cut at pauses after at most S seconds")
    ] = 30.0,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="FILE may be an http, https or data: address")
    ] = False,
) -> int:
    """What is said in a sound file, as text; of a long one line by line, with times."""
    from qwen3omni_wgpu.transcribe import generation_settings, language_name

    # Whatever is wrong with these is found before the model is loaded.
    language = language_name(language)
    config = generation_settings(generation_config(sampling), window)
    config.resolved({})
    options = MediaOptions(allow_urls=allow_urls)
    source = _stdin() if file == "-" else options.part("audio", file)["audio"]
    with opened(common, **options.loading()) as omni:
        stream = omni.transcribe_stream(source, language=language, window=window, config=config)
        transcript = _run(stream, common)
        if transcript is None:
            return 130
        if common.json:
            print_json(_document(omni, transcript))
        note(_summary(transcript), common)
    return 0


def _stdin() -> bytes:
    from qwen3omni_wgpu.inputs.sources import open_source

    if sys.stdin.isatty():
        raise InvalidRequest("- reads the sound from stdin, and that is a terminal; give a file or use a pipe")
    data = open_source(sys.stdin.buffer, "sound").data
    assert data is not None
    return data


def _run(stream: "TranscriptStream", common: Common) -> "Transcript | None":
    """Everything up to the last event, windows printed as they come; None when Ctrl-C ended it."""
    from qwen3omni_wgpu.transcribe import Segment, Transcript

    with Interrupt() as interrupt, Bar(common) as bar, closing(stream):
        for event in stream:
            if isinstance(event, Progress):
                bar.show(event)
            elif not isinstance(event, TextDelta):  # words show only when their window is complete
                bar.close()
            if isinstance(event, Transcript):
                return event
            if isinstance(event, Segment):
                if not common.json:
                    print(_line(event), flush=True)
                if event.finish_reason == "length":
                    note(f"the text of {_times(event)} reached its limit of tokens; -n N allows more", common)
            if interrupt.pressed:
                break
    return None


def _line(segment: "Segment") -> str:
    """The text alone where there is only one window, else one line with its times."""
    return segment.text if segment.count == 1 else f"[{_times(segment)}] {' '.join(segment.text.split())}".rstrip()


def _times(segment: "Segment") -> str:
    return f"{_clock(segment.start)} -> {_clock(segment.end)}"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes:02}:{rest:02}"


def _summary(transcript: "Transcript") -> str:
    times = transcript.timings
    return (
        f"[{transcript.duration:.1f} s of sound in {times['total_s']:.1f} s, {times['realtime']:.1f} x real time; "
        f"{times.get('predicted_n', 0):.0f} tokens]"
    )


def _document(omni: "Omni", transcript: "Transcript") -> dict[str, Any]:
    document = asdict(transcript)
    document["segments"] = [
        {"start": segment.start, "end": segment.end, "text": segment.text} for segment in transcript.segments
    ]
    return document | {"device": omni.device.info.name, "model": str(omni.path)}
