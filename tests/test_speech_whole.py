"""Text to sound through the whole model on the GPU: transformers' codes and samples, and speech that streams."""

import dataclasses
import json

import numpy as np
import pytest
from media_prompts import SPOKEN_TEXTS, picture, sound
from reference.goldens import FOLDER, arrays_hash
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu import AudioChunk, Done, GenerationConfig, InvalidRequest, Omni, TextDelta, UnsupportedModel
from qwen3omni_wgpu.gpu import Device

pytestmark = pytest.mark.gpu

# Of full scale. Sums in other orders: 1e-6 was measured on software adapters. One wrong code shows as 1e-1.
TOLERANCE = 1e-4
GREEDY = {"temperature": 0, "talker_temperature": 0, "predictor_temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "speech_whole.npz") as data:
        return {key: data[key] for key in data.files}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("speech") / "Tiny-Omni"
    recipe = json.loads(str(golden["recipe"]))
    stored = write_tiny_checkpoint(path, np.random.default_rng(recipe.pop("seed")), **recipe)
    assert arrays_hash(stored) == str(golden["sha256"]), "make the goldens again: python tools/make_goldens.py speech"
    return path


@pytest.fixture(scope="module", params=["cpu", "integrated"])
def omni(folder, adapter, request):
    """With the kernels and chunks that an adapter of this kind gets, whatever is here."""

    def opened_as(*arguments, original=Device.open, **named):
        device = original(*arguments, **named)
        device.info = dataclasses.replace(device.info, kind=request.param)
        return device

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Device, "open", opened_as)
        opened = Omni.from_pretrained(folder, device=adapter, type="f32", kv_type="f32", ctx_size=256)
    with opened:
        assert opened.device.info.kind == request.param
        yield opened


@pytest.mark.parametrize("name", sorted(SPOKEN_TEXTS))
def test_codes_and_samples_are_transformers(name, omni, golden):
    text, words, frames = SPOKEN_TEXTS[name]
    config = GenerationConfig(max_tokens=words, talker_max_tokens=frames, **GREEDY)
    reply = omni.generate(text, speech=True, config=config)
    assert reply.prompt_token_ids == golden[f"{name}_ids"].tolist()
    assert reply.token_ids == golden[f"{name}_answer"].tolist()
    np.testing.assert_array_equal(reply.codes, golden[f"{name}_codes"].T)
    wave = golden[f"{name}_wave"]
    assert reply.sampling_rate == 24000
    assert reply.audio.shape == wave.shape == (1920 * reply.codes.shape[1] - 555,)
    assert np.abs(reply.audio - wave).max() < TOLERANCE


def test_speech_begins_while_the_text_is_written(omni):
    """And its chunks are what one decode of all codes gives."""
    config = GenerationConfig(max_tokens=60, talker_max_tokens=70, **GREEDY)
    events = list(omni.stream("hello world", speech=True, config=config))
    kinds = [type(event) for event in events]
    first, last = kinds.index(AudioChunk), max(i for i, kind in enumerate(kinds) if kind is TextDelta)
    assert first < last
    assert kinds[-1] is Done
    reply = events[-1].reply
    said = np.concatenate([event.samples for event in events if isinstance(event, AudioChunk)])
    np.testing.assert_array_equal(said, reply.audio)
    assert np.abs(said - omni.code2wav(reply.codes)).max() < TOLERANCE
    assert reply.timings["frames_n"] == reply.codes.shape[1]
    assert reply.timings["first_audio_s"] > 0


def test_a_given_text_is_spoken_without_the_thinker(folder, adapter):
    with Omni.from_pretrained(folder, device=adapter, lazy=True) as omni:
        config = GenerationConfig(talker_max_tokens=9, seed=3)
        audio = omni.say("hello world, what is this", config=config)
        assert omni.loaded == ("talker",)
        assert len(audio.samples) == 1920 * 9 - 555
        assert np.abs(audio.samples).max() <= 1
        again = omni.say("hello world, what is this", config=config)
        np.testing.assert_array_equal(again.samples, audio.samples)
        other = omni.say("hello world, what is this", voice="Chelsie", config=config)
        assert not np.array_equal(other.samples, audio.samples)
        assert omni.voices == ("ethan", "aiden", "chelsie")
        with pytest.raises(InvalidRequest, match="no voice 'bob'; this model has "):
            omni.say("hello", voice="bob")
        with pytest.raises(InvalidRequest, match="nothing to say"):
            omni.say("  ")


def test_speech_about_media_and_its_next_turn(omni):
    """Hidden states of media are those of the prompt's own tokens, also when the KV cache had them already."""
    config = GenerationConfig(max_tokens=6, talker_max_tokens=8, **GREEDY)
    parts = [{"type": "image", "image": picture(31, 64, 96)}, {"type": "audio", "audio": sound(32, 9000)}]
    messages = [{"role": "user", "content": [*parts, {"type": "text", "text": "what is this"}]}]
    omni.generate(messages, config=config)  # the cache holds the picture now, without hidden states for speech
    first = omni.generate(messages, speech=True, config=config)
    second = omni.generate(messages, speech=True, config=config)
    assert second.timings["cached_n"] > 0
    np.testing.assert_array_equal(second.codes, first.codes)
    omni.engine.reset()
    np.testing.assert_array_equal(omni.generate(messages, speech=True, config=config).codes, first.codes)


def test_an_answer_of_one_token_says_nothing(omni):
    reply = omni.generate("hello", speech=True, config=GenerationConfig(max_tokens=1, **GREEDY))
    assert (reply.audio, reply.codes) == (None, None)


def test_a_prompt_without_an_answer_cannot_be_spoken(omni):
    with pytest.raises(InvalidRequest, match="no assistant's turn"):
        omni.stream([1, 2, 3], speech=True)


def test_a_model_of_text_alone_has_no_voice(smollm2_path, adapter):
    with Omni.from_pretrained(smollm2_path, device=adapter, ctx_size=32) as text:
        for ask in (lambda: text.say("hello"), lambda: text.voices, lambda: text.stream("hi", speech=True)):
            with pytest.raises(UnsupportedModel, match="a model of text alone"):
                ask()
