"""Token slots grouped by expert: what moe_sort leaves behind, when tiles are taken, results as slot by slot."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.cases import GROUPED, normal, weight
from qwen3omni_wgpu.ops.moe_sort import tiles_needed
from qwen3omni_wgpu.reference.moe import NONE, moe_sort

pytestmark = pytest.mark.gpu


def draw_ids(rng: np.random.Generator, n: int, k: int, e: int) -> np.ndarray:
    """K different experts a token, some of them much liked, some never chosen."""
    liking = rng.random(e) ** 4 + 1e-3
    liking[rng.random(e) < 0.2] = 1e-9
    return np.stack([rng.choice(e, k, replace=False, p=liking / liking.sum()) for _ in range(n)]).astype(np.uint32)


@pytest.mark.parametrize(("n", "k", "e", "tile"), [(50, 4, 40, 8), (33, 1, 3, 5), (150, 8, 130, 32), (7, 7, 7, 1)])
def test_sorting_again_leaves_nothing_of_the_last_time(device, n, k, e, tile):
    """A replayed plan finds its own earlier slots in the buffers: what is not written anew would count as tokens."""
    rng = np.random.default_rng()
    plan = Plan(device)
    plan.state = Tensor.from_numpy(device, np.array([0, n], np.uint32), "state")
    ids = Tensor.from_numpy(device, draw_ids(rng, n, k, e), "ids")
    slots, experts = ops.moe_sort(plan, ids, e, tile)
    plan.finish(keep=[slots, experts])
    for used in (n, 1, n // 2, n):
        fresh = draw_ids(rng, n, k, e)
        ids.write(fresh)
        plan.state.write(np.array([0, used], np.uint32))
        plan.run()
        wanted, owners = moe_sort(fresh[:used], e, tile, len(experts.numpy()))
        np.testing.assert_array_equal(experts.numpy(), owners)
        np.testing.assert_array_equal(slots.numpy()[owners != NONE], wanted[owners != NONE])
    plan.free()


def test_there_are_tiles_for_the_worst_choices():
    rng = np.random.default_rng()
    for _ in range(200):
        slots, e, tile = (int(rng.integers(1, most)) for most in (200, 40, 40))
        counts = np.bincount(rng.integers(0, e, slots), minlength=e)
        assert (-(-counts // tile)).sum() <= tiles_needed(slots, e, tile)
    # All experts have one slot more than fits; every slot has an expert of its own.
    assert tiles_needed(4 * 9, 4, 8) == 8
    assert tiles_needed(5, 128, 16) == 5


def record(
    device: Device, rng: np.random.Generator, act: str, x: np.ndarray, ids: np.ndarray, **how: Any
) -> np.ndarray:
    """Gates and ups, then downs, of the same random weights for the same seed."""
    (n, k), e, f, d = ids.shape, 12, 64, 128
    plan = Plan(device, activations=act)
    gate_up, down = weight(plan, rng, (2 * e, f, d), "q8_0", "gate_up"), weight(plan, rng, (e, d, f), "q8_0", "down")
    chosen = Tensor.from_numpy(device, ids, "ids")
    hidden = ops.moe_swiglu(plan, Tensor.from_numpy(device, x, "x"), [gate_up], chosen, **how)
    y = ops.moe_matmul(plan, hidden, down, chosen, **how)
    plan.finish(keep=[y]).run()
    found = y.numpy()
    plan.free()
    assert found.shape == (n * k, d)
    return found


@pytest.mark.parametrize("act", ["f32", "q8"])
@pytest.mark.parametrize("tile", GROUPED)
def test_grouped_is_as_slot_by_slot(device, act, tile):
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    x = np.random.default_rng(seed).standard_normal((29, 128), dtype=np.float32)
    ids = draw_ids(np.random.default_rng(seed), 29, 3, 12)
    apart = record(device, np.random.default_rng(seed), act, x, ids)
    grouped = record(device, np.random.default_rng(seed), act, x, ids, variant=ops.Variant(**tile))
    # A hidden value on a border between two integers may round the other way: one step of 1/127 of one term of 64.
    tolerance = (5e-3 if act == "q8" else 1e-5) * np.abs(apart).max()
    np.testing.assert_allclose(grouped, apart, atol=tolerance, err_msg=f"seed {seed}")


def test_one_grouping_serves_all_matmuls_of_the_ids(device, monkeypatch):
    """On a GPU a prompt's experts go by tiles, a few tokens' slot by slot; a CPU driver's always slot by slot."""

    def steps(n: int) -> list[str]:
        plan, rng = Plan(device, activations="q8", dry=True), np.random.default_rng()
        ids = plan.empty((n, 2), "u32", "ids")
        gates = [weight(plan, rng, (4, 32, 64), "q8_0", name) for name in ("gate", "up")]
        hidden = ops.moe_swiglu(plan, normal(plan, rng, n, 64), gates, ids)
        ops.moe_down(plan, hidden, weight(plan, rng, (4, 64, 32), "q8_0"), ids, plan.empty((n, 2), "f32", "weights"))
        return [step.op for step in plan.steps]

    apart = ["quantize_q8", "moe_matmul", "moe_matmul", "swiglu", "quantize_q8", "moe_matmul", "moe_combine"]
    assert steps(3) == apart
    assert steps(64) == apart
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    grouped = ["moe_sort", "moe_matmul", "moe_swiglu", "quantize_q8", "moe_matmul", "moe_combine"]
    assert steps(64) == ["quantize_q8", *grouped]
