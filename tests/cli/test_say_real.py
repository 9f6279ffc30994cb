"""`say`, `generate --speech` and the API on a tiny model that really speaks: the same seed gives the same sound."""

from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu import AudioChunk, Done, GenerationConfig, Omni
from qwen3omni_wgpu.inputs.audio_file import pcm16

pytestmark = [pytest.mark.gpu]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("voice") / "Tiny-Omni"
    write_tiny_checkpoint(folder, np.random.default_rng(), endless=True)
    return folder


def test_commands_and_the_api_say_the_same(command, checkpoint, adapter, tmp_path):
    path, spoken = tmp_path / "a.wav", tmp_path / "b.wav"
    model = ("-m", str(checkpoint), "--device", adapter, "-c", "64", "--talker-max-tokens", "6", "-s", "7")
    result = command("say", "hello", "-o", str(path), "--voice", "ethan", *model)
    assert (result.status, result.out) == (0, ""), result.err
    answer = command("generate", "-p", "hello", "-n", "4", "--ignore-eos", "--speech", str(spoken), *model)
    assert answer.status == 0, answer.err
    config = GenerationConfig(seed=7, talker_max_tokens=6, max_tokens=4, ignore_eos=True)
    with Omni.from_pretrained(checkpoint, device=adapter, ctx_size=64) as omni:
        audio = omni.say("hello", voice="Ethan", config=config)
        events = list(omni.stream("hello", speech=True, config=config))
    np.testing.assert_array_equal(soundfile.read(path, dtype="int16")[0], pcm16(audio.samples))
    chunks = [event.samples for event in events if isinstance(event, AudioChunk)]
    assert isinstance(events[-1], Done)
    np.testing.assert_array_equal(np.concatenate(chunks), events[-1].reply.audio)
    np.testing.assert_array_equal(soundfile.read(spoken, dtype="int16")[0], pcm16(np.concatenate(chunks)))
