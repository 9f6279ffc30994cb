"""Times of plans: by timestamps from cold caches, or by the host's clock."""

import numpy as np
import pytest

from qwen3omni_wgpu.gpu import Device, Plan, Stopwatch, Tensor
from qwen3omni_wgpu.gpu import stopwatch as stopwatch_module
from qwen3omni_wgpu.ops import add, rms_norm

pytestmark = pytest.mark.gpu


@pytest.fixture(params=[True, False], ids=["timestamps", "clock"])
def watch(request, device: Device, monkeypatch):
    monkeypatch.setattr(stopwatch_module, "EVICT_BYTES", 1 << 20)
    if not request.param:
        monkeypatch.setattr(device, "features", device.features - {"timestamp-query"})
    made = Stopwatch(device)
    if made.exact is not request.param:
        pytest.skip("this adapter has no timestamps")
    yield made
    made.free()


def plan_of(device: Device, rows: int) -> tuple[Plan, Tensor]:
    x = Tensor.from_numpy(device, np.random.default_rng().standard_normal((rows, 1024), np.float32), "x")
    plan = Plan(device, "timed")
    y = add(plan, rms_norm(plan, x, Tensor.from_numpy(device, np.ones(1024, np.float32), "norm"), 1e-6), x)
    return plan.finish(keep=[y]), y


def test_more_work_takes_longer(watch, device):
    small, large = plan_of(device, 4)[0], plan_of(device, 4096)[0]
    watch.seconds(small, 1), watch.seconds(large, 1)
    times = [watch.seconds(plan, 5) for plan in (small, large)]
    assert [len(found) for found in times] == [5, 5]
    # A thousand times the work: the least of five measurements each, so that a busy machine does not turn it over.
    assert 0 < min(times[0]) < min(times[1]) < 5


def test_the_plan_is_right_after_it_was_timed(watch, device):
    plan, y = plan_of(device, 16)
    plan.run()
    expected = y.numpy()
    watch.seconds(plan, 2)
    plan.run()
    np.testing.assert_array_equal(y.numpy(), expected)


def test_its_memory_is_given_back(device):
    before = device.allocated
    made = Stopwatch(device)
    made.free()
    made.free()
    assert device.allocated == before


def test_a_copy_is_no_larger_than_a_buffer_may_be(device, monkeypatch):
    monkeypatch.setattr(device, "limits", device.limits | {"max-buffer-size": 1 << 16})
    Stopwatch(device).free()
