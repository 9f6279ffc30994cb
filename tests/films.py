"""Small video files for tests, written with PyAV. The frames' numbers can be read back from their pixels."""

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import OutputContainer

SIZE = (64, 96)  # height, width
_BITS, _BLOCK = 8, 8  # bits of a frame's number, pixels of a block that is one bit


def numbered(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """uint8 [H, W, 3]: the number in eight black or white columns, on the upper half; below it a red left half."""
    height, width = size
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(_BITS):
        edges = width * bit // _BITS, width * (bit + 1) // _BITS
        frame[: height // 2, edges[0] : edges[1]] = 255 * (number >> bit & 1)
    frame[height // 2 :, : width // 2, 0] = 255
    return frame


def number(frame: np.ndarray) -> int:
    """The number of a frame that `numbered` made, after compression and resizing."""
    _, width, _ = frame.shape
    row = frame[frame.shape[0] // 4].mean(axis=1)
    centres = [width * (2 * bit + 1) // (2 * _BITS) for bit in range(_BITS)]
    return sum(int(row[x] > 128) << bit for bit, x in enumerate(centres))


def film(
    kind: str = "mp4",
    codec: str = "mpeg4",
    *,
    frames: int = 20,
    rate: Fraction | int = 10,
    times: Sequence[int] | None = None,
    size: tuple[int, int] = SIZE,
    pixels: str = "yuv420p",
    sound: np.ndarray | None = None,
    sound_at: float = 0.0,
    sound_rate: int = 16000,
    sound_codec: str = "pcm_s16le",
    muxer: dict[str, str] | None = None,
    **options: str,
) -> bytes:
    """A video file: numbered frames at a rate, or at `times` in milliseconds; and sound int16 [S] or [S, 2].

    muxer, options: FFmpeg's, of the container and of the codec.
    """
    file = io.BytesIO()
    with av.open(file, "w", format=kind, container_options=muxer) as container:
        video: Any = container.add_stream(codec, rate=rate, options={"g": "10", **options})
        video.height, video.width = size
        video.pix_fmt = pixels
        audio: Any = None
        if sound is not None:
            sound = sound.reshape(len(sound), -1)
            layout = "mono" if sound.shape[1] == 1 else "stereo"
            audio = container.add_stream(sound_codec, rate=sound_rate, layout=layout)
        if times is not None:
            video.codec_context.time_base = Fraction(1, 1000)
        for i in range(frames if times is None else len(times)):
            frame = av.VideoFrame.from_ndarray(numbered(i, size), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[i], Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if audio is not None and sound is not None:
            _add_sound(container, audio, sound, round(sound_at * sound_rate), sound_rate)
    return file.getvalue()


def _add_sound(container: OutputContainer, stream: Any, sound: np.ndarray, start: int, rate: int) -> None:
    layout = "mono" if sound.shape[1] == 1 else "stereo"
    for at in range(0, len(sound), 1024):
        block = np.ascontiguousarray(sound[at : at + 1024].reshape(1, -1))  # channels take turns
        frame = av.AudioFrame.from_ndarray(block, format="s16", layout=layout)
        frame.rate, frame.pts, frame.time_base = rate, start + at, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())
