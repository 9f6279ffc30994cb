"""Speech to text: sound of any length in windows cut at pauses, each with the instruction the model was trained on.

Knows sound and instructions; how a model is asked is the caller's business.
"""

import time
import unicodedata
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field, replace

import numpy as np

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Done, EventStream, FinishReason, Progress, TextDelta
from qwen3omni_wgpu.inputs.audio import AudioClip, Samples
from qwen3omni_wgpu.sampler import GenerationConfig

WINDOW = 30.0  # seconds
_WINDOWS = (1.0, 2400.0)  # seconds: the shortest and longest that may be asked for

_SEARCH = 5.0  # seconds before the end of a window in which a pause is looked for
_PAUSE = 0.2  # seconds: the quietest stretch of this length is where a cut goes
_STEP = 0.01  # seconds: cuts lie on a grid of as much, on which mel frames lie too
_REST = 1.0  # seconds: no window is shorter, unless the whole sound is

# Nobody speaks faster, in tokens of any language; a model that has lost its way repeats itself without end.
_TOKENS_PER_SECOND, _TOKENS_MORE = 20, 32

# The languages that Qwen3-Omni's model card names for speech input, by their ISO 639 codes.
LANGUAGES = {
    "ar": "Arabic",
    "de": "German",
    "en": "English",
    "es": "Spanish",
    "fr": "French",
    "id": "Indonesian",
    "it": "Italian",
    "ja": "Japanese",
    "ko": "Korean",
    "ms": "Malay",
    "nl": "Dutch",
    "pt": "Portuguese",
    "ru": "Russian",
    "tr": "Turkish",
    "ur": "Urdu",
    "vi": "Vietnamese",
    "yue": "Cantonese",
    "zh": "Chinese",
}


@dataclass(frozen=True)
class Segment:
    """What was said in one window, from `start` to `end` in seconds: window `number` (from 1) of `count`.

    text is "" where nothing was. finish_reason is "length" where the text stops before the speech does.
    """

    start: float
    end: float
    text: str
    number: int
    count: int
    finish_reason: FinishReason = "stop"


@dataclass(frozen=True)
class Transcript:
    """A whole sound as text; the last event of a transcription.

    language: its English name, None where none was given. duration: of the sound, in seconds. timings: load_s, total_s,
    realtime (seconds of sound in a second), and the sums of all answers: prompt_n, prompt_s, prompt_per_second,
    predicted_n, predicted_s, predicted_per_second and what else their `timings` tell.
    """

    text: str
    language: str | None
    duration: float
    segments: list[Segment]
    timings: dict[str, float] = field(default_factory=dict)


TranscriptEvent = Segment | TextDelta | Progress | Transcript
TranscriptStream = Generator[TranscriptEvent, None, None]
Ask = Callable[[AudioClip, str], EventStream]  # one window and the instruction that follows it


def transcribe(clip: AudioClip, ask: Ask, *, language: str | None = None, window: float = WINDOW) -> TranscriptStream:
    """Text of `clip`, window by window, as events: what `ask` reports, a Segment after each window, a Transcript last.

    language: name or ISO code, None = the model finds out. window: seconds at most. Raises InvalidRequest here, before
    the first event is asked for, when one of them makes no sense. Closing the iterator ends the answer that runs.
    """
    name = language_name(language)
    return _events(clip, ask, name, windows(clip, window))


def _events(clip: AudioClip, ask: Ask, language: str | None, cuts: list[tuple[int, int]]) -> TranscriptStream:
    began, rate = time.perf_counter(), clip.sampling_rate
    segments: list[Segment] = []
    timings: list[dict[str, float]] = []
    for number, (start, stop) in enumerate(cuts, 1):
        part = clip if len(cuts) == 1 else clip.part(start, stop)
        text, reason = "", "stop"
        if part.samples.any():  # asked about digital silence, a model makes words up
            with closing(ask(part, instruction(language))) as events:
                for event in events:
                    if isinstance(event, Done):
                        text, reason = event.reply.text.strip(), event.reply.finish_reason
                        timings.append(event.reply.timings)
                        break
                    if isinstance(event, TextDelta | Progress):
                        yield event
        segments.append(Segment(start / rate, stop / rate, text, number, len(cuts), reason))
        yield segments[-1]
    seconds = time.perf_counter() - began
    text = joined(segment.text for segment in segments)
    yield Transcript(text, language, clip.seconds, segments, _summed(timings, clip.seconds, seconds))


def transcript_of(events: Iterable[TranscriptEvent]) -> Transcript:
    """Wait for the end of a transcription: the whole of it."""
    return next(event for event in events if isinstance(event, Transcript))


