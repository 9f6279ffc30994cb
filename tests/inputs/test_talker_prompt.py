"""The talker's prompt, row by row, against what transformers' generate feeds its talker."""

import json
from pathlib import Path

import numpy as np
import pytest
from reference.talker import TalkerTwin
from reference.talker_goldens import TalkerGolden, read_talker, talker_names

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.talker_prompt import TalkerPrompt, talker_prompt
from qwen3omni_wgpu.models.talker import TalkerConfig

# Matrix products in another order, values of order 1.
TOLERANCE = 1e-5


class World:
    """A golden with its checkpoint."""

    def __init__(self, golden: TalkerGolden, folder: Path) -> None:
        self.spoken = golden.spoken
        self.tensors = golden.write(folder)
        self.config = TalkerConfig.from_gguf(open_parts(folder, type="f32")["talker"])
        self.twin = TalkerTwin(self.tensors, json.loads((folder / "config.json").read_text())["talker_config"])

    def prompt(self, answer: np.ndarray) -> TalkerPrompt | None:
        s = self.spoken
        return talker_prompt(s.ids.tolist(), s.positions, answer.tolist(), self.config, self.config.voice("Ethan"))

    def text(self, ids: np.ndarray) -> np.ndarray:
        table = np.asarray(self.tensors["thinker.model.embed_tokens.weight"], np.float32)
        return self.twin.project("text_projection", table[ids])

    def rows(self, prompt: TalkerPrompt) -> np.ndarray:
        rows = np.full((len(prompt), self.config.decoder.dim), np.nan, np.float32)
        rows[prompt.text_at] = self.text(prompt.text_ids)
        if len(prompt.media_at):
            tokens = self.config.tokens
            media = np.flatnonzero(np.isin(self.spoken.ids, (tokens.audio, tokens.image, tokens.video)))
            states = self.spoken.states[np.searchsorted(media, prompt.media_tokens)]
            rows[prompt.media_at] = self.twin.project("hidden_projection", states)
        for at, number in zip(prompt.codec_at, prompt.codec_ids, strict=True):
            rows[at] += self.twin.code(0, number)[0]
        return rows


@pytest.fixture(params=talker_names())
def world(request, tmp_path) -> World:
    return World(read_talker(request.param), tmp_path / "model")


def test_rows_positions_and_text_equal_transformers(world):
    s = world.spoken
    prompt = world.prompt(s.answer[:-1])
    assert prompt is not None
    np.testing.assert_allclose(world.rows(prompt), s.rows, atol=TOLERANCE)
    np.testing.assert_allclose(prompt.positions, s.row_positions, rtol=0, atol=1e-4)  # of up to 60, in float32
    assert prompt.positions.dtype == np.float32
    trailing = np.array([*prompt.spoken, world.config.tokens.tts_eos])
    np.testing.assert_allclose(world.text(trailing), s.trailing, atol=TOLERANCE)
    np.testing.assert_allclose(world.text(np.array([world.config.tokens.tts_pad]))[0], s.pad, atol=TOLERANCE)


def test_speech_begins_with_the_first_token(world):
    """Nothing to say, then the same rows whatever comes after that token."""
    answer = world.spoken.answer
    assert world.prompt(answer[:0]) is None
    whole = world.prompt(answer[:-1])
    first = world.prompt(answer[:1])
    assert first is not None
    assert first.spoken == []
    for name in ("text_at", "text_ids", "media_at", "media_tokens", "codec_at", "codec_ids", "positions"):
        np.testing.assert_array_equal(getattr(first, name), getattr(whole, name))


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> TalkerConfig:
    return World(read_talker(talker_names()[0]), tmp_path_factory.mktemp("model") / "model").config


def plain(config: TalkerConfig, text: str) -> list[int]:
    """ids: S, U and A begin turns of system, user and assistant, < > and ( are the marks of media, i, v and s their
    tokens; other letters are text."""
    t = config.tokens
    system = t.im_start + 1000
    turns = {"S": [t.im_start, system], "U": [t.im_start, t.user], "A": [t.im_start, t.assistant], "i": [t.image]}
    turns |= {"<": [t.vision_start], ">": [t.vision_end], "(": [t.audio_start], "v": [t.video], "s": [t.audio]}
    return [number for letter in text for number in turns.get(letter, [ord(letter)])]


