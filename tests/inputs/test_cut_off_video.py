"""Video files that end too early are found out by their containers alone, wherever the cut is."""

import io
from typing import Any

import numpy as np
import pytest

pytest.importorskip("av", reason="video needs PyAV (the [video] extra)")
from films import film

from qwen3omni_wgpu.inputs.cut_off_video import cut_off_video

SOUND = np.zeros((8000, 2), np.int16)
FILMS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mov": {"kind": "mov", "sound": SOUND},
    "fragments": {"muxer": {"movflags": "frag_keyframe+empty_moov"}},
    "mkv": {"kind": "matroska", "sound": SOUND},
    "avi": {"kind": "avi"},
    "gif": {"kind": "gif", "codec": "gif", "pixels": "rgb8"},
}


@pytest.mark.parametrize("kind", FILMS)
def test_every_cut(kind: str) -> None:
    data = film(**FILMS[kind])
    whole = io.BytesIO(data)
    assert cut_off_video(whole) is None
    assert whole.tell() == 0
    missed = [n for n in range(64, len(data)) if not cut_off_video(io.BytesIO(data[:n]))]
    # Inside the eight bytes that say what comes next nothing is seen, and one byte in 256 looks like the end of a GIF.
    parts = data.count(b"mdat") + data.count(b"moof") + data.count(b"mfra")
    assert len(missed) <= (len(data) // 64 if kind == "gif" else 8 * parts)


def test_lengths_that_are_not_known() -> None:
    """Of a live recording nobody knew the length when it began."""
    data = film("matroska", muxer={"live": "1"})
    assert cut_off_video(io.BytesIO(data)) is None
    assert cut_off_video(io.BytesIO(data[: len(data) // 2])) is None


def test_what_was_appended_is_nothing() -> None:
    for kind in ("mp4", "mkv", "avi"):
        assert cut_off_video(io.BytesIO(film(**FILMS[kind]) + b"\0\0\0\0\xff\xff tail")) is None


@pytest.mark.parametrize(
    "data", [b"", b"x", b"\0\0\0\x18ftyp", b"\x1aE\xdf\xa3", b"RIFF\xff\xff\xff\xffAVI ", bytes(99)]
)
def test_beginnings(data: bytes) -> None:
    """Whatever it says of them, it ends."""
    cut_off_video(io.BytesIO(data))
