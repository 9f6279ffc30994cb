"""A token drawn on the device: as the host's sampler draws it, from what its filters leave, with its penalties."""

from collections import Counter
from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.pick import TOLERANCE
from qwen3omni_wgpu.reference import sample as twin
from qwen3omni_wgpu.sampler import GenerationConfig, Sampler

pytestmark = pytest.mark.gpu

OFF = -3e38  # no floor of min_p
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))


def draws(device: Device, logits: np.ndarray, settings: np.ndarray, k: int, seen: Tensor | None = None) -> list[int]:
    """One id for each row of settings [M, 9], all from the same logits: a plan of as many draws."""
    target = Tensor.from_numpy(device, logits.astype(np.float32)[None], "logits")
    plan, ids = Plan(device), []
    for row in settings.astype(np.float32):
        ids.append(ops.pick(plan, target, Tensor.from_numpy(device, row, "settings"), k, seen=seen))
    plan.finish(keep=ids).run()
    found = [int(id.numpy()[0]) for id in ids]
    plan.free()
    return found


def rows(numbers: Any, chain: tuple[float, ...], v: int) -> np.ndarray:
    """Settings without penalties. chain: temperature, top_k, top_p, log(min_p)."""
    return np.array([[*chain, number, v, 1, 0, 0] for number in numbers])


def sampler(seed: int, **settings: Any) -> Sampler:
    return Sampler(GenerationConfig(seed=seed, **settings).resolved({}), ())


CONFIGS = [
    {}, {"top_k": 1}, {"top_k": 128, "top_p": 0.9, "min_p": 0.0, "temperature": 3.0},
    {"top_k": 20, "top_p": 0.5, "min_p": 0.0}, {"top_k": 40, "top_p": 1.0, "min_p": 0.3, "temperature": 1.5},
    {"top_k": 7, "top_p": 0.0}, {"top_k": 9, "min_p": 1.0}, {"temperature": 0}, {"temperature": 1e-12},
    {"temperature": 1e30, "top_k": 5, "top_p": 1.0, "min_p": 0.0},
]  # fmt: skip


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("config", CONFIGS, ids=str)
def test_the_hosts_sampler_draws_the_same(device, config, ties):
    rng = np.random.default_rng()
    v = 1500
    logits = (rng.standard_normal(v) * 3).astype(np.float32)
    logits = np.round(logits) if ties else logits
    seeds = rng.integers(0, 2**31, 16).tolist()
    k = max(1, sampler(0, **config).wanted)
    settings = np.stack([sampler(seed, **config).numbers(v) for seed in seeds])
    ids, values, logsumexp = twin.top_k(logits, k)
    for found, seed, row in zip(draws(device, logits, settings, k), seeds, settings, strict=True):
        expected = sampler(seed, **config).pick(ids, values, logsumexp, lambda: logits)
        if found != expected:  # in float32 a draw at a border may fall to the neighbour
            kept, sums = twin.chain(logits, float(row[0]), int(row[1]), float(row[2]), float(row[3]))
            borders = np.append(sums, 0.0)
            assert found in kept, (found, expected, seed)
            assert np.abs(borders - row[4]).min() < TOLERANCE, (found, expected, seed)


@pytest.mark.parametrize(
    ("k", "chain"),
    [(40, (1, 0, 1, OFF)), (40, (0.7, 5, 1, OFF)), (40, (1.3, 40, 0.8, OFF)), (20, (2, 20, 1, -1.5)),
     (40, (0.5, 0, 0.6, -2)), (10, (1, 10, 0.9, -3))],
)  # fmt: skip
def test_evenly_spread_numbers_give_the_distribution(device, k, chain):
    """The numbers (i + 1/2) / M meet every token M times its probability, one more or less."""
    rng, m, v = np.random.default_rng(), 100, 40
    logits = (rng.standard_normal(v) * 2).astype(np.float32)
    found = draws(device, logits, rows((np.arange(m) + 0.5) / m, chain, v), k)
    ids, sums = twin.chain(logits, chain[0], int(chain[1]), chain[2], chain[3])
    assert (np.diff([ids.tolist().index(id) for id in found]) >= 0).all()  # from the best on
    counts = np.bincount(found, minlength=v)
    # One either way by the borders of the stretch, another by rounding where a border meets a number.
    assert (np.abs(counts[ids] - m * np.diff(sums, prepend=0)) <= 2).all()


def test_ties_go_to_the_lower_id(device):
    logits = np.array([1, 3, 2, 2, 0, 2, -1], np.float32)
    numbers = (np.arange(16) + 0.5) / 16
    assert set(draws(device, logits, rows(numbers, (1, 3, 1, OFF), 7), 7)) == {1, 2, 3}
    assert set(draws(device, logits, rows(numbers, (1, 3, 1, OFF), 7), 3)) == {1, 2, 3}
    assert draws(device, np.zeros(300), rows(numbers, (1, 16, 1, OFF), 300), 16) == list(range(16))


