"""`qwen3omni generate`: one answer."""

import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.media import InOrder, MediaFiles, MediaOptions, Part, content
from qwen3omni_wgpu.cli.session import (
    Bar,
    Interrupt,
    generation_config,
    note,
    opened,
    print_json,
    read_text,
    timing_line,
)
from qwen3omni_wgpu.cli.speech import SpeechOptions, Spoken, known_voice
from qwen3omni_wgpu.cli.verbs import Common, Sampling, verb
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Done, Reply, TextDelta

if TYPE_CHECKING:
    from qwen3omni_wgpu.omni import Omni
    from qwen3omni_wgpu.sampler import GenerationConfig


@verb("generate", cls=InOrder)
def generate(
    context: typer.Context,
    common: Common,
    sampling: Sampling,
    files: MediaFiles,
    options: MediaOptions,
    voice: SpeechOptions,
    prompt: Annotated[
        str | None, typer.Option("-p", "--prompt", metavar="TEXT", help="the prompt; - or a pipe = stdin")
    ] = None,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="the prompt from a file")] = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="system message")] = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="no chat template: the model goes on where the prompt ends")
    ] = False,
    logprobs: Annotated[
        int, typer.Option("--logprobs", metavar="N", help="report the N most likely tokens of every position (--json)")
    ] = 0,
    no_stream: Annotated[bool, typer.Option("--no-stream", help="print the answer when it is complete")] = False,
    speech: Annotated[
        Path | None,
        typer.Option("--speech", metavar="FILE", help="speak the answer, too, into FILE: .wav, .flac, .ogg or .mp3"),
    ] = None,
) -> int:
    """One answer to one prompt: a text, and before it pictures, sound and video in the order of the command line."""
    voice.check(speech)
    media = files.parts(context, options)
    if raw and (media or system is not None):
        what = "--system needs" if system is not None else "media need"
        raise InvalidRequest(f"{what} the chat template, and --raw turns it off; use one of them")
    config = generation_config(sampling, raw, logprobs, voice.settings())
    config.resolved({})  # bad settings are found before the model is loaded
    text = _prompt(prompt, file, media)
    messages = [{"role": "system", "content": system}] if system is not None else []
    with opened(common, **options.loading()) as omni:
        question: Any = text if raw else [*messages, {"role": "user", "content": content(media, text)}]
        spoken = Spoken(speech)
        reply = _answer(omni, question, config, spoken, common, show=not (common.json or no_stream))
        if reply is None:
            if spoken.n_samples:
                note(spoken.line(), common)
            return 130
        if common.json:
            print_json(_document(omni, reply, config, spoken))
            return 0
        if no_stream:
            print(reply.text)
        note(timing_line(reply), common)
        if speech:
            note(spoken.line(), common)
    return 0


def _prompt(prompt: str | None, file: Path | None, media: list[Part]) -> str:
    """The text; "" where there is none, because media can stand for themselves."""
    if prompt is not None and file is not None:
        raise InvalidRequest("give the prompt with -p or with -f, not with both")
    if file is not None:
        return read_text(file, "the prompt file")
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and media and sys.stdin.isatty():
        return ""
    if prompt is None and sys.stdin.isatty():
        raise InvalidRequest(
            "no prompt: give one with -p TEXT, -f FILE or through a pipe; `qwen3omni chat` is interactive"
        )
    return read_text(Path("-"), "stdin")


def _answer(
    omni: "Omni", prompt: Any, config: "GenerationConfig", spoken: Spoken, common: Common, show: bool
) -> Reply | None:
    """Run one answer, printing it as it comes when `show`, spoken if that has a file; None when Ctrl-C ended it."""
    written = ""
    with (
        Interrupt() as interrupt,
        Bar(common) as bar,
        closing(omni.stream(prompt, speech=spoken.path is not None, config=config)) as events,
        spoken,
    ):
        for event in events:
            bar.show(event)
            spoken.take(event)
            if show and isinstance(event, TextDelta):
                sys.stdout.write(event.text)
                sys.stdout.flush()
                written = event.text
            if isinstance(event, Done):
                break
            if interrupt.pressed:
                break
    if show and not written.endswith("\n"):
        print(flush=True)
    return event.reply if isinstance(event, Done) else None


def _document(omni: "Omni", reply: Reply, config: "GenerationConfig", spoken: Spoken) -> dict[str, Any]:
    document: dict[str, Any] = {
        "text": reply.text,
        "token_ids": reply.token_ids,
        "prompt_token_ids": reply.prompt_token_ids,
        "finish_reason": reply.finish_reason,
        "timings": reply.timings,
        "device": omni.device.info.name,
        "model": str(omni.path),
        "seed": config.seed,
    }
    if reply.logprobs is not None:
        document["logprobs"] = reply.logprobs
    if spoken.path:
        document["speech"] = spoken.document() | {"voice": known_voice(omni, config.voice)}
    return document
