"""Plans: memory of intermediate results, misuse, cutting into submits, and the debug runner's eyes."""

import gguf
import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Kernel, NumericalError, Plan, ReadBack, Tensor, machine_loop
from qwen3omni_wgpu.gpu import plan as plan_module
from qwen3omni_wgpu.ops.cases import CASES

pytestmark = pytest.mark.gpu

N, F = 3, 8


def rows(device: Device, seed: int, name: str = "x") -> tuple[Tensor, np.ndarray]:
    array = np.random.default_rng(seed).standard_normal((N, F), dtype=np.float32)
    return Tensor.from_numpy(device, array, name), array


def buffers(plan: Plan) -> list[int]:
    """Which buffer each step writes to."""
    return [id(step.outputs[0][1].storage.buffer) for step in plan.steps]


# Memory --------------------------------------------------------------------------------------------------------------


def test_a_chain_needs_two_buffers(device):
    x, array = rows(device, 0)
    plan, y = Plan(device), x
    before = device.allocated
    for _ in range(10):
        y = ops.add(plan, y, x)
    plan.finish(keep=[y]).run()
    np.testing.assert_allclose(y.numpy(), 11 * array, rtol=1e-6)
    assert len(set(buffers(plan))) == 2
    assert device.allocated - before == 2 * 96
    plan.free()
    assert device.allocated == before


def test_a_diamond_is_read_whole(device):
    """Both arms live until they meet, whatever lies between."""
    x, array = rows(device, 1)
    plan = Plan(device)
    top = ops.add(plan, x, x)
    left = ops.add(plan, top, x)
    for _ in range(4):
        left = ops.add(plan, left, x)
    right = ops.add(plan, top, top)
    y = ops.add(plan, left, right)
    z = ops.add(plan, y, left)
    plan.finish(keep=[z]).run()
    np.testing.assert_allclose(z.numpy(), (7 + 4 + 7) * array, rtol=1e-6)
    assert len(set(buffers(plan))) < len(plan.steps)
    plan.free()


@pytest.mark.parametrize("seed", range(20))
def test_random_graphs(device, seed):
    """Sixty additions of random earlier results; all kept ones are right in the end."""
    rng = np.random.default_rng(seed)
    x, array = rows(device, seed)
    plan = Plan(device)
    tensors, factors = [x], [1.0]
    for _ in range(60):
        # mostly recent results, so that older ones fall free, and now and then a very old one
        a, b = (int(max(0, len(tensors) - 1 - rng.geometric(0.35))) for _ in range(2))
        if factors[a] + factors[b] > 1e6:
            a = b = 0
        tensors.append(ops.add(plan, tensors[a], tensors[b]))
        factors.append(factors[a] + factors[b])
    kept = [*rng.choice(np.arange(1, 61), 4, replace=False).tolist(), 60]
    plan.finish(keep=[tensors[i] for i in kept])
    for _ in range(2):
        plan.run()
        for i in kept:
            np.testing.assert_allclose(tensors[i].numpy(), factors[i] * array, rtol=1e-5, err_msg=f"seed {seed}")
    assert len(set(buffers(plan))) < 40
    plan.free()


def test_kept_results_are_not_reused(device):
    x, array = rows(device, 2)
    plan = Plan(device)
    first = ops.add(plan, x, x)
    second = ops.add(plan, first, x)
    third = ops.add(plan, second, x)
    last = ops.add(plan, third, x)
    plan.finish(keep=[first, last]).run()
    np.testing.assert_allclose(first.numpy(), 2 * array, rtol=1e-6)
    np.testing.assert_allclose(last.numpy(), 5 * array, rtol=1e-6)
    assert buffers(plan).count(id(first.storage.buffer)) == 1
    plan.free()


def test_keeping_a_view_keeps_the_bytes(device):
    x, array = rows(device, 3)
    plan = Plan(device)
    first = ops.add(plan, x, x)
    y = first
    for _ in range(3):
        y = ops.add(plan, y, x)
    view = first.view(F, N)
    plan.finish(keep=[view]).run()
    np.testing.assert_allclose(view.numpy().reshape(N, F), 2 * array, rtol=1e-6)
    plan.free()


