"""Drawing a token on the device: its distribution, ties, penalties, what is left out, numbers at the borders."""

from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.reference import sample as twin

pytestmark = pytest.mark.gpu


def draws(
    device: Device, logits: np.ndarray, numbers: np.ndarray, settings: tuple[float, ...], **more: Any
) -> np.ndarray:
    """One id for each random number, all from the same logits: a plan of as many steps."""
    put = {"logits": logits[None], "random": numbers, "settings": np.array(settings)}
    tensors = [Tensor.from_numpy(device, array.astype(np.float32), name) for name, array in put.items()]
    codes = Tensor.empty(device, (len(numbers),), "u32", "codes")
    plan = Plan(device)
    for i in range(len(numbers)):
        ops.sample(plan, *tensors, draw=i, codes=codes, at=i, **more)
    plan.finish().run()
    found = codes.numpy()
    plan.free()
    return found


def expected(logits: np.ndarray, settings: tuple[float, ...]) -> np.ndarray:
    temperature, k, p, _ = settings
    return twin.distribution(logits, temperature, int(k), p)


@pytest.mark.parametrize(
    "settings", [(1, 0, 1, 1), (0.7, 5, 1, 1), (1.3, 0, 0.8, 1), (1, 8, 0.8, 1), (5, 1, 1, 1), (1, 0, 1e-6, 1)]
)
def test_evenly_spread_numbers_give_the_distribution(device, settings):
    """The numbers (i + 1/2) / M meet every token M times its probability, one more or less."""
    rng, m = np.random.default_rng(), 200
    logits = (rng.standard_normal(40) * 2).astype(np.float32)
    found = draws(device, logits, (np.arange(m) + 0.5) / m, settings)
    assert (np.diff(found.astype(int)) >= 0).all()  # in the order of the ids
    counts = np.bincount(found, minlength=40)
    # One either way by the borders of the stretch, another by rounding where a border meets a number.
    assert (np.abs(counts - m * expected(logits, settings)) <= 2).all()


def test_random_numbers_give_the_distribution(device):
    """Chi-square over 20 outcomes with a fixed seed: 43.8 is exceeded once in 1000 seeds, by this one never."""
    rng, settings, m = np.random.default_rng(7), (0.9, 20, 1, 1), 1000
    logits = rng.standard_normal(300).astype(np.float32)
    counts = np.bincount(draws(device, logits, rng.random(m), settings), minlength=300)
    wanted = m * expected(logits, settings)
    among = wanted > 0
    assert among.sum() == 20
    assert counts[~among].sum() == 0
    assert (((counts - wanted) ** 2)[among] / wanted[among]).sum() < 43.8


@pytest.mark.parametrize("v", [5, 300, 3072])
def test_the_smallest_and_the_largest_number(device, v):
    logits = np.random.default_rng().standard_normal(v).astype(np.float32)
    largest = np.nextafter(np.float32(1), np.float32(0))
    assert draws(device, logits, np.array([0, largest]), (1, 0, 1, 1)).tolist() == [0, v - 1]
    kept = np.flatnonzero(expected(logits, (1, 4, 1, 1)))
    assert draws(device, logits, np.array([0, largest]), (1, 4, 1, 1)).tolist() == [kept[0], kept[-1]]


def test_ties_of_the_k_th_stay(device):
    logits = np.array([1, 3, 2, 2, 0, 2, -1], np.float32)
    found = draws(device, logits, (np.arange(64) + 0.5) / 64, (1, 2, 1, 1))
    assert set(found.tolist()) == {1, 2, 3, 5}


@pytest.mark.parametrize(
    ("p", "kept"), [(0.1, [7]), (0.45, [4, 5, 6, 7]), (0.38, [4, 5, 6, 7]), (0.52, [3, 4, 5, 6, 7])]
)
def test_of_ties_at_the_border_of_top_p_the_higher_ids_stay(device, p, kept):
    found = draws(device, np.full(8, 2.5, np.float32), (np.arange(64) + 0.5) / 64, (1, 0, p, 1))
    assert sorted(set(found.tolist())) == kept
    assert np.flatnonzero(expected(np.full(8, 2.5, np.float32), (1, 0, p, 1))).tolist() == kept


