"""Choosing an adapter, refusing those that cannot serve, memory, and waits that end."""

import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3omni_wgpu.errors import DeviceLost, InvalidRequest, OutOfDeviceMemory, UnsupportedDevice
from qwen3omni_wgpu.gpu import AdapterInfo, Device, Kernel, Plan, ReadBack, Tensor, list_adapters
from qwen3omni_wgpu.gpu import device as device_module
from qwen3omni_wgpu.ops.cases import Case

pytestmark = pytest.mark.gpu


# Choosing an adapter -------------------------------------------------------------------------------------------------


def info(index: int, name: str, kind: str) -> AdapterInfo:
    return AdapterInfo(index, name, "Mesa 1.2", "Vulkan", kind, 1, 2)


MACHINE = [
    info(0, "llvmpipe (LLVM 15)", "cpu"),
    info(1, "Radeon 8060S Graphics", "integrated"),
    info(2, "GeForce RTX 4090", "discrete"),
    info(3, "Radeon RX 7600", "discrete"),
]


class Opened(Exception):
    """Raised by a fake adapter in place of opening it."""


class FakeAdapter:
    def __init__(self, name: str, features: tuple[str, ...] = ("immediates",), buffers: int = 8):
        self.name = name
        self.features = features
        self.limits = {"max-storage-buffers-per-shader-stage": buffers}
        self.wanted: list[str] = []

    def request_device_sync(self, *, label: str, required_features: list[str]) -> None:
        self.wanted = required_features
        raise Opened(self.name)


@pytest.fixture
def machine(monkeypatch):
    """A machine of four adapters, one of them software."""
    adapters = [(one, FakeAdapter(one.name)) for one in MACHINE]
    monkeypatch.setattr(device_module, "_adapters", lambda: adapters)
    return adapters


def opened(*args, **kwargs) -> str:
    with pytest.raises(Opened) as caught:
        Device.open(*args, **kwargs)
    return str(caught.value)


def test_the_best_gpu_is_the_default(machine):
    assert opened() == "GeForce RTX 4090"
    del machine[2:]
    assert opened() == "Radeon 8060S Graphics"
    del machine[1:]
    assert opened() == "llvmpipe (LLVM 15)"


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("radeon", "Radeon 8060S Graphics"),
        ("RX 76", "Radeon RX 7600"),
        ("3", "Radeon RX 7600"),
        (0, "llvmpipe (LLVM 15)"),
        (" 1 ", "Radeon 8060S Graphics"),
        ("4090", "GeForce RTX 4090"),  # a number, but no index: part of a name
        ("", "GeForce RTX 4090"),
    ],
)
def test_by_name_or_index(machine, wanted, name):
    assert opened(wanted) == name


def test_cpu_flag(machine):
    assert opened(cpu=True) == "llvmpipe (LLVM 15)"
    assert opened("7600", cpu=True) == "Radeon RX 7600"  # the more precise wish


def test_cpu_flag_without_software_adapter(machine):
    del machine[0]
    with pytest.raises(UnsupportedDevice, match=r"--cpu .*mesa-vulkan-drivers.*RTX 4090"):
        Device.open(cpu=True)


def test_environment_names_the_adapter(machine, monkeypatch):
    monkeypatch.setenv("QWEN3OMNI_DEVICE", "8060S")
    assert opened() == "Radeon 8060S Graphics"
    assert opened("3") == "Radeon RX 7600"
    assert opened(cpu=True) == "llvmpipe (LLVM 15)"


@pytest.mark.parametrize("wanted", ["Arc", "9", 17, "-1"])
def test_unknown_adapter_lists_what_is_there(machine, wanted):
    with pytest.raises(UnsupportedDevice) as caught:
        Device.open(wanted)
    message = str(caught.value)
    assert f"--device {wanted}" in message
    for one in MACHINE:
        assert f"{one.index}: {one.name} [{one.kind}]" in message
    assert "\n" not in message


def test_missing_feature(monkeypatch):
    fake = FakeAdapter("Old GPU", features=("shader-f16",))
    monkeypatch.setattr(device_module, "_adapters", lambda: [(info(0, "Old GPU", "discrete"), fake)])
    with pytest.raises(UnsupportedDevice, match=r"Old GPU .* lacks immediates; .*--device"):
        Device.open()


