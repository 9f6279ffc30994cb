"""Transcription: where windows are cut, what the model is asked, and what comes of its answers."""

import itertools

import numpy as np
import pytest

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Done, Progress, Reply, TextDelta
from qwen3omni_wgpu.inputs.audio import AudioFrontEnd, from_waveform
from qwen3omni_wgpu.sampler import GenerationConfig
from qwen3omni_wgpu.transcribe import (
    LANGUAGES,
    Segment,
    Transcript,
    generation_settings,
    instruction,
    joined,
    language_name,
    transcribe,
    transcript_of,
    windows,
)

RATE = 16000


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def clip_of(samples):
    return from_waveform(samples, RATE, AudioFrontEnd(), name="test.wav")


def noise(rng, seconds: float):
    return (0.1 * rng.standard_normal(int(seconds * RATE))).astype(np.float32)


class Scripted:
    """Answers each window with the next text, word by word, and remembers what it was asked."""

    def __init__(self, *texts: str, reason: str = "stop"):
        self.texts, self.reason = list(texts), reason
        self.asked: list[tuple[int, bytes, str]] = []
        self.closed = 0

    def __call__(self, clip, text):
        self.asked.append((len(clip.samples), clip.digest, text))
        answer = self.texts.pop(0)
        try:
            yield Progress("audio", 1, 1)
            for word in answer.split(" "):
                yield TextDelta(word + " ")
            n = len(answer.split())
            timings = {"load_s": 2.0, "prompt_n": 10, "prompt_s": 0.5, "prompt_per_second": 20.0}
            timings |= {"predicted_n": n, "predicted_s": n / 4, "predicted_per_second": 4.0, "media_s": 0.25}
            yield Done(Reply(answer, [1] * n, [], self.reason, timings))  # type: ignore[arg-type]
        finally:
            self.closed += 1


# Windows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.1, 7.0, 29.99, 30.0])
def test_short_sound_is_one_window(seconds, rng) -> None:
    clip = clip_of(noise(rng, seconds))
    assert windows(clip) == [(0, len(clip.samples))]


def test_windows_cover_everything_and_keep_the_limit(rng) -> None:
    sound = noise(rng, 100) * rng.uniform(0, 1, 100).repeat(RATE).astype(np.float32)
    for _ in range(20):
        seconds, window = rng.uniform(1, 100), rng.uniform(1, 40)
        clip = clip_of(sound[: int(seconds * RATE)])
        cuts = windows(clip, window)
        assert (cuts[0][0], cuts[-1][1]) == (0, len(clip.samples))
        assert all(before[1] == after[0] for before, after in itertools.pairwise(cuts))
        lengths = [(stop - start) / RATE for start, stop in cuts]
        assert max(lengths) <= window + 1e-9
        if len(cuts) > 1:
            assert min(lengths) >= min(1.0, window / 4) - 0.01
            assert min(lengths[:-1]) >= window / 2 - 0.02
        assert all(start % 160 == 0 for start, _ in cuts)  # the grid of mel frames: none of them is lost at a cut


def test_windows_end_in_pauses(rng) -> None:
    sound = noise(rng, 95)
    pauses = [27.3, 55.1, 82.0]
    for at in pauses:
        sound[int((at - 0.15) * RATE) : int((at + 0.15) * RATE)] *= 0.01
    for at in (10.0, 40.0, 70.0):  # pauses too, but not near the end of a window
        sound[int(at * RATE) : int((at + 1) * RATE)] = 0
    cuts = [stop / RATE for _, stop in windows(clip_of(sound))][:-1]
    # Anywhere that keeps the stretch of 0.2 s around it inside the pause of 0.3 s.
    np.testing.assert_allclose(cuts, pauses, rtol=0, atol=0.07)


def test_the_deeper_of_two_pauses_and_the_later_of_equals(rng) -> None:
    sound = noise(rng, 40)
    sound[int(26 * RATE) : int(26.4 * RATE)] = 0
    sound[int(28 * RATE) : int(28.4 * RATE)] *= 0.1
    assert 26 < windows(clip_of(sound))[0][1] / RATE < 26.4
    sound[int(28 * RATE) : int(28.4 * RATE)] = 0
    assert 28 < windows(clip_of(sound))[0][1] / RATE < 28.4


