"""Prompts with pictures, sound and video through the whole pipeline on the GPU, against transformers' processor and
thinker (tests/goldens/media.npz)."""

import io
import json

import numpy as np
import pytest
import soundfile
from films import film as film_file
from media_prompts import RATE, film, picture, prompts, sound
from PIL import Image
from reference.goldens import FOLDER, arrays_hash
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu import GenerationConfig, InvalidRequest, Omni, Progress

pytestmark = pytest.mark.gpu

# Of the largest logit, through both towers and the thinker. Other orders of summation; 2e-6 to 1e-5 on software
# adapters. One wrong position of one token shows as 1e-2.
TOLERANCE = 1e-4
GREEDY = GenerationConfig(temperature=0, max_tokens=16, ignore_eos=True, logprobs=20)


@pytest.fixture(scope="module")
def golden() -> dict[str, np.ndarray]:
    with np.load(FOLDER / "media.npz") as data:
        return {key: data[key] for key in data.files}


@pytest.fixture(scope="module")
def folder(golden, tmp_path_factory):
    path = tmp_path_factory.mktemp("media") / "Tiny-Omni"
    recipe = json.loads(str(golden["recipe"]))
    stored = write_tiny_checkpoint(path, np.random.default_rng(recipe.pop("seed")), **recipe)
    assert arrays_hash(stored) == str(golden["sha256"]), "make the goldens again: python tools/make_goldens.py media"
    return path


@pytest.fixture(scope="module")
def omni(folder, adapter):
    with Omni.from_pretrained(folder, device=adapter, type="f32", kv_type="f32", ctx_size=512) as opened:
        yield opened


def given(name: str) -> list[dict]:
    """The messages as our pipeline takes them: video with its rate, and with its sound as a file has it."""
    messages = prompts()[name]
    for message in messages:
        for part in message["content"] if isinstance(message["content"], list) else ():
            if part["type"] == "video":
                part["fps"] = 2.0
    return messages


@pytest.mark.parametrize("name", sorted(prompts()))
def test_logits_and_answer_are_transformers(name, omni, golden):
    messages = given(name)
    assert omni.tokenize(messages) == golden[f"{name}_ids"].tolist()
    logits, expected = omni.logits(messages), golden[f"{name}_logits"]
    assert np.abs(logits[-len(expected) :] - expected).max() < TOLERANCE * np.abs(expected).max()
    reply = omni.generate(messages, config=GREEDY)
    assert reply.token_ids == golden[f"{name}_greedy"].tolist()
    decoded = golden[f"{name}_decoded"].astype(np.float64)
    norms = np.log(np.exp(decoded - decoded.max(axis=1, keepdims=True)).sum(axis=1)) + decoded.max(axis=1)
    for row, norm, chosen in zip(decoded, norms, reply.logprobs, strict=True):
        for top in chosen.top_logprobs:
            assert abs(top.logprob - (row[top.id] - norm)) < TOLERANCE * np.abs(row).max()


# The KV cache and media -----------------------------------------------------------------------------------------------

SHORT = GenerationConfig(temperature=0, max_tokens=4, ignore_eos=True)


def phases(events) -> tuple[set[str], int]:
    """Which phases reported progress, and the tokens found in the cache."""
    found, cached = set(), 0
    for event in events:
        if isinstance(event, Progress):
            found.add(event.phase)
        elif hasattr(event, "reply"):
            cached = event.reply.timings["cached_n"]
    return found, cached


def ask(text: str, *media) -> list[dict]:
    parts = [{"type": kind, kind: source} for kind, source in media]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def fresh(folder, adapter, messages) -> list[int]:
    with Omni.from_pretrained(folder, device=adapter, type="f32", kv_type="f32", ctx_size=512) as other:
        return other.generate(messages, config=SHORT).token_ids


def test_a_second_turn_neither_sees_nor_hears_again(omni, folder, adapter):
    seen, heard = picture(21, 96, 64), sound(22, 9000)
    chat = omni.chat("hello")
    first, _ = phases(chat.stream(ask("what is", ("image", seen), ("audio", heard))[0]["content"], SHORT))
    assert {"audio", "vision"} <= first
    before = len(omni.engine.tokens)
    second, cached = phases(chat.stream("say hello", SHORT))
    assert not second & {"audio", "vision"}
    assert cached >= before - 4  # the answer's tokens may be cut another way as text
    assert omni.generate(chat.messages[:-1], config=SHORT).token_ids == fresh(folder, adapter, chat.messages[:-1])


def test_another_picture_of_the_same_size_is_another_prompt(omni, folder, adapter):
    """Its tokens are the same ids: only the content tells."""
    one, two = picture(23, 64, 64), picture(24, 64, 64)
    omni.generate(ask("what is", ("image", one)), config=SHORT)
    found, cached = phases(omni.stream(ask("what is", ("image", two)), config=SHORT))
    assert "vision" in found
    assert cached == omni.tokenize(ask("", ("image", two))).index(omni.tokenizer.token_id("<|image_pad|>"))
    expected = fresh(folder, adapter, ask("what is", ("image", two)))
    assert omni.generate(ask("what is", ("image", two)), config=SHORT).token_ids == expected
    found, cached = phases(omni.stream(ask("what is", ("image", one)), config=SHORT))
    assert "vision" not in found  # it was encoded before, and the encodings are kept