def test_two_outputs_of_a_step_are_two_buffers(device):
    x, array = rows(device, 4)
    residual, other = rows(device, 5)
    weight = Tensor.from_numpy(device, np.ones(F, np.float32), "weight")
    plan = Plan(device)
    unused = ops.add(plan, x, x)
    total, normed = ops.add_rms_norm(plan, unused, residual, weight, 1e-6)
    plan.finish(keep=[total]).run()
    np.testing.assert_allclose(total.numpy(), 2 * array + other, rtol=1e-6)
    assert len({id(t.storage.buffer) for t in (total, normed, unused)}) == 3
    plan.free()


def test_larger_results_get_larger_buffers(device):
    plan = Plan(device)
    x, _ = rows(device, 6)
    w = Tensor.from_numpy(device, np.tile(np.eye(F, 32, dtype=np.float32), (20, 1)), "w")
    wide = Tensor.from_numpy(device, np.zeros((N, 32), np.float32), "wide")
    small = ops.add(plan, x, x)
    ops.add(plan, small, x)
    big = ops.matmul(plan, ops.add(plan, wide, wide), w)
    y = ops.add(plan, big, big)
    plan.finish(keep=[y]).run()
    np.testing.assert_array_equal(y.numpy(), np.zeros((N, 20 * F), np.float32))
    for step in plan.steps:
        for _, part in step.outputs:
            assert part.storage.buffer.size >= part.nbytes
    plan.free()


# Misuse --------------------------------------------------------------------------------------------------------------


def test_reading_before_writing(device):
    x, _ = rows(device, 7)
    plan = Plan(device)
    never = plan.empty((N, F), name="never written")
    ops.add(plan, x, never)
    with pytest.raises(ValueError, match="add reads 'never written' before anything wrote it"):
        plan.finish()


def test_adding_to_a_finished_plan(device):
    x, _ = rows(device, 8)
    plan = Plan(device, "decode")
    y = ops.add(plan, x, x)
    plan.finish(keep=[y])
    with pytest.raises(ValueError, match="plan decode is finished"):
        ops.add(plan, x, x)
    assert len(plan.steps) == 1
    plan.free()


@pytest.mark.parametrize("grid", [(0, 1, 1), (1, 1, 0), (65536, 1, 1), (1, 65536, 1), (1, 1, 1 << 20)])
def test_grids_within_the_limits(device, grid, monkeypatch):
    monkeypatch.setitem(device.limits, "max-compute-workgroups-per-dimension", 65535)
    x, _ = rows(device, 9)
    plan = Plan(device)
    kernel = Kernel.of("elementwise.wgsl", OP="add", COUNT=F, WG=64)
    with pytest.raises(ValueError, match=r"add: grid .* 65535 workgroups"):
        plan.add("add", kernel, [x, x, plan.state], [plan.empty((N, F))], grid)


def test_split_tensors_are_not_bound_whole(device, monkeypatch):
    monkeypatch.setitem(device.limits, "max-storage-buffer-binding-size", 64)
    w = Tensor.from_bytes(device, np.zeros((N, F), np.float32), (N, F), "f32", "output.weight")
    monkeypatch.undo()
    x, _ = rows(device, 10)
    with pytest.raises(ValueError, match=r"output\.weight is split into 2 parts"):
        ops.add(Plan(device), w, x)


# Replays -------------------------------------------------------------------------------------------------------------


def test_replays_read_what_is_there_then(device):
    x, _ = rows(device, 11)
    plan = Plan(device)
    y = ops.add(plan, x, x)
    plan.finish(keep=[y])
    for value in (1, 2, 3):
        x.write(np.full((N, F), value, np.float32))
        plan.run()
        np.testing.assert_array_equal(y.numpy(), np.full((N, F), 2 * value, np.float32))
    plan.free()


def test_long_plans_are_cut_by_flops(device, monkeypatch):
    x, array = rows(device, 12)
    plan, y = Plan(device), x
    for _ in range(10):
        y = ops.add(plan, y, x)
    plan.finish(keep=[y])
    each = plan.steps[0].flops
    assert each == N * F
    assert len(plan.submits()) == 1
    monkeypatch.setattr(plan_module, "FLOPS_PER_SUBMIT", 3 * each)
    assert [len(steps) for steps in plan.submits()] == [3, 3, 3, 1]
    assert [step for steps in plan.submits() for step in steps] == plan.steps
    submits = []
    original = device.submit
    monkeypatch.setattr(device, "submit", lambda commands: (submits.append(len(commands)), original(commands)))
    plan.run()
    assert submits == [1, 1, 1, 1]
    np.testing.assert_allclose(y.numpy(), 11 * array, rtol=1e-6)
    monkeypatch.setattr(plan_module, "FLOPS_PER_SUBMIT", 1)
    assert [len(steps) for steps in plan.submits()] == [1] * 10
    plan.free()


