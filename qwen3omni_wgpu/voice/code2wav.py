"""Codec frames to samples: as a stream that continues from chunk to chunk, or all at once."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .. import ops
from ..errors import InvalidRequest
from ..gpu import Pending, Plan, ReadBack, Tensor
from ..models.code2wav import Code2WavModel, Memory, forward
from ..runner import Runner
from ..steps import Steps, finish

Progress = Callable[[int, int], None]

MODES = ("gapless", "reference")
# Frames of the recorded plans. A frame costs 5 GFLOP, so that 16 stay below what a driver's watchdog allows a submit.
FRAMES = (4, 16)
FRAMES_SOFTWARE = (8,)
# Frames whose keys fit beside those of a window; then the window moves back to the start.
ROOM = 256
# Frames after which nothing of a stream's start is left: the kernels need not count further.
LONG = 1 << 16


class Vocoder:
    """Code2Wav, ready to run: plans are recorded at first use and replayed for every chunk.

    A stream is `push` after `push`; `reset` begins another. Its samples are those of one long decode: exactly where all
    chunks take the same plan, else to rounding errors (1e-5).
    """

    def __init__(self, model: Code2WavModel, runner: Runner) -> None:
        self.model = model
        self.runner = runner
        c, device = model.config, model.device
        self._sizes = FRAMES_SOFTWARE if device.info.software else FRAMES
        most = self._sizes[-1]
        self._codes = Tensor.empty(device, (most, c.n_codebooks), "u32", "codes")
        self._positions = Tensor.empty(device, (most, 3), "f32", "positions of frames")
        self._state = Tensor.empty(device, (3,), "u32", "state of code2wav")
        self._samples = Tensor.empty(device, (most * c.samples_per_frame, 1), "f32", "samples")
        self._capacity = c.window - 1 + max(ROOM, most)
        self._memory = Memory.empty(device, c, self._capacity)
        self._plans: dict[int, tuple[Plan, ReadBack]] = {}  # by frames
        self._shift: Plan | None = None
        self._cached = 0  # frames whose keys and values are there
        self._done = 0  # frames of the stream

    @property
    def sampling_rate(self) -> int:
        """Samples a second."""
        return self.model.config.sampling_rate

    def dispatches(self, frames: int) -> int:
        """Of one chunk of so many frames."""
        return len(self._plan(self._size(frames))[0].steps)

    # Streams ------------------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """Begin a new stream."""
        self._cached = self._done = 0
        self._memory.clear()

    def push(self, codes: np.ndarray) -> np.ndarray:
        """Continue the stream: codes int [codebooks, n] -> float32 samples from -1 to 1.

        1920 n of them for the 30B; 555 less for the first frame of the stream. No later frame changes them.
        InvalidRequest for codes of another shape or outside the codebooks.
        """
        return finish(self.push_steps(codes))

    def push_steps(self, codes: np.ndarray) -> Steps[np.ndarray]:
        """`push` as a generator of (frames done, n). One that is given up in between leaves a stream to `reset`."""
        return (yield from self._push(self._ids(codes)))

    def _push(self, ids: np.ndarray) -> Steps[np.ndarray]:
        """ids uint32 [n, codebooks], each counted on from the codebook before."""
        n, most = len(ids), self._sizes[-1]
        parts: list[np.ndarray] = []
        pending: list[tuple[int, slice, Pending]] = []  # while one chunk is fetched, the GPU has the next to do

        def fetch() -> tuple[int, int]:
            stop, valid, samples = pending.pop(0)
            parts.append(samples.result()[0].reshape(-1)[valid])
            return stop, n

        try:
            for start in range(0, n, most):
                chunk = ids[start : start + most]
                pending.append((start + len(chunk), *self._submit(chunk)))
                if len(pending) > 1:
                    yield fetch()
            while pending:
                yield fetch()
        finally:  # after an error or an early end, too, buffers that are on their way must come back
            for *_, samples in pending:
                samples.result()
        return np.concatenate(parts) if parts else np.empty(0, np.float32)

    def _submit(self, ids: np.ndarray) -> tuple[slice, Pending]:
        """The next frames of the stream; which of the samples that come back are theirs."""
        c, n = self.model.config, len(ids)
        if self._cached + n > self._capacity:
            self._move_window()
        positions = np.repeat(np.arange(self._done, self._done + n, dtype=np.float32)[:, None], 3, axis=1)
        self._codes.write(ids)
        self._positions.write(positions)
        self._state.write(np.array([self._cached, n, min(self._done, LONG)], np.uint32))
        plan, read = self._plan(self._size(n))
        samples = self.runner.start([plan], read)
        late = max(0, c.lost_samples - self._done * c.samples_per_frame)
        self._cached += n
        self._done += n
        return slice(min(late, n * c.samples_per_frame), n * c.samples_per_frame), samples

    def _move_window(self) -> None:
        """The last keys and values to the start of their caches."""
        kept = max(1, self.model.config.window - 1)
        if self._shift is None:
            plan = Plan(self.model.device, "code2wav window", self._state)
            for cache in (*self._memory.keys, *self._memory.values):
                ops.shift_rows(plan, cache, kept)
            self._shift = plan.finish()
        self._state.write(np.array([self._cached, 1, 0], np.uint32))
        self.runner.run(self._shift)
        self._cached = kept

    def _size(self, frames: int) -> int:
        return next(size for size in self._sizes if size >= frames)

    def _plan(self, frames: int) -> tuple[Plan, ReadBack]:
        """A chunk of up to so many frames."""
        if frames not in self._plans:
            c, device = self.model.config, self.model.device
            plan = Plan(device, f"code2wav {frames}", self._state)
            samples = self._samples.first(frames * c.samples_per_frame)
            codes, positions = self._codes.first(frames), self._positions.first(frames)
            forward(plan, self.model, codes, positions, self._memory, samples)
            self._plans[frames] = plan.finish(), ReadBack(device, [samples])
        return self._plans[frames]

    # All at once ----------------------------------------------------------------------------------------------------

    def decode(self, codes: np.ndarray, mode: str = "gapless", progress: Progress | None = None) -> np.ndarray:
        """All of an utterance: codes int [codebooks, F] -> float32 samples from -1 to 1. It ends any stream.

        mode "gapless": samples_per_frame * F samples without the first `lost_samples` (30B: 1920 F - 555), what one
        decode of all frames would give. "reference": what transformers' chunked decode returns, which starts anew every
        300 frames after 25 of context and loses 555 samples at each such border, too.
        progress(frames done, frames in all). InvalidRequest for an unknown mode and as in `push`.
        """
        return finish(self.decode_steps(codes, mode), progress)

    def decode_steps(self, codes: np.ndarray, mode: str = "gapless") -> Steps[np.ndarray]:
        """`decode` as a generator of (frames done, frames in all)."""
        if mode not in MODES:
            raise InvalidRequest(f"there is no mode {mode!r} of Code2Wav; use {' or '.join(MODES)}")
        ids, c = self._ids(codes), self.model.config
        chunk = c.chunk if mode == "reference" else max(1, len(ids))
        parts, before = [np.empty(0, np.float32)], 0  # frames of contexts, which are decoded again
        total = sum(stop - first for first, _, stop in _chunks(len(ids), chunk, c.left_context))
        try:
            for first, start, stop in _chunks(len(ids), chunk, c.left_context):
                self.reset()
                steps = self._push(ids[first:stop])
                samples = yield from _counted(steps, before, total)
                parts.append(samples[(start - first) * c.samples_per_frame :])
                before += stop - first
        finally:
            self.reset()
        return np.concatenate(parts)

    def _ids(self, codes: np.ndarray) -> np.ndarray:
        """Checked, turned and counted on from codebook to codebook: uint32 [n, codebooks]."""
        c, codes = self.model.config, np.asarray(codes)
        if codes.ndim != 2 or codes.shape[0] != c.n_codebooks or codes.dtype.kind not in "iu":
            raise InvalidRequest(
                f"codes are {codes.dtype} {list(codes.shape)}, "
                f"but this model takes whole numbers [{c.n_codebooks}, frames]"
            )
        for extreme in (codes.min(), codes.max()) if codes.size else ():
            if not 0 <= extreme < c.codebook_size:
                raise InvalidRequest(f"code {extreme} is not in the codebook; codes are 0 to {c.codebook_size - 1}")
        return codes.T.astype(np.uint32) + np.arange(c.n_codebooks, dtype=np.uint32) * np.uint32(c.codebook_size)

    def free(self) -> None:
        """Release all but the model."""
        for plan, read in self._plans.values():
            plan.free()
            read.free()
        self._plans.clear()
        if self._shift:
            self._shift.free()
            self._shift = None
        self._memory.free()
        for tensor in (self._codes, self._positions, self._state, self._samples):
            tensor.free()


def _chunks(frames: int, chunk: int, context: int) -> list[tuple[int, int, int]]:
    """(first frame that is decoded, first that counts, end) of every chunk, as transformers cuts them."""
    starts = range(0, frames, chunk)
    return [(start - context if start > context else 0, start, min(start + chunk, frames)) for start in starts]


def _counted(steps: Steps, before: int, total: int) -> Steps[np.ndarray]:
    """The same steps as part of more."""
    while True:
        try:
            done, _ = next(steps)
        except StopIteration as stop:
            return stop.value
        yield before + done, total
