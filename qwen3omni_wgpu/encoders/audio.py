"""Log-mel features of any length to rows for the text model, a group of attention windows at a time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import ops
from ..errors import InvalidRequest
from ..gpu import Pending, Plan, ReadBack, Tensor
from ..models.audio import MOST_CHUNKS, AudioModel, column_bytes, layers, projector, stem
from ..ops.attention_windows import QUERIES, window_tiles
from ..runner import Runner
from ..steps import Steps, finish

Progress = Callable[[int, int], None]

# Tokens that go through the layers together, in whole windows: enough to fill a GPU. On a CPU more than one window
# gains nothing, and it is told sooner how far things are.
GROUP_TOKENS = 512
GROUP_TOKENS_SOFTWARE = 1
# No intermediate result of the convolutions is larger, unless that of a single chunk is.
STEM_BYTES = 64 << 20
_ALL = 1 << 20  # more rows than any plan here has


class AudioEncoder:
    """An audio tower, ready to run: plans are recorded at first use and replayed for every clip."""

    def __init__(self, model: AudioModel, runner: Runner) -> None:
        self.model = model
        self.runner = runner
        c, device = model.config, model.device
        most = GROUP_TOKENS_SOFTWARE if device.info.software else GROUP_TOKENS
        windows = max(1, most // c.window_tokens)
        self._chunks = windows * c.window_chunks  # of a group
        self._together = max(1, min(MOST_CHUNKS, self._chunks, STEM_BYTES // column_bytes(c)))
        rows, tiles = windows * c.window_tokens, windows * -(-c.window_tokens // QUERIES)
        self._mel = Tensor.empty(device, (self._together, c.chunk, c.n_mels), "f32", "mel")
        self._frames = Tensor.empty(device, (1,), "u32", "frames of a chunk")
        self._place = Tensor.empty(device, (2,), "u32", "state of the stem")
        self._state = Tensor.empty(device, (2,), "u32", "state of the layers")
        self._tiles = Tensor.empty(device, (tiles, 4), "u32", "windows")
        self._tokens = Tensor.empty(device, (rows, c.dim), "f32", "audio tokens")
        self._rows = Tensor.empty(device, (rows, c.output_dim), "f32", "audio rows")
        self._read = ReadBack(device, [self._rows])
        self._stems: dict[int, Plan] = {}  # by chunks
        self._layers: Plan | None = None

    def n_tokens(self, frames: int) -> int:
        """Rows that a clip of so many mel frames becomes."""
        return self.model.config.n_tokens(frames)

    def encode(self, mel: np.ndarray, progress: Progress | None = None) -> np.ndarray:
        """Log-mel features float32 [n_mels, T] of one clip, T at least 1 -> float32 [n_tokens(T), O].

        progress(mel frames done, T) after every group of windows. InvalidRequest for features of another shape.
        """
        return finish(self.encode_steps(mel), progress)

    def encode_steps(self, mel: np.ndarray) -> Steps[np.ndarray]:
        """`encode` as a generator of (mel frames done, T)."""
        c = self.model.config
        if mel.ndim != 2 or mel.shape[0] != c.n_mels or mel.shape[1] < 1 or mel.dtype != np.float32:
            raise InvalidRequest(
                f"mel features are {mel.dtype} {list(mel.shape)}, but this model takes float32 [{c.n_mels}, frames]"
            )
        frames, group = mel.shape[1], self._chunks * c.chunk
        # A clip shorter than a chunk ends where it ends; after a whole chunk the last one is filled up with zeros.
        self._frames.write(np.array([min(frames, c.chunk)], np.uint32))
        out = np.empty((self.n_tokens(frames), c.output_dim), np.float32)
        pending: list[tuple[int, Pending]] = []  # while one group is fetched, the GPU has the next to do

        def fetch() -> tuple[int, int]:
            start, rows = pending.pop(0)
            stop = min(frames, start + group)
            first, last = self.n_tokens(start), self.n_tokens(stop)
            out[first:last] = rows.result()[0][: last - first]
            return stop, frames

        try:
            for start in range(0, frames, group):
                pending.append((start, self._submit(mel[:, start : start + group])))
                if len(pending) > 1:
                    yield fetch()
            while pending:
                yield fetch()
        finally:  # after an error or an early end, too, buffers that are on their way must come back
            for _, rows in pending:
                rows.result()
        return out

    def _submit(self, mel: np.ndarray) -> Pending:
        """The frames of one group of windows through stem and layers."""
        c = self.model.config
        frames = mel.shape[1]
        chunks, first = -(-frames // c.chunk), 0
        while first < chunks:
            size = self._together if chunks - first >= self._together else 1
            piece = mel[:, first * c.chunk : (first + size) * c.chunk].T
            padded = np.zeros((size * c.chunk, c.n_mels), np.float32)
            padded[: len(piece)] = piece
            self._mel.write(padded)
            self._place.write(np.array([first * c.chunk_tokens, _ALL], np.uint32))
            self.runner.run(self._stem(size))
            first += size
        n, window = c.n_tokens(frames), c.window_tokens
        ends = [(start, min(n, start + window)) for start in range(0, n, window)]
        self._tiles.write(window_tiles([(*span, *span) for span in ends], self._tiles.shape[0]))
        self._state.write(np.array([0, n], np.uint32))
        return self.runner.start([self._through_layers()], self._read)

    def _stem(self, chunks: int) -> Plan:
        """Chunks to tokens, which go to the rows from `place` on."""
        if chunks not in self._stems:
            plan = Plan(self.model.device, f"audio stem {chunks}", self._place)
            x = stem(plan, self.model, self._mel.first(chunks), self._frames)
            ops.store_rows(plan, x, self._tokens)
            self._stems[chunks] = plan.finish()
        return self._stems[chunks]

    def _through_layers(self) -> Plan:
        if self._layers is None:
            plan = Plan(self.model.device, "audio layers", self._state)
            h = layers(plan, self.model, self._tokens, self._tiles)
            projector(plan, self.model, h, out=self._rows)
            self._layers = plan.finish()
        return self._layers

    def free(self) -> None:
        """Release all but the model."""
        for plan in (*self._stems.values(), *([self._layers] if self._layers else [])):
            plan.free()
        self._stems.clear()
        self._layers = None
        self._read.free()
        mine = (self._mel, self._frames, self._place, self._state, self._tiles, self._tokens, self._rows)
        for tensor in mine:
            tensor.free()
