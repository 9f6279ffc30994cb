"""Video as the vision tower takes it: some of its frames, resized, and on request its sound.

Frames are chosen, and sizes computed, as transformers' Qwen2VLVideoProcessor does it with do_sample_frames and
cap_pixels_per_frame. Files are read by PyAV (the extra [video]).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.audio import AudioClip, AudioFrontEnd
from qwen3omni_wgpu.inputs.image import (
    Bytes,
    Floats,
    Grid,
    PictureRules,
    content_digest,
    decode,
    patch_rows,
    resized,
    smart_resize,
)
from qwen3omni_wgpu.inputs.sources import DEFAULT_ACCESS, Access, Source, open_source
from qwen3omni_wgpu.inputs.video_files import Ticks, frames_at, opened, scan, sound_track

MAX_SECONDS = 3 * 3600.0
MAX_VIDEO_TOKENS = 128_000
_SHARE = 0.9  # of max_video_tokens that the frames of one video may take, in the reference


@dataclass(frozen=True, eq=False, repr=False)
class Video:
    """A video as the tower sees it.

    frames: uint8 [F, H, W, 3], F a multiple of the depth of a patch. seconds_per_grid: from one step of the grid to
    the next. audio: its sound, or None. digest: 16 bytes, of all that. name: for messages.
    """

    frames: Bytes
    rules: PictureRules
    seconds_per_grid: float
    audio: AudioClip | None
    digest: bytes
    name: str

    @property
    def grid(self) -> Grid:
        """Patches along time, height and width."""
        count, height, width, _ = self.frames.shape
        return count // self.rules.temporal, height // self.rules.patch, width // self.rules.patch

    def patches(self, start: int, stop: int) -> Floats:
        """Rows start to stop of the reference's pixel_values_videos; see `patch_rows`."""
        return patch_rows(self.frames, start, stop, self.rules)

    def with_sound(self, clip: AudioClip) -> Video:
        """The same pictures with this sound."""
        return _video(self.frames, self.rules, self.seconds_per_grid, clip, self.name)

    def __repr__(self) -> str:
        return f"Video({self.name!r}, {self.frames.shape})"


def load_video(
    source: Source | list[Any] | tuple[Any, ...] | Bytes,
    rules: PictureRules,
    *,
    fps: float = 2.0,
    max_frames: int = 768,
    min_frames: int = 4,
    max_seconds: float = MAX_SECONDS,
    sound: bool | None = False,
    front: AudioFrontEnd | None = None,
    access: Access = DEFAULT_ACCESS,
    max_video_tokens: int = MAX_VIDEO_TOKENS,
) -> Video:
    """A video file, or frames: a list of pictures of one size (as `load_image` takes them) or uint8 [F, H, W, 3].

    Of a file, `fps` frames a second are taken, `min_frames` to `max_frames` in all and not more than there are. Frames
    that are given are all taken, and `fps` says how fast they follow each other. max_video_tokens: a long video gets
    smaller frames, to stay below 90 % of them. sound: True takes the sound track too, None where there is one; `front`
    is then needed. Memory: the result, a few frames of the source, and 8 bytes a frame of it.
    Raises InvalidRequest in one line: what `open_source` refuses, no video, cut off, damaged, too long or too large,
    no sound where it is wanted, PyAV missing.
    """
    if not (math.isfinite(fps) and fps > 0):
        raise InvalidRequest(f"frames a second are {fps}; give a positive number")
    if not 1 <= min_frames <= max_frames or max_frames < rules.temporal:
        raise InvalidRequest(
            f"frames from {min_frames} to {max_frames} cannot be; the most are {rules.temporal} at least, and no fewer "
            "than the least"
        )
    if isinstance(source, np.ndarray | list | tuple):
        name = "the video"
        if sound:
            raise InvalidRequest(f"{name}: pictures have no sound; give that as audio, or a video file")
        frames = _from_frames(source, rules, max_frames, max_video_tokens, access)
        return _video(frames, rules, rules.temporal / fps, None, name)
    if sound is not False and front is None:
        raise InvalidRequest("sound of a video needs the front end of a model that hears; load one, or leave it out")
    blob = open_source(source, "video", access)
    with opened(blob) as container:
        track = scan(container, blob.name, max_seconds)
    count = frame_count(len(track.times), track.seconds, fps, min_frames, max_frames, rules.temporal)
    wanted = track.times[chosen(track.times, track.end, count)]
    least, most = rules.video_min_pixels, frame_limit(count, rules, max_video_tokens)
    frames = np.zeros((0, 0, 0, 3), np.uint8)
    with opened(blob) as container:
        for i, image in enumerate(frames_at(container, track, wanted, blob.name)):
            if i == 0:
                size = smart_resize(image.height, image.width, rules.factor, least, most, blob.name)
                frames = np.empty((_padded(count, rules), *size, 3), np.uint8)
            frames[i] = resized(image, frames.shape[1:3])
    frames[count:] = frames[count - 1]
    clip = None
    if sound is not False and front is not None:
        with opened(blob) as container:
            clip = sound_track(container, track, front, max_seconds, blob.name)
        if clip is None and sound:
            raise InvalidRequest(f"{blob.name}: has no sound; ask for the pictures alone")
    return _video(frames, rules, rules.temporal * track.seconds / count, clip, blob.name)


