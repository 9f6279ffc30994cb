"""`qwen3omni transcribe`: what it prints and when, what it asks of the model, and what it refuses before loading it."""

import io
import json
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from qwen3omni_wgpu.cli import run
from qwen3omni_wgpu.events import Done, Progress, Reply, TextDelta
from qwen3omni_wgpu.inputs.audio import AudioFrontEnd, load_audio
from qwen3omni_wgpu.omni import Omni
from qwen3omni_wgpu.transcribe import transcribe, windows


def wav(seconds: float) -> bytes:
    file = io.BytesIO()
    samples = 0.1 * np.random.default_rng().standard_normal(int(seconds * 16000))
    soundfile.write(file, samples, 16000, format="WAV")
    return file.getvalue()


@pytest.fixture
def sound(tmp_path) -> Path:
    """Three windows of sound."""
    path = tmp_path / "talk.wav"
    path.write_bytes(wav(70))
    return path


@pytest.fixture
def short(tmp_path) -> Path:
    path = tmp_path / "short.wav"
    path.write_bytes(wav(2))
    return path


@pytest.fixture
def model(fake, monkeypatch):
    """model("text of window 1", ...): every model that the command opens answers so; `asked` has what it was given."""

    def build(*texts: str, reason: str = "stop"):
        made = fake()
        made.asked = []
        answers = iter(texts)

        def ask(clip, text):
            yield Progress("audio", 1, 1)
            answer = next(answers)
            for word in answer.split():
                yield TextDelta(word)
            timings = {"load_s": 0.25, "predicted_n": len(answer.split()), "predicted_s": 1.0}
            yield Done(Reply(answer, [], [], reason, timings))  # type: ignore[arg-type]

        def transcribe_stream(self, source, *, language=None, window=30.0, config=None):
            made.asked.append(SimpleNamespace(source=source, language=language, window=window, config=config))
            return transcribe(load_audio(source, AudioFrontEnd()), ask, language=language, window=window)

        monkeypatch.setattr(Omni, "transcribe_stream", transcribe_stream, raising=False)
        return made

    return build


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02}:{int(seconds) % 60:02}"


# What is printed -----------------------------------------------------------------------------------------------------


def test_one_window_is_its_text(command, model, short) -> None:
    made = model(" Hello, world. ")
    result = command("transcribe", str(short))
    assert (result.status, result.out) == (0, "Hello, world.\n")
    assert "2.0 s of sound" in result.err
    assert "2 tokens" in result.err
    assert len(result.err.splitlines()) == 1
    asked = made.asked[0]
    assert (asked.source, asked.language, asked.window) == (str(short), None, 30.0)
    assert (asked.config.temperature, asked.config.max_tokens) == (0, 632)


def test_several_windows_have_their_times(command, model, sound) -> None:
    model("One.", "Two\nlines.", "")
    result = command("transcribe", str(sound), "-q")
    cuts = windows(load_audio(sound, AudioFrontEnd()))
    times = [f"[{clock(start / 16000)} -> {clock(stop / 16000)}]" for start, stop in cuts]
    assert result.out == f"{times[0]} One.\n{times[1]} Two lines.\n{times[2]}\n"
    assert result.err == ""


def test_times_beyond_an_hour() -> None:
    from qwen3omni_wgpu.cli.transcribe import _clock

    assert [_clock(s) for s in (0, 59.99, 60, 3599.5, 3600, 37 * 3600 + 61)] == [
        "00:00", "00:59", "01:00", "59:59", "1:00:00", "37:01:01",
    ]  # fmt: skip


def test_windows_are_printed_as_they_finish(command, model, sound, monkeypatch) -> None:
    model("One.", "Two.", "Three.")
    lines: list[int] = []
    out = io.StringIO()
    original = Omni.transcribe_stream

    def watched(self, *args, **options):
        for event in original(self, *args, **options):
            if isinstance(event, Progress):
                lines.append(out.getvalue().count("\n"))
            yield event

    monkeypatch.setattr(Omni, "transcribe_stream", watched)
    monkeypatch.setattr(sys, "stdout", out)
    assert run(["transcribe", str(sound)]) == 0
    assert lines == [0, 1, 2]


