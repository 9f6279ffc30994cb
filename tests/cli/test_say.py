"""`qwen3omni say`: what it asks of the model, where the sound goes and when, and what is left when it is cut short."""

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
from rich.progress import Progress as RichProgress

from qwen3omni_wgpu.cli import run
from qwen3omni_wgpu.cli.session import Bar
from qwen3omni_wgpu.cli.speech import Spoken
from qwen3omni_wgpu.errors import DeviceLost
from qwen3omni_wgpu.events import Progress
from qwen3omni_wgpu.inputs.audio_file import pcm16
from qwen3omni_wgpu.omni import Omni


def sound(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == 24000
    return samples


@pytest.fixture
def player(monkeypatch):
    """player(): from now on stdout is a pipe that takes bytes; these."""

    def listen() -> io.BytesIO:
        heard = io.BytesIO()
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(heard, encoding="utf-8"))
        return heard

    return listen


def interrupt(at: int):
    def before(index: int) -> None:
        if index == at:
            os.kill(os.getpid(), signal.SIGINT)

    return before


# A file ---------------------------------------------------------------------------------------------------------------


def test_a_file(command, speaking, tmp_path):
    voice = speaking()
    result = command("say", "Привет мир", "-o", str(tmp_path / "a.wav"))
    assert (result.status, result.out) == (0, "")
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(voice.samples))
    (line,) = result.err.splitlines()
    for words in (str(tmp_path / "a.wav"), f"{12885 / 24000:.1f} s of speech", "x real time", "first sound after"):
        assert words in line
    assert [(asked.prompt, asked.voice) for asked in voice.asked] == [("Привет мир", None)]
    assert voice.closed == 1


@pytest.mark.parametrize("ending", ["flac", "ogg", "mp3"])
def test_other_formats(command, speaking, tmp_path, ending):
    speaking()
    path = tmp_path / f"a.{ending}"
    assert command("say", "hi", "-o", str(path), "-q").err == ""
    info = soundfile.info(path)
    assert (info.format, info.frames) == (ending.upper(), 12885)


def test_the_text_from_stdin(command, speaking, tmp_path):
    voice = speaking()
    command("say", "-", "-o", str(tmp_path / "a.wav"), stdin="two\nlines\n")
    assert voice.asked[0].prompt == "two\nlines"


def test_every_option_reaches_the_model(command, speaking, tmp_path):
    voice = speaking()
    args = "--voice Ethan --talker-temp 0 --talker-top-k 3 --talker-top-p 0.5 --talker-repeat-penalty 1.1"
    more = "--talker-max-tokens 77 --predictor-temp 0.25 -s 7"
    assert command("say", "hi", "-o", str(tmp_path / "a.wav"), *args.split(), *more.split()).status == 0
    (asked,) = voice.asked
    config = asked.config
    assert (asked.voice, config.voice, config.seed) == ("Ethan", "Ethan", 7)
    assert (config.talker_temperature, config.talker_top_k, config.talker_top_p) == (0, 3, 0.5)
    assert (config.talker_repeat_penalty, config.talker_max_tokens, config.predictor_temperature) == (1.1, 77, 0.25)


def test_options_of_loading(command, speaking, tmp_path):
    voice = speaking()
    command("say", "hi", "-o", str(tmp_path / "a.wav"), "-m", "x.gguf", "--talker", "t.gguf", "--cpu")
    name, arguments = voice.model.loads[0]
    assert (name, arguments["talker"], arguments["cpu"]) == ("x.gguf", "t.gguf", True)


def test_json(command, speaking, tmp_path):
    speaking()
    path = str(tmp_path / "a.wav")
    result = command("say", "hi", "-o", path, "--voice", "Ethan", "--json", "-s", "5")
    document = json.loads(result.out)
    assert len(result.out.splitlines()) == 1
    assert {key: document[key] for key in ("text", "voice", "file", "sampling_rate", "finish_reason", "seed")} == {
        "text": "hi", "voice": "ethan", "file": path, "sampling_rate": 24000, "finish_reason": "stop", "seed": 5,
    }  # fmt: skip
    assert document["seconds"] == pytest.approx(12885 / 24000)
    assert 0 < document["first_audio_s"] <= document["total_s"]
    assert document["timings"]["frames_n"] == 7
    assert (document["device"], Path(document["model"]).name) == ("fake adapter", "tiny.gguf")


