"""Which tiles are taken: enough of them to keep a GPU busy, as large as may be, within the workgroup's memory."""

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops import tiles
from qwen3omni_wgpu.ops.cases import VARIANTS, weight
from qwen3omni_wgpu.ops.choice import Problem

pytestmark = pytest.mark.gpu


def dense(device: Device, n: int, f: int, packed: bool = True, kind: str = "q8_0") -> list[tiles.Size]:
    return tiles.dense(device, Problem.of("matmul", type=kind, packed=packed, n=n, f=f, d=2048))


def test_large_tiles_where_there_is_enough_work(device):
    sizes = [tiles.extent(dense(device, n, f)[0]) for n, f in ((512, 4096), (128, 4096), (128, 512), (16, 512))]
    assert sizes == [(64, 128), (64, 64), (64, 16), (64, 16)]
    for n, f in ((512, 4096), (9, 64)):
        found = dense(device, n, f)
        assert len(set(found)) == len(found) >= 4


@pytest.mark.parametrize("kind", ["q8_0", "q4_1", "f16"])
def test_tiles_fit_the_memory_of_a_workgroup(device, monkeypatch, kind):
    packed = kind != "f16"
    monkeypatch.setitem(device.limits, "max-compute-workgroup-storage-size", 16384)
    for size in dense(device, 4096, 4096, packed, kind):
        assert tiles.workgroup_bytes(size, packed, kind, 2048) <= 16384
    grouped = Problem.of("moe_grouped", type=kind, packed=packed, n=4096, e=128, f=768, d=2048)
    assert tiles.grouped(device, grouped)


@pytest.mark.parametrize("slots", [64, 4096])
def test_experts_with_many_slots_have_wider_tiles(device, slots):
    problem = Problem.of("moe_grouped", type="q8_0", packed=True, n=slots, e=128, f=768, d=2048)
    assert tiles.extent(tiles.grouped(device, problem)[0]) == ((64, 32) if slots == 4096 else (64, 16))


@pytest.mark.parametrize(("act", "kind"), [("q8", "q8_0"), ("q8", "q4_0"), ("f32", "q8_0"), ("f32", "bf16")])
def test_numbers_beyond_a_matrix_do_not_leak_in(device, act, kind):
    """Rows, tokens and blocks beyond the end: what lies in memory behind them, even NaN, changes nothing."""
    n, f, d = 21, 70, 96  # a tile and a bit; three blocks where two make a step
    rng = np.random.default_rng()
    x = rng.standard_normal((n, d), dtype=np.float32)
    found = []
    for behind in (0.0, np.nan):
        plan = Plan(device, activations=act)
        padded = Tensor.from_numpy(device, np.concatenate([x, np.full((9, d), behind, np.float32)]), "x")
        plan.state = Tensor.from_numpy(device, np.array([0, n], np.uint32), "state")
        w = weight(plan, np.random.default_rng(1), (f, d), kind)
        y = ops.matmul(plan, padded, w, variant=ops.Variant(**VARIANTS[-1]))
        plan.finish(keep=[y]).run()
        found.append(y.numpy()[:n])
        plan.free()
    assert np.isfinite(found[0]).all()
    np.testing.assert_array_equal(*found)