def test_little_more_than_a_window_leaves_no_stub(rng) -> None:
    sound = noise(rng, 30.05)
    sound[int(29.6 * RATE) : int(30 * RATE)] = 0  # the quietest place, but too near the end
    sound[int(27 * RATE) : int(27.4 * RATE)] *= 0.1
    cuts = windows(clip_of(sound))
    assert len(cuts) == 2
    assert 27 < cuts[0][1] / RATE < 27.4


@pytest.mark.parametrize("seconds", [0, 0.99, -1, 2401, float("nan"), float("inf")])
def test_windows_that_make_no_sense(seconds, rng) -> None:
    with pytest.raises(InvalidRequest, match="1 to 2400 s"):
        windows(clip_of(noise(rng, 2)), seconds)
    with pytest.raises(InvalidRequest, match="1 to 2400 s"):  # before an event is asked for
        transcribe(clip_of(noise(rng, 2)), Scripted(), window=seconds)
    with pytest.raises(InvalidRequest, match="1 to 2400 s"):
        generation_settings(None, seconds)


# What is asked -------------------------------------------------------------------------------------------------------


def test_instructions() -> None:
    # As Qwen3-Omni's README gives them.
    assert instruction("Chinese") == "请将这段中文语音转换为纯文本。"
    assert instruction("English") == "Transcribe the English audio into text."
    assert instruction(None) == "Transcribe the audio into text."


@pytest.mark.parametrize(("given", "name"), [
    ("en", "English"),
    ("EN", "English"),
    ("english", "English"),
    (" German ", "German"),
    ("zh", "Chinese"),
    ("zh-CN", "Chinese"),
    ("pt_BR", "Portuguese"),
    ("mandarin", "Chinese"),
    ("yue", "Cantonese"),
    ("swedish", "Swedish"),
    ("Swiss German", "Swiss German"),
    (None, None),
])  # fmt: skip
def test_languages(given, name) -> None:
    assert language_name(given) == name


@pytest.mark.parametrize("given", ["", " ", "x", "xx", "x" * 41, "English. Ignore", "a\nb", "{language}", "12345"])
def test_languages_that_are_none(given) -> None:
    with pytest.raises(InvalidRequest, match="no language that is known") as caught:
        language_name(given)
    assert "\n" not in str(caught.value)


def test_every_language_has_its_instruction() -> None:
    assert len({instruction(language_name(code)) for code in LANGUAGES}) == len(LANGUAGES)


def test_settings() -> None:
    settings = generation_settings(None, 30)
    assert settings.temperature == 0  # the likeliest words
    assert settings.max_tokens == 632  # a model that repeats itself comes to an end
    assert generation_settings(None, 10).max_tokens == 232
    own = GenerationConfig(temperature=0.5, max_tokens=7, seed=3)
    assert generation_settings(own, 30) == own
    assert generation_settings(GenerationConfig(seed=3)).seed == 3
    with pytest.raises(InvalidRequest, match="raw"):
        generation_settings(GenerationConfig(raw=True))


# Answers -------------------------------------------------------------------------------------------------------------


def test_one_window(rng) -> None:
    ask = Scripted(" Hello there. ")
    clip = clip_of(noise(rng, 3))
    events = list(transcribe(clip, ask, language="en"))
    assert ask.asked == [(3 * RATE, clip.digest, "Transcribe the English audio into text.")]
    assert [type(event) for event in events[:2]] == [Progress, TextDelta]
    segment, transcript = events[-2:]
    assert segment == Segment(0.0, 3.0, "Hello there.", 1, 1)
    assert isinstance(transcript, Transcript)
    assert (transcript.text, transcript.language, transcript.duration) == ("Hello there.", "English", 3.0)
    assert transcript.segments == [segment]


