"""`qwen3omni say`: text to speech."""

import secrets
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.session import Bar, Interrupt, note, opened, print_json, read_text
from qwen3omni_wgpu.cli.speech import SpeechOptions, Spoken, check_file, known_voice
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest, OmniError
from qwen3omni_wgpu.events import Done, Reply

if TYPE_CHECKING:
    from qwen3omni_wgpu.omni import Omni
    from qwen3omni_wgpu.sampler import GenerationConfig


@verb("say")
def say(
    common: Common,
    options: SpeechOptions,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="what to say; - = stdin")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE", help="where to: .wav, .flac, .ogg or .mp3")
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="sound to stdout while it is made: 16-bit PCM, mono, 24 kHz")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("-s", "--seed", metavar="N", help="the same seed repeats the speech")
    ] = None,
) -> int:
    """Say a text, into a file or straight into a player."""
    from qwen3omni_wgpu.sampler import GenerationConfig

    # Whatever is wrong with these is found before the model is loaded.
    _check(common, output, stream)
    config = GenerationConfig(seed=secrets.randbits(32) if seed is None else seed, **options.settings())
    config.resolved({})
    words = _words(text)
    with opened(common, lazy=True) as omni:  # the thinker is not needed
        spoken = Spoken(output, stream)
        reply = _run(omni, words, config, spoken, common)
        if reply is None:
            if spoken.n_samples:
                note(spoken.line(), common)
            return 130
        if not spoken.n_samples:
            raise OmniError("the model spoke nothing; try other words, or another --seed")
        if common.json:
            print_json(_document(omni, words, config, reply, spoken))
        if reply.finish_reason == "length":
            note("the speech reached its limit of frames; --talker-max-tokens N allows more", common)
        note(spoken.line(), common)
    return 0


def _check(common: Common, output: Path | None, stream: bool) -> None:
    if output is None and not stream:
        raise InvalidRequest("where to? -o FILE.wav writes a file, --stream sends raw sound to stdout")
    if output is not None:
        check_file(output)
    if stream and common.json:
        raise InvalidRequest("--stream and --json both need stdout; use --json with -o FILE.wav")
    if stream and sys.stdout.isatty():
        raise InvalidRequest(
            "--stream writes raw sound to stdout, and that is a terminal; "
            "use a pipe, such as `| aplay -f S16_LE -r 24000 -c 1`"
        )


def _words(text: str) -> str:
    if text == "-":
        if sys.stdin.isatty():
            raise InvalidRequest("- reads the text from stdin, and that is a terminal; give the text or use a pipe")
        text = read_text(Path("-"), "stdin")
    if not text.strip():
        raise InvalidRequest("there is nothing to say: the text is empty")
    return text


def _run(omni: "Omni", words: str, config: "GenerationConfig", spoken: Spoken, common: Common) -> Reply | None:
    """Everything up to the last event; None when Ctrl-C ended it."""
    with (
        Interrupt() as interrupt,
        Bar(common) as bar,
        closing(omni.say_stream(words, voice=config.voice, config=config)) as events,
        spoken,  # its clock starts when everything is loaded
    ):
        for event in events:
            bar.show(event)
            spoken.take(event)
            if isinstance(event, Done):
                return event.reply
            if interrupt.pressed:
                break
    return None


def _document(omni: "Omni", words: str, config: "GenerationConfig", reply: Reply, spoken: Spoken) -> dict[str, Any]:
    return {
        "text": words,
        "voice": known_voice(omni, config.voice),
        **spoken.document(),
        "finish_reason": reply.finish_reason,
        "timings": reply.timings,
        "device": omni.device.info.name,
        "model": str(omni.path),
        "seed": config.seed,
    }
