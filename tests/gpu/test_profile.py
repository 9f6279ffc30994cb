"""Timestamps around every dispatch: the slices, the table, the trace."""

import json

import numpy as np
import pytest

from qwen3omni_wgpu.errors import InvalidRequest, UnsupportedDevice
from qwen3omni_wgpu.gpu import Device, Plan, Profiler, Tensor
from qwen3omni_wgpu.gpu import plan as plan_module
from qwen3omni_wgpu.gpu import profile as profile_module
from qwen3omni_wgpu.ops import add, rms_norm, softmax

pytestmark = pytest.mark.gpu


@pytest.fixture
def timed(device: Device) -> Device:
    if not {"timestamp-query", "timestamp-query-inside-passes"} <= device.features:
        pytest.skip("this adapter has no timestamps")
    return device


def some_plan(device: Device, layers: int = 2) -> tuple[Plan, Tensor]:
    x = Tensor.from_numpy(device, np.random.default_rng(0).standard_normal((64, 512), np.float32), "x")
    weight = Tensor.from_numpy(device, np.ones(512, np.float32), "norm")
    plan, h = Plan(device, "decode"), x
    for i in range(layers):
        plan.scope = f"blk.{i}."
        h = add(plan, rms_norm(plan, h, weight, 1e-6), x)
    plan.scope = ""
    y = softmax(plan, h)
    return plan.finish(keep=[y]), y


def test_one_slice_a_dispatch_in_order(timed):
    plan, y = some_plan(timed)
    plan.run()
    expected = y.numpy()
    profiler = Profiler(timed)
    profiler.run(plan)
    np.testing.assert_array_equal(y.numpy(), expected)
    assert [item.label for item in profiler.slices] == [step.label for step in plan.steps]
    assert profiler.slices[0].label == "blk.0.rms_norm 64x512"
    assert [item.kernel for item in profiler.slices] == [step.kernel.label for step in plan.steps]
    assert [item.nbytes for item in profiler.slices] == [step.nbytes for step in plan.steps]
    assert all(item.duration > 0 for item in profiler.slices)
    for one, following in zip(profiler.slices, profiler.slices[1:], strict=False):
        assert one.start + one.duration <= following.start + 1e3  # a microsecond for the clock's steps
    profiler.run(plan)
    assert len(profiler.slices) == 2 * len(plan.steps)
    assert profiler.slices[5].start > profiler.slices[4].start  # both runs lie on the host's clock


def test_table_sums_up(timed):
    plan, _ = some_plan(timed, layers=3)
    profiler = Profiler(timed)
    for _ in range(2):
        profiler.run(plan)
    rows = {row["op"]: row for row in profiler.table()}
    assert {op: row["count"] for op, row in rows.items()} == {"rms_norm": 6, "add": 6, "softmax": 2}
    total = sum(item.duration for item in profiler.slices)
    assert sum(row["percent"] for row in rows.values()) == pytest.approx(100)
    assert sum(row["ms"] for row in rows.values()) == pytest.approx(total / 1e6)
    assert [row["ms"] for row in profiler.table()] == sorted((row["ms"] for row in rows.values()), reverse=True)
    spent = sum(item.duration for item in profiler.slices if "rms_norm" in item.label)
    moved = 6 * plan.steps[0].nbytes
    assert rows["rms_norm"]["gbps"] == pytest.approx(moved / spent)
    assert rows["rms_norm"]["gflops"] == pytest.approx(6 * plan.steps[0].flops / spent)


def test_chrome_trace(timed, tmp_path):
    plan, _ = some_plan(timed)
    profiler = Profiler(timed)
    with profiler.span("decode 1"):
        profiler.run(plan)
    profiler.write(tmp_path / "trace.json")
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = trace["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert names[1] == "host"
    assert names[2] == f"GPU: {timed.info.name}"
    slices = [event for event in events if event["ph"] == "X" and event["tid"] == 2]
    assert [event["name"] for event in slices] == [step.label for step in plan.steps]
    (span,) = [event for event in events if event["ph"] == "X" and event["tid"] == 1]
    assert span["name"] == "decode 1"
    assert all(event["ts"] >= 0 and event["dur"] >= 0 for event in (span, *slices))
    assert span["dur"] > 0
    # microseconds on one clock: the GPU starts after the host has begun
    assert slices[0]["ts"] >= span["ts"]
    assert slices[-1]["ts"] + slices[-1]["dur"] <= span["ts"] + span["dur"] + 100
    for event, item, step in zip(slices, profiler.slices, plan.steps, strict=True):
        assert event["dur"] == pytest.approx(item.duration / 1e3)
        assert event["args"]["kernel"] == step.kernel.label
        assert event["args"]["bytes"] == step.nbytes


def test_an_empty_trace_is_valid(timed, tmp_path):
    profiler = Profiler(timed)
    assert profiler.table() == []
    profiler.write(tmp_path / "trace.json")
    assert len(json.loads((tmp_path / "trace.json").read_text())["traceEvents"]) == 2


def test_a_span_ends_with_an_error(timed):
    profiler = Profiler(timed)
    with pytest.raises(RuntimeError), profiler.span("fails"):
        raise RuntimeError
    assert [item.name for item in profiler.host] == ["fails"]


def test_long_plans_take_several_query_sets(timed, monkeypatch):
    plan, y = some_plan(timed, layers=4)
    plan.run()
    expected = y.numpy()
    monkeypatch.setattr(profile_module, "STEPS_PER_SET", 4)
    profiler = Profiler(timed)
    profiler.run(plan)
    assert [item.label for item in profiler.slices] == [step.label for step in plan.steps]
    assert all(item.duration > 0 for item in profiler.slices)
    np.testing.assert_array_equal(y.numpy(), expected)


def test_profiled_submits_are_as_short_as_others(timed, monkeypatch):
    plan, _ = some_plan(timed)
    profiler = Profiler(timed)
    monkeypatch.setattr(plan_module, "FLOPS_PER_SUBMIT", plan.steps[0].flops + plan.steps[1].flops)
    submits = []
    original = timed.submit
    monkeypatch.setattr(timed, "submit", lambda commands: (submits.append(len(commands)), original(commands)))
    profiler.run(plan)
    # 2 and 2 and 1 steps, each submit followed by one that reads its timestamps
    assert len(submits) == 2 * len(plan.encode()) == 6
    assert len(profiler.slices) == 5


def test_nothing_stays_allocated(timed):
    before = timed.allocated
    profiler = Profiler(timed)
    assert timed.allocated > before
    profiler.free()
    assert timed.allocated == before


def test_missing_timestamps(device, monkeypatch):
    monkeypatch.setattr(device, "features", device.features - {"timestamp-query-inside-passes"})
    with pytest.raises(UnsupportedDevice, match="timestamp-query-inside-passes") as caught:
        Profiler(device)
    assert device.info.name in str(caught.value)


def test_unwritable_trace(timed, tmp_path):
    profiler = Profiler(timed)
    for path in (tmp_path / "none" / "trace.json", tmp_path):
        with pytest.raises(InvalidRequest, match="trace cannot be written") as caught:
            profiler.write(path)
        assert str(path) in str(caught.value)
