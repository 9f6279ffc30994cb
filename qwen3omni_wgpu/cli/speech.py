"""Speech on the command line: its options, and where it goes while it is made."""

import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import AudioChunk, Event

if TYPE_CHECKING:
    from qwen3omni_wgpu.inputs.audio_file import Writer
    from qwen3omni_wgpu.omni import Omni


@dataclass(frozen=True)
class SpeechOptions:
    """How speech is generated. None = the model's own default."""

    voice: Annotated[str | None, typer.Option("--voice", metavar="NAME", help="who speaks")] = None
    talker_temp: Annotated[
        float | None, typer.Option("--talker-temp", metavar="T", help="of the speech; 0 = greedy")
    ] = None
    talker_top_k: Annotated[int | None, typer.Option("--talker-top-k", metavar="K", help="0 = off")] = None
    talker_top_p: Annotated[float | None, typer.Option("--talker-top-p", metavar="P", help="1 = off")] = None
    talker_repeat_penalty: Annotated[
        float | None, typer.Option("--talker-repeat-penalty", metavar="X", help="1 = off")
    ] = None
    talker_max_tokens: Annotated[
        int | None, typer.Option("--talker-max-tokens", metavar="N", help="length of the speech in frames of 80 ms")
    ] = None
    predictor_temp: Annotated[
        float | None, typer.Option("--predictor-temp", metavar="T", help="of the details of the sound; 0 = greedy")
    ] = None

    def settings(self) -> dict[str, Any]:
        """As fields of GenerationConfig."""
        return {field.name.replace("_temp", "_temperature"): getattr(self, field.name) for field in fields(self)}

    def check(self, speech: Path | None) -> None:
        """Before the model is loaded: InvalidRequest when the file `speech` cannot be written, or is missing."""
        given = [field.name for field in fields(self) if getattr(self, field.name) is not None]
        if speech is not None:
            check_file(speech)
        elif given:
            name = given[0].replace("_", "-")
            raise InvalidRequest(f"--{name} is for speech; say with --speech FILE where that goes, or leave it out")


def check_file(path: Path) -> None:
    """InvalidRequest when sound cannot be written there, or not in the format that the name asks for."""
    from qwen3omni_wgpu.inputs.audio_file import check_path

    check_path(path)


def known_voice(omni: "Omni", name: str | None) -> str:
    """The model's own spelling of a voice; None = its default one.

    InvalidRequest with the voices there are when it is none of them, UnsupportedModel for a model that cannot speak.
    """
    voices = omni.voices  # the default one first
    if name is None:
        return voices[0]
    for voice in voices:
        if voice.casefold() == name.strip().casefold():
            return voice
    raise InvalidRequest(f"there is no voice {name.strip()!r}; the model has {', '.join(voices)}")


class Spoken:
    """Takes the events of one answer and lets its speech go out while it is made: to a file, as PCM to stdout, or both.

    Use as a context manager. Whatever ends it, the file holds what was spoken until then; without any sound there is
    no file. The PCM is 16-bit little-endian and mono, without a header.
    """

    def __init__(self, path: Path | None, pcm: bool = False) -> None:
        self.path = path
        self.pcm = pcm
        self.n_samples = 0
        self.sampling_rate = 0  # until the first chunk says it
        self.first_s = 0.0  # until the first sound was there
        self.total_s = 0.0
        self._start = time.perf_counter()
        self._writer: Writer | None = None

    @property
    def seconds(self) -> float:
        """How much was spoken."""
        return self.n_samples / self.sampling_rate if self.n_samples else 0.0

    def take(self, event: Event) -> None:
        """Pass on what is sound."""
        if not isinstance(event, AudioChunk) or not len(event.samples):
            return
        if not self.n_samples:
            self.first_s = time.perf_counter() - self._start
            self.sampling_rate = event.sampling_rate
        self.n_samples += len(event.samples)
        if self.path is not None:
            from qwen3omni_wgpu.inputs.audio_file import Writer

            self._writer = self._writer or Writer(self.path, event.sampling_rate)
            self._writer.write(event.samples)
        if self.pcm:
            from qwen3omni_wgpu.inputs.audio_file import pcm16

            sys.stdout.buffer.write(pcm16(event.samples).tobytes())
            sys.stdout.buffer.flush()

    def __enter__(self) -> "Spoken":
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.total_s = time.perf_counter() - self._start
        if self._writer is not None:
            self._writer.close()

    def line(self) -> str:
        """What came of it, for people."""
        if not self.n_samples:
            return "[nothing was spoken" + (f"; {self.path} was not written]" if self.path else "]")
        where = f"{self.path}: " if self.path else ""
        return (
            f"[{where}{self.seconds:.1f} s of speech in {self.total_s:.1f} s, {self.seconds / self.total_s:.2f} x real "
            f"time; first sound after {self.first_s:.2f} s]"
        )

    def document(self) -> dict[str, Any]:
        """The same for --json. file: None where there is none."""
        return {
            "file": str(self.path) if self.path and self.n_samples else None,
            "seconds": self.seconds,
            "sampling_rate": self.sampling_rate or None,
            "total_s": self.total_s,
            "first_audio_s": self.first_s if self.n_samples else None,
        }
