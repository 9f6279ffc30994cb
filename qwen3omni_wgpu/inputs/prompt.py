"""A prompt as the engine takes it: token ids, their positions, and the rows of media that replace embeddings."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np


@dataclass(frozen=True, eq=False)
class MediaRows:
    """What a tower made of one picture, sound or video, and the tokens it stands for.

    at: int64 [M], indices of the prompt's tokens, rising. rows: float32 [M, D], their embeddings. deepstack: float32
    [TAPS, M, D], added to the hidden states after the first TAPS layers, or None.
    """

    at: np.ndarray
    rows: np.ndarray
    deepstack: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Step:
    """One chunk of a prompt. rows: float32 [N, D], of use where flags [N] is 1; deepstack: [TAPS, N, D]; or None."""

    ids: list[int]
    keys: list[Hashable]
    positions: np.ndarray
    rows: np.ndarray | None = None
    flags: np.ndarray | None = None
    deepstack: np.ndarray | None = None


@dataclass(frozen=True, eq=False)
class Prompt:
    """N tokens. positions: float32 [N, 3] (t, h, w).

    keys: what each token is, for finding the beginning that a KV cache already holds: the id of a text token, and for
    one of a medium something that its content decides, since all pictures have the same placeholder.
    """

    ids: list[int]
    positions: np.ndarray
    keys: list[Hashable]
    media: tuple[MediaRows, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.ids)

    @classmethod
    def text(cls, ids: Sequence[int], start: np.ndarray | float = 0.0) -> Prompt:
        """Text alone; `start`: the first token's position, float32 [3] or one number for all axes."""
        steps = np.arange(len(ids), dtype=np.float32)[:, None]
        positions = np.broadcast_to(np.asarray(start, np.float32), (3,)) + steps
        return cls(list(ids), positions, list(ids))

    def with_media(self, media: Sequence[MediaRows]) -> Prompt:
        return replace(self, media=tuple(media))

    def step(self, start: int, stop: int) -> Step:
        """Tokens start to stop, with what media they have."""
        part = slice(start, stop)
        step = Step(self.ids[part], self.keys[part], self.positions[part])
        cuts = [(medium, *np.searchsorted(medium.at, (start, stop))) for medium in self.media]
        if not any(low < high for _, low, high in cuts):
            return step
        n, dim = len(step.ids), self.media[0].rows.shape[1]
        rows, flags = np.zeros((n, dim), np.float32), np.zeros(n, np.uint32)
        maps = [medium.deepstack for medium, low, high in cuts if low < high and medium.deepstack is not None]
        taps = max(map(len, maps), default=0)
        deepstack = np.zeros((taps, n, dim), np.float32) if taps else None
        for medium, low, high in cuts:
            places = medium.at[low:high] - start
            rows[places], flags[places] = medium.rows[low:high], 1
            if deepstack is not None and medium.deepstack is not None:
                deepstack[:, places] = medium.deepstack[:, low:high]
        return replace(step, rows=rows, flags=flags, deepstack=deepstack)
