"""Attention inside windows: how they are cut into tiles, what a query sees, and how long a window may be."""

import sys

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.attention_windows import QUERIES, most_window_keys, window_tiles

pytestmark = pytest.mark.gpu


def test_windows_in_tiles():
    spans = [(0, 70, 0, 70), (70, 70, 70, 80), (70, 198, 80, 90), (198, 199, 3, 4)]
    expected = [(0, 64, 0, 70), (64, 6, 0, 70), (70, 64, 80, 90), (134, 64, 80, 90), (198, 1, 3, 4), (0, 0, 0, 0)]
    tiles = window_tiles(spans, 6)
    assert tiles.dtype == np.uint32
    np.testing.assert_array_equal(tiles, expected)


def test_every_query_is_in_one_tile():
    rng = np.random.default_rng()
    stops = np.cumsum(rng.integers(0, 200, 30)).tolist()
    spans = [(start, stop, start, stop + 1) for start, stop in zip([0, *stops], stops, strict=False)]
    tiles = window_tiles(spans, 30 + stops[-1] // QUERIES)
    rows = np.concatenate([np.arange(first, first + count) for first, count, _, _ in tiles.astype(int)])
    np.testing.assert_array_equal(rows, np.arange(stops[-1]))


@pytest.mark.parametrize("span", [(0, 4, 7, 7), (0, 4, 8, 7), (5, 4, 0, 7), (-1, 4, 0, 7), (0, 4, -1, 7)])
def test_spans_that_cannot_be(span):
    with pytest.raises(ValueError, match="are no window"):
        window_tiles([(0, 1, 0, 1), span], 9)


def test_too_many_tiles():
    assert len(window_tiles([(0, 65, 0, 1)], 2)) == 2
    with pytest.raises(ValueError, match="2 tiles, room for 1"):
        window_tiles([(0, 65, 0, 1)], 1)


def put(device: Device, array: np.ndarray, name: str) -> Tensor:
    return Tensor.from_numpy(device, array, name)


def test_one_plan_serves_other_windows(device):
    """Tiles are read when the plan runs, and keys and values beyond a window change nothing."""
    rng = np.random.default_rng()
    n, heads, hd = 100, 2, 12
    q, k, v = (rng.standard_normal((n, heads * hd)).astype(np.float32) for _ in range(3))
    tiles = put(device, window_tiles([(0, n, 0, n)], 4), "tiles")
    plan = Plan(device)
    keys, values = put(device, k, "k"), put(device, v, "v")
    y = ops.window_attention(plan, put(device, q, "q"), keys, values, tiles, heads, 0.3)
    plan.finish(keep=[y])
    for cut in (64, 33, 99):
        tiles.write(window_tiles([(0, cut, 0, cut), (cut, n, cut, n)], 4))
        plan.run_debug(ops.values)
        found = y.numpy()
        inside = np.arange(n)[:, None] < cut
        keys.write(np.where(inside, k, np.float32(1e6)))
        values.write(np.where(inside, v, np.float32(1e6)))
        plan.run()
        np.testing.assert_array_equal(y.numpy()[:cut], found[:cut])
        assert (y.numpy()[cut:] > 9e5).all()
        keys.write(k)
        values.write(v)
    plan.free()


def test_large_scores(device):
    """The running maximum: scores of hundreds in any order neither overflow nor lose the smaller tiles."""
    rng = np.random.default_rng()
    n, hd = 70, 8
    q = np.zeros((n, hd), np.float32)
    q[:, 0] = 1
    k = np.zeros((n, hd), np.float32)
    for places in (np.arange(n), np.arange(n)[::-1], rng.permutation(n)):
        k[:, 0] = places * 10.0 - 400
        v = rng.standard_normal((n, hd)).astype(np.float32)
        plan = Plan(device)
        tiles = put(device, window_tiles([(0, n, 0, n)], 2), "tiles")
        y = ops.window_attention(plan, put(device, q, "q"), put(device, k, "k"), put(device, v, "v"), tiles, 1, 1.0)
        plan.finish(keep=[y]).run_debug(ops.values)
        # All but the best key weigh e^-10 = 5e-5 together, times values that differ by less than 10.
        np.testing.assert_allclose(y.numpy(), np.tile(v[np.argmax(places)], (n, 1)), atol=1e-3)
        plan.free()


def test_more_keys_than_the_driver_walks_through(device, monkeypatch):
    monkeypatch.setattr(Device, "max_rounds", 6000)
    most = most_window_keys(device, 32)
    plan = Plan(device)

    def record(rows: int) -> None:
        q, k, v = (plan.empty((count, 64), "f32", name) for count, name in ((2, "q"), (rows, "keys"), (rows, "v")))
        ops.window_attention(plan, q, k, v, plan.empty((1, 4), "u32", "tiles"), 2, 1.0)

    record(most)
    with pytest.raises(ops.ShapeError, match=f"keys has {most + 1} rows, this device can do {most}"):
        record(most + 1)


@pytest.mark.slow
@pytest.mark.parametrize("hd", [4, 64, 72, 128])
def test_it_is_right_up_to_there(hd, device):
    """llvmpipe ends a thread's loops after 65535 rounds without a word: the last key must still count."""
    most = min(most_window_keys(device, hd), device.max_binding // (4 * hd))
    if device.max_rounds == sys.maxsize:
        pytest.skip("this driver does not count rounds")
    keys, values = np.zeros((most, hd), np.float32), np.ones((most, hd), np.float32)
    values[-1] = most + 1.0  # the mean is 2
    plan = Plan(device)
    tiles = put(device, np.array([(0, 1, 0, most)], np.uint32), "tiles")
    q = put(device, np.zeros((1, hd), np.float32), "q")
    y = ops.window_attention(plan, q, put(device, keys, "k"), put(device, values, "v"), tiles, 1, 1.0)
    plan.finish(keep=[y]).run()
    np.testing.assert_allclose(y.numpy(), 2, rtol=1e-3)
    plan.free()
