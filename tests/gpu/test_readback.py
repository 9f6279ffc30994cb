"""Results on their way to the host: several at once, each the values of its own submit."""

import numpy as np
import pytest

from qwen3omni_wgpu.gpu import Kernel, Plan, ReadBack, Tensor

pytestmark = pytest.mark.gpu


@pytest.fixture
def counter(device):
    """A plan that adds one to four numbers at every run."""
    x = Tensor.from_numpy(device, np.zeros((1, 4), np.float32), "x")
    one = Tensor.from_numpy(device, np.ones((1, 4), np.float32), "one")
    plan = Plan(device, "count")
    add = Kernel.of("elementwise.wgsl", OP="add", COUNT=4, WG=64)
    middle = plan.empty((1, 4))
    plan.add("add", add, [x, one, plan.state], [middle], (1, 1, 1))
    zero = Tensor.empty(device, (1, 4))
    plan.add("add", add, [middle, zero, plan.state], [x], (1, 1, 1))
    return plan.finish(), x


def test_each_result_is_that_of_its_submit(device, counter):
    plan, x = counter
    read = ReadBack(device, [x])
    pending = [read.submit([plan]) for _ in range(8)]
    assert [float(one.result()[0][0, 3]) for one in pending] == [1, 2, 3, 4, 5, 6, 7, 8]


def test_results_may_be_taken_in_any_order(device, counter):
    plan, x = counter
    read = ReadBack(device, [x])
    pending = [read.submit([plan]) for _ in range(5)]
    assert [float(pending[i].result()[0][0, 0]) for i in (3, 0, 4, 2, 1)] == [4, 1, 5, 3, 2]


def test_buffers_are_reused(device, counter):
    plan, x = counter
    before = device.allocated
    read = ReadBack(device, [x])
    for _ in range(20):  # the engine's pattern: the next step is submitted before this one is read
        first, second = read.submit([plan]), read.submit([plan])
        first.result()
        second.result()
    assert device.allocated == before + 2 * 16
    read.free()
    assert device.allocated == before


def test_earlier_results_stay_as_they_were(device, counter):
    plan, x = counter
    read = ReadBack(device, [x])
    first = read.submit([plan]).result()[0]
    for _ in range(3):
        read.submit([plan]).result()
    assert float(first[0, 0]) == 1


def test_several_tensors_keep_order_type_and_shape(device):
    ids = Tensor.from_numpy(device, np.array([5, 6, 2**32 - 1], np.uint32), "ids")  # 12 bytes: padded to 16
    values = Tensor.from_numpy(device, np.array([[1.5], [-2.5]], np.float32), "values")
    more = Tensor.from_numpy(device, np.arange(5, dtype=np.float32), "more").first(3)
    found = ReadBack(device, [ids, values, more]).submit([]).result()
    assert [array.dtype for array in found] == [np.uint32, np.float32, np.float32]
    np.testing.assert_array_equal(found[0], [5, 6, 2**32 - 1])
    np.testing.assert_array_equal(found[1], [[1.5], [-2.5]])
    np.testing.assert_array_equal(found[2], [0, 1, 2])


def test_several_plans(device, counter):
    plan, x = counter
    read = ReadBack(device, [x])
    assert float(read.submit([plan, plan, plan]).result()[0][0, 0]) == 3
