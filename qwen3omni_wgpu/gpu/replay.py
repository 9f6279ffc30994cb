"""Recorded steps to command buffers, straight through the C interface and with nothing looked up on the way.

wgpu-py's own wrappers cost three times as much a dispatch. Errors of a recording show when its encoder is finished.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from .device import Device, ffi, lib

if TYPE_CHECKING:
    from .plan import Step

# (pipeline or None where the one before goes on, bind group, immediates or None, their bytes, grid x, y, z)
Call = tuple[Any, Any, Any, int, int, int, int]
# (buffer, offset, buffer, offset, bytes)
Copy = tuple[Any, int, Any, int, int]


class Submit(NamedTuple):
    """Dispatches that go to the device together."""

    calls: list[Call]
    flops: int


def resolve(steps: Sequence[Step]) -> list[Call]:
    """What the C interface takes for each step of a finished plan; the first call says its pipeline."""
    calls: list[Call] = []
    last = None
    for step in steps:
        assert step.pipeline is not None
        handle = step.pipeline.handle
        immediates = step.c_immediates if step.immediates else None
        same = handle is last
        calls.append(
            (None if same else handle._internal, step.group._internal, immediates, len(step.immediates), *step.grid)
        )
        last = handle
    return calls


def record(compute: Any, calls: Iterable[Call]) -> None:
    """Dispatches into a compute pass (the C interface's pointer)."""
    set_pipeline, set_group = lib.wgpuComputePassEncoderSetPipeline, lib.wgpuComputePassEncoderSetBindGroup
    set_immediates, dispatch = lib.wgpuComputePassEncoderSetImmediates, lib.wgpuComputePassEncoderDispatchWorkgroups
    null = ffi.NULL
    for pipeline, group, immediates, size, x, y, z in calls:
        if pipeline is not None:
            set_pipeline(compute, pipeline)
        set_group(compute, 0, group, 0, null)
        if immediates is not None:
            set_immediates(compute, 0, immediates, size)
        dispatch(compute, x, y, z)


def encode(device: Device, submits: Iterable[Submit], most: float, copies: Sequence[Copy] = ()) -> list[Any]:
    """Command buffers, one a submit: neighbours together up to `most` FLOP, and the copies after the last of them."""
    together: list[Submit] = []
    for submit in submits:
        if together and together[-1].flops + submit.flops <= most:
            last = together.pop()
            submit = Submit(last.calls + submit.calls, last.flops + submit.flops)
        together.append(submit)
    return [
        _commands(device, submit.calls, () if i < len(together) else copies)
        for i, submit in enumerate(together or [Submit([], 0)], 1)
    ]


def _commands(device: Device, calls: list[Call], copies: Sequence[Copy]) -> Any:
    encoder = device.handle.create_command_encoder()
    if calls:
        compute = encoder.begin_compute_pass()
        record(compute._internal, calls)
        compute.end()
    for source, at, target, to, size in copies:
        lib.wgpuCommandEncoderCopyBufferToBuffer(encoder._internal, source, at, target, to, size)
    return encoder.finish()
