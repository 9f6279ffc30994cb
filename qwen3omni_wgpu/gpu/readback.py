"""Small results back to the host without stopping the queue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import wgpu

from .device import Device
from .plan import Plan, encode_plans
from .tensor import Tensor


class Pending:
    """Values on their way to the host; `result()` waits for them."""

    def __init__(self, ring: ReadBack, buffer: Any, promise: Any):
        self._ring = ring
        self._buffer = buffer
        self._promise = promise

    def result(self) -> list[np.ndarray]:
        """One array for each tensor of the ReadBack, in its order and shape. May be called once."""
        return self._ring.take(self._buffer, self._promise)


class ReadBack:
    """Copies fixed tensors to the host after a submit; several copies may be under way at once."""

    def __init__(self, device: Device, tensors: Sequence[Tensor]):
        self.device = device
        self.tensors = list(tensors)
        self.nbytes = sum(_rounded(tensor) for tensor in self.tensors)
        self._free: list[Any] = []
        self._sources: list[tuple[Any, int, int, int]] | None = None  # known once the tensors have buffers

    def submit(self, plans: Sequence[Plan]) -> Pending:
        """Submit plans and, after them, the copies."""
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
        buffer = self._free.pop() if self._free else self.device.create_buffer(self.nbytes, "read-back", usage=usage)
        target = buffer._internal
        copies = [(source, offset, target, at, size) for source, offset, at, size in self._copies()]
        for command in encode_plans(self.device, plans, copies):
            self.device.submit([command])
        return Pending(self, buffer, buffer.map_async("READ_NOSYNC"))

    def _copies(self) -> list[tuple[Any, int, int, int]]:
        """(buffer, offset, offset in the read-back, bytes) of every tensor."""
        if self._sources is None:
            sizes = [_rounded(tensor) for tensor in self.tensors]
            parts = [tensor.parts[0] for tensor in self.tensors]
            self._sources = [
                (part.storage.buffer._internal, part.offset, sum(sizes[:i]), size)
                for i, (part, size) in enumerate(zip(parts, sizes, strict=True))
            ]
        return self._sources

    def take(self, buffer: Any, promise: Any) -> list[np.ndarray]:
        self.device.wait_for(promise)
        raw = np.frombuffer(buffer.read_mapped(), np.uint8)
        buffer.unmap()
        self._free.append(buffer)
        arrays, at = [], 0
        for tensor in self.tensors:
            values = raw[at : at + tensor.nbytes].view(np.uint32 if tensor.dtype == "u32" else np.float32)
            arrays.append(values.reshape(tensor.shape))
            at += _rounded(tensor)
        return arrays

    def free(self) -> None:
        for buffer in self._free:
            self.device.free_buffer(buffer)
        self._free.clear()


def _rounded(tensor: Tensor) -> int:
    return (tensor.nbytes + 7) // 8 * 8
