"""Transcription by a whole model: a window's text is what the same question gets when it is asked by hand."""

import numpy as np
import pytest
from sounds import voice
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu import GenerationConfig, Omni
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.transcribe import Segment, Transcript

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def omni(tmp_path_factory, adapter):
    folder = tmp_path_factory.mktemp("transcribe") / "Tiny-Omni"
    write_tiny_checkpoint(folder, np.random.default_rng(), dtype="f32")
    with Omni.from_pretrained(folder, device=adapter, cpu=True, ctx_size=512, type="f32") as opened:
        yield opened


def test_windows_are_asked_about_one_by_one(omni) -> None:
    sound = voice(np.random.default_rng(), 40_000)
    config = GenerationConfig(max_tokens=6, temperature=0)
    *events, transcript = omni.transcribe_stream(sound, language="de", window=1, config=config)
    assert isinstance(transcript, Transcript)
    segments = [event for event in events if isinstance(event, Segment)]
    assert transcript.segments == segments
    assert len(segments) >= 3
    for segment in segments:
        part = sound[round(segment.start * 16000) : round(segment.end * 16000)]
        reply = omni.generate("Transcribe the German audio into text.", audio=[part], config=config)
        assert segment.text == reply.text.strip()
    assert transcript.timings["predicted_n"] <= 6 * len(segments)
    assert transcript.timings["load_s"] == omni.load_s


def test_bad_settings_are_found_at_once(omni) -> None:
    sound = voice(np.random.default_rng(), 8000)
    for options in ({"language": "x"}, {"window": 0}, {"config": GenerationConfig(raw=True)}):
        with pytest.raises(InvalidRequest):
            omni.transcribe_stream(sound, **options)
    with pytest.raises(InvalidRequest, match="too short"):
        omni.transcribe_stream(sound[:1])