def test_one_token_always_stays(device):
    logits = np.array([0, 2, 2, 1], np.float32)
    assert draws(device, logits, np.array([0.0, 0.5, 0.99]), (1, 0, 0, 1)).tolist() == [2, 2, 2]


def test_the_penalty_is_for_what_was_drawn_and_only_once(device):
    """Greedy: 8 / 2 falls behind 5; 5 / 2 behind 4, the first one's; which then stays however often it comes."""
    logits = np.array([8, -1, 5, 0.5, -1.5], np.float32)
    seen = Tensor.empty(device, (5,), "u32", "seen")
    assert draws(device, logits, np.zeros(5), (0, 0, 1, 2), seen=seen).tolist() == [0, 2, 0, 0, 0]
    assert seen.numpy().tolist() == [4, 0, 1, 0, 0]
    # -1 * 2 falls behind -1.5.
    seen.write(np.array([1, 1, 1, 1, 0], np.uint32))
    assert draws(device, np.array([-9, -1, -9, -9, -1.5]), np.zeros(1), (0, 0, 1, 2), seen=seen).tolist() == [4]
    assert seen.numpy().tolist() == [1, 1, 1, 1, 1]


def test_what_is_left_out_never_comes(device):
    logits = np.full(300, 9, np.float32)
    logits[[10, 200]] = 1
    numbers = (np.arange(32) + 0.5) / 32
    found = draws(device, logits, numbers, (1, 50, 1, 1), left_out=(0, 300), spared=200)
    assert set(found.tolist()) == {200}
    found = draws(device, logits, numbers, (1, 0, 1, 1), left_out=(11, 300), spared=200)
    assert found.max() <= 10
    assert draws(device, logits, numbers[:1], (0, 0, 1, 1), left_out=(0, 10)).tolist() == [11]


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize(
    ("logits", "ids"),
    [
        ([NAN, NAN, NAN], {3}),
        ([-INF, NAN, -INF], {3}),
        ([NAN, 1, NAN], {1}),
        ([-INF, -3e38, NAN], {1}),
        ([INF, 3e38, -3e38], {0}),
        ([3e38, -3e38, 2.9e38], {0}),
        ([-0.0, -1e-42, -900], {0, 1}),
        ([-900, -1e30, -901 - 200], {0}),
    ],
)
def test_extremes(device, logits, ids, temperature):
    found = draws(device, np.array(logits, np.float32), np.array([0, 0.49, 0.51, 0.99]), (temperature, 0, 1, 1))
    assert set(found.tolist()) <= ids
    for top_k, top_p in ((2, 1), (0, 0.9), (2, 0.9)):
        found = draws(device, np.array(logits, np.float32), np.array([0, 0.99]), (temperature, top_k, top_p, 1))
        assert set(found.tolist()) <= ids


def test_the_twin_by_hand():
    x = np.log(np.array([0.1, 0.2, 0.4, 0.3], np.float32))
    np.testing.assert_allclose(twin.distribution(x, 1, 0, 1), [0.1, 0.2, 0.4, 0.3], atol=1e-7)
    np.testing.assert_allclose(twin.distribution(x, 1, 2, 1), [0, 0, 4 / 7, 3 / 7], atol=1e-7)
    np.testing.assert_allclose(twin.distribution(x, 1, 0, 0.85), [0, 2 / 9, 4 / 9, 3 / 9], atol=1e-7)
    np.testing.assert_allclose(twin.distribution(x, 1, 3, 0.5), [0, 0, 4 / 7, 3 / 7], atol=1e-7)
    np.testing.assert_allclose(twin.distribution(x, 0.5, 2, 1), [0, 0, 0.64, 0.36], atol=1e-7)
    probabilities = np.array([0, 0.25, 0, 0.75])
    assert [twin.draw(probabilities, u) for u in (0, 0.24, 0.25, 0.99999)] == [1, 1, 3, 3]
    assert twin.draw(np.zeros(4), 0.5) == 4
    logits = np.array([2, -2, 0, 7, 6, 5], np.float32)
    seen = np.array([3, 1, 1, 0, 0, 0], np.uint32)
    assert twin.allowed(logits, seen, 2, (3, 6), 4).tolist() == [1, -4, 0, -INF, 6, -INF]