def test_several_windows(rng) -> None:
    ask = Scripted("One two", "three", "four five six", reason="length")
    clip = clip_of(noise(rng, 70))
    events = transcribe(clip, ask, window=30)
    transcript = transcript_of(events)
    assert transcript.text == "One two three four five six"
    assert transcript.language is None
    cuts = windows(clip, 30)
    assert [(s.start, s.end) for s in transcript.segments] == [(a / RATE, b / RATE) for a, b in cuts]
    assert [(s.number, s.count, s.finish_reason) for s in transcript.segments] == [(i, 3, "length") for i in (1, 2, 3)]
    parts = [clip.part(*cut) for cut in cuts]
    assert [asked[:2] for asked in ask.asked] == [(len(part.samples), part.digest) for part in parts]
    assert ask.closed == 3


def test_segments_come_before_the_next_window_is_asked_about(rng) -> None:
    ask = Scripted("One", "two", "three")
    seen = []
    for event in transcribe(clip_of(noise(rng, 70)), ask):
        if isinstance(event, Segment):
            seen.append((event.text, len(ask.asked)))
    assert seen == [("One", 1), ("two", 2), ("three", 3)]


def test_digital_silence_is_not_asked_about(rng) -> None:
    sound = np.concatenate([noise(rng, 30), np.zeros(60 * RATE, np.float32), noise(rng, 30)])
    ask = Scripted(*(f"w{i}" for i in range(9)))
    transcript = transcript_of(transcribe(clip_of(sound), ask))
    silent = [segment for segment in transcript.segments if not segment.text]
    assert len(silent) == len(transcript.segments) - len(ask.asked) >= 1
    assert all(segment.start >= 30 and segment.end <= 90 for segment in silent)
    assert transcript.text == " ".join(f"w{i}" for i in range(len(ask.asked)))
    assert transcript_of(transcribe(clip_of(np.zeros(RATE)), Scripted())).text == ""


def test_timings_are_added_up(rng) -> None:
    transcript = transcript_of(transcribe(clip_of(noise(rng, 70)), Scripted("a b", "c", "d e f")))
    times = transcript.timings
    assert (times["load_s"], times["prompt_n"], times["prompt_s"], times["predicted_n"]) == (2.0, 30, 1.5, 6)
    assert times["predicted_s"] == 1.5
    assert times["prompt_per_second"] == pytest.approx(20)
    assert times["predicted_per_second"] == pytest.approx(4)
    assert times["media_s"] == 0.75
    assert times["realtime"] == pytest.approx(70 / times["total_s"])


def test_timings_of_an_answer_without_tokens(rng) -> None:
    def ask(clip, text):
        yield Done(Reply("", [], [], "stop", {"predicted_n": 0, "predicted_s": 0.0, "predicted_per_second": 0.0}))

    times = transcript_of(transcribe(clip_of(noise(rng, 1)), ask)).timings
    assert times["predicted_per_second"] == 0


def test_closing_ends_the_answer_that_runs(rng) -> None:
    ask = Scripted("One two three", "four")
    events = transcribe(clip_of(noise(rng, 40)), ask)
    assert isinstance(next(events), Progress)
    assert isinstance(next(events), TextDelta)
    assert ask.closed == 0
    events.close()
    assert ask.closed == 1
    assert len(ask.asked) == 1


def test_failures_reach_the_caller(rng) -> None:
    def ask(clip, text):
        yield TextDelta("x")
        raise InvalidRequest("the prompt is too long")

    with pytest.raises(InvalidRequest, match="too long"):
        list(transcribe(clip_of(noise(rng, 1)), ask))


@pytest.mark.parametrize(("texts", "whole"), [
    (["a b", "c"], "a b c"),
    (["", "a", "", "b", ""], "a b"),
    (["你好。", "世界"], "你好。世界"),
    (["こんにちは", "世界"], "こんにちは世界"),
    (["안녕", "세계"], "안녕 세계"),
    (["你好", "world", "世界"], "你好 world 世界"),
    ([], ""),
])  # fmt: skip
def test_joined(texts, whole) -> None:
    assert joined(texts) == whole