def test_json_is_one_document(command, model, sound) -> None:
    model("One.", "Two.", "Three.")
    result = command("transcribe", str(sound), "--json", "--language", "en")
    document = json.loads(result.out)
    assert set(document) == {"text", "language", "duration", "segments", "timings", "device", "model"}
    assert (document["text"], document["language"], document["duration"]) == ("One. Two. Three.", "English", 70.0)
    assert [segment["text"] for segment in document["segments"]] == ["One.", "Two.", "Three."]
    assert all(set(segment) == {"start", "end", "text"} for segment in document["segments"])
    assert document["segments"][-1]["end"] == 70.0
    assert document["timings"]["predicted_n"] == 3
    assert document["timings"]["total_s"] > 0
    assert document["device"] == "fake adapter"
    assert document["model"].endswith("tiny.gguf")


def test_a_text_that_was_cut_short_is_reported(command, model, short) -> None:
    model("Hello", reason="length")
    result = command("transcribe", str(short))
    assert result.out == "Hello\n"
    assert "00:00 -> 00:02" in result.err
    assert "-n N" in result.err


# What is asked -------------------------------------------------------------------------------------------------------


def test_options_reach_the_model(command, model, sound) -> None:
    made = model(*"abcdefghijkl")  # more than 70 s has windows of 10 s
    asking = ["--language", "de", "--window", "10", "--temp", "0.5", "-n", "20", "-s", "7"]
    assert command("transcribe", str(sound), *asking, "-m", "x.gguf", "-c", "128").status == 0
    asked = made.asked[0]
    assert (asked.language, asked.window) == ("German", 10.0)
    assert (asked.config.temperature, asked.config.max_tokens, asked.config.seed) == (0.5, 20, 7)
    assert made.loads[0][0] == "x.gguf"
    assert made.loads[0][1]["ctx_size"] == 128
    assert "allow_urls" not in made.loads[0][1]


def test_addresses_need_permission(command, model) -> None:
    made = model("x")
    command("transcribe", "http://127.0.0.1:1/a.wav").failed_with("--allow-urls")
    command("transcribe", "data:,abc").failed_with("--allow-urls")
    assert made.loads == []
    command("transcribe", "http://127.0.0.1:1/a.wav", "--allow-urls").failed_with("127.0.0.1")
    assert made.loads[0][1]["allow_urls"] is True


def test_sound_from_a_pipe(command, model) -> None:
    made = model("Hello.")
    data = wav(1)
    assert command("transcribe", "-", stdin=data).out == "Hello.\n"
    assert made.asked[0].source == data


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "words"), [
    (["none.wav"], ["none.wav", "No such file"]),
    (["."], ["is a folder"]),
    (["-"], ["empty"]),
    ([__file__, "--language", "x"], ["'x'", "English name"]),
    ([__file__, "--window", "0"], ["window of 0 s"]),
    ([__file__, "--temp", "-1"], ["temperature"]),
    ([], ["FILE"]),
])  # fmt: skip
def test_refusals_before_the_model_is_loaded(command, model, args, words) -> None:
    made = model("x")
    command("transcribe", *args).failed_with(*words)
    assert made.loads == []


def test_a_terminal_as_stdin(model, monkeypatch, capsys) -> None:
    model("x")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert run(["transcribe", "-"]) == 2
    assert "terminal" in capsys.readouterr().err


def test_what_is_no_sound(command, model) -> None:
    model("x")
    command("transcribe", __file__).failed_with("cannot be read as sound")


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_ends_it(command, model, sound, monkeypatch, flags) -> None:
    model("One.", "Two.", "Three.")
    original = Omni.transcribe_stream
    state = SimpleNamespace(words=0, closed=False)

    def interrupted(self, *args, **options):
        try:
            for event in original(self, *args, **options):
                state.words += isinstance(event, TextDelta)
                if state.words == 2:  # inside the second window
                    os.kill(os.getpid(), signal.SIGINT)
                yield event
        finally:
            state.closed = True

    monkeypatch.setattr(Omni, "transcribe_stream", interrupted)
    before = signal.getsignal(signal.SIGINT)
    result = command("transcribe", str(sound), *flags)
    assert result.status == 130
    assert (state.words, state.closed) == (2, True)
    assert signal.getsignal(signal.SIGINT) is before
    assert len(result.out.splitlines()) == (0 if flags else 1)