def test_too_few_storage_buffers(monkeypatch):
    fake = FakeAdapter("Small GPU", buffers=4)
    monkeypatch.setattr(device_module, "_adapters", lambda: [(info(0, "Small GPU", "discrete"), fake)])
    with pytest.raises(UnsupportedDevice, match=r"Small GPU .* 4 storage buffers .* 8 are needed"):
        Device.open()


def test_only_features_that_are_there_are_asked_for(machine):
    fake = machine[2][1]
    fake.features = ("immediates", "timestamp-query", "texture-compression-bc")
    opened()
    assert sorted(fake.wanted) == ["immediates", "timestamp-query"]


def test_an_adapter_that_does_not_open(monkeypatch):
    fake = FakeAdapter("Busy GPU")
    monkeypatch.setattr(
        fake, "request_device_sync", lambda **_: (_ for _ in ()).throw(RuntimeError("\n Parent device is lost\nmore"))
    )
    monkeypatch.setattr(device_module, "_adapters", lambda: [(info(0, "Busy GPU", "discrete"), fake)])
    with pytest.raises(UnsupportedDevice, match=r"^Busy GPU .* could not be opened: Parent device is lost$"):
        Device.open()


def test_real_adapters_have_their_place_as_index(adapter):
    found = list_adapters()
    assert [one.index for one in found] == list(range(len(found)))
    match = next(one for one in found if adapter.lower() in one.name.lower())
    with Device.open(match.index) as device:
        assert device.info == match


def test_software_device(device):
    assert device.info.software == (device.info.kind == "cpu")
    assert device.uma == (
        device.info.kind in ("cpu", "integrated") and "mappable-primary-buffers" in device.features
    )
    assert device.max_binding <= device.limits["max-buffer-size"]
    assert device.info.name in str(device.info)


SCRIPT = """
from qwen3omni_wgpu.errors import UnsupportedDevice
from qwen3omni_wgpu.gpu import Device
try:
    Device.open()
except UnsupportedDevice as error:
    print(error)
"""


def test_no_driver_at_all_names_the_packages(tmp_path):
    nowhere = {"VK_ICD_FILENAMES": "/nonexistent", "VK_DRIVER_FILES": "/nonexistent", "HOME": str(tmp_path)}
    environment = {**os.environ, **nowhere}
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 1, done
    assert "mesa-vulkan-drivers" in lines[0]
    assert "libvulkan1" in lines[0]
    assert "doctor" in lines[0]
    assert "Traceback" not in done.stderr


# Memory ------------------------------------------------------------------------------------------------------------


def test_a_buffer_above_the_limit(device, monkeypatch):
    before = device.allocated
    monkeypatch.setitem(device.limits, "max-buffer-size", 1 << 20)
    with pytest.raises(OutOfDeviceMemory) as caught:
        device.create_buffer((1 << 20) + 1, "cache.k.0")
    assert caught.value.needed == (1 << 20) + 16
    assert caught.value.free == 1 << 20
    message = str(caught.value)
    assert "cache.k.0" in message
    assert "1,048,576" in message
    assert "--ctx-size" in message
    assert device.allocated == before


def test_the_driver_has_no_room(device, monkeypatch):
    before = device.allocated

    def refuse(**_):
        raise device_module.wgpu.GPUOutOfMemoryError("not enough memory left")

    monkeypatch.setattr(device, "handle", SimpleNamespace(create_buffer=refuse))
    with pytest.raises(OutOfDeviceMemory, match=r"no room for w of 3 MiB .* smaller model or --ctx-size") as caught:
        device.create_buffer(3 << 20, "w")
    assert caught.value.needed == 3 << 20
    assert device.allocated == before


@pytest.mark.parametrize(("asked", "made"), [(0, 16), (1, 16), (16, 16), (17, 32), (1000, 1008)])
def test_sizes_are_counted_as_made(device, asked, made):
    before = device.allocated
    buffer = device.create_buffer(asked, "x")
    assert buffer.size == made
    assert device.allocated == before + made
    device.free_buffer(buffer)
    assert device.allocated == before


