"""The GPU device: choosing an adapter, buffers, submits and bounded waits.

Everything that talks to wgpu lives in this folder; the layers above see Device, Tensor, Kernel and Plan.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import wgpu
from wgpu.backends import wgpu_native
from wgpu.backends.wgpu_native.extras import set_instance_extras

from .. import env
from ..errors import DeviceLost, OutOfDeviceMemory, UnsupportedDevice

REQUIRED_FEATURES = ("immediates",)
# Used where present: 16-bit KV and subgroup reductions, timings, and file bytes read straight into GPU memory.
OPTIONAL_FEATURES = (
    "shader-f16",
    "subgroup",
    "timestamp-query",
    "timestamp-query-inside-passes",
    "mappable-primary-buffers",
    "shader-int64",  # wide loads on llvmpipe
    "memory-decoration-coherent",  # a workgroup that reads what others of its dispatch wrote
)
STORAGE_BUFFERS_NEEDED = 8  # that no op does without; WebGPU's own minimum is 8, too
NO_DRIVER = (
    "no Vulkan driver was found. Install one: on Debian or Ubuntu `apt-get install mesa-vulkan-drivers libvulkan1` "
    "(AMD, Intel and a CPU fallback), or the driver of your NVIDIA card; then `qwen3omni doctor`"
)
_backends_chosen = False
# The C interface below wgpu-py, for what it does not wrap and for the calls that are made once a dispatch.
ffi: Any = wgpu_native.ffi
lib: Any = wgpu_native.lib


@dataclass(frozen=True)
class AdapterInfo:
    """What the driver says of itself. `kind` is discrete, integrated, virtual, cpu or unknown."""

    index: int
    name: str
    driver: str
    backend: str
    kind: str
    vendor_id: int
    device_id: int

    @property
    def software(self) -> bool:
        return self.kind == "cpu"

    def __str__(self) -> str:
        return f"{self.name} ({self.backend}, {self.driver or 'driver unknown'}, {self.kind})"


_KINDS = {"DiscreteGPU": "discrete", "IntegratedGPU": "integrated", "CPU": "cpu", "VirtualGPU": "virtual"}
_PREFERENCE = {"discrete": 0, "integrated": 1, "virtual": 2, "unknown": 3, "cpu": 4}


def _adapters() -> list[tuple[AdapterInfo, Any]]:
    global _backends_chosen
    if not _backends_chosen:
        # Without a desktop session Mesa's device-select layer looks for Wayland and complains on stderr; the choice of
        # an adapter is ours anyway.
        if not (os.environ.get("XDG_RUNTIME_DIR") or os.environ.get("MESA_VK_DEVICE_SELECT")):
            os.environ.setdefault("NODEVICE_SELECT", "1")
        set_instance_extras(backends=["Metal"] if sys.platform == "darwin" else ["Vulkan"])
        _backends_chosen = True
    try:
        found = wgpu.gpu.enumerate_adapters_sync()
    except RuntimeError as error:
        raise UnsupportedDevice(f"{NO_DRIVER} (wgpu says: {error})") from error
    adapters = []
    for adapter in found:
        info = adapter.info
        kind = _KINDS.get(str(info["adapter_type"]), "unknown")
        adapters.append((str(info["device"]), str(info["description"]), str(info["backend_type"]), kind, info, adapter))
    return [
        (AdapterInfo(i, name, driver, backend, kind, int(info["vendor_id"]), int(info["device_id"])), adapter)
        for i, (name, driver, backend, kind, info, adapter) in enumerate(adapters)
    ]


def list_adapters() -> list[AdapterInfo]:
    """All adapters of the machine, in the driver's order; their index is what `--device INDEX` takes."""
    return [info for info, _ in _adapters()]


def _choose(adapters: list[tuple[AdapterInfo, Any]], wanted: str | int | None, cpu: bool) -> tuple[AdapterInfo, Any]:
    listing = "; ".join(f"{info.index}: {info.name} [{info.kind}]" for info, _ in adapters)
    if not adapters:
        raise UnsupportedDevice(NO_DRIVER)
    if wanted is not None and str(wanted) != "":
        text = str(wanted).strip()
        if text.isdigit() and len(text) < 3:  # longer numbers are parts of names: 4090
            matches = [pair for pair in adapters if pair[0].index == int(text)]
        else:
            matches = [pair for pair in adapters if text.lower() in pair[0].name.lower()]
        if not matches:
            raise UnsupportedDevice(f"no adapter matches --device {text}; this machine has: {listing}")
        return matches[0]
    if cpu:
        matches = [pair for pair in adapters if pair[0].software]
        if not matches:
            raise UnsupportedDevice(
                f"--cpu wants a software adapter and there is none (install mesa-vulkan-drivers); found: {listing}"
            )
        return matches[0]
    return min(adapters, key=lambda pair: _PREFERENCE[pair[0].kind])


