"""Prompts with pictures, sound and video, made from seeds: the same arrays for the goldens and for the tests."""

from pathlib import Path
from typing import Any

import numpy as np

RATE = 16000
# "Hello world, what is this?", 22.05 kHz: espeak-ng -v en-us -s 165 -w hello.wav, as FLAC
SPOKEN = Path(__file__).parent / "data" / "hello.flac"

# Name -> what the user says, tokens of the answer, most frames of its speech.
SPOKEN_TEXTS = {"russian": ("Привет мир", 9, 14), "english": ("hello world", 12, 12), "chinese": ("你好，世界", 7, 16)}


def sound(seed: int, samples: int) -> np.ndarray:
    """A gliding tone with beats and noise: float32 [samples] at 16 kHz."""
    rng = np.random.default_rng(seed)
    t = np.arange(samples) / RATE
    wave = 0.3 * np.sin(2 * np.pi * (180 + 90 * t) * t) + 0.2 * np.sin(2 * np.pi * 2900 * t) * (np.sin(9 * t) > 0)
    return (wave + 0.03 * rng.standard_normal(samples)).astype(np.float32)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Waves and noise in three colours: uint8 [height, width, 3]."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    colours = [np.sin(x / 9 + seed), np.cos(y / 7 - seed), np.sin((x + y) / 11)]
    return (127.5 + 90 * np.stack(colours, axis=-1) + rng.uniform(-30, 30, (height, width, 3))).astype(np.uint8)


def film(seed: int, frames: int) -> np.ndarray:
    """Frames that need no resizing, 352 rows of 384: uint8 [frames, 352, 384, 3]."""
    return np.stack([picture(seed + i, 352, 384) for i in range(frames)])


def _says(role: str, *parts: Any) -> dict[str, Any]:
    content = [{"type": "text", "text": part} if isinstance(part, str) else part for part in parts]
    return {"role": role, "content": content}


def _part(kind: str, source: Any, **more: Any) -> dict[str, Any]:
    return {"type": kind, kind: source, **more}


def prompts() -> dict[str, list[dict[str, Any]]]:
    """Name -> messages. Video plays at 2 frames a second; its "sound" is given as samples.

    Sounds of one prompt are equally long: transformers fills up the shorter ones before it computes their features.
    """
    return {
        "sound_text_picture": [
            _says("user", _part("audio", sound(1, 21921)), "what is", _part("image", picture(2, 90, 70)), "say hello"),
        ],
        "turns": [
            _says("system", "hello world"),
            _says("user", _part("image", picture(3, 65, 200)), _part("image", picture(4, 64, 128)), "what is the"),
            _says("assistant", "hello"),
            _says("user", "say", _part("audio", sound(5, 16160)), _part("audio", sound(6, 16160))),
        ],
        "long_sound": [_says("user", _part("audio", sound(7, 16000 * 5 + 777)), "what is")],
        "video": [_says("user", _part("video", film(8, 4)), "say what is", _part("image", picture(9, 33, 64)))],
        "video_with_sound": [_says("user", _part("video", film(10, 4), sound=sound(11, 32480)), "what is the world")],
    }


def spoken() -> list[dict[str, Any]]:
    """A question about a sentence that espeak-ng spoke, with soxr's resampling of the whole file at once."""
    import soundfile
    import soxr

    samples, rate = soundfile.read(SPOKEN, dtype="float32")
    return [_says("user", _part("audio", soxr.resample(samples, rate, RATE, "HQ")), "what is this")]
