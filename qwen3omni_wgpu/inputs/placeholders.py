"""Where sound, pictures and video stand in a prompt, and the position of every token.

The chat template writes one pad token for each medium. Here it becomes as many as the medium has embeddings, and all
tokens get their positions (time, height, width), as transformers' processor and get_rope_index do for Qwen3-Omni.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]
Grid = tuple[int, int, int]

_TEXTS = {
    "audio": "<|audio_pad|>",
    "image": "<|image_pad|>",
    "video": "<|video_pad|>",
    "vision_start": "<|vision_start|>",
    "vision_end": "<|vision_end|>",
    "audio_start": "<|audio_start|>",
    "audio_end": "<|audio_end|>",
}
_KEYS = {name: f"qwen3omni.{name}_token_id" for name in _TEXTS}
_PER_SECOND = "qwen3omni.position_id_per_seconds"


@dataclass(frozen=True)
class MediaTokens:
    """Ids of the pad tokens (audio, image, video) and of what stands around them.

    position_id_per_seconds: positions along the time axis that a second of video takes. merge: side, in patches, of the
    square that becomes one token.
    """

    audio: int
    image: int
    video: int
    vision_start: int
    vision_end: int
    audio_start: int
    audio_end: int
    position_id_per_seconds: float = 13.0
    merge: int = 2

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any], tokenizer: Tokenizer, merge: int = 2) -> "MediaTokens | None":
        """From the thinker's `qwen3omni.*`; None when it has no such keys: a model of text alone.

        An id that is not there is looked up in the vocabulary. InvalidModelFile when it is not there either, or when a
        value cannot be right.
        """
        if not any(key in metadata for key in _KEYS.values()):
            return None
        ids = {name: _token(metadata, tokenizer, name) for name in _TEXTS}
        if len(set(ids.values())) < len(ids):
            raise InvalidModelFile(f"the tokens around media must differ, but the file says {ids}")
        scale = metadata.get(_PER_SECOND)
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < 1e6:
            raise InvalidModelFile(f"{_PER_SECOND} is {scale!r}, expected a positive number; convert the model again")
        return cls(**ids, position_id_per_seconds=float(scale), merge=merge)


def _token(metadata: Mapping[str, Any], tokenizer: Tokenizer, name: str) -> int:
    found = metadata.get(_KEYS[name], tokenizer.token_id(_TEXTS[name]))
    if found is None:
        raise InvalidModelFile(f"the file has no {_KEYS[name]} and no token {_TEXTS[name]}; convert the model again")
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < tokenizer.vocab_size:
        raise InvalidModelFile(f"{_KEYS[name]} is {found!r}, expected an id below {tokenizer.vocab_size}")
    return found


# Parts -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AudioPart:
    """Sound that the audio tower turns into n_tokens embeddings (see AudioConfig.n_tokens)."""

    n_tokens: int


@dataclass(frozen=True)
class ImagePart:
    """A picture; grid counts its patches as (1, rows, columns)."""

    grid: Grid


@dataclass(frozen=True)
class VideoPart:
    """Frames; grid counts patches as (time steps, rows, columns). audio_tokens: of its sound track, None = silent."""

    grid: Grid
    seconds_per_grid: float
    audio_tokens: int | None = None


Part = AudioPart | ImagePart | VideoPart
_NAMES: dict[type, str] = {AudioPart: "audio", ImagePart: "image", VideoPart: "video"}


@dataclass(frozen=True, eq=False)
class Place:
    """Indices of the tokens whose embeddings a part gives, rising: those of a tower's rows in their own order."""

    visual: Ints | None
    audio: Ints | None


@dataclass(frozen=True, eq=False)
class Expanded:
    """N token ids, their positions float32 [N, 3] along time, height and width, and one place for each part."""

    ids: list[int]
    positions: Floats
    places: list[Place]


