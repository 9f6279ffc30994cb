"""Recorded steps to command buffers, straight through the C interface and with nothing looked up on the way.

wgpu-py's own wrappers cost three times as much a dispatch. The calls of all dispatches go to the machine's own loop
where there is one (machine_loop.py), else through ctypes, not cffi: they are short and call nothing back, so they keep
the interpreter's lock, which cffi gives up and takes again each time. Errors of a recording show when its encoder is
finished.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from wgpu.backends.wgpu_native import lib_path

from . import machine_loop
from .device import Device, ffi, lib

if TYPE_CHECKING:
    from .plan import Step

Pointer = ctypes.c_void_p
# (pipeline or None where the one before goes on, bind group, (immediates, their bytes) or None, grid x, y, z)
Call = tuple[Pointer | None, Pointer, tuple[Pointer, ctypes.c_size_t] | None, int, int, int]
# Packed for the loop of machine code where there is one, which then takes the place of the calls.
Dispatches = list[Call] | machine_loop.Packed
# (buffer, offset, buffer, offset, bytes)
Copy = tuple[Any, int, Any, int, int]

_locked = ctypes.PyDLL(lib_path)
_set_pipeline = _locked.wgpuComputePassEncoderSetPipeline
_set_group = _locked.wgpuComputePassEncoderSetBindGroup
_set_immediates = _locked.wgpuComputePassEncoderSetImmediates
_dispatch = _locked.wgpuComputePassEncoderDispatchWorkgroups
for _call in (_set_pipeline, _set_group, _set_immediates, _dispatch):
    _call.restype = None


class Submit(NamedTuple):
    """Dispatches that go to the device together."""

    dispatches: Dispatches
    flops: int


def resolve(steps: Sequence[Step]) -> Dispatches:
    """What the C interface takes for each step of a finished plan; the first call says its pipeline."""
    calls: list[Call] = []
    last = None
    for step in steps:
        assert step.pipeline is not None
        handle = step.pipeline.handle
        pipeline = None if handle is last else _pointer(handle._internal)
        size = len(step.immediates)
        immediates = (_pointer(step.c_immediates), ctypes.c_size_t(size)) if size else None
        calls.append((pipeline, _pointer(step.group._internal), immediates, *step.grid))
        last = handle
    packed = machine_loop.packed(_words(calls))
    return calls if packed is None else packed


def _words(calls: Iterable[Call]) -> Iterator[tuple[int, ...]]:
    """The calls of the C interface, each its address and the arguments behind the compute pass."""
    functions = (_set_pipeline, _set_group, _set_immediates, _dispatch)
    of_pipeline, of_group, of_immediates, of_dispatch = (ctypes.cast(one, Pointer).value or 0 for one in functions)
    for pipeline, group, immediates, x, y, z in calls:
        if pipeline is not None:
            yield of_pipeline, pipeline.value or 0
        yield of_group, 0, group.value or 0, 0, 0
        if immediates is not None:
            yield of_immediates, 0, immediates[0].value or 0, immediates[1].value
        yield of_dispatch, x, y, z


def _pointer(data: Any) -> Pointer:
    """cffi's pointer for ctypes; what it points to lives as long as the step."""
    return Pointer(int(ffi.cast("uintptr_t", data)))


def record(compute: Any, dispatches: Dispatches) -> None:
    """Dispatches into a compute pass (cffi's pointer)."""
    into = _pointer(compute)
    if isinstance(dispatches, machine_loop.Packed):
        machine_loop.run(dispatches, into)
        return
    # Arguments have their C types already, but for indices and grids: ctypes passes an int as a C int.
    set_pipeline, set_group, set_immediates, dispatch = _set_pipeline, _set_group, _set_immediates, _dispatch
    none = ctypes.c_size_t(0)
    for pipeline, group, immediates, x, y, z in dispatches:
        if pipeline is not None:
            set_pipeline(into, pipeline)
        set_group(into, 0, group, none, None)
        if immediates is not None:
            set_immediates(into, 0, *immediates)
        dispatch(into, x, y, z)


def encode(device: Device, submits: Iterable[Submit], most: float, copies: Sequence[Copy] = ()) -> list[Any]:
    """Command buffers, one a submit: neighbours together up to `most` FLOP, and the copies after the last of them."""
    together: list[list[Submit]] = []
    flops = 0
    for submit in submits:
        if together and flops + submit.flops <= most:
            together[-1].append(submit)
            flops += submit.flops
        else:
            together.append([submit])
            flops = submit.flops
    return [
        _commands(device, some, () if i < len(together) else copies) for i, some in enumerate(together or [[]], 1)
    ]


def _commands(device: Device, submits: list[Submit], copies: Sequence[Copy]) -> Any:
    encoder = device.handle.create_command_encoder()
    if submits:
        compute = encoder.begin_compute_pass()
        for submit in submits:
            record(compute._internal, submit.dispatches)
        compute.end()
    for source, at, target, to, size in copies:
        lib.wgpuCommandEncoderCopyBufferToBuffer(encoder._internal, source, at, target, to, size)
    return encoder.finish()
