"""Video files: when their frames appear, the frames at given times, and the sound track, through PyAV.

A file is read three times (packets, frames, sound), each time from its beginning to the end: that needs no index, and
no more memory than a few frames.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.audio import AudioClip, AudioFrontEnd, ClipBuilder
from qwen3omni_wgpu.inputs.cut_off_video import cut_off_video
from qwen3omni_wgpu.inputs.image import MAX_SOURCE_PIXELS
from qwen3omni_wgpu.inputs.sources import Blob

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.error import FFmpegError
    from av.video.frame import VideoFrame

Ticks = npt.NDArray[np.int64]

_LEAST = (17, 1)  # PyAV before it crashes when a file without a header (FLV, MPEG-TS) is opened with options
_MOST_PACKETS = 5_000_000  # three hours have 2.6 million frames at 240 a second
_SLACK = 0.1  # seconds that the timestamps of sound may be off before silence is put in or a piece left out
_SILENCE = 1 << 18  # samples of it that are made at once

# What FFmpeg may take a file for. The rest are devices, pictures, and lists of other files or addresses to open.
_KINDS = (
    "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,live_flv,gif,asf,ogg,mxf,nut,rm,dv,ivf,obu,av1,h264,hevc,m4v,"
    "yuv4mpegpipe,mp3,wav,flac,aac"
)
_KNOWN_KINDS = "MP4, MOV, MKV, WebM, AVI or GIF"
_LOSSY = "mpegts"  # a container in which damaged packets are everyday


@dataclass(frozen=True)
class Track:
    """The pictures of a file. times: of all frames, rising, in ticks of `base` seconds; end: of the last frame's time.

    timed: the file says when frames appear; otherwise times count them. seconds: from the first frame to the end.
    """

    index: int
    times: Ticks
    end: int
    base: Fraction
    timed: bool
    seconds: float


@contextmanager
def opened(blob: Blob) -> Iterator[InputContainer]:
    """The file opened by FFmpeg, and its errors in ours."""
    try:
        import av
        from av.container import InputContainer
        from av.error import FFmpegError
    except ImportError as error:
        raise InvalidRequest("video needs PyAV; install it: pip install 'qwen3omni-wgpu[video]'") from error

    if tuple(int(part) for part in av.__version__.split(".")[:2]) < _LEAST:
        raise InvalidRequest(
            f"PyAV {av.__version__} crashes on some videos; update it: pip install -U 'qwen3omni-wgpu[video]'"
        )
    with blob.open() as file:
        if lost := cut_off_video(file):
            raise _damaged(blob.name, lost)
        try:
            # Titles are not always UTF-8, and of no interest.
            container = av.open(file, options={"format_whitelist": _KINDS}, metadata_errors="replace")
        except FFmpegError as error:
            raise InvalidRequest(
                f"{blob.name}: is not a video, or damaged ({_reason(error)}); use {_KNOWN_KINDS}"
            ) from error
        assert isinstance(container, InputContainer)  # opened for reading
        with container:
            try:
                yield container
            except FFmpegError as error:
                raise _damaged(blob.name, f"it cannot be decoded, {_reason(error)}") from error


def _damaged(name: str, how: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: is damaged or cut off ({how}); copy or download it again")


def _reason(error: FFmpegError) -> str:
    return " ".join((error.strerror or str(error)).split())[:120]


def _too_long(name: str, seconds: float) -> InvalidRequest:
    return InvalidRequest(f"{name}: is longer than the {seconds:,.0f} s that are taken; cut it")


def scan(container: InputContainer, name: str, max_seconds: float) -> Track:
    """When the frames appear, from the file's packets; nothing is decoded."""
    from av.stream import Disposition

    streams = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not streams:
        hint = "only sound; give it as audio" if container.streams.audio else f"nothing to see; use {_KNOWN_KINDS}"
        raise InvalidRequest(f"{name}: has no video, {hint}")
    stream = streams[0]
    if stream.codec_context is None:
        raise InvalidRequest(
            f"{name}: its pictures are coded in a way that FFmpeg does not know; convert them to H.264"
        )
    base = stream.time_base or Fraction(1, 1000)
    times, end, timed, most = array("q"), 0, True, int(max_seconds / base)
    for packet in container.demux(stream):
        if not packet.size or packet.is_discard:  # the last one, which flushes; frames before the cut of an edit
            continue
        if packet.is_corrupt and container.format.name != _LOSSY:
            raise _damaged(name, f"a packet after {len(times):,} frames is not whole")
        timed = timed and packet.pts is not None
        time = packet.pts if timed and packet.pts is not None else len(times)
        times.append(time)
        end = max(end, time + (packet.duration or 0))
        if len(times) > _MOST_PACKETS or (timed and abs(time - times[0]) > most):
            raise _too_long(name, max_seconds)
    if not times:
        raise InvalidRequest(f"{name}: has a video track without frames; export it again")
    rate = stream.average_rate or stream.guessed_rate or Fraction(25)
    if not timed:
        times, base, end = array("q", range(len(times))), 1 / rate, 0
    track = _track(stream.index, np.sort(np.frombuffer(times, np.int64)), end, base, timed, rate)
    if track.seconds > max_seconds:
        raise _too_long(name, max_seconds)
    return track


