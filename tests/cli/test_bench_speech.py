"""`qwen3omni bench --speech`: what is measured, and that the numbers are those of a model with a known speed."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3omni_wgpu.cli import bench
from qwen3omni_wgpu.events import AudioChunk, Done, Progress, Reply
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.models.config import text_config
from qwen3omni_wgpu.omni import Omni
from qwen3omni_wgpu.resident import Resident

PREFIX = "qwen3omni-talker.code2wav."
METADATA = {"sampling_rate": 24000, "samples_per_frame": 1920, "num_quantizers": 16, "codebook_size": 2048}


@pytest.fixture
def model(fake, tiny, monkeypatch):
    """A model that speaks for 20 frames, the first sound after 20 ms and the rest after 40 ms more."""
    made = SimpleNamespace(said=[], codes=[], frames=20, fake=fake(*["hello " * 20] * 40))
    made.fake.engine.model.config = text_config(read_gguf(tiny))

    def say_stream(self, text, voice=None, config=None):
        made.said.append((text, config))
        time.sleep(0.02)
        yield Progress("prefill", 1, 1)
        if made.frames:
            yield AudioChunk(np.zeros(1920 * 4 - 555, np.float32))
        time.sleep(0.04)
        if made.frames:
            yield AudioChunk(np.zeros(1920 * (made.frames - 4), np.float32))
        codes = np.zeros((16, made.frames), np.int64)
        yield Done(Reply("", [], [], "length", {}, codes=codes))

    def code2wav(self, codes, mode="gapless"):
        made.codes.append(codes)
        time.sleep(0.03)
        return np.zeros(1920 * codes.shape[1] - 555, np.float32)

    part = Resident.part
    talker = SimpleNamespace(metadata={PREFIX + key: value for key, value in METADATA.items()})
    monkeypatch.setattr(bench, "copy_rate", lambda device: 1e9)
    monkeypatch.setattr(Omni, "say_stream", say_stream, raising=False)
    monkeypatch.setattr(Omni, "code2wav", code2wav, raising=False)
    monkeypatch.setattr(Omni, "voices", ("ethan",), raising=False)
    monkeypatch.setattr(Resident, "talker", lambda self: SimpleNamespace(dispatches=599), raising=False)
    monkeypatch.setattr(Resident, "part", lambda self, name: talker if name == "talker" else part(self, name))
    return made


def rows(result) -> list[dict]:
    assert result.status == 0, result.err
    return json.loads(result.out)


def test_tts(command, model):
    (row,) = rows(command("bench", "-p", "0", "-n", "0", "--speech", "tts4", "-r", "3", "-o", "json"))
    assert (row["test"], row["n_frames"], row["dispatches"]) == ("tts4", 20, 599)
    assert (row["n_prompt"], row["n_gen"], row["n_media"], row["gbps"]) == (0, 0, 0, None)
    seconds = [ns / 1e9 for ns in row["samples_ns"]]
    assert len(seconds) == 3
    assert all(0.06 <= s < 10 for s in seconds)  # sleeping takes at least as long as asked for
    assert row["avg_ts"] == pytest.approx(np.mean([20 / s for s in seconds]), rel=1e-3)
    spoken = (20 * 1920 - 555) / 24000
    assert row["real_time"] == pytest.approx(np.mean([spoken / s for s in seconds]), rel=1e-3)
    assert 0.02e9 <= row["first_audio_ns"] <= row["avg_ns"] - 0.04e9


def test_tts_reads_enough_and_never_the_same_way(command, model):
    rows(command("bench", "tts", "--speech", "tts30", "-r", "2", "-o", "json"))
    assert len(model.said) == 2 * 3  # and a first reading of each that is not counted
    assert [config.talker_max_tokens for _, config in model.said] == [100] * 3 + [375] * 3
    assert len({config.seed for _, config in model.said[:3]}) == 3
    short, long = model.said[0][0], model.said[3][0]
    assert len(long) / 30 >= 20  # characters a second: nobody reads so fast
    assert len(short) / 8 >= 20


def test_code2wav(command, model):
    (row,) = rows(command("bench", "code2wav", "-r", "3", "-o", "json"))
    assert (row["test"], row["n_frames"], row["first_audio_ns"], row["dispatches"]) == ("code2wav8", 100, None, None)
    seconds = [ns / 1e9 for ns in row["samples_ns"]]
    assert len(seconds) == 3
    assert all(0.03 <= s < 10 for s in seconds)
    assert row["real_time"] == pytest.approx(np.mean([191445 / 24000 / s for s in seconds]), rel=1e-3)
    assert row["avg_ts"] == pytest.approx(np.mean([100 / s for s in seconds]), rel=1e-3)
    assert len(model.codes) == 4
    assert len({codes.tobytes() for codes in model.codes}) == 4
    for codes in model.codes:
        assert codes.shape == (16, 100)
        assert codes.min() >= 0
        assert 2000 < codes.max() < 2048
    assert model.said == []


def test_a_name_alone_is_that_test_alone(command, model):
    assert [row["test"] for row in rows(command("bench", "tts", "-r", "1", "--json"))] == ["tts8"]
    assert model.fake.engine.log == []


def test_beside_the_others(command, model):
    result = command("bench", "-p", "16", "-n", "4", "-r", "1", "--speech", "tts,code2wav2", "-o", "csv")
    lines = result.out.splitlines()
    assert result.status == 0, result.err
    assert len(lines) == 5
    assert [line.count("tts8") + line.count("code2wav2") for line in lines] == [0, 0, 0, 1, 1]


def test_markdown(command, model):
    lines = command("bench", "-p", "16", "-n", "0", "--speech", "tts,code2wav", "-r", "1").out.splitlines()
    titles = [cell.strip() for cell in lines[0].split("|")[1:-1]]
    assert titles[-5:] == ["ms", "speed", "GFLOP/s", "first ms", "dispatches"]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert [row[4] for row in cells] == ["pp16", "tts8", "code2wav8"]
    assert ["x real time" in row[-4] for row in cells] == [False, True, True]
    assert [row[-1] for row in cells] == ["", "599", ""]
    assert [bool(row[-2]) for row in cells] == [False, True, False]


def test_the_table_without_speech_is_as_ever(command, model):
    titles = command("bench", "-p", "16", "-n", "0", "-r", "1").out.splitlines()[0]
    assert "dispatches" not in titles
    assert "real time" not in titles


def test_a_model_that_says_nothing(command, model):
    model.frames = 0
    result = command("bench", "tts", "-r", "1", "-o", "json")
    result.failed_with("spoke nothing", "tts8")


@pytest.mark.parametrize("speech", ["ttsN", "tts0", "tts8,", "code2wav-1", "tts8 code2wav", "tts10000", "aud30"])
def test_what_are_no_tests(command, model, speech):
    command("bench", "--speech", speech).failed_with("--speech", speech, "tts,code2wav30")
    assert model.fake.loads == []


@pytest.mark.parametrize("test", ["tts", "code2wav"])
def test_a_model_without_a_voice(command, fake, tiny, monkeypatch, test):
    monkeypatch.setattr(bench, "copy_rate", lambda device: 1e9)
    fake().engine.model.config = text_config(read_gguf(tiny))
    command("bench", test, "-o", "json").failed_with("speech")
