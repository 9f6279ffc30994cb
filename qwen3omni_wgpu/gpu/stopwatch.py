"""How long a plan takes on the device when nothing of what it reads is in a cache."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native.extras import write_timestamp

from .device import Device
from .plan import Plan, encode_steps
from .profile import NEEDED

# Copied before every measurement: more than the last level caches of the GPUs in question hold, read and written.
EVICT_BYTES = 64 << 20
MOST = 64  # measurements a call
# Where the host's clock is all there is, short plans are replayed until they last about this long.
WALL_SECONDS = 0.005


class Stopwatch:
    """Measures plans: by GPU timestamps from cold caches where the device has them, else by the host's clock."""

    def __init__(self, device: Device) -> None:
        self.device = device
        self.exact = all(name in device.features for name in NEEDED)
        size = min(EVICT_BYTES, device.limits["max-buffer-size"])
        self._buffers: list[Any] = []
        self._queries: Any = None
        if not self.exact:
            return
        try:
            self._buffers = [device.create_buffer(size, "stopwatch")]
            self._buffers.append(device.create_buffer(size, "stopwatch"))
            usage = wgpu.BufferUsage.QUERY_RESOLVE | wgpu.BufferUsage.COPY_SRC
            self._buffers.append(device.create_buffer(16 * MOST, "stopwatch times", usage=usage))
            self._queries = device.handle.create_query_set(type="timestamp", count=2 * MOST)
        except BaseException:
            self.free()
            raise

    def seconds(self, plan: Plan, repeat: int) -> list[float]:
        """Of `repeat` replays (at most 64), one number each. Raises DeviceLost."""
        return self._by_timestamps(plan, repeat) if self.exact else self._by_clock(plan, repeat)

    def _by_timestamps(self, plan: Plan, repeat: int) -> list[float]:
        source, target, resolved = self._buffers
        first = plan.steps[0].outputs[0][1]
        encoder = self.device.handle.create_command_encoder(label="stopwatch")
        for i in range(repeat):
            encoder.copy_buffer_to_buffer(source, 0, target, 0, source.size)
            # A barrier: without something that both touch, the plan could begin while the copy is still under way.
            encoder.clear_buffer(first.storage.buffer, first.offset // 4 * 4, 4)
            compute = encoder.begin_compute_pass()
            write_timestamp(compute, self._queries, 2 * i)
            encode_steps(compute._internal, plan.steps)
            write_timestamp(compute, self._queries, 2 * i + 1)
            compute.end()
        encoder.resolve_query_set(self._queries, 0, 2 * repeat, resolved, 0)
        self.device.submit([encoder.finish()])
        ticks = np.frombuffer(self.device.read_buffer(resolved, 16 * repeat), np.int64).reshape(-1, 2)
        return [max(0, int(end - start)) / 1e9 for start, end in ticks]  # wgpu's ticks are nanoseconds

    def _by_clock(self, plan: Plan, repeat: int) -> list[float]:
        inner = max(1, min(50, int(WALL_SECONDS / max(1e-6, self._replayed(plan, 1)))))
        return [self._replayed(plan, inner) / inner for _ in range(repeat)]

    def _replayed(self, plan: Plan, times: int) -> float:
        self.device.wait()
        start = time.perf_counter()
        for _ in range(times):
            plan.run()
        self.device.wait()
        return time.perf_counter() - start

    def free(self) -> None:
        for buffer in self._buffers:
            self.device.free_buffer(buffer)
        self._buffers = []
        if self._queries is not None:
            self._queries.destroy()
            self._queries = None