def _track(index: int, times: Ticks, end: int, base: Fraction, timed: bool, rate: Fraction) -> Track:
    """With a length for the last frame where the file has none, and seconds as the rate gives them where it fits."""
    total, first, last = len(times), int(times[0]), int(times[-1])
    step = (last - first) / (total - 1) if total > 1 and last > first else float(1 / (rate * base))
    end = end if end > last else last + max(1, round(step))
    seconds = float((end - first) * base)
    by_rate = total / float(rate)
    if abs(by_rate - seconds) <= 1.5 * step * base:  # clocks of whole milliseconds are a little off
        seconds = by_rate
    return Track(index, times, end, base, timed, seconds)


def frames_at(container: InputContainer, track: Track, wanted: Ticks, name: str) -> Iterator[Image.Image]:
    """For each of the times, which rise, the frame that is seen then: in RGB, upright, in full size.

    Every frame is decoded once; one is held. Raises InvalidRequest: too large, or the end cannot be decoded.
    """
    stream = next(s for s in container.streams.video if s.index == track.index)
    _check_size(stream.codec_context.width, stream.codec_context.height, name)
    stream.thread_type = "AUTO"
    held, held_time, done = None, 0, 0
    for count, frame in enumerate(container.decode(stream)):
        time = count if not track.timed else held_time if frame.pts is None else frame.pts
        while held is not None and done < len(wanted) and time > wanted[done]:
            yield _upright(held, name)
            done += 1
        if done == len(wanted):
            return
        held, held_time = frame, time
    if held is None:
        raise _damaged(name, "none of its frames can be decoded")
    if int(wanted[-1] - held_time) * track.base > max(1.0, 0.05 * track.seconds):
        raise _damaged(name, f"it cannot be decoded after {float(int(held_time - track.times[0]) * track.base):.1f} s")
    image = _upright(held, name)
    for _ in range(done, len(wanted)):
        yield image


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_SOURCE_PIXELS:
        raise InvalidRequest(
            f"{name}: has frames of {width} x {height} pixels, more than the {MAX_SOURCE_PIXELS:,} that are decoded; "
            "make it smaller first"
        )


def _upright(frame: VideoFrame, name: str) -> Image.Image:
    _check_size(frame.width, frame.height, name)
    pixels = frame.to_ndarray(format="rgb24")
    return Image.fromarray(np.ascontiguousarray(np.rot90(pixels, round(frame.rotation / 90))))


# Sound ---------------------------------------------------------------------------------------------------------------


def sound_track(
    container: InputContainer, track: Track, front: AudioFrontEnd, max_seconds: float, name: str
) -> AudioClip | None:
    """The first sound track from the time of the first frame on, gaps filled with silence; None where there is none."""
    if not container.streams.audio:
        return None
    stream = container.streams.audio[0]
    if stream.codec_context is None:
        raise InvalidRequest(f"{name}: its sound is coded in a way that FFmpeg does not know; convert it to AAC")
    start = int(track.times[0]) * track.base if track.timed else Fraction(0)
    builder, rate, taken = None, 0, 0
    for block, time in _blocks(container.decode(stream), name):
        if builder is None:
            rate = block.sample_rate
            builder = ClipBuilder(name, rate, front, max_seconds)
        samples = block.to_ndarray().T  # [n, channels]
        late = 0 if time is None else round((time - start) * rate) - taken
        if abs(late) <= (_SLACK * rate if taken else 0):
            late = 0
        if late > 0:
            builder.expect(taken + late)
            taken += late
        for rest in range(late, 0, -_SILENCE):
            builder.add(np.zeros(min(rest, _SILENCE), np.float32))
        if late > -len(samples):
            builder.add(samples[max(0, -late) :])
            taken += len(samples) - max(0, -late)
    if builder is None:
        raise _damaged(name, "its sound cannot be decoded")
    return builder.clip()


def _blocks(frames: Iterable[AudioFrame], name: str) -> Iterator[tuple[AudioFrame, Fraction | None]]:
    """Planar floats of one rate, and when each block begins, in seconds."""
    from av.audio.resampler import AudioResampler

    convert: AudioResampler | None = None
    for frame in frames:
        if convert is None:
            convert = AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
        time = None if frame.pts is None or frame.time_base is None else frame.pts * frame.time_base
        try:
            blocks = convert.resample(frame)
        except ValueError as error:  # channels or rate change on the way
            raise InvalidRequest(f"{name}: its sound changes its format on the way; convert it") from error
        for i, block in enumerate(blocks):
            yield block, time if i == 0 else None
