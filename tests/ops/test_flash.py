"""Attention in parts and in tiles: any number of past keys in one recorded plan, costs, what is kept of keys."""

import dataclasses

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.attention_ways import Way, problem_of
from qwen3omni_wgpu.ops.cases import Case
from qwen3omni_wgpu.ops.cases.attention import BUILDERS
from qwen3omni_wgpu.ops.choice import candidates
from qwen3omni_wgpu.ops.guard import values as read
from qwen3omni_wgpu.reference import attention as reference

pytestmark = pytest.mark.gpu
HEADS, KV, HD, ROWS = 4, 2, 64, 600
# Sums over up to 600 keys in another order; means of values of order 1.
TOLERANCE = 3e-5


class Layer:
    """One recorded attention over a cache of 600 rows, of which those behind the tokens are NaN."""

    def __init__(self, device: Device, n: int, way: Way):
        self.rng, self.n = np.random.default_rng(), n
        self.q, self.k, self.v = (self.rng.standard_normal(shape).astype(np.float32)
                                  for shape in ((n, HEADS * HD), (ROWS, KV * HD), (ROWS, KV * HD)))  # fmt: skip
        self.plan = Plan(device)
        self.plan.state = self.state = Tensor.empty(device, (2,), "u32", "state")
        q = Tensor.from_numpy(device, self.q, "q")
        self.keys, self.values = (Tensor.empty(device, (ROWS, KV * HD), "f32", name) for name in "kv")
        self.y = ops.attention(self.plan, q, self.keys, self.values, HEADS, KV, 0.125, way=way)
        self.plan.finish(keep=[self.y])

    def check(self, past: int, used: int) -> None:
        self.state.write(np.array([past, used], np.uint32))
        for tensor, array in ((self.keys, self.k), (self.values, self.v)):
            tensor.write(np.where(np.arange(ROWS)[:, None] < past + used, array, np.nan).astype(np.float32))
        self.y.fill(0xFF)
        self.plan.run()
        split = [array[: past + used].reshape(-1, KV, HD) for array in (self.k, self.v)]
        expected = reference.attention(self.q[:used].reshape(-1, HEADS, HD), *split, past, 0.125)
        found = self.y.numpy()
        np.testing.assert_allclose(found[:used], expected.reshape(used, -1), atol=TOLERANCE, err_msg=f"past {past}")
        assert np.isnan(found[used:]).all()


@pytest.mark.parametrize("last", [True, False])
def test_one_plan_serves_every_past(device, last):
    """Around the borders of tiles and parts: 4 parts of at least 64 keys."""
    layer = Layer(device, 2, Way("split", 8, 64, 4, 1, last=last))
    for past in (0, 1, 63, 64, 65, 127, 128, 129, 255, 256, 257, 300, 511, 512, 513, ROWS - 2):
        layer.check(past, 2)
    layer.check(70, 1)
    layer.plan.free()


def test_one_plan_of_tiles_serves_every_past(device):
    """Tiles of 32 tokens with two heads each, and of 32 keys."""
    layer = Layer(device, 40, Way("tiled", rows=8, staged=False))
    for past, used in ((0, 40), (0, 1), (1, 32), (31, 33), (32, 40), (500, 7), (ROWS - 40, 40)):
        layer.check(past, used)
    layer.plan.free()


@pytest.mark.parametrize("last", [True, False])
def test_empty_parts_leave_nothing_behind(device, last):
    """A long context first, then a short one: what the parts had left is not read again."""
    layer = Layer(device, 1, Way("split", 8, 64, 8, 1, last=last))
    for past in (590, 3, 100, 0):
        layer.check(past, 1)
    layer.plan.free()


def test_whoever_comes_last(device):
    """Parts end in any order on all cores, and are added up in one order: every replay gives the same bits."""
    layer = Layer(device, 2, Way("split", 8, 64, 8, 1, last=True))
    for past in (590, 130):
        layer.check(past, 2)
        first = layer.y.numpy()
        for _ in range(100):
            layer.y.fill(0xFF)
            layer.plan.run()
            np.testing.assert_array_equal(layer.y.numpy(), first)
    layer.plan.free()


@pytest.mark.parametrize("kind", ["f16", "kv_q8"])
def test_costs_are_linear_in_the_keys(device, kind, monkeypatch):
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated", name="a GPU"))
    for n in (1, 512):
        params = {"n": n, "heads": 32, "kv": 4, "hd": 128, "cache": kind}
        plans = [Case("attention", params | {"past": past}).dry(device) for past in (16384, 32768, 49152, 65536)]
        for costs in ([plan.flops for plan in plans], [plan.nbytes for plan in plans]):
            steps = np.diff(costs)
            assert steps.min() == steps.max() > 0
        # The keys themselves are nearly all that is read for a token.
        assert n > 1 or plans[-1].nbytes < 1.05 * 65536 * 2 * (512 * 2 if kind == "f16" else (672 + 544) / 2)