def test_nothing_stays_allocated(device):
    device.wait()  # makes the fence, once a device
    Case("add", {"n": 2, "f": 8}).run(device)  # and the state that plans share
    before = device.allocated
    x = Tensor.from_numpy(device, np.ones((3, 8), np.float32))
    y = Tensor.from_numpy(device, np.ones((3, 8), np.float32))
    plan = Plan(device)
    z = plan.empty((3, 8))
    plan.add("add", Kernel.of("elementwise.wgsl", OP="add", COUNT=8, WG=64), [x, y, plan.state], [z], (1, 3, 1))
    plan.finish(keep=[z])
    read = ReadBack(device, [z])
    during = None
    for _ in range(30):
        plan.run()
        read.submit([plan]).result()
        z.numpy()
        device.wait()
        during = during or device.allocated
        assert device.allocated == during  # replays and read-backs reuse what they have
    read.free()
    plan.free()
    x.free()
    x.free()  # twice is harmless
    y.free()
    assert device.allocated == before


# Waits -------------------------------------------------------------------------------------------------------------

# llvmpipe cuts loops short, so a long piece of work has many threads.
SPIN = """// Busy for a while: a chain of products that cannot be shortened.
@group(0) @binding(0) var<storage, read> rounds: array<u32>;
@group(0) @binding(1) var<storage, read_write> y: array<u32>;

@compute @workgroup_size(1)
fn main(@builtin(workgroup_id) group: vec3<u32>) {
    var x = rounds[1] + group.x;
    for (var i = 0u; i < rounds[0]; i++) {
        x = (x ^ (x >> 7u)) * 1664525u + i;
    }
    y[group.x] = x;
}
"""


def spinning(device: Device, folder, groups: int) -> tuple[Plan, ReadBack]:
    (folder / "spin.wgsl").write_text(SPIN)
    count = Tensor.from_numpy(device, np.array([60_000, 5], np.uint32), "rounds")
    plan = Plan(device)
    y = plan.empty((groups,), "u32", "y")
    plan.add("spin", Kernel.of("spin.wgsl"), [count], [y], (groups, 1, 1))
    return plan.finish(keep=[y]), ReadBack(device, [y])


def test_waiting_is_bounded(adapter, shader_folder, monkeypatch):
    """Work, then one wait. (A further submit would not do as a test: llvmpipe waits inside it for the work before.)"""
    with Device.open(adapter) as quick:
        plan, read = spinning(quick, shader_folder, 200)
        read.submit([plan]).result()  # compiles
        start = time.monotonic()
        read.submit([plan]).result()
        groups = min(65535, int(200 * 1.0 / (time.monotonic() - start)))
    monkeypatch.setenv("QWEN3OMNI_TIMEOUT", "0.2")
    with Device.open(adapter) as device:
        assert device.timeout == 0.2
        plan, read = spinning(device, shader_folder, groups)
        start = time.monotonic()
        pending = read.submit([plan])
        with pytest.raises(DeviceLost, match=r"did not answer within 0\.2 s.*QWEN3OMNI_TIMEOUT"):
            pending.result()
        assert time.monotonic() - start < 0.8


def test_a_wait_that_fails_is_a_lost_device(device):
    class Failed:
        _thread_event = SimpleNamespace(wait=lambda _seconds: True)

        def sync_wait(self):
            raise RuntimeError("Parent device is lost\n  details")

    with pytest.raises(DeviceLost, match=r"was lost: Parent device is lost$"):
        device.wait_for(Failed())


def test_refused_work_is_a_lost_device(device, monkeypatch):
    def refuse(_):
        raise device_module.wgpu.GPUValidationError("Validation error: device lost")

    monkeypatch.setattr(device, "handle", SimpleNamespace(queue=SimpleNamespace(submit=refuse)))
    with pytest.raises(DeviceLost, match="refused the work"):
        device.submit([])


@pytest.mark.parametrize("text", ["soon", "0", "-3", "inf"])
def test_timeout_must_be_seconds(adapter, monkeypatch, text):
    monkeypatch.setenv("QWEN3OMNI_TIMEOUT", text)
    with pytest.raises(InvalidRequest, match="QWEN3OMNI_TIMEOUT"):
        Device.open(adapter)


def test_several_threads_may_wait(device):
    """Weights that fall back to staging are loaded by several threads, each waiting for its own copies."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(4) as pool:
        for job in [pool.submit(device.wait) for _ in range(40)]:
            job.result()


def test_closing_twice(adapter):
    device = Device.open(adapter)
    device.close()
    device.close()
