"""Messages as callers write them: what is taken, what is refused, where media go."""

import re

import numpy as np
import pytest

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.messages import Given, taken_apart, with_media


def user(*content):
    return {"role": "user", "content": list(content)}


def test_media_are_taken_out_in_order():
    pixels = np.zeros((2, 2, 3), np.uint8)
    plain, media = taken_apart(
        [
            {"role": "system", "content": "be short"},
            user({"type": "image", "image": pixels}, {"type": "text", "text": "a"}, {"type": "audio", "audio": "x"}),
            {"role": "assistant", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
            user({"type": "video", "video": "y.mp4", "sound": True, "fps": 1.5}),
        ]
    )
    assert plain == [
        {"role": "system", "content": "be short"},
        user({"type": "image", "image": ""}, {"type": "text", "text": "a"}, {"type": "audio", "audio": ""}),
        {"role": "assistant", "content": "bc"},
        user({"type": "video", "video": ""}),
    ]
    assert media[0].source is pixels
    assert media[1:] == [Given("audio", "x"), Given("video", "y.mp4", (("fps", 1.5), ("sound", True)))]


def test_media_stand_before_what_the_last_user_says():
    messages = [{"role": "user", "content": "first"}, {"role": "assistant", "content": "ok"}, user("unread")]
    messages[2] = {"role": "user", "content": "second", "name": "ann"}
    messages.append({"role": "assistant", "content": "so far"})
    found = with_media(messages, [("audio", "a.wav"), ("image", "b.png")])
    parts = [{"type": "audio", "audio": "a.wav"}, {"type": "image", "image": "b.png"}]
    said = {"role": "user", "content": [*parts, {"type": "text", "text": "second"}], "name": "ann"}
    assert found == [*messages[:2], said, messages[3]]
    assert messages[2]["content"] == "second"
    text = {"type": "text", "text": "c"}
    (again,) = with_media([user(text)], [("image", "i")])
    assert again["content"] == [{"type": "image", "image": "i"}, text]
    assert with_media(messages, []) == messages
    with pytest.raises(InvalidRequest, match="belong to a user's message"):
        with_media([{"role": "system", "content": "x"}], [("image", "i")])


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("hello", "must look like"),
        ({"content": "x"}, "must look like"),
        ({"role": "user"}, "must be a text or a list of parts, not None"),
        ({"role": "user", "content": ["hello"]}, "must be a text or a list of parts"),
        (user({"type": "text"}), 'a text part must look like {"type": "text", "text": "..."}'),
        (user({"type": "input_audio", "data": ""}), "'input_audio', but must be text, image, audio, video"),
        (user({"type": "image"}), 'must name its source: {"type": "image", "image": "FILE"}'),
        (user({"type": "audio", "audio": "x", "fps": 2}), "audio has no option fps (it has: none)"),
        (user({"type": "video", "video": "x", "speed": 2}), "video has no option speed (it has: fps, sound)"),
    ],
)
def test_refusals(message, words):
    with pytest.raises(InvalidRequest, match=re.escape(words)) as caught:
        taken_apart([message])
    assert "\n" not in str(caught.value)