def line(ids: list[int]) -> np.ndarray:
    return np.repeat(np.arange(len(ids), dtype=np.float32)[:, None], 3, axis=1)


def test_text_that_the_prompt_puts_into_the_answers_mouth(config):
    """It is the beginning of what is spoken."""
    ids = plain(config, "UxA\nab")
    prompt = talker_prompt(ids, line(ids), [7, 8], config, 60)
    assert prompt is not None
    assert prompt.text_ids[-1] == ord("a")
    assert prompt.spoken == [ord("b"), 7, 8]
    alone = talker_prompt(ids, line(ids), [], config, 60)
    assert alone is not None
    assert alone.spoken == [ord("b")]


def test_only_user_turns_and_the_last_answer(config):
    """System turns and earlier answers leave no gap; those of the user keep their order, also two in a row."""
    ids = plain(config, "SzUaiiAqqUbUcA\n")
    positions = line(ids)
    positions[6:8] = [[6, 6, 6], [6, 6, 9]]  # the picture; what follows goes on at 10
    positions[8:] += 2
    prompt = talker_prompt(ids, positions, [9], config, 61)
    assert prompt is not None
    t, c = config.tokens, config.codec
    user = [*plain(config, "UaiiUbUc")]
    rows = np.zeros(len(prompt), int)
    rows[prompt.text_at], rows[prompt.media_at] = prompt.text_ids, np.array(ids)[prompt.media_tokens]
    assert rows.tolist() == [*user, t.im_start, t.assistant, ord("\n"), *[t.tts_pad] * 4, t.tts_bos, 9]
    assert prompt.media_tokens.tolist() == [6, 7]
    assert prompt.codec_ids.tolist() == [c.nothink, c.think_bos, c.think_eos, 61, c.pad, c.bos]
    assert prompt.codec_at.tolist() == [len(user) + i for i in range(3, 9)]
    assert prompt.positions[:, 0].tolist() == [0, 1, 2, 3, 3, *range(7, 22)]
    assert prompt.positions[:, 2].tolist() == [0, 1, 2, 3, 6, *range(7, 22)]


@pytest.mark.parametrize(
    ("text", "counted"),
    [
        ("Ua<(vvss)>bA\n", [True]),  # alone
        ("Ua<(vvss)>b<ii>cA\n", [False]),  # a picture is still to come
        ("Ua<(vvss)><vv>cA\n", [False]),  # so is a silent video
        ("Ua<ii><(vvss)>bA\n", [True]),  # no more
        ("U<(vvss)><ii>AxU<(vvss)>A\n", [False, True]),
        ("S<ii>Ua<(vvss)>bA\n", [True]),
    ],
)
def test_videos_with_sound_count_like_text_unless_pictures_follow(config, text, counted):
    """As for transformers, which does not tell its talker about the sound."""
    ids = plain(config, text)
    positions = line(ids)
    videos = [
        i for i in range(len(ids) - 1) if ids[i : i + 2] == [config.tokens.vision_start, config.tokens.audio_start]
    ]
    for start in videos:
        positions[start + 2 : start + 6, 1] += 100  # where the thinker sees them
    prompt = talker_prompt(ids, positions, [9], config, 61)
    assert prompt is not None
    tokens = {int(token): position for token, position in zip(prompt.media_tokens, prompt.media_at, strict=True)}
    for start, like_text in zip(videos, counted, strict=True):
        t, h, _ = prompt.positions[[tokens[start + 2 + i] for i in range(4)]].T
        assert (h - t).tolist() == [0 if like_text else 100] * 4
    assert prompt.positions[-1].tolist() == [prompt.positions[-2, 0] + 1] * 3


def test_a_prompt_without_an_answers_turn(config):
    ids = plain(config, "Uab")
    with pytest.raises(InvalidRequest, match="no assistant's turn"):
        talker_prompt(ids, line(ids), [1, 2], config, 60)


def test_voices(config):
    assert config.voices == {"chelsie": 58, "ethan": 59, "aiden": 60}
    assert config.voice(None) == 59
    assert config.voice("CHELSIE") == 58
    with pytest.raises(InvalidRequest, match="no voice 'bob'; this model has chelsie, ethan, aiden"):
        config.voice("bob")