def _video(frames: Bytes, rules: PictureRules, spacing: float, clip: AudioClip | None, name: str) -> Video:
    digest = content_digest("video", frames, rules, spacing, clip.digest if clip else None)
    return Video(frames, rules, spacing, clip, digest, name)


# Which frames, and how large ---------------------------------------------------------------------------------------


def frame_count(total: int, seconds: float, fps: float, least: int, most: int, temporal: int) -> int:
    """How many of `total` frames are taken: a multiple of `temporal`, or all where there are fewer than that."""
    most = min(most, total) // temporal * temporal
    wanted = min(max(seconds * fps, least), most, total)
    return math.floor(wanted / temporal) * temporal or min(total, temporal)


def chosen(times: Ticks, end: int, count: int) -> Ticks:
    """Indices of `count` frames, evenly spread over the time from the first frame to `end`.

    times: when each frame appears, rising. Where they are as regular as their clock allows, it is frame
    floor(i * total / count), as in the reference; else the one that is seen at that time.
    """
    total = len(times)
    steps = np.arange(count, dtype=np.int64)
    since = times - times[0]
    even = np.linspace(0, since[-1], total)
    if np.abs(since - even).max() <= 1:
        return steps * total // count
    return np.searchsorted(since * count, steps * (end - times[0]), side="right") - 1


def frame_limit(count: int, rules: PictureRules, max_video_tokens: int = MAX_VIDEO_TOKENS) -> int:
    """Most pixels of a frame where the video has `count` of them: all together stay within the tokens of a video."""
    budget = int(max_video_tokens * rules.factor * rules.factor * _SHARE)
    share = budget * rules.temporal // count
    return max(min(rules.video_max_pixels, share), int(rules.video_min_pixels * 1.05))


# Frames that are given ---------------------------------------------------------------------------------------------


def _from_frames(
    source: Sequence[Any] | Bytes, rules: PictureRules, max_frames: int, max_video_tokens: int, access: Access
) -> Bytes:
    count = len(source)
    if isinstance(source, np.ndarray) and (source.dtype != np.uint8 or source.ndim != 4 or source.shape[3] != 3):
        raise InvalidRequest(
            f"a video's array is uint8 [F, H, W, 3], not {source.dtype} {list(source.shape)}; convert it to that"
        )
    if not 0 < count <= max_frames:
        raise InvalidRequest(f"the video has {count} pictures, and 1 to {max_frames} are taken; give fewer, or another")
    least, most = rules.video_min_pixels, frame_limit(count, rules, max_video_tokens)
    frames, first = np.zeros((0, 0, 0, 3), np.uint8), (0, 0)
    for i, picture in enumerate(source):
        image, name = decode(picture, access=access)
        if i == 0:
            first = image.size
            size = smart_resize(image.height, image.width, rules.factor, least, most, name)
            frames = np.empty((_padded(count, rules), *size, 3), np.uint8)
        if image.size != first:
            raise InvalidRequest(
                f"{name}: is {image.width} x {image.height} pixels, the video's first picture is {first[0]} x "
                f"{first[1]}; bring them to one size"
            )
        frames[i] = resized(image, frames.shape[1:3])
    frames[count:] = frames[count - 1]
    return frames


def _padded(count: int, rules: PictureRules) -> int:
    return -(-count // rules.temporal) * rules.temporal