def test_loading_is_no_part_of_the_speed(command, speaking, tmp_path, monkeypatch):
    """The talker is loaded when it is first asked to speak, before its first event."""
    voice, order = speaking(), []
    load, start = Omni.say_stream, Spoken.__enter__
    monkeypatch.setattr(Omni, "say_stream", lambda *args, **options: (order.append("load"), load(*args, **options))[1])
    monkeypatch.setattr(Spoken, "__enter__", lambda self: (order.append("clock"), start(self))[1])
    voice.before = lambda index: order.append(index)
    command("say", "hi", "-o", str(tmp_path / "a.wav"))
    assert order == ["load", "clock", -1, 0, 1, 2, 3]


def test_a_seed_that_was_not_given_is_reported(command, speaking, tmp_path):
    args = ("say", "hi", "-o", str(tmp_path / "a.wav"), "--json")
    seeds = {json.loads((speaking(), command(*args))[1].out)["seed"] for _ in range(3)}
    assert len(seeds) == 3


def test_speech_that_reached_its_limit_says_so(command, speaking, tmp_path):
    voice = speaking()
    voice.finish_reason = "length"
    assert "--talker-max-tokens" in command("say", "hi", "-o", str(tmp_path / "a.wav")).err


def test_a_file_of_an_earlier_time_is_replaced_at_the_end(command, speaking, tmp_path):
    voice, path, seen = speaking(), tmp_path / "a.wav", []
    path.write_bytes(b"before")
    voice.before = lambda index: seen.append(path.read_bytes())
    command("say", "hi", "-o", str(path))
    assert seen == [b"before"] * 5
    assert len(sound(path)) == 12885


# Stdout ---------------------------------------------------------------------------------------------------------------


def test_stream_is_pcm_and_nothing_else(command, speaking, player):
    voice, heard = speaking(), player()
    result = command("say", "hi", "--stream")
    assert result.status == 0
    np.testing.assert_array_equal(np.frombuffer(heard.getvalue(), "<i2"), pcm16(voice.samples))
    assert len(result.err.splitlines()) == 1


def test_stream_and_a_file(command, speaking, player, tmp_path):
    voice, heard = speaking(), player()
    assert command("say", "hi", "--stream", "-o", str(tmp_path / "a.wav")).status == 0
    assert heard.getvalue() == pcm16(voice.samples).tobytes()
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(voice.samples))


def test_every_chunk_leaves_at_once(speaking, monkeypatch):
    """Through a real pipe: what was spoken can be read before the next chunk is there."""
    voice = speaking()
    reader, writer = os.pipe()  # it holds 64 KiB, more than all chunks together
    heard: list[int] = []
    os.set_blocking(reader, False)
    voice.before = lambda index: heard.append(len(os.read(reader, 1 << 16)) if index > 0 else 0)
    with open(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(["say", "hi", "--stream", "-q"]) == 0
        heard.append(len(os.read(reader, 1 << 16)))
        monkeypatch.undo()
    os.close(reader)
    assert heard == [0, 0, 2 * 1365, 2 * 1920, 2 * 3840, 2 * 5760]


def test_a_player_that_leaves(speaking, monkeypatch, capfd, tmp_path):
    """As in `qwen3omni say ... --stream | head -c 1000`: nobody hears of it, and the file has what was spoken."""
    voice = speaking()
    reader, writer = os.pipe()
    voice.before = lambda index: os.close(reader) if index == 2 else None
    with open(writer, "w", encoding="utf-8") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(["say", "hi", "--stream", "-o", str(tmp_path / "a.wav")]) == 0
        monkeypatch.undo()
    assert capfd.readouterr().err == ""
    assert voice.closed == 1
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(np.concatenate(voice.chunks[:3])))


# Cut short ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--json"]])
@pytest.mark.parametrize("ending", ["wav", "ogg"])
def test_ctrl_c_leaves_what_was_spoken(command, speaking, tmp_path, flags, ending):
    voice = speaking()
    voice.before = interrupt(1)
    before = signal.getsignal(signal.SIGINT)
    result = command("say", "hi", "-o", str(tmp_path / f"a.{ending}"), *flags)
    assert (result.status, result.out) == (130, "")
    assert f"{(1365 + 1920) / 24000:.1f} s of speech" in result.err
    assert voice.closed == 1
    assert signal.getsignal(signal.SIGINT) is before
    assert [path.name for path in tmp_path.iterdir()] == [f"a.{ending}"]
    assert len(sound(tmp_path / f"a.{ending}")) == 1365 + 1920
    if ending == "wav":
        np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(voice.samples[: 1365 + 1920]))


