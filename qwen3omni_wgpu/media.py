"""Pictures, sounds and video of a prompt: read, put in their places among its tokens, encoded by the towers."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Generator, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np

from qwen3omni_wgpu.errors import UnsupportedModel
from qwen3omni_wgpu.events import Progress
from qwen3omni_wgpu.inputs.audio import AudioClip, AudioFrontEnd, from_waveform, load_audio, mel_spectrogram
from qwen3omni_wgpu.inputs.image import Picture, PictureRules, load_image
from qwen3omni_wgpu.inputs.placeholders import (
    AudioPart,
    Expanded,
    ImagePart,
    MediaTokens,
    Part,
    VideoPart,
    expand,
    image_tokens,
)
from qwen3omni_wgpu.inputs.prompt import MediaRows, Prompt
from qwen3omni_wgpu.inputs.sources import Access, Source
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.inputs.video import Video, load_video
from qwen3omni_wgpu.messages import Given
from qwen3omni_wgpu.resident import Resident
from qwen3omni_wgpu.steps import Steps

# Encoded media that are kept for the next turn, in bytes; a minute of sound takes 6 MB, a large picture 100 MB or more.
KEPT_BYTES = 512 << 20
# Files whose length in tokens is remembered, so that a chat does not read them again at every turn.
KEPT_FILES = 256

Encoded = tuple[np.ndarray, np.ndarray | None]  # rows [M, D], deepstack [TAPS, M, D]
T = TypeVar("T")


@dataclass(eq=False)
class Medium:
    """One medium of a prompt: how many tokens it takes, and its content until that is encoded."""

    given: Given
    part: Part
    digest: bytes
    name: str
    data: AudioClip | Picture | Video | None
    n_tokens: int
    size: str  # for people: "4.5 s", "640x480"


class Media:
    """Reads and encodes the media of one model's prompts. Text models have no place for them."""

    def __init__(self, resident: Resident, tokenizer: Tokenizer, access: Access) -> None:
        self._resident = resident
        self._tokenizer = tokenizer
        self.access = access
        self._files: OrderedDict[Hashable, Medium] = OrderedDict()
        self._encoded: OrderedDict[Hashable, Encoded] = OrderedDict()

    # Reading --------------------------------------------------------------------------------------------------------

    def read(self, given: Sequence[Given]) -> list[Medium]:
        """Read what the caller named; files that have not changed since they were last read are not read again.

        Raises InvalidRequest (a medium cannot be read), UnsupportedModel (a model of text alone), ModelNotFound (the
        towers are not there).
        """
        return [self._read(one) for one in given]

    def _read(self, given: Given) -> Medium:
        key = _identity(given)
        if key is not None and key in self._files:
            self._files.move_to_end(key)
            return self._files[key]
        data = self._load(given)
        part = self._part(data)
        medium = Medium(given, part, data.digest, data.name, data, self._count(part), _size(data))
        if key is not None:
            self._files[key] = medium
            if len(self._files) > KEPT_FILES:
                self._files.popitem(last=False)
        return medium

    def _load(self, given: Given) -> AudioClip | Picture | Video:
        options = dict(given.options)
        if given.kind == "audio":
            return self.clip(given.source)
        if given.kind == "image":
            return load_image(given.source, self.rules, access=self.access)
        sound = options.pop("sound", False)
        apart = not (sound is None or isinstance(sound, bool))
        from_file = False if apart else sound
        front = None if from_file is False else self.front
        video = load_video(given.source, self.rules, sound=from_file, front=front, access=self.access, **options)
        return video.with_sound(self.clip(sound)) if apart else video

    def clip(self, source: Any, sampling_rate: int | None = None) -> AudioClip:
        """Sound from a file, or from an array of samples at a rate (an array without one: at the model's own)."""
        if isinstance(source, AudioClip):
            return source
        if isinstance(source, tuple) and len(source) == 2:
            return self.clip(source[0], source[1])
        if isinstance(source, np.ndarray | list):
            return from_waveform(np.asarray(source), sampling_rate or self.front.sampling_rate, self.front)
        return load_audio(cast(Source, source), self.front, access=self.access)

    def _part(self, data: AudioClip | Picture | Video) -> Part:
        if isinstance(data, AudioClip):
            return AudioPart(self._audio_tokens(data))
        if isinstance(data, Picture):
            return ImagePart(data.grid)
        sound = None if data.audio is None else self._audio_tokens(data.audio)
        return VideoPart(data.grid, data.seconds_per_grid, sound)

    def _count(self, part: Part) -> int:
        if isinstance(part, AudioPart):
            return part.n_tokens
        sound = part.audio_tokens or 0 if isinstance(part, VideoPart) else 0
        return image_tokens(part.grid, self.rules.merge) + sound

    def _audio_tokens(self, clip: AudioClip) -> int:
        frames = len(clip.samples) // self.front.hop_length
        return self._resident.audio_config().n_tokens(frames)

    @property
    def front(self) -> AudioFrontEnd:
        """How the audio tower wants its sound."""
        self._check("audio")
        return AudioFrontEnd.from_gguf(self._resident.part("mmproj").metadata)

    @property
    def rules(self) -> PictureRules:
        """How the vision tower wants its pictures."""
        self._check("vision")
        return PictureRules.from_gguf(self._resident.part("mmproj").metadata)

    @property
    def tokens(self) -> MediaTokens:
        """The tokens that stand for media. UnsupportedModel for a model that has none."""
        thinker = self._resident.part("thinker")
        known = MediaTokens.from_gguf(thinker.metadata, self._tokenizer)
        if known is None:
            raise UnsupportedModel(
                f"{thinker.path.name} is a model of text alone: for pictures, sound and video use Qwen3-Omni"
            )
        return known

    def _check(self, tower: str) -> None:
        assert self.tokens
        file = self._resident.part("mmproj")
        if not file.metadata.get(f"clip.has_{tower}_encoder"):
            raise UnsupportedModel(
                f"{file.path.name} has no {tower} tower; convert the whole model with `qwen3omni quantize`"
            )

    # Placing --------------------------------------------------------------------------------------------------------

    def prompt(self, ids: Sequence[int], media: Sequence[Medium]) -> tuple[Prompt, Expanded]:
        """Ids with one pad token a medium -> the prompt, still without rows, and where the media stand in it."""
        expanded = expand(ids, [medium.part for medium in media], self.tokens)
        keys: list[Hashable] = list(expanded.ids)
        for medium, place in zip(media, expanded.places, strict=True):
            for which, at in (("visual", place.visual), ("audio", place.audio)):
                for i, token in enumerate(() if at is None else at.tolist()):
                    keys[token] = (medium.digest, medium.part, which, i)
        return Prompt(expanded.ids, expanded.positions, keys), expanded

    # Encoding -------------------------------------------------------------------------------------------------------

    def encode(
        self, prompt: Prompt, expanded: Expanded, media: Sequence[Medium], cached: int
    ) -> Generator[Progress, None, Prompt]:
        """The prompt with rows for every medium that is not wholly among its first `cached` tokens."""
        rows: list[MediaRows] = []
        for medium, place in zip(media, expanded.places, strict=True):
            for which, at in (("visual", place.visual), ("audio", place.audio)):
                if at is not None and at[-1] >= cached:
                    values, deepstack = yield from self._rows(medium, which)
                    rows.append(MediaRows(at, values, deepstack))
            medium.data = None  # pixels and samples are large, and their file is still there
        self._shrink()
        return prompt.with_media(rows)

    def _rows(self, medium: Medium, which: str) -> Generator[Progress, None, Encoded]:
        key = (medium.digest, which)
        if key not in self._encoded:
            data = medium.data = medium.data or self._load(medium.given)
            if which == "visual":
                assert isinstance(data, Picture | Video)
                self._encoded[key] = yield from self.see(data)
            else:
                clip = data.audio if isinstance(data, Video) else data
                assert isinstance(clip, AudioClip)
                self._encoded[key] = ((yield from self.hear(clip)), None)
        self._encoded.move_to_end(key)
        return self._encoded[key]

    def hear(self, clip: AudioClip) -> Generator[Progress, None, np.ndarray]:
        """A sound through the audio tower: float32 [M, D]."""
        encoder = self._resident.audio()
        return (yield from _reported("audio", encoder.encode_steps(mel_spectrogram(clip.samples, self.front))))

    def see(self, seen: Picture | Video) -> Generator[Progress, None, tuple[np.ndarray, np.ndarray]]:
        """A picture or video through the vision tower: float32 [M, D], deepstack [TAPS, M, D]."""
        return (yield from _reported("vision", self._resident.vision().encode_steps(seen.grid, seen.patches)))

    def _shrink(self) -> None:
        """Forget the media that were not used for longest; those of the last prompt stay in any case."""
        size = sum(_nbytes(encoded) for encoded in self._encoded.values())
        while size > KEPT_BYTES and len(self._encoded) > 1:
            size -= _nbytes(self._encoded.popitem(last=False)[1])


def _reported(phase: Any, steps: Steps[T]) -> Generator[Progress, None, T]:
    while True:
        try:
            done, total = next(steps)
        except StopIteration as stop:
            return stop.value
        yield Progress(phase, done, total)


def _identity(given: Given) -> Hashable | None:
    """What a local file was when it was read; None for other sources."""
    if not isinstance(given.source, str | os.PathLike):
        return None
    if not all(isinstance(value, bool | int | float | None) for _, value in given.options):
        return None  # a sound track of its own
    path = Path(given.source)
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None  # an address, or no file: reading it says what is wrong
    return (given.kind, given.options, str(path.resolve()), status.st_size, status.st_mtime_ns)


def _size(data: AudioClip | Picture | Video) -> str:
    if isinstance(data, AudioClip):
        return f"{data.seconds:.1f} s"
    if isinstance(data, Picture):
        return f"{data.pixels.shape[1]}x{data.pixels.shape[0]}"
    count, height, width, _ = data.frames.shape
    return f"{count} frames of {width}x{height}{' with sound' if data.audio is not None else ''}"


def _nbytes(encoded: Encoded) -> int:
    return sum(array.nbytes for array in encoded if array is not None)