def test_replays_set_a_pipeline_once_in_a_row(device, monkeypatch):
    """Of two adds, a norm and an add the second has the pipeline of the first."""
    monkeypatch.setattr(machine_loop, "_loop", lambda: None)  # calls that can be looked at
    x, array = rows(device, 20)
    weight = Tensor.from_numpy(device, np.ones(F, np.float32), "weight")
    plan = Plan(device)
    y = ops.rms_norm(plan, ops.add(plan, ops.add(plan, x, x), x), weight, 1e-6)
    z = ops.add(plan, y, x)
    (submit,) = plan.finish(keep=[z]).replay()
    assert [call[0] is None for call in submit.dispatches] == [False, True, False, False]
    assert plan.replay()[0] is submit
    plan.run()
    expected = 3 * array / np.sqrt((9.0 * array**2).mean(axis=1, keepdims=True) + 1e-6) + array
    np.testing.assert_allclose(z.numpy(), expected, rtol=1e-5, atol=1e-5)
    plan.free()


def test_plans_and_copies_share_submits(device, monkeypatch):
    """Two plans of three steps and what is read of them: one submit, or as many as the limit demands."""
    x, array = rows(device, 21)
    plans, ends = [], []
    for _ in range(2):
        plan = Plan(device)
        ends.append(ops.add(plan, ops.add(plan, ops.add(plan, x, x), x), x))
        plans.append(plan.finish(keep=ends[-1:]))
    each = plans[0].steps[0].flops
    read = ReadBack(device, ends)
    submits = []
    original = device.submit
    monkeypatch.setattr(device, "submit", lambda commands: (submits.append(len(commands)), original(commands)))
    for limit, expected in ((1e11, 1), (6 * each, 1), (5 * each, 2), (3 * each, 2)):
        monkeypatch.setattr(plan_module, "FLOPS_PER_SUBMIT", limit)
        submits.clear()
        for found in read.submit(plans).result():
            np.testing.assert_allclose(found, 4 * array, rtol=1e-6)
        assert submits == [1] * expected, limit
    for plan in plans:
        plan.free()
    read.free()


def test_a_replay_of_nothing(device):
    x, array = rows(device, 22)
    (found,) = ReadBack(device, [x]).submit([]).result()
    np.testing.assert_array_equal(found, array)


def test_costs_add_up(device):
    x, _ = rows(device, 13)
    plan = Plan(device)
    ops.add(plan, ops.add(plan, x, x), x)
    assert plan.flops == 2 * N * F
    assert plan.nbytes == 2 * 3 * 4 * N * F


def test_labels_name_the_part_of_the_model(device):
    x, _ = rows(device, 14)
    plan = Plan(device)
    plan.scope = "blk.7."
    ops.add(plan, x, x)
    assert plan.steps[0].label == "blk.7.add 3x8"


# The debug runner ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["matmul", "moe_matmul", "attention", "rope", "moe_gate", "add_rms_norm", "embed"])
def test_debug_and_normal_runs_give_the_same(device, op):
    case = next(case for case in CASES if case.op == op)
    plan = case.plan(device, seed=3)
    outputs = [tensor for tensor, _ in plan.steps[-1].outputs]
    plan.run()
    normal = [tensor.numpy() for tensor in outputs]
    results = plan.run_debug(ops.values)
    assert len(results) >= 1
    assert all(error <= tolerance for _, error, tolerance in results)
    for before, tensor in zip(normal, outputs, strict=True):
        np.testing.assert_array_equal(tensor.numpy(), before)
    plan.free()


def edit(folder, name: str, old: str, new: str) -> None:
    path = folder / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def debug_add(device: Device, tokens: int = N) -> list[tuple[str, float, float]]:
    x, _ = rows(device, 15)
    state = Tensor.from_numpy(device, np.array([0, tokens], np.uint32), "state")
    plan = Plan(device, state=state)
    plan.scope = "blk.1."
    y = ops.add(plan, ops.add(plan, x, x), x)
    return plan.finish(keep=[y]).run_debug(ops.values)


