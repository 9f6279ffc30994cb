"""`qwen3omni bench --speech`: how fast a model speaks a text (tts), and its vocoder alone (code2wav)."""

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

from qwen3omni_wgpu.cli.speech import known_voice
from qwen3omni_wgpu.errors import InvalidRequest, OmniError
from qwen3omni_wgpu.events import AudioChunk, Done

if TYPE_CHECKING:
    import numpy as np

    from qwen3omni_wgpu.omni import Omni

KINDS = ("tts", "code2wav")
_SECONDS = 8  # of speech where a test names no length: 100 frames
_TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on as if nothing had happened at all. "
_TEXT_SECONDS = 4  # certainly less than it takes to read that aloud
_PREFIX = "qwen3omni-talker.code2wav."


@dataclass(frozen=True)
class SpeechTest:
    """kind "tts": a text, read aloud, at most `size` seconds of speech. "code2wav": as many from random codes."""

    kind: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.size}"


@dataclass(frozen=True)
class Run:
    """One measurement: wall seconds, frames, seconds of speech; of tts alone seconds to the first sound, else None."""

    seconds: float
    frames: int
    speech: float
    first: float | None = None


@dataclass(frozen=True)
class Measured:
    """runs: without the first, which loads and compiles. dispatches: of talker and code predictor, a frame."""

    test: SpeechTest
    runs: list[Run]
    dispatches: int | None = None


def speech_tests(text: str) -> list[SpeechTest]:
    """`tts8,code2wav` as tests. InvalidRequest for what is no such list."""
    found = [re.fullmatch(r"(tts|code2wav)([1-9]\d{0,3})?", name) for name in text.split(",") if text]
    if not all(found):
        raise InvalidRequest(
            f"--speech {text!r} is not a list of ttsN and code2wavN (N seconds of speech, {_SECONDS} when N is left "
            "out) like tts,code2wav30"
        )
    return [SpeechTest(match[1], int(match[2] or _SECONDS)) for match in found if match]


def measured_speech(omni: "Omni", tests: list[SpeechTest], repeat: int) -> Iterator[Measured]:
    """Each test. Raises what Omni.say raises: UnsupportedModel for a model without a talker."""
    for test in tests:
        known_voice(omni, None)  # a model that cannot speak says so here
        metadata = omni.part("talker").metadata
        rate, hop = (int(metadata[_PREFIX + key]) for key in ("sampling_rate", "samples_per_frame"))
        frames = ceil(test.size * rate / hop)
        if test.kind == "tts":
            runs = [_said(omni, test, frames, seed) for seed in range(repeat + 1)][1:]
            yield Measured(test, runs, omni._resident.talker().dispatches)
            continue
        shape, size = (int(metadata[_PREFIX + "num_quantizers"]), frames), int(metadata[_PREFIX + "codebook_size"])
        yield Measured(test, [_vocoded(omni, _codes(shape, size, seed), rate) for seed in range(repeat + 1)][1:])


def _said(omni: "Omni", test: SpeechTest, frames: int, seed: int) -> Run:
    """One reading, with other random numbers every time."""
    from qwen3omni_wgpu.sampler import GenerationConfig

    config = GenerationConfig(seed=seed, talker_max_tokens=frames)
    first, speech = None, 0.0
    start = time.perf_counter()
    for event in omni.say_stream(_TEXT * ceil(test.size / _TEXT_SECONDS), config=config):
        if isinstance(event, AudioChunk):
            first = first or time.perf_counter() - start
            speech += len(event.samples) / event.sampling_rate
        if isinstance(event, Done):
            seconds = time.perf_counter() - start
            count = 0 if event.reply.codes is None else event.reply.codes.shape[1]
            if not count:
                break
            return Run(seconds, count, speech, first)
    raise OmniError(f"the model spoke nothing in the test {test.name}, so there is no speed to report")


def _vocoded(omni: "Omni", codes: "np.ndarray", rate: int) -> Run:
    start = time.perf_counter()
    samples = omni.code2wav(codes)
    return Run(time.perf_counter() - start, codes.shape[1], len(samples) / rate)


def _codes(shape: tuple[int, int], size: int, seed: int) -> "np.ndarray":
    """Random ones, int [groups, frames]: the speed does not depend on them."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, size, shape)