def test_the_smallest_and_the_largest_number(device):
    logits = np.random.default_rng().standard_normal(3000).astype(np.float32)
    order = np.argsort(-logits, kind="stable")
    assert draws(device, logits, rows([0, LARGEST], (1, 50, 1, OFF), 3000), 50) == order[[0, 49]].tolist()
    assert draws(device, logits, rows([0, LARGEST], (1e-30, 50, 1, OFF), 3000), 50) == order[[0, 0]].tolist()


NAN, INF = np.nan, np.inf


@pytest.mark.parametrize(
    ("logits", "ids"),
    [
        ([NAN, NAN, NAN], {3}),
        ([1, NAN, 0], {3}),
        ([-NAN, 1, 2], {3}),
        ([1, INF, 0], {3}),
        ([-INF, -INF, -INF], {4}),
        ([-INF, -3e38, -INF], {1}),
        ([-INF, 1, 1], {1, 2}),
        ([3e38, -3e38, 2.9e38], {0}),
        ([-900, -1e30, -INF], {0}),
        ([-0.0, -1e-42, -900], {0, 1}),
    ],
)
def test_extremes(device, logits, ids):
    for chain in ((1, 3, 1, OFF), (1, 2, 0.9, -2), (1e-30, 3, 1, OFF)):
        found = draws(device, np.array(logits, np.float32), rows([0, 0.49, 0.51, LARGEST], chain, 3), 3)
        assert set(found) <= ids, chain


@pytest.mark.parametrize(
    ("chain", "decided"),
    [
        ((1, 10, 0.9, OFF), True),
        ((1, 0, 1, OFF), False),  # everything may be drawn
        ((1, 0, 0.5, OFF), True),  # the nucleus ends within the candidates
        ((1, 0, 0.999, OFF), False),
        ((1, 0, 1, -0.5), True),  # the candidates reach below the floor
        ((1, 0, 0.999, -0.5), True),
        ((1, 0, 1, -20), False),
        ((1, 200, 0.5, OFF), False),  # a share of 200 tokens' mass
        ((1, 200, 1, -0.5), True),
    ],
)
def test_what_ten_candidates_cannot_decide(device, chain, decided):
    logits = -0.1 * np.arange(1000)
    (found,) = draws(device, logits, rows([0.5], chain, 1000), 10)
    assert (found < 10) if decided else (found == 1002)


def test_a_window_of_penalties(device):
    """Sixty draws, each from what the ones before left: as with a window that is counted anew for every one."""
    rng, v, window = np.random.default_rng(), 60, 7
    logits = (rng.standard_normal(v) * 2).astype(np.float32)
    options = (1.5, 0.3, 0.2)
    said = rng.integers(0, v, window).tolist()
    seen = Tensor.from_numpy(device, np.bincount(said, minlength=v).astype(np.uint32), "seen")
    target = Tensor.from_numpy(device, logits[None], "logits")
    settings = Tensor.empty(device, (9,), name="settings")
    plan = Plan(device)
    id = ops.pick(plan, target, settings, 40, seen=seen)
    plan.finish(keep=[id])
    for step in range(60):
        leaving = v if step == 0 else said[-window - 1]
        row = np.array([0.8, 40, 0.95, -4, rng.random(), leaving, *options], np.float32)
        settings.write(row)
        plan.run()
        found = int(id.numpy()[0])
        recent = Counter(said[-window:])
        x = twin.penalize(logits, np.array(list(recent)), np.array(list(recent.values())), *options)
        kept, sums = twin.chain(x, 0.8, 40, 0.95, -4)
        at = kept.tolist().index(found)
        before = sums[at - 1] if at else 0
        assert before - TOLERANCE <= row[4] <= sums[at] + TOLERANCE
        said.append(found)
        # What leaves is taken off by the draw after.
        expected = np.bincount(said[-window - 1 :], minlength=v)
        np.testing.assert_array_equal(seen.numpy(), expected)
    plan.free()


def test_the_chain_by_hand():
    x = np.log(np.array([0.1, 0.2, 0.4, 0.3], np.float32))
    for settings, kept, sums in (
        ((1, 0, 1, -99), [2, 3, 1, 0], [0.4, 0.7, 0.9, 1]),
        ((1, 2, 1, -99), [2, 3], [4 / 7, 1]),
        ((1, 0, 0.69, -99), [2, 3], [4 / 7, 1]),
        ((1, 0, 0.71, -99), [2, 3, 1], [4 / 9, 7 / 9, 1]),
        ((1, 2, 0.5, -99), [2], [1]),
        ((1, 0, 1, np.log(0.6)), [2, 3], [4 / 7, 1]),
        ((0.5, 2, 1, -99), [2, 3], [0.64, 1]),
    ):
        ids, found = twin.chain(x, *settings)
        assert ids.tolist() == kept, settings
        np.testing.assert_allclose(found, sums, atol=1e-6)
