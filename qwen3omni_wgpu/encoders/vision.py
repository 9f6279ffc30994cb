"""Pictures and videos of any size to rows for the text model, chunk by chunk of their patches."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ..errors import InvalidRequest, OutOfDeviceMemory
from ..gpu import Plan, ReadBack, Tensor
from ..models.vision import Rows, VisionModel, block, deepstack, embed, merger, places, prepare
from ..ops.attention_windows import QUERIES, most_window_keys, window_tiles
from ..runner import Runner
from ..steps import Steps, finish

Grid = tuple[int, int, int]
Patches = Callable[[int, int], np.ndarray]
Progress = Callable[[int, int], None]

# Patches that a plan is recorded for; a chunk runs in the smallest that holds it, and its empty rows are skipped.
CHUNKS = (64, 256)
CHUNKS_GPU = (256, 1024)
# Steps in time that go through together where they are small.
MOST_STEPS = 16
# Buffers of a picture's patches come in sizes of so many, so that a slightly larger one needs no new ones.
ROUND = 1024


@dataclass
class _Plans:
    """What is recorded for chunks of one size: slices of two plans, which share their scratch memory."""

    size: int
    embed: Plan
    prepare: list[Plan]
    block: list[Plan]
    results: list[Plan]  # of each tap, then the tower's own
    read: ReadBack
    recorded: tuple[Plan, Plan]

    def free(self) -> None:
        self.read.free()
        for plan in self.recorded:
            plan.free()


class VisionEncoder:
    """A vision tower, ready to run: plans are recorded at first use and replayed for every picture.

    Each block takes two passes over the chunks of a picture: keys and values of all patches, then attention and MLP.
    """

    def __init__(self, model: VisionModel, runner: Runner) -> None:
        self.model = model
        self.runner = runner
        c, device = model.config, model.device
        self._chunks = CHUNKS if device.info.software else CHUNKS_GPU
        # Whole rows of merged patches in every chunk.
        self._chunks = tuple(-(-size // c.unit) * c.unit for size in self._chunks)
        most = self._chunks[-1]
        self._state = Tensor.empty(device, (2,), "u32", "state of patches")
        self._merged = Tensor.empty(device, (2,), "u32", "state of rows")
        self._patches = Tensor.empty(device, (most, c.patch_dim), "f32", "patches")
        self._positions = Tensor.empty(device, (most, 3), "f32", "patches' positions")
        self._ids = Tensor.empty(device, (most, 4), "u32", "neighbours")
        self._weights = Tensor.empty(device, (most, 4), "f32", "neighbours' weights")
        self._tiles = Tensor.empty(device, (_tiles(most), 4), "u32", "windows")
        self._out = Tensor.empty(device, (most // c.unit, c.output_dim), "f32", "vision rows")
        self._rows: Rows | None = None
        self._plans: dict[int, _Plans] = {}

    def n_tokens(self, grid: Grid) -> int:
        """Rows that a grid of (time, height, width) in patches becomes."""
        return grid[0] * grid[1] * grid[2] // self.model.config.unit

    def encode(self, grid: Grid, patches: Patches, progress: Progress | None = None) -> tuple[np.ndarray, np.ndarray]:
        """A picture or video -> (float32 [M, O], deepstack float32 [TAPS, M, O]) with M = n_tokens(grid).

        grid: (time, height, width) in patches; patches(start, stop) -> float32 [stop - start, P]: those patches' values
        in the order of merged squares; progress(done, total) after every chunk of a block.
        Raises InvalidRequest (grid or patches of another shape), OutOfDeviceMemory (too large a picture).
        """
        return finish(self.encode_steps(grid, patches), progress)

    def encode_steps(self, grid: Grid, patches: Patches) -> Steps[tuple[np.ndarray, np.ndarray]]:
        """`encode` as a generator of (done, total)."""
        c = self.model.config
        t, height, width = self._check(grid)
        where, area = places(c, height, width), height * width
        group = max(1, min(MOST_STEPS, t, self._chunks[-1] // area))  # steps in time that go together
        plans = self._recorded(group * area)
        out = np.empty((len(c.taps) + 1, self.n_tokens(grid), c.output_dim), np.float32)
        total = sum(-(-min(group, t - first) * area // plans.size) for first in range(0, t, group)) * c.n_layers
        done = 0
        for first in range(0, t, group):
            count = min(group, t - first) * area
            rows = out[:, first * area // c.unit :][:, : count // c.unit]
            for _ in _Group(self, plans, where, area, first * area, count).run(patches, rows):
                done += 1
                yield done, total
        return out[-1], out[:-1]

    def _check(self, grid: Grid) -> Grid:
        m = self.model.config.merge
        if len(grid) != 3 or min(grid) < 1 or grid[1] % m or grid[2] % m:
            shape = " x ".join(map(str, grid))
            raise InvalidRequest(f"a grid of {shape} patches is not possible: give sides that are multiples of {m}")
        return grid

    # One chunk of patches -------------------------------------------------------------------------------------------

    def place(self, start: int, stop: int) -> None:
        """Which rows the next plans work on."""
        unit = self.model.config.unit
        self._state.write(np.array([start, stop - start], np.uint32))
        self._merged.write(np.array([start // unit, (stop - start) // unit], np.uint32))

    def embed(self, plans: _Plans, values: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> None:
        """Patches with their neighbours in the position table, both of the placed rows."""
        shape = (len(ids), self.model.config.patch_dim)
        if values.shape != shape or values.dtype != np.float32:
            raise InvalidRequest(f"patches are {values.dtype} {list(values.shape)}, expected float32 {list(shape)}")
        for tensor, array in ((self._patches, values), (self._ids, ids), (self._weights, weights)):
            tensor.write(array)
        self.runner.run(plans.embed)

    def prepare(self, plans: _Plans, i: int, positions: np.ndarray) -> None:
        """First pass of block i over the placed rows."""
        self._positions.write(positions)
        self.runner.run(plans.prepare[i])

    def block(self, plans: _Plans, i: int, spans: list[tuple[int, int, int, int]]) -> None:
        """Second pass of block i over the placed rows; spans as of window_tiles."""
        self._tiles.write(window_tiles(spans, self._tiles.shape[0]))
        self.runner.run(plans.block[i])

    def result(self, plans: _Plans, k: int) -> np.ndarray:
        """Result k of the placed rows, followed by rows that mean nothing. Waits."""
        return self.runner.start([plans.results[k]], plans.read).result()[0]

    # Recording ------------------------------------------------------------------------------------------------------

    def _recorded(self, count: int) -> _Plans:
        """Plans for pictures of `count` patches, and buffers that hold them."""
        if self._rows is None or self._rows.x.shape[0] < count:
            self._release()
            self._rows = self._room(count)
        size = next((size for size in self._chunks if size >= count), self._chunks[-1])
        if size not in self._plans:
            self._plans[size] = self._record(size, self._rows)
        return self._plans[size]

    def _room(self, count: int) -> Rows:
        c, device = self.model.config, self.model.device
        most = min(device.max_binding // (4 * c.dim), most_window_keys(device, c.head_dim)) // c.unit * c.unit
        if count > most:
            raise OutOfDeviceMemory(
                f"a picture of {count:,} patches is too large for {device.info.name}, which takes {most:,}: "
                f"give one of at most {most * c.patch**2 / 1e6:.1f} million pixels",
                needed=16 * count * c.dim,
            )
        return Rows.empty(device, min(most, -(-count // ROUND) * ROUND), c.dim)

    def _record(self, size: int, rows: Rows) -> _Plans:
        c, model = self.model.config, self.model
        plan, ends = Plan(model.device, f"vision {size}", self._state), [0]
        tiles = self._tiles.first(_tiles(size))
        neighbours = (self._ids.first(size), self._weights.first(size))
        embed(plan, model, self._patches.first(size), *neighbours, rows)
        ends.append(len(plan.steps))
        for i in range(c.n_layers):
            plan.scope = f"v.blk.{i}."
            prepare(plan, model, i, self._positions.first(size), rows)
            ends.append(len(plan.steps))
            block(plan, model, i, size, tiles, rows)
            ends.append(len(plan.steps))
        merged, merged_ends = Plan(model.device, f"vision rows {size}", self._merged), [0]
        out = self._out.first(size // c.unit)
        for i in c.taps:
            merged.scope = f"v.deepstack.{i}."
            deepstack(merged, model, i, rows, out)
            merged_ends.append(len(merged.steps))
        merged.scope = "mm."
        merger(merged, model, rows, out)
        merged_ends.append(len(merged.steps))
        first, *passes = _slices(plan.finish(), ends)
        results = _slices(merged.finish(), merged_ends)
        read = ReadBack(model.device, [out])
        return _Plans(size, first, passes[::2], passes[1::2], results, read, (plan, merged))

    def _release(self) -> None:
        for plans in self._plans.values():
            plans.free()
        self._plans.clear()
        if self._rows is not None:
            self._rows.free()
            self._rows = None

    def free(self) -> None:
        """Release all but the model."""
        self._release()
        inputs = (self._patches, self._ids, self._weights, self._positions, self._tiles)
        for tensor in (self._state, self._merged, *inputs, self._out):
            tensor.free()


@dataclass
class _Group:
    """Steps in time that go through together: `count` patches from number `first` of a grid with `area` a step."""

    encoder: VisionEncoder
    plans: _Plans
    where: tuple[np.ndarray, np.ndarray, np.ndarray]
    area: int
    first: int
    count: int

    def run(self, patches: Patches, out: np.ndarray) -> Generator[None, None, None]:
        """Fill out [TAPS + 1, count / 4, O]; yields after every chunk of a block."""
        encoder, plans = self.encoder, self.plans
        positions, ids, weights = self.where
        c, device = encoder.model.config, encoder.model.device
        chunks = [(start, min(self.count, start + plans.size)) for start in range(0, self.count, plans.size)]
        for start, stop in chunks:
            at = np.arange(start, stop) % self.area
            encoder.place(start, stop)
            encoder.embed(plans, patches(self.first + start, self.first + stop), ids[at], weights[at])
        for i in range(c.n_layers):
            for start, stop in chunks:
                encoder.place(start, stop)
                encoder.prepare(plans, i, positions[np.arange(start, stop) % self.area])
            for start, stop in chunks:
                encoder.place(start, stop)
                encoder.block(plans, i, self._spans(start, stop))
                for k in self._results(i):
                    rows = out[k, start // c.unit : stop // c.unit]
                    rows[:] = encoder.result(plans, k)[: len(rows)]
                device.wait()  # so that the progress is true, and the queue short
                yield

    def _results(self, i: int) -> list[int]:
        """Numbers of the results that are read after block i: of its tap, and at the end the tower's own."""
        c = self.encoder.model.config
        return [k for k, tap in enumerate((*c.taps, c.n_layers - 1)) if tap == i]

    def _spans(self, start: int, stop: int) -> list[tuple[int, int, int, int]]:
        """Rows of the chunk, counted from its start, and the keys they see: those of their own step in time."""
        edges = range(start // self.area * self.area, stop, self.area)
        return [(max(at, start) - start, min(at + self.area, stop) - start, at, at + self.area) for at in edges]


def _tiles(size: int) -> int:
    """Most tiles of a chunk: each step in time may end in one that is not full."""
    return -(-size // QUERIES) + MOST_STEPS


def _slices(plan: Plan, ends: list[int]) -> list[Plan]:
    """Parts of a finished plan that run by themselves."""
    return [Plan(plan.device, plan.name, plan.state, steps=plan.steps[start:stop]) for start, stop in pairwise(ends)]