class Device:
    """An opened adapter. Use `Device.open(...)`; close with `close()` or a `with` block."""

    def __init__(self, info: AdapterInfo, adapter: Any, handle: Any):
        self.info = info
        self.adapter = adapter
        self.handle: Any = handle  # wgpu's GPUDevice
        self.features = frozenset(str(feature) for feature in handle.features)
        self.limits: dict[str, int] = dict(handle.limits)
        self.timeout = float(env.get("QWEN3OMNI_TIMEOUT"))
        self.checked = bool(env.get("QWEN3OMNI_CHECKED"))
        self._lock = threading.Lock()  # weights are loaded by several threads
        self._fence_lock = threading.Lock()
        self.allocated = 0  # bytes in live buffers made through this object
        self.cache: dict[Any, Any] = {}  # pipelines, layouts, per-device tables of the layers above
        # Choices of kernels (ops/choice.py): what was measured to be best, and what has been asked for.
        self.tuned: dict[str, dict[str, Any]] = {}
        self.asked: dict[str, Any] = {}

    @classmethod
    def open(cls, device: str | int | None = None, *, cpu: bool = False) -> Device:
        """Open an adapter: by name part or index, a software one with `cpu`, else the best GPU.

        Raises UnsupportedDevice with the list of adapters, or the missing feature, and what to do.
        """
        if device is None and not cpu:
            device = env.get("QWEN3OMNI_DEVICE")
        info, adapter = _choose(_adapters(), device, cpu)
        missing = [name for name in REQUIRED_FEATURES if name not in adapter.features]
        if missing:
            raise UnsupportedDevice(
                f"{info} lacks {', '.join(missing)}; a newer driver may have it, or choose another with --device"
            )
        buffers = int(adapter.limits["max-storage-buffers-per-shader-stage"])
        if buffers < STORAGE_BUFFERS_NEEDED:
            raise UnsupportedDevice(
                f"{info} binds {buffers} storage buffers a shader, {STORAGE_BUFFERS_NEEDED} are needed; "
                "choose another with --device"
            )
        features = [*REQUIRED_FEATURES, *(name for name in OPTIONAL_FEATURES if name in adapter.features)]
        try:
            handle = adapter.request_device_sync(label="qwen3omni", required_features=features)
        except (RuntimeError, wgpu.GPUError) as error:
            raise UnsupportedDevice(f"{info} could not be opened: {_first_line(error)}") from error
        return cls(info, adapter, handle)

    # What the layers above ask ------------------------------------------------------------------------------------

    @property
    def uma(self) -> bool:
        """True where shaders can work on memory that the host maps: then weights need no staging copy."""
        shared = self.info.kind in ("integrated", "cpu")
        return shared and "mappable-primary-buffers" in self.features

    @property
    def max_binding(self) -> int:
        """Largest part of a buffer that one binding can show to a shader, in bytes."""
        return min(self.limits["max-storage-buffer-binding-size"], self.limits["max-buffer-size"])

    @property
    def max_rounds(self) -> int:
        """Rounds that all loops of one shader thread may make together; Mesa's llvmpipe leaves them then, silently."""
        return 65535 if "llvmpipe" in self.info.name else sys.maxsize

    # Buffers --------------------------------------------------------------------------------------------------------

    def create_buffer(self, nbytes: int, label: str = "", *, usage: int | None = None, mapped: bool = False) -> Any:
        """A wgpu buffer of `nbytes` rounded up to 16. OutOfDeviceMemory when the driver refuses."""
        size = max(16, (nbytes + 15) // 16 * 16)
        limit = self.limits["max-buffer-size"]
        if size > limit:
            raise OutOfDeviceMemory(
                f"{label or 'a buffer'} needs {size:,} bytes, but {self.info.name} allows {limit:,} in one buffer; "
                "use a smaller --ctx-size",
                needed=size,
                free=limit,
            )
        if usage is None:
            usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        try:
            buffer = self.handle.create_buffer(label=label, size=size, usage=usage, mapped_at_creation=mapped)
        except wgpu.GPUOutOfMemoryError as error:
            raise OutOfDeviceMemory(
                f"{self.info.name} has no room for {label or 'a buffer'} of {size / 2**20:,.0f} MiB "
                f"({self.allocated / 2**20:,.0f} MiB are in use); use a smaller model or --ctx-size",
                needed=size,
            ) from error
        except wgpu.GPUError as error:
            raise DeviceLost(f"{self.info.name} could not make a buffer: {_first_line(error)}") from error
        with self._lock:
            self.allocated += size
        return buffer

    def create_mapped(self, nbytes: int, label: str = "") -> Any:
        """A buffer that shaders read and the host can fill through `mapped_view` until it is unmapped."""
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        usage |= wgpu.BufferUsage.MAP_WRITE
        return self.create_buffer(nbytes, label, usage=usage, mapped=True)

    def mapped_view(self, buffer: Any) -> memoryview:
        """The bytes of a mapped buffer; invalid once it is unmapped."""
        return buffer._experimental_get_mapped_range()

    def free_buffer(self, buffer: Any) -> None:
        with self._lock:
            self.allocated -= buffer.size
        buffer.destroy()

    def write_buffer(self, buffer: Any, data: Any, offset: int = 0) -> None:
        """Copy host bytes (a multiple of 4) into a buffer before the next submit."""
        self.handle.queue.write_buffer(buffer, offset, data)

    def read_buffer(self, buffer: Any, nbytes: int, offset: int = 0) -> bytes:
        """Copy `nbytes` of a buffer back to the host; waits for the work before it."""
        size = (nbytes + 3) // 4 * 4
        target = self.create_buffer(
            size, "read-back", usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
        )
        encoder = self.handle.create_command_encoder()
        encoder.copy_buffer_to_buffer(buffer, offset, target, 0, size)
        self.submit([encoder.finish()])
        try:
            return bytes(self.map_read(target)[:nbytes])
        finally:
            self.free_buffer(target)

    def map_read(self, buffer: Any) -> memoryview:
        """Wait for a MAP_READ buffer and copy its content out; it is unmapped again."""
        promise = buffer.map_async("READ_NOSYNC")
        self.wait_for(promise)
        data = buffer.read_mapped()
        buffer.unmap()
        return data

    # Work -----------------------------------------------------------------------------------------------------------

    def submit(self, command_buffers: Sequence[Any]) -> None:
        try:
            self.handle.queue.submit(command_buffers)
        except wgpu.GPUError as error:
            raise DeviceLost(f"{self.info.name} refused the work: {_first_line(error)}") from error

    def wait(self) -> None:
        """Return when everything submitted so far is done; DeviceLost after QWEN3OMNI_TIMEOUT seconds."""
        # wgpu-py 0.32's on_submitted_work_done is broken (callback type); mapping a buffer of the last submit does it.
        # One thread at a time: wgpu-native aborts the process when a buffer is submitted while it is being mapped.
        with self._fence_lock:
            if "fence" not in self.cache:
                usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
                self.cache["fence"] = self.create_buffer(16, "fence", usage=usage)
            encoder = self.handle.create_command_encoder()
            encoder.clear_buffer(self.cache["fence"])
            self.submit([encoder.finish()])
            self.map_read(self.cache["fence"])

    def wait_for(self, promise: Any) -> None:
        """Wait for a wgpu promise; DeviceLost after QWEN3OMNI_TIMEOUT seconds or when the driver gave up."""
        # wgpu-py resolves promises on a polling thread and sets this event; its own sync_wait() has no bound.
        deadline = time.monotonic() + self.timeout
        while not promise._thread_event.wait(0.1):
            if time.monotonic() > deadline:
                raise DeviceLost(
                    f"{self.info.name} did not answer within {self.timeout:g} s; the driver may have reset it. "
                    "Try again, use a smaller --ctx-size, or raise QWEN3OMNI_TIMEOUT on a slow device"
                )
        try:
            promise.sync_wait()
        except RuntimeError as error:
            raise DeviceLost(f"{self.info.name} was lost: {_first_line(error)}") from error

    def close(self) -> None:
        """Free the device. Buffers made through it become unusable."""
        if self.handle is not None:
            self.cache.clear()
            self.handle.destroy()
            self.handle = None

    def __enter__(self) -> Device:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


__all__ = ["AdapterInfo", "Device", "ffi", "lib", "list_adapters"]