def test_a_long_context_keeps_forty_units_busy(device, monkeypatch):
    """The 30B's heads at 32k keys on a GPU: more workgroups than the target has units, none of them with few keys."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated", name="a GPU"))
    (way, *_) = candidates(device, problem_of(1, 32, 4, 128, "f16", 32768, 0))
    assert way.kernel == "split"
    assert 4 * way.splits >= 2 * 40
    assert 32768 // way.splits >= 64


def test_parts_raise_what_a_driver_that_counts_can_do(device):
    ways = [Way("split", 16, 64, splits, 1) for splits in (1, 8)]
    few, many = (way.most_keys(device, 8, 128) for way in ways)
    # What adding up the parts takes is no longer there for keys.
    assert 7.5 * few < many <= 8 * few


@pytest.mark.parametrize("bits", [8, 10])
def test_what_a_cache_of_integers_keeps(bits):
    """Half a step of each block's largest value; blocks of tiny values do not become denormal scales."""
    largest = 2 ** (bits - 1) - 1
    rng = np.random.default_rng()
    rows = rng.standard_normal((5, 128)).astype(np.float32) * np.logspace(-6, 3, 5, dtype=np.float32)[:, None]
    raw = reference.to_cache_bytes(rows, bits)
    assert raw.shape == (5, 128 // 32 * (4 * bits + 2))
    assert raw.dtype == np.uint8
    kept = reference.from_cache_bytes(raw, rows.shape, bits)
    most = np.abs(rows).reshape(5, -1, 32).max(axis=2).repeat(32, axis=1)
    # Half a step, and what a half's 11 bits do to the scale.
    assert (np.abs(kept - rows) <= np.maximum(most / largest, 2**-14) * 0.51 + most * 2**-11).all()


def test_where_a_key_lies():
    """One integer that is 1 among zeros: its lower bits go from 0 to 1 in one field of its 16 keys' word."""
    rows = np.zeros((32, 64), np.float32)
    at = np.arange(32)
    rows[at, at + 16] = 2**-14  # the least scale there is
    raw = reference.to_cache_bytes(rows, 10)
    assert (raw[:, :64] == 128).all()
    words = np.ascontiguousarray(raw[:, 64:80]).view("<u4")
    for d in range(16, 48):
        expected = np.zeros(4, np.uint32)
        expected[d // 16] = 1 << (8 * (d % 4) + 2 * (d % 16 // 4))
        np.testing.assert_array_equal(words[d - 16], expected)


@pytest.mark.parametrize("hd", [64, 128])
@pytest.mark.parametrize("n", [1, 5])
def test_keys_and_values_are_half_a_step_off(device, n, hd):
    """10 and 8 bits as the shaders write and the ops read them: rows 3 to 3 + n, and nothing else."""
    params = {"n": n, "heads": 4, "kv": 2, "hd": hd, "style": "neox", "start": 3}
    caches = {}
    for cache in ("f32", "kv_q8"):
        plan = Plan(device)
        _, keys, values = BUILDERS["rope_attention"](plan, np.random.default_rng(7), **params, cache=cache)
        before = [read(tensor) for tensor in (keys, values)]
        plan.finish(keep=[keys, values])
        plan.run()
        caches[cache] = before, [read(tensor) for tensor in (keys, values)]
    (_, exact), (before, found) = caches["f32"], caches["kv_q8"]
    for whole, old, new, largest in zip(exact, before, found, (511, 127), strict=True):
        np.testing.assert_array_equal(np.delete(new, slice(3, 3 + n), 0), np.delete(old, slice(3, 3 + n), 0))
        blocks = reference.mix_blocks(whole[3 : 3 + n]).reshape(n, -1, 32)
        steps = np.abs(blocks).max(axis=2, keepdims=True) / largest
        assert (np.abs(new[3 : 3 + n].reshape(blocks.shape) - blocks) < 0.51 * steps + 1e-5).all()


def test_mixing_keeps_dot_products_and_is_its_own_inverse():
    rng = np.random.default_rng()
    a, b = (rng.standard_normal((3, 64)).astype(np.float32) for _ in range(2))
    np.testing.assert_allclose((reference.mix_blocks(a) * reference.mix_blocks(b)).sum(1), (a * b).sum(1), atol=1e-4)
    np.testing.assert_allclose(reference.mix_blocks(reference.mix_blocks(a)), a, atol=1e-5)