def generation_settings(config: GenerationConfig | None, window: float = WINDOW) -> GenerationConfig:
    """`config` with what transcribing wants where it says nothing: the likeliest words, and a limit to their number.

    InvalidRequest for raw prompts, because an instruction needs the chat template, and for an impossible window.
    """
    check_window(window)
    config = config or GenerationConfig()
    if config.raw:
        raise InvalidRequest("transcribing needs the chat template, and raw turns it off; leave it out")
    limit = int(_TOKENS_PER_SECOND * window) + _TOKENS_MORE
    return replace(
        config,
        temperature=0.0 if config.temperature is None else config.temperature,
        max_tokens=limit if config.max_tokens is None else config.max_tokens,
    )


def language_name(language: str | None) -> str | None:
    """The English name of a language given by that name or by its ISO code ("de", "zh-CN"); None stays None.

    Names of languages that the model card does not list are passed on; InvalidRequest for what can be no name.
    """
    if language is None:
        return None
    words = " ".join(language.split())
    known = LANGUAGES | {name.lower(): name for name in LANGUAGES.values()} | {"mandarin": "Chinese"}
    if found := known.get(words.lower()) or known.get(words.lower().replace("_", "-").split("-")[0]):
        return found
    if 4 <= len(words) <= 40 and all(character.isalpha() or character in " -'()" for character in words):
        return words[0].upper() + words[1:]
    raise InvalidRequest(
        f"{language[:40]!r} is no language that is known: give its English name, or a code of {', '.join(LANGUAGES)}"
    )


def instruction(language: str | None) -> str:
    """What Qwen3-Omni's authors ask for speech in a language, given by its name (`language_name`)."""
    if language == "Chinese":
        return "请将这段中文语音转换为纯文本。"
    return f"Transcribe the {language} audio into text." if language else "Transcribe the audio into text."


# Windows -------------------------------------------------------------------------------------------------------------


def windows(clip: AudioClip, seconds: float = WINDOW) -> list[tuple[int, int]]:
    """Where to cut a clip into windows of at most `seconds`: (first sample, end) of each, without gaps.

    A window ends in the quietest place of its last seconds, so that words stay whole. InvalidRequest for lengths that
    make no sense.
    """
    check_window(seconds)
    rate, total = clip.sampling_rate, len(clip.samples)
    step = max(1, round(_STEP * rate))
    longest = int(seconds * rate)
    search = int(min(_SEARCH * rate, longest / 4))
    rest = int(min(_REST * rate, longest / 4))
    found: list[tuple[int, int]] = []
    start = 0
    while total - start > longest:
        last = min(start + longest, total - rest)
        first = start + (last - search - start) // step * step
        stop = first + _quietest(clip.samples[first:last], step, round(_PAUSE / _STEP))
        found.append((start, stop))
        start = stop
    return [*found, (start, total)]


def check_window(seconds: float) -> None:
    """InvalidRequest for a length of windows that makes no sense."""
    if not _WINDOWS[0] <= seconds <= _WINDOWS[1]:
        raise InvalidRequest(f"a window of {seconds:g} s is not possible; give {_WINDOWS[0]:g} to {_WINDOWS[1]:g} s")


def _quietest(samples: Samples, step: int, length: int) -> int:
    """Middle of the quietest stretch of `length` steps, the last of several: a whole number of steps, in samples."""
    n_steps = len(samples) // step
    power = np.square(samples[: n_steps * step].reshape(n_steps, step), dtype=np.float64).sum(axis=1)
    length = min(length, n_steps)
    stretches = np.convolve(power, np.ones(length), "valid")
    best = len(stretches) - 1 - int(np.argmin(stretches[::-1]))
    return (best + (length + 1) // 2) * step


# Text and figures ----------------------------------------------------------------------------------------------------


def joined(texts: Iterable[str]) -> str:
    """Pieces of text as one: with blanks between them, except where both sides are written without."""
    whole = ""
    for text in filter(None, texts):
        blank = " " if whole and not (_wide(whole[-1]) and _wide(text[0])) else ""
        whole += blank + text
    return whole


def _wide(character: str) -> bool:
    """Whether it is Chinese or Japanese writing or punctuation; Korean has blanks between words."""
    return unicodedata.east_asian_width(character) in "WF" and not "\uac00" <= character <= "\ud7a3"


def _summed(answers: list[dict[str, float]], duration: float, seconds: float) -> dict[str, float]:
    """Timings of all answers as one: loading once, sums of counts and seconds, and rates weighted by their seconds."""
    total: dict[str, float] = {}
    for timings in answers:
        for key, value in timings.items():
            if key.endswith("_per_second"):
                value *= timings.get(key.replace("_per_second", "_s"), 0.0)
            total[key] = value if key == "load_s" else total.get(key, 0.0) + value
    for key in total:
        if key.endswith("_per_second"):
            total[key] /= total.get(key.replace("_per_second", "_s"), 0.0) or 1.0
    return total | {"total_s": seconds, "realtime": duration / seconds if seconds > 0 else 0.0}
