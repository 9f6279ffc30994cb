"""Timestamps around every dispatch: a table by op, and a Chrome trace (chrome://tracing, Perfetto)."""

from __future__ import annotations

import contextlib
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native.extras import write_timestamp

from ..errors import InvalidRequest, UnsupportedDevice
from .device import Device
from .plan import Plan, Step, encode_steps

NEEDED = ("timestamp-query", "timestamp-query-inside-passes")
# WebGPU allows 4096 queries a set, two a step.
STEPS_PER_SET = 2048


@dataclass(frozen=True)
class Slice:
    """One dispatch on the GPU, times in nanoseconds on the host's clock."""

    label: str
    kernel: str
    start: float
    duration: float
    nbytes: int
    flops: int


@dataclass(frozen=True)
class HostSlice:
    name: str
    start: float
    duration: float


class Profiler:
    """Runs plans with a timestamp before and after each dispatch and keeps the slices."""

    def __init__(self, device: Device):
        missing = [name for name in NEEDED if name not in device.features]
        if missing:
            raise UnsupportedDevice(f"{device.info.name} cannot time single dispatches (no {', '.join(missing)})")
        self.device = device
        self.slices: list[Slice] = []
        self.host: list[HostSlice] = []
        usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
        self._queries = device.handle.create_query_set(type="timestamp", count=2 * STEPS_PER_SET)
        self._resolved = device.create_buffer(16 * STEPS_PER_SET, "timestamps", usage=usage)

    @contextlib.contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Record what the host does meanwhile."""
        start = time.perf_counter_ns()
        try:
            yield
        finally:
            self.host.append(HostSlice(name, start, time.perf_counter_ns() - start))

    def run(self, plan: Plan) -> None:
        """Run a plan and wait for it."""
        for steps in plan.submits():
            for first in range(0, len(steps), STEPS_PER_SET):
                self._run(steps[first : first + STEPS_PER_SET], plan.name)

    def _run(self, steps: list[Step], name: str) -> None:
        encoder = self.device.handle.create_command_encoder(label=name)
        compute = encoder.begin_compute_pass()
        for i, step in enumerate(steps):
            write_timestamp(compute, self._queries, 2 * i)
            encode_steps(compute._internal, [step])
            write_timestamp(compute, self._queries, 2 * i + 1)
        compute.end()
        encoder.resolve_query_set(self._queries, 0, 2 * len(steps), self._resolved, 0)
        submitted = time.perf_counter_ns()
        self.device.submit([encoder.finish()])
        raw = self.device.read_buffer(self._resolved, 16 * len(steps))
        # wgpu converts ticks to nanoseconds by the queue's period, but counts from an origin of its own.
        ticks = np.frombuffer(raw, np.uint64).reshape(-1, 2).astype(np.float64)
        origin = ticks[0, 0] - submitted
        for step, (start, end) in zip(steps, ticks, strict=True):
            self.slices.append(
                Slice(step.label, step.kernel.label, start - origin, max(0.0, end - start), step.nbytes, step.flops)
            )

    def free(self) -> None:
        """Release the timestamps' memory; the slices stay."""
        self.device.free_buffer(self._resolved)
        self._queries.destroy()

    def table(self) -> list[dict[str, Any]]:
        """One row an op, slowest first: op, count, ms, percent, gbps, gflops."""
        groups: dict[str, list[Slice]] = defaultdict(list)
        for item in self.slices:
            groups[item.label.split(" ")[0].split(".")[-1]].append(item)
        total = sum(item.duration for item in self.slices) or 1.0
        rows = []
        for op, items in groups.items():
            spent = sum(item.duration for item in items) or 1.0
            rows.append(
                {
                    "op": op,
                    "count": len(items),
                    "ms": spent / 1e6,
                    "percent": 100 * spent / total,
                    "gbps": sum(item.nbytes for item in items) / spent,
                    "gflops": sum(item.flops for item in items) / spent,
                }
            )
        return sorted(rows, key=lambda row: -row["ms"])

    def chrome_trace(self) -> dict[str, Any]:
        """The trace as a JSON document: a host track, and a GPU track with one slice a dispatch."""
        events: list[dict[str, Any]] = [
            {"ph": "M", "pid": 1, "tid": tid, "name": "thread_name", "args": {"name": name}}
            for tid, name in ((1, "host"), (2, f"GPU: {self.device.info.name}"))
        ]
        origin = min((item.start for item in (*self.slices, *self.host)), default=0.0)
        for item in self.host:
            events.append(_event(1, item.name, item.start - origin, item.duration, {}))
        for item in self.slices:
            seconds = max(item.duration, 1.0)
            args = {"kernel": item.kernel, "bytes": item.nbytes, "flops": item.flops}
            args |= {"GB/s": round(item.nbytes / seconds, 2), "GFLOP/s": round(item.flops / seconds, 2)}
            events.append(_event(2, item.label, item.start - origin, item.duration, args))
        return {"traceEvents": events, "displayTimeUnit": "ms"}

    def write(self, path: str | Path) -> None:
        """Write the Chrome trace. InvalidRequest when the file cannot be written."""
        try:
            Path(path).write_text(json.dumps(self.chrome_trace()), encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"the trace cannot be written to {str(path)!r}: {error.strerror}") from error


def _event(track: int, name: str, start: float, duration: float, args: dict[str, Any]) -> dict[str, Any]:
    """A complete event; Chrome traces count in microseconds."""
    return {"ph": "X", "pid": 1, "tid": track, "name": name, "ts": start / 1e3, "dur": duration / 1e3, "args": args}