def test_the_cache_may_end_inside_a_picture(omni, folder, adapter):
    messages = ask("what is", ("image", picture(25, 160, 96)))
    whole = omni.generate(messages, config=SHORT)
    omni.engine.reset(keep=9)
    again = omni.generate(messages, config=SHORT)
    assert again.timings["cached_n"] == 9
    assert again.token_ids == whole.token_ids


def test_arguments_stand_before_the_text(omni):
    parts = ask("say", ("image", picture(26, 64, 64)), ("audio", sound(27, 4000)))
    (image, audio), text = parts[0]["content"][:2], "say"
    by_name = omni.generate(text, images=[image["image"]], audio=[(audio["audio"], RATE)], config=SHORT)
    assert by_name.prompt_token_ids == omni.tokenize(parts)
    assert by_name.token_ids == omni.generate(parts, config=SHORT).token_ids


def test_only_the_towers_that_are_used_are_loaded(folder, adapter):
    with Omni.from_pretrained(folder, device=adapter, ctx_size=64) as omni:
        text = omni.device.allocated
        omni.tokenize(ask("hello", ("audio", sound(28, 4000))))
        assert omni.loaded == ("thinker",)
        rows = omni.encode_audio(sound(28, 4000))
        assert (omni.loaded, rows.shape) == (("thinker", "mmproj"), (4, 64))
        with_audio = omni.device.allocated
        rows, deepstack = omni.encode_image(picture(29, 64, 96))
        assert (rows.shape, deepstack.shape) == ((6, 64), (3, 6, 64))
        assert text < with_audio < omni.device.allocated
        omni.release("mmproj")
        assert omni.loaded == ("thinker",)
        assert omni.device.allocated == pytest.approx(text, rel=0.02)


def test_refusals(omni):
    with pytest.raises(InvalidRequest, match=r"has 1 times <\|image_pad\|>, but 0 image parts were given"):
        omni.generate("<|vision_start|><|image_pad|><|vision_end|>", audio=[sound(30, 4000)])
    with pytest.raises(InvalidRequest, match=r"the waveform 650 and the context holds 512") as caught:
        omni.stream("hello", audio=[sound(31, 50 * RATE)])
    assert "\n" not in str(caught.value)
    with pytest.raises(InvalidRequest, match="pictures have no sound"):
        omni.stream([{"role": "user", "content": [{"type": "video", "video": film(1, 2), "sound": True}]}])


# Files that are not what they should be -----------------------------------------------------------------------------


def _bytes_of(samples: np.ndarray, subtype: str = "PCM_16", format: str = "WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, RATE, subtype=subtype, format=format)
    return buffer.getvalue()


def _png(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(1, height, width)).save(buffer, "PNG")
    return buffer.getvalue()


def bad_files() -> dict[str, tuple[str, bytes, str]]:
    """What is wrong -> (kind, bytes, words of the message)."""
    flac, png, movie = _bytes_of(sound(1, 8000), format="FLAC"), _png(64, 64), film_file(frames=6)
    nan = np.where(np.arange(4000) == 1234, np.nan, sound(2, 4000)).astype(np.float32)
    return {
        "truncated.flac": ("audio", flac[: len(flac) // 2], "cut off"),
        "truncated.png": ("image", png[: len(png) // 2], "truncated"),
        "truncated.mp4": ("video", movie[: len(movie) // 2], "cut off"),
        "empty.wav": ("audio", b"", "empty"),
        "empty.png": ("image", b"", "empty"),
        "empty.mp4": ("video", b"", "empty"),
        "text.wav": ("audio", b"hello, I am a text\n" * 40, "not"),
        "text.png": ("image", b"hello, I am a text\n" * 40, "not"),
        "sound.png": ("image", flac, "not"),
        "sound.mp4": ("video", flac, "no"),
        "one_sample.wav": ("audio", _bytes_of(sound(3, 1)), "too short"),
        "nan.wav": ("audio", _bytes_of(nan, "FLOAT"), "a sample of nan"),
        "thin.png": ("image", _png(1, 300), "200"),
    }


def test_bad_files_are_refused_in_one_line(omni, tmp_path):
    for name, (kind, data, words) in bad_files().items():
        path = tmp_path / name
        path.write_bytes(data)
        with pytest.raises(InvalidRequest) as caught:
            omni.stream([{"role": "user", "content": [{"type": kind, kind: str(path)}]}])
        message = str(caught.value)
        assert name in message, name
        assert words in message, (name, message)
        assert "\n" not in message
        assert len(message.replace(str(tmp_path), "")) < 200, message


def test_odd_files_that_are_sound(omni, tmp_path):
    """One pixel is enlarged, as by the reference; content decides, not the name; one frame is a video."""
    for name, kind, data, tokens in (
        ("pixel.png", "image", _png(1, 1), 4),
        ("flac.wav", "audio", _bytes_of(sound(4, 1600), format="FLAC"), 2),
        ("still.mp4", "video", film_file(frames=1), 140),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert omni.check_media({"type": kind, kind: str(path)}).endswith(f"{tokens} tokens")
