"""How codes are drawn: defaults of the file, what comes instead, what is refused."""

import dataclasses
from pathlib import Path

import pytest

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.voice.settings import SpeechSettings

RELEASE = {
    "do_sample": True,
    "temperature": 0.9,
    "top_k": 50,
    "top_p": 1.0,
    "repetition_penalty": 1.05,
    "max_new_tokens": 4096,
}


def talker(**changes: object) -> GGUFFile:
    """A file with the release's recommendations, changed."""
    values = {f"qwen3omni-talker.sampling.{key}": value for key, value in (RELEASE | changes).items()}
    return GGUFFile(Path("talker.gguf"), {key: value for key, value in values.items() if value is not None}, {})


def predictor(**changes: object) -> GGUFFile:
    values = {f"qwen3omni-talker.code_predictor.sampling.{key}": value for key, value in changes.items()}
    return dataclasses.replace(talker(), metadata=talker().metadata | values)


def test_the_releases_settings_are_ours():
    assert SpeechSettings.from_gguf(talker()) == SpeechSettings()
    assert SpeechSettings.from_gguf(predictor(temperature=1.0, top_k=50, top_p=0.8)) == SpeechSettings()


def test_what_a_file_recommends():
    found = SpeechSettings.from_gguf(
        talker(temperature=0.5, top_k=7, top_p=0.3, repetition_penalty=1.5, max_new_tokens=9)
    )
    assert found == SpeechSettings(temperature=0.5, top_k=7, top_p=0.3, repeat_penalty=1.5, max_frames=8)
    found = SpeechSettings.from_gguf(predictor(temperature=0.5, top_k=7, top_p=0.3))
    assert found == SpeechSettings(predictor_temperature=0.5, predictor_top_k=7, predictor_top_p=0.3)


def test_a_file_that_says_nothing():
    assert SpeechSettings.from_gguf(GGUFFile(Path("talker.gguf"), {}, {})) == SpeechSettings()


def test_changes_come_before_the_file():
    found = SpeechSettings.from_gguf(talker(temperature=0.5, top_k=7), temperature=0.0, seed=3, top_k=None)
    assert found == SpeechSettings(temperature=0.0, top_k=7, seed=3)


def test_a_file_that_does_not_sample():
    settings = SpeechSettings.from_gguf(talker(do_sample=False))
    assert settings.greedy
    assert [numbers[0] for numbers in settings.numbers] == [0.0, 0.0]


def test_numbers_in_the_order_of_the_op():
    settings = SpeechSettings(temperature=0.5, top_k=3, top_p=0.25, repeat_penalty=2, predictor_temperature=0.75,
                              predictor_top_k=4, predictor_top_p=0.5)  # fmt: skip
    assert settings.numbers == ([0.5, 3.0, 0.25, 2.0], [0.75, 4.0, 0.5, 1.0])


def test_seeds():
    assert SpeechSettings(seed=5).seeded().seed == 5
    first, second = SpeechSettings().seeded().seed, SpeechSettings().seeded().seed
    assert first is not None
    assert first != second


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature is -1, but must be a number between 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 1.5}, "top_k is 1.5, but must be a whole number 0"),
        ({"top_k": True}, "top_k is True"),
        ({"top_p": 1.1}, "top_p is 1.1"),
        ({"repeat_penalty": 0}, "repeat_penalty is 0"),
        ({"max_frames": -1}, "max_frames is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"predictor_temperature": "warm"}, "predictor_temperature is 'warm'"),
        ({"predictor_top_p": 2}, "predictor_top_p is 2"),
    ],
)
def test_refused(values, message):
    with pytest.raises(InvalidRequest, match=message):
        SpeechSettings(**values)


def test_a_files_settings_that_we_do_not_have():
    with pytest.raises(UnsupportedModel, match=r"code_predictor\.sampling\.repetition_penalty.*is not 1"):
        SpeechSettings.from_gguf(predictor(repetition_penalty=1.2))
    with pytest.raises(InvalidModelFile, match="max_new_tokens"):
        SpeechSettings.from_gguf(talker(max_new_tokens=0))