def test_a_second_ctrl_c_does_so_too(command, speaking, tmp_path):
    """The second one does not wait for the chunk that is being made."""
    voice = speaking()

    def twice(index: int) -> None:
        if index == 2:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    voice.before = twice
    result = command("say", "hi", "-o", str(tmp_path / "a.wav"))
    assert (result.status, result.out, result.err) == (130, "", "")
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(voice.samples[: 1365 + 1920]))


def test_ctrl_c_before_the_first_sound(command, speaking, tmp_path):
    speaking().before = interrupt(-1)
    (tmp_path / "a.wav").write_bytes(b"before")
    result = command("say", "hi", "-o", str(tmp_path / "a.wav"))
    assert (result.status, result.out, result.err) == (130, "", "")
    assert (tmp_path / "a.wav").read_bytes() == b"before"


def test_an_error_leaves_what_was_spoken(command, speaking, tmp_path):
    voice = speaking()

    def fail(index: int) -> None:
        if index == 2:
            raise DeviceLost("the driver gave up")

    voice.before = fail
    command("say", "hi", "-o", str(tmp_path / "a.wav")).failed_with("the driver gave up")
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(voice.samples[: 1365 + 1920]))


def test_a_model_that_says_nothing(command, speaking, tmp_path):
    voice = speaking()
    voice.chunks = []
    command("say", "hi", "-o", str(tmp_path / "a.wav")).failed_with("spoke nothing")
    assert list(tmp_path.iterdir()) == []


def test_bars_of_parts_that_are_loaded_late_end(monkeypatch):
    """The bar of loading belongs to nobody who would end it: a complete step does."""
    started = []
    original = RichProgress.start
    monkeypatch.setattr(RichProgress, "start", lambda self: (started.append(self), original(self)))
    monkeypatch.setattr(sys, "stderr", Screen())
    bar = Bar(SimpleNamespace(quiet=False))  # type: ignore[arg-type]
    for done, total, shown in ((1, 4, [True]), (4, 4, [False]), (5, 8, [False, True]), (8, 8, [False, False])):
        bar.show(Progress("load", done, total))
        assert [each.live.is_started for each in started] == shown


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "words"), [
    (["hi"], ["-o FILE.wav", "--stream"]),
    (["-o", "a.wav"], ["TEXT"]),
    (["hi", "there", "-o", "a.wav"], ["there"]),
    (["hi", "-o", "a.aac"], ["a.aac", ".wav, .flac, .ogg, .mp3"]),
    (["hi", "-o", "no-such/a.wav"], ["no-such", "No such file"]),
    (["hi", "-o", "a.wav", "--stream", "--json"], ["--stream", "--json"]),
    ([" \n", "-o", "a.wav"], ["empty"]),
    (["-", "-o", "a.wav"], ["empty"]),
    (["hi", "-o", "a.wav", "--talker-temp", "-1"], ["talker_temperature", "-1"]),
    (["hi", "-o", "a.wav", "--talker-top-p", "2"], ["talker_top_p"]),
    (["hi", "-o", "a.wav", "--voice", ""], ["voice"]),
    (["hi", "-o", "a.wav", "-s", "-1"], ["seed"]),
    (["hi", "-o", "a.wav", "--temp", "0"], ["--temp"]),
])  # fmt: skip
def test_refused_before_the_model_is_loaded(command, speaking, tmp_path, monkeypatch, args, words):
    monkeypatch.chdir(tmp_path)
    voice = speaking()
    command("say", *args).failed_with(*words)
    assert voice.model.loads == []
    assert list(tmp_path.iterdir()) == []


def test_text_that_is_not_utf_8(command, speaking):
    speaking()
    command("say", "-", "-o", "a.wav", stdin=b"\xff\xfe").failed_with("UTF-8")


def test_a_terminal_is_no_place_for_sound(command, speaking, monkeypatch):
    voice = speaking()
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(isatty=lambda: True, flush=lambda: None))
    command("say", "hi", "--stream").failed_with("terminal", "aplay -f S16_LE -r 24000")
    monkeypatch.undo()
    assert voice.model.loads == []


def test_a_terminal_has_no_text(speaking, monkeypatch, capsys):
    speaking()
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert run(["say", "-", "-o", "a.wav"]) == 2
    assert "terminal" in capsys.readouterr().err


def test_a_model_without_a_voice(command, fake, tmp_path):
    fake()
    command("say", "hi", "-o", str(tmp_path / "a.wav")).failed_with("speech")
    assert list(tmp_path.iterdir()) == []