def image_tokens(grid: Grid, merge: int = 2) -> int:
    """Embeddings that the vision tower makes of a grid of patches (time steps, rows, columns).

    InvalidRequest when rows or columns are not whole multiples of `merge`, or something is not positive.
    """
    steps, rows, columns = grid
    if min(grid) < 1 or rows % merge or columns % merge:
        raise InvalidRequest(f"a grid of {steps} x {rows} x {columns} patches cannot be merged {merge} by {merge}")
    return steps * (rows // merge) * (columns // merge)


# Expansion -------------------------------------------------------------------------------------------------------


def expand(ids: Sequence[int], parts: Sequence[Part], tokens: MediaTokens) -> Expanded:
    """Put each part in place of its pad token, in the order in which they stand in the prompt.

    A video with sound becomes <|audio_start|>, pads of both kinds in the order of their times, <|audio_end|>.
    InvalidRequest when the pad tokens of the prompt are not those of the parts, one each and in this order.
    """
    given = np.asarray(ids, dtype=np.int64)
    walk, done = _Walk(), 0
    places: list[Place] = []
    for part in parts:
        _check(part)
    for part, pad in zip(parts, _pads(given, parts, tokens), strict=True):
        walk.text(given[done : pad - 1])
        start, end = given[pad - 1 : pad], given[pad + 1 : pad + 2]
        sound = isinstance(part, VideoPart) and part.audio_tokens is not None
        walk.text(np.append(start, tokens.audio_start) if sound else start)
        places.append(_place(walk, part, tokens))
        walk.text(np.insert(end, 0, tokens.audio_end) if sound else end)
        done = pad + 2
    walk.text(given[done:])
    return Expanded(np.concatenate(walk.ids).tolist(), np.concatenate(walk.positions), places)


def _pads(ids: Ints, parts: Sequence[Part], tokens: MediaTokens) -> list[int]:
    """The index of each part's pad token."""
    names = {tokens.audio: "audio", tokens.image: "image", tokens.video: "video"}
    pads = np.flatnonzero(np.isin(ids, list(names))).tolist()
    found, wanted = [names[int(ids[pad])] for pad in pads], [_NAMES[type(part)] for part in parts]
    for name in names.values():
        there, needed = found.count(name), wanted.count(name)
        if there > needed:
            raise InvalidRequest(
                f"the prompt has {there} times {_TEXTS[name]}, but {needed} {name} parts were given; "
                "this token must not be written in a text"
            )
        if there < needed:
            raise InvalidRequest(
                f"the model's chat template has no place for {name}: it wrote {_TEXTS[name]} {there} times "
                f"for {needed} parts"
            )
    if found != wanted:
        raise InvalidRequest(f"the prompt has its media in the order {found}, but they were given as {wanted}")
    for pad, name in zip(pads, found, strict=True):
        kind = "audio" if name == "audio" else "vision"
        around = ids[max(pad - 1, 0) : pad + 2].tolist()
        if around[::2] != [getattr(tokens, f"{kind}_start"), getattr(tokens, f"{kind}_end")]:
            raise InvalidRequest(
                f"the prompt has {_TEXTS[name]} outside {_TEXTS[f'{kind}_start']} and {_TEXTS[f'{kind}_end']}; "
                "these tokens must not be written in a text"
            )
    return pads


def _check(part: Part) -> None:
    sound = part.n_tokens if isinstance(part, AudioPart) else part.audio_tokens if isinstance(part, VideoPart) else None
    if sound is not None and sound < 1:
        raise InvalidRequest(f"sound of {sound} tokens cannot stand in a prompt; it needs one at least")
    if isinstance(part, VideoPart) and not 0 < part.seconds_per_grid < np.inf:
        raise InvalidRequest(f"a video's time steps cannot be {part.seconds_per_grid} seconds apart")


class _Walk:
    """Tokens and positions so far; `next` is the free position. float32 throughout, rounded where the reference does.

    Positions become fractional after a video whose time steps are no whole number of positions apart.
    """

    def __init__(self) -> None:
        self.ids: list[Ints] = []
        self.positions: list[Floats] = []
        self.count = 0
        self.next = np.float32(0)

    def text(self, ids: Ints) -> None:
        """Tokens one position apart, the same along all axes."""
        line = np.arange(len(ids), dtype=np.float32) + self.next
        self._add(ids, _same(line))
        self.next += np.float32(len(ids))

    def media(self, ids: Ints, positions: Floats) -> None:
        """Tokens with positions of their own; those after them go on from the last one's largest coordinate."""
        self._add(ids, positions)
        self.next = positions[-1].max() + np.float32(1)

    def _add(self, ids: Ints, positions: Floats) -> None:
        self.ids.append(ids)
        self.positions.append(positions)
        self.count += len(ids)


def _place(walk: _Walk, part: Part, tokens: MediaTokens) -> Place:
    """Write one part's pad tokens."""
    first = walk.count
    if isinstance(part, AudioPart):
        walk.media(_filled(part.n_tokens, tokens.audio), _sound(part.n_tokens, walk.next))
        return Place(None, np.arange(first, walk.count))
    pad, seconds = (tokens.image, 1.0) if isinstance(part, ImagePart) else (tokens.video, part.seconds_per_grid)
    visual = _sights(part.grid, seconds, tokens) + walk.next
    ids = _filled(len(visual), pad)
    if isinstance(part, ImagePart) or part.audio_tokens is None:
        walk.media(ids, visual)
        return Place(np.arange(first, walk.count), None)
    # By time, and the video's first where both have the same: the sort is stable.
    both = np.concatenate([visual, _sound(part.audio_tokens, walk.next)])
    order = np.argsort(both[:, 0], kind="stable")
    seen = order < len(visual)
    walk.media(np.where(seen, tokens.video, tokens.audio), both[order])
    return Place(first + np.flatnonzero(seen), first + np.flatnonzero(~seen))


def _sound(n_tokens: int, start: np.float32) -> Floats:
    """Positions of sound: a token is one position long."""
    return _same(np.arange(n_tokens, dtype=np.float32) + start)


def _sights(grid: Grid, seconds_per_grid: float, tokens: MediaTokens) -> Floats:
    """Positions float32 [T * H * W, 3] of merged patches, counted from 0."""
    image_tokens(grid, tokens.merge)
    steps, rows, columns = grid[0], grid[1] // tokens.merge, grid[2] // tokens.merge
    times = np.arange(steps, dtype=np.float32) * np.float32(seconds_per_grid)
    axes = np.empty((steps, rows, columns, 3), np.float32)
    axes[..., 0] = (times * np.float32(tokens.position_id_per_seconds))[:, None, None]
    axes[..., 1] = np.arange(rows)[:, None]
    axes[..., 2] = np.arange(columns)
    return axes.reshape(-1, 3)


def _same(line: Floats) -> Floats:
    return np.repeat(line[:, None], 3, axis=1)


def _filled(count: int, token: int) -> Ints:
    return np.full(count, token, np.int64)
