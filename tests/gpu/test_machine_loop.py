"""The loop of machine code: every call with its arguments in order, and plans that compute what they did without it."""

import ctypes
import platform
import sys

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Plan, Tensor, machine_loop

NATIVE = sys.platform == "linux" and platform.machine() == "x86_64"
Callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, *[ctypes.c_uint64] * machine_loop.ARGUMENTS)


@pytest.mark.skipif(not NATIVE, reason="there is no loop for this platform")
@pytest.mark.parametrize("count", [0, 1, 2, 300])
def test_every_call_comes_with_its_arguments_and_in_order(count):
    rng, seen = np.random.default_rng(), []
    functions = [Callback(lambda first, *rest, i=i: seen.append((i, first, *rest))) for i in range(3)]
    addresses = [ctypes.cast(function, ctypes.c_void_p).value or 0 for function in functions]
    which = rng.integers(0, 3, count)
    arguments = [rng.integers(0, 2**64, rng.integers(0, 5), dtype=np.uint64).tolist() for _ in range(count)]
    calls = machine_loop.packed((addresses[i], *given) for i, given in zip(which, arguments, strict=True))
    assert calls is not None
    for first in (0x7F00_1234_5678, 0x10):
        seen.clear()
        machine_loop.run(calls, ctypes.c_void_p(first))
        expected = [(i, first, *given, *[0] * (4 - len(given))) for i, given in zip(which, arguments, strict=True)]
        assert seen == expected


@pytest.mark.gpu
@pytest.mark.parametrize("native", [True, False])
def test_plans_compute_the_same_with_and_without(device, native, monkeypatch):
    """Pipelines that go on and change, immediates, grids of every axis; twice, as replays are."""
    if not native:
        monkeypatch.setattr(machine_loop, "_loop", lambda: None)
    rng = np.random.default_rng()
    array, turns = (rng.standard_normal((rows, 64)).astype(np.float32) for rows in (5, 24))
    x, weight = Tensor.from_numpy(device, array, "x"), Tensor.from_numpy(device, np.ones(64, np.float32), "weight")
    plan = Plan(device)
    sums = ops.add(plan, ops.add(plan, x, x), ops.rms_norm(plan, x, weight, 1e-6))
    y = ops.matmul(plan, sums, Tensor.from_numpy(device, turns, "turns"))
    assert any(step.immediates for step in plan.steps)
    (submit,) = plan.finish(keep=[y]).replay()
    assert isinstance(submit.dispatches, machine_loop.Packed if native and NATIVE else list)
    for _ in range(2):
        y.fill(0xFF)
        plan.run()
        expected = 2 * array + array / np.sqrt((array.astype(np.float64) ** 2).mean(axis=1, keepdims=True) + 1e-6)
        np.testing.assert_allclose(y.numpy(), expected @ turns.T, atol=1e-4)
    plan.free()


def test_a_system_that_lets_no_program_write_code_is_no_error(monkeypatch):
    class Forbidding:
        def __init__(self, _name: object) -> None:
            self.mprotect = lambda *_: -1

    monkeypatch.setattr(machine_loop.ctypes, "CDLL", Forbidding)
    assert machine_loop._loop.__wrapped__() is None