def test_a_right_kernel_passes(fresh):
    results = debug_add(fresh)
    assert [label for label, _, _ in results] == ["blk.1.add 3x8", "blk.1.add 3x8"]


def test_a_wrong_kernel_is_caught(fresh, shader_folder):
    edit(shader_folder, "elementwise.wgsl", "a[at] + b[at]", "a[at] + b[at] * 1.001")
    with pytest.raises(NumericalError, match=r"blk\.1\.add 3x8: elementwise\(COUNT=8, OP.*twin: .* of 24 values"):
        debug_add(fresh)


def test_nan_is_caught(fresh, shader_folder):
    edit(shader_folder, "elementwise.wgsl", "a[at] + b[at]", "sqrt(a[at] - abs(a[at]) - 1.0)")
    with pytest.raises(NumericalError, match=r"add 3x8: elementwise.* wrote NaN or Inf into .*add"):
        debug_add(fresh)


def test_infinity_is_caught(fresh, shader_folder):
    edit(shader_folder, "elementwise.wgsl", "a[at] + b[at]", "vec4<f32>(1.0) / (a[at] - a[at])")
    with pytest.raises(NumericalError, match="wrote NaN or Inf"):
        debug_add(fresh)


def test_a_wrong_row_is_caught(fresh, shader_folder):
    """Only the last row is wrong; the message says where."""
    edit(shader_folder, "elementwise.wgsl", "a[at] + b[at]", "a[at] + b[at] + f32(token == 2u)")
    with pytest.raises(NumericalError, match=r"at \(2, \d\) .*8 of 24 values"):
        debug_add(fresh)


def test_a_row_left_out_is_caught(fresh, shader_folder):
    """What a kernel forgets to write is NaN, and not what an earlier run left there."""
    edit(shader_folder, "elementwise.wgsl", "token >= state[1]", "token + 1u >= state[1]")
    with pytest.raises(NumericalError, match="wrote NaN or Inf"):
        debug_add(fresh)


def test_padding_is_not_judged(fresh, shader_folder):
    edit(shader_folder, "elementwise.wgsl", "a[at] + b[at]", "a[at] + b[at] + f32(token == 2u)")
    assert len(debug_add(fresh, tokens=2)) == 2


def test_the_tolerance_is_relative_to_the_largest(device):
    """Values of a thousand may be off by a thousand times the tolerance."""
    x = Tensor.from_numpy(device, np.full((1, 4), 1000, np.float32), "x")
    plan = Plan(device)
    y = plan.empty((1, 4))
    kernel = Kernel.of("elementwise.wgsl", OP="add", COUNT=4, WG=64)
    plan.add("add", kernel, [x, x, plan.state], [y], (1, 1, 1))
    plan.check(lambda _p, _n, x: [2 * x + 1], [x], [y], 1e-3)
    ((_, error, tolerance),) = plan.finish(keep=[y]).run_debug(ops.values)
    assert error == pytest.approx(1 / 2001)
    assert tolerance == 1e-3
    plan.steps[0].check = plan_module.Check(lambda _p, _n, x: [2 * x + 4], [x], [y], 1e-3)
    with pytest.raises(NumericalError, match=r"2\.00e-03 > 1\.0e-03"):
        plan.run_debug(ops.values)
    plan.free()


def test_what_a_check_reads_is_kept_for_it(device):
    """Packed matmuls read quants; by the second one x itself is no longer read by any kernel, but by the twin."""
    rng = np.random.default_rng(0)
    a = Tensor.from_numpy(device, rng.standard_normal((4, 64)).astype(np.float32), "a")
    raw = gguf.quants.quantize(rng.standard_normal((64, 64)).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    w = Tensor.from_bytes(device, raw, (64, 64), "q8_0", "w")
    plan = Plan(device, activations="q8")
    x = ops.add(plan, a, a)
    one = ops.matmul(plan, x, w)
    y = ops.add(plan, one, ops.matmul(plan, x, w))
    assert len(plan.finish(keep=[y]).run_debug(ops.values)) == 5
    plan.free()
