"""Answers that are spoken, too: `generate --speech`, `chat --speech` and `/voice`."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile

from qwen3omni_wgpu.errors import DeviceLost
from qwen3omni_wgpu.events import AudioChunk
from qwen3omni_wgpu.inputs.audio_file import pcm16


def sound(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="int16")
    assert rate == 24000
    return samples


def interrupt(at: int):
    def before(index: int) -> None:
        if index == at:
            os.kill(os.getpid(), signal.SIGINT)

    return before


# generate -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("flags", [[], ["--no-stream"]])
def test_text_to_stdout_and_speech_to_the_file(command, speaking, tmp_path, flags):
    voice = speaking("hello world")
    path = tmp_path / "a.wav"
    result = command("generate", "-p", "hi", "--speech", str(path), *flags)
    assert (result.status, result.out) == (0, "hello world\n")
    np.testing.assert_array_equal(sound(path), pcm16(voice.samples))
    timings, spoken = result.err.splitlines()
    assert "answer" in timings
    assert f"{path}: {12885 / 24000:.1f} s of speech" in spoken
    assert [asked.speech for asked in voice.asked] == [True]
    assert voice.closed == 1


def test_without_the_flag_nothing_is_spoken(command, speaking):
    voice = speaking("hello world")
    result = command("generate", "-p", "hi")
    assert (result.out, len(result.err.splitlines())) == ("hello world\n", 1)
    assert [(asked.speech, asked.config.voice) for asked in voice.asked] == [(False, None)]


def test_the_file_grows_while_words_come(command, speaking, tmp_path):
    voice = speaking("hello world and more")
    part, sizes = tmp_path / "a.wav.part", []
    voice.before = lambda index: sizes.append(part.stat().st_size if part.exists() else 0)
    command("generate", "-p", "hi", "--speech", str(tmp_path / "a.wav"))
    # libsndfile writes what it is given at once: two bytes a sample, after a header.
    assert sizes[0] == 0
    assert np.diff(sizes[1:]).tolist() == [2 * 1920, 2 * 3840]
    assert not part.exists()


def test_options_of_speech(command, speaking, tmp_path):
    voice = speaking("hello")
    args = "--voice Chelsie --talker-temp 0.5 --talker-top-k 3 --talker-top-p 0.9 --talker-repeat-penalty 1.2"
    more = "--talker-max-tokens 9 --predictor-temp 0 -s 3 --temp 0.1"
    command("generate", "-p", "hi", "--speech", str(tmp_path / "a.wav"), *args.split(), *more.split())
    config = voice.asked[0].config
    assert (config.voice, config.talker_temperature, config.talker_top_k) == ("Chelsie", 0.5, 3)
    assert (config.talker_top_p, config.talker_repeat_penalty, config.talker_max_tokens) == (0.9, 1.2, 9)
    assert (config.predictor_temperature, config.seed, config.temperature) == (0, 3, 0.1)


def test_json(command, speaking, tmp_path):
    speaking("hello", "hello")
    path = str(tmp_path / "a.flac")
    document = json.loads(command("generate", "-p", "hi", "--json", "--speech", path, "--voice", "ETHAN").out)
    assert document["text"] == "hello"
    speech = document["speech"]
    assert (speech["file"], speech["voice"], speech["sampling_rate"]) == (path, "ethan", 24000)
    assert speech["seconds"] == pytest.approx(12885 / 24000)
    assert 0 < speech["first_audio_s"] <= speech["total_s"]
    assert "speech" not in json.loads(command("generate", "-p", "hi", "--json").out)


def test_an_answer_without_sound(command, speaking, tmp_path):
    speaking("hello").chunks = []
    result = command("generate", "-p", "hi", "--speech", str(tmp_path / "a.wav"))
    assert (result.status, result.out) == (0, "hello\n")
    assert "nothing was spoken" in result.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_leaves_what_was_spoken(command, speaking, tmp_path, flags):
    voice = speaking("hello world")
    voice.before = interrupt(2)
    result = command("generate", "-p", "hi", "--speech", str(tmp_path / "a.wav"), *flags)
    assert result.status == 130
    assert result.out == "" if flags else result.out.startswith("hello")
    assert f"{7125 / 24000:.1f} s of speech" in result.err
    assert voice.closed == 1
    np.testing.assert_array_equal(sound(tmp_path / "a.wav"), pcm16(np.concatenate(voice.chunks[:3])))


def test_an_error_leaves_what_was_spoken(command, speaking, tmp_path):
    voice = speaking("hello world")

    def fail(index: int) -> None:
        if index == 2:
            raise DeviceLost("the driver gave up")

    voice.before = fail
    result = command("generate", "-p", "hi", "--json", "--speech", str(tmp_path / "a.ogg"))
    result.failed_with("the driver gave up")
    assert len(sound(tmp_path / "a.ogg")) == 1365 + 1920


@pytest.mark.parametrize(("args", "words"), [
    (["--speech", "a.aac"], ["a.aac", ".wav, .flac, .ogg, .mp3"]),
    (["--speech", "no-such/a.wav"], ["no-such", "No such file"]),
    (["--voice", "ethan"], ["--voice", "--speech FILE"]),
    (["--talker-top-k", "3"], ["--talker-top-k", "--speech FILE"]),
    (["--predictor-temp", "0"], ["--predictor-temp", "--speech FILE"]),
    (["--speech", "a.wav", "--talker-temp", "nan"], ["talker_temperature", "nan"]),
])  # fmt: skip
@pytest.mark.parametrize("verb", ["generate", "chat"])
def test_refused_before_the_model_is_loaded(command, speaking, tmp_path, monkeypatch, verb, args, words):
    monkeypatch.chdir(tmp_path)
    voice = speaking("hello")
    command(verb, *args, stdin="hi").failed_with(*words)
    assert voice.model.loads == []


def test_a_model_without_a_voice(command, fake, tmp_path):
    """The model itself says it, after it is loaded and before it answers."""
    model = fake("hello")
    command("generate", "-p", "hi", "--speech", str(tmp_path / "a.wav")).failed_with("speech")
    command("chat", "--speech", str(tmp_path / "a.wav"), stdin="hi").failed_with("speech")
    command("chat", stdin="/voice").failed_with("speech")
    assert model.configs == []
    assert list(tmp_path.iterdir()) == []


# chat -----------------------------------------------------------------------------------------------------------------


def test_every_answer_has_a_file(command, speaking, tmp_path):
    voice = speaking("one", "two", "three")
    result = command("chat", "--speech", str(tmp_path / "a.wav"), "--voice", "ETHAN", stdin="hi\nyou?\n/regen\n")
    assert (result.status, result.out) == (0, "one\ntwo\nthree\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-1.wav", "a-2.wav", "a-3.wav"]
    for number in (1, 2, 3):
        np.testing.assert_array_equal(sound(tmp_path / f"a-{number}.wav"), pcm16(voice.samples))
        assert f"a-{number}.wav: " in result.err
    assert [(asked.speech, asked.config.voice) for asked in voice.asked] == [(True, "ethan")] * 3


def test_another_voice(command, speaking, tmp_path):
    voice = speaking("one", "two")
    lines = "hi\n/voice Chelsie\nyou?\n/voice\n/set talker_top_k 7\n/set"
    result = command("chat", "--speech", str(tmp_path / "a.wav"), stdin=lines)
    assert result.status == 0, result.err
    assert [asked.config.voice for asked in voice.asked] == ["ethan", "chelsie"]
    assert result.err.count("voice = chelsie (of ethan, chelsie)") == 2
    assert "talker_top_k = 7" in result.err
    assert "start the chat" not in result.err


def test_a_voice_without_speech(command, speaking):
    voice = speaking("one")
    result = command("chat", stdin="/voice\n/voice ethan\nhi")
    assert (result.status, result.out) == (0, "one\n")
    assert "voice = ethan (of ethan, chelsie)" in result.err
    assert "--speech FILE" in result.err
    assert [(asked.speech, asked.config.voice) for asked in voice.asked] == [(False, "ethan")]


def test_unknown_voices_list_the_known_ones(command, speaking, tmp_path):
    voice = speaking("one", "two")
    command("chat", stdin="/voice Bob\nhi").failed_with("'Bob'", "ethan, chelsie")
    command("chat", "--speech", str(tmp_path / "a.wav"), "--voice", "Bob", stdin="hi").failed_with(
        "'Bob'", "ethan, chelsie"
    )
    assert voice.asked == []


def test_json_of_a_chat(command, speaking, tmp_path):
    speaking("one", "two")
    result = command("chat", "--json", "--speech", str(tmp_path / "a.wav"), stdin="hi\nyou?")
    turns = json.loads(result.out)["turns"]
    assert [Path(turn["speech"]["file"]).name for turn in turns] == ["a-1.wav", "a-2.wav"]
    assert turns[0]["speech"]["seconds"] == pytest.approx(12885 / 24000)


def test_ctrl_c_in_a_chat_leaves_what_was_spoken(command, speaking, tmp_path):
    voice = speaking("one", "two")
    voice.before = interrupt(1)
    result = command("chat", "--speech", str(tmp_path / "a.wav"), stdin="hi\nyou?")
    assert result.status == 130
    assert f"{3285 / 24000:.1f} s of speech" in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["a-1.wav"]
    np.testing.assert_array_equal(sound(tmp_path / "a-1.wav"), pcm16(voice.samples[:3285]))


def test_turns_of_a_spoken_chat_are_kept(speaking, tiny):
    """Through the API: sound comes between the words and does not change what is remembered."""
    from qwen3omni_wgpu.omni import Omni

    voice = speaking("one", "two")
    with Omni.from_pretrained(tiny) as omni:
        chat = omni.chat()
        events = list(chat.stream("hi", speech=True))
        np.testing.assert_array_equal(
            np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)]), voice.samples
        )
        assert chat.send("you?", speech=True).audio is not None
        assert [message["content"] for message in chat.messages] == ["hi", "one", "you?", "two"]
        assert [asked.speech for asked in voice.asked] == [True, True]
