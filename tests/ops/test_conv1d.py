"""What Code2Wav is made of, on inputs whose answers can be written down: impulses, constants, equal keys, streams."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Part, Plan, Tensor
from qwen3omni_wgpu.models.code2wav import _taps, _transposed

pytestmark = pytest.mark.gpu


@pytest.fixture(params=["here", "gpu"])
def rules(request: pytest.FixtureRequest, device: Device, monkeypatch: pytest.MonkeyPatch) -> Device:
    """The kernels that a software adapter gets, and those of a real GPU, on the software adapter."""
    if request.param == "gpu":
        monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    return device


def put(device: Device, array: np.ndarray, name: str = "x") -> Tensor:
    return Tensor.from_numpy(device, np.ascontiguousarray(array, np.float32), name)


def rows_of(device: Device, body: np.ndarray, before: int) -> ops.Rows:
    """The rows with zeros in front of them."""
    n, c = body.shape
    lead = ops.lead_rows(before, c)
    whole = put(device, np.concatenate([np.zeros((lead, c)), body]))
    return ops.Rows(whole, Tensor(device, (n, c), "f32", [Part(whole.storage, 4 * lead * c, 4 * n * c, 0, n)], "x"))


def convolve(device: Device, body: np.ndarray, kernel: np.ndarray, after: np.ndarray, **options) -> np.ndarray:
    plan = Plan(device)
    taps, dilation = options.get("taps", 1), options.get("dilation", 1)
    x = rows_of(device, body, (taps - 1) * dilation)
    y = ops.conv1d(plan, x, put(device, kernel, "w"), put(device, after, "after"), **options)
    plan.finish(keep=[y]).run()
    found = y.numpy()
    plan.free()
    return found


@pytest.mark.parametrize(("taps", "dilation"), [(7, 1), (7, 3), (7, 9), (2, 1), (1, 1)])
def test_an_impulse_becomes_the_kernel(rules, taps, dilation):
    """Causal: the last tap first, then one every `dilation` rows; the bias everywhere."""
    kernel = np.random.default_rng(taps).standard_normal((5, 8, taps)).astype(np.float32)  # [out, in, taps]
    x = np.zeros((70, 8), np.float32)
    x[4, 3] = 1
    bias = np.arange(5, dtype=np.float32)
    found = convolve(rules, x, _taps(kernel), bias[None], taps=taps, dilation=dilation)
    expected = np.tile(bias, (70, 1))
    for j in range(taps):
        expected[4 + (taps - 1 - j) * dilation] += kernel[:, 3, j]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("stride", [8, 5, 4, 3, 2])
def test_an_impulse_through_a_transposed_convolution(rules, stride):
    """Row t of x puts the whole kernel of 2 * stride rows at row stride * t: neighbours overlap by half."""
    kernel = np.random.default_rng(stride).standard_normal((12, 6, 2 * stride)).astype(np.float32)  # [in, out, taps]
    x = np.zeros((9, 12), np.float32)
    x[2, 7], x[6, 0], x[7, 0] = 1, -2, 0.5
    found = convolve(rules, x, _transposed(kernel, stride), np.zeros((1, 6 * stride)), taps=2).reshape(-1, 6)
    expected = np.zeros((10 * stride, 6), np.float32)
    for t, c, value in ((2, 7, 1), (6, 0, -2), (7, 0, 0.5)):
        expected[t * stride : (t + 2) * stride] += np.float32(value) * kernel[c].T
    np.testing.assert_allclose(found, expected[: 9 * stride], atol=1e-6)


def test_a_transposed_convolution_without_overlap(rules):
    """Kernel and stride equal: every row becomes `stride` rows, on its own."""
    kernel = np.random.default_rng(0).standard_normal((8, 4, 2)).astype(np.float32)
    x = np.eye(8, dtype=np.float32)
    found = convolve(rules, x, _transposed(kernel, 2), np.zeros((1, 8))).reshape(8, 2, 4)
    np.testing.assert_array_equal(found, kernel.transpose(0, 2, 1))


def test_snake_of_constants(rules):
    """x + beta sin(alpha x)^2 at its zeros, its peaks, and far out, where sin must not lose its argument."""
    alpha = np.array([1, 0.25, 3, 40, 1e-3, 1, 1, 2], np.float64)
    beta = np.array([1, 2, 0.5, 10, 1e3, 0, 1e9, 1], np.float64)
    values = np.array([0, 1, -1, 0.5 * math.pi, math.pi, -7.25, 100.5, -1234.5], np.float32)
    x = np.repeat(values[:, None], 8, axis=1)  # 8 values of 8 channels
    after = np.stack([np.zeros(8), alpha, beta]).astype(np.float32)
    found = convolve(rules, x, np.eye(8), after, snake=True)
    alpha, beta = after[1].astype(np.float64), after[2].astype(np.float64)
    angles = (after[1] * x).astype(np.float64)  # rounded once, as on the device
    expected = x + beta * np.sin(angles) ** 2
    # sin is good to 1e-7, relative near 0 and absolute elsewhere, up to angles of 49,380 rad here: 1e-6 more there.
    allowed = beta * (4e-7 + 4e-11 * np.abs(angles)) + 1e-6 * np.abs(x)
    assert (np.abs(found - expected) <= allowed).all()
    np.testing.assert_array_equal(found[0], 0)


def test_snake_of_small_values(rules):
    """Near zero x + beta alpha^2 x^2: the square does not cancel, however large beta is."""
    x = np.array([[1e-4, -1e-4, 3e-5, 1e-6]], np.float32)
    after = np.array([[0] * 4, [2] * 4, [1e8] * 4], np.float32)
    found = convolve(rules, x, np.eye(4), after, snake=True)
    wide = x.astype(np.float64)
    np.testing.assert_allclose(found, wide + 1e8 * np.sin(2 * wide) ** 2, rtol=1e-6)


def test_what_comes_after_a_sum_comes_in_order(rules):
    """(act(sum + bias) * factor) + residual, then the snake; `plain` is what goes into it."""
    x, residual = np.full((3, 4), 2.0), np.full((3, 4), 0.25)
    after = np.array([[1] * 4, [3] * 4, [1] * 4, [2] * 4], np.float32)
    plan = Plan(rules)
    plain = plan.empty((3, 4), "f32", "plain")
    y = ops.conv1d(
        plan, put(rules, x), put(rules, np.eye(4), "w"), put(rules, after, "after"), act="clamp", scale=True,
        residual=put(rules, residual, "r"), snake=True, plain=plain,
    )  # fmt: skip
    plan.finish(keep=[y, plain]).run()
    np.testing.assert_allclose(plain.numpy(), 3.25)  # clamp(2 + 1) * 3 + 0.25
    np.testing.assert_allclose(y.numpy(), 3.25 + 2 * math.sin(3.25) ** 2, rtol=1e-6)
    plan.free()


@pytest.mark.parametrize("before", [0, 1, 2, 50000])
def test_rows_that_are_hidden(rules, before):
    """Zeros in the first rows of the stream, counted in tokens that went before: rows of 4 a token, 6 of them."""
    plan = Plan(rules, state=Tensor.from_numpy(rules, np.array([9, 3, before], np.uint32), "state"))
    y = ops.conv1d(
        plan, put(rules, np.ones((12, 4))), put(rules, np.eye(4), "w"), put(rules, np.ones((1, 4)), "after"),
        per_token=4, hidden=6,
    )  # fmt: skip
    plan.finish(keep=[y]).run()
    zeros = max(0, 6 - 4 * before)
    np.testing.assert_array_equal(y.numpy(), np.repeat([[0], [2]], [zeros, 12 - zeros], axis=0) * np.ones(4))
    plan.free()


def test_an_impulse_through_every_channel_alone(device):
    kernel = np.random.default_rng(0).standard_normal((7, 8)).astype(np.float32)  # [taps, channels]
    x = np.zeros((12, 8), np.float32)
    x[2, 5] = 1
    plan = Plan(device)
    bias = put(device, np.full(8, 0.5), "bias")
    y = ops.conv1d_depthwise(plan, rows_of(device, x, 6), put(device, kernel, "w"), bias)
    plan.finish(keep=[y]).run()
    expected = np.full((12, 8), 0.5, np.float32)
    expected[2:9, 5] += kernel[::-1, 5]
    np.testing.assert_array_equal(y.numpy(), expected)
    plan.free()


@pytest.mark.parametrize("pieces", [(5, 4, 3), (1,) * 12, (11, 1), (2, 10)])
def test_a_convolution_continues_where_it_ended(device, pieces):
    """A running sum over 7 rows, 3 apart, whose pieces are shorter and longer than what is carried on (18 rows)."""
    x = np.random.default_rng(0).integers(-9, 9, (24, 4)).astype(np.float32)
    kernel = np.tile(np.eye(4), (1, 7))
    whole = convolve(device, x, kernel, np.zeros((1, 4)), taps=7, dilation=3)
    state = Tensor.from_numpy(device, np.zeros(2, np.uint32), "state")
    plan = Plan(device, state=state)
    source = put(device, np.zeros((24, 4)), "source")
    padded = ops.empty_rows(plan, 24, 4, 18, "padded")
    kept = put(device, np.zeros((padded.lead, 4)), "kept")
    eye, zeros = put(device, np.eye(4), "eye"), put(device, np.zeros((1, 4)), "after")
    ops.conv1d(plan, source, eye, zeros, per_token=2, out=padded.body)
    ops.carry_rows(plan, padded, kept, 2)
    y = ops.conv1d(plan, padded, put(device, kernel, "w"), zeros, taps=7, dilation=3, per_token=2)
    plan.finish(keep=[y])
    found = []
    for start, stop in itertools.pairwise(np.cumsum([0, *pieces])):
        state.write(np.array([0, stop - start], np.uint32))
        source.write(x[2 * start : 2 * stop])
        plan.run()
        found.append(y.numpy()[: 2 * (stop - start)])
    np.testing.assert_array_equal(np.concatenate(found), whole)
    plan.free()


@pytest.mark.parametrize(("window", "past"), [(1, 0), (6, 3), (72, 0), (72, 71), (72, 200), (64, 130)])
def test_equal_keys_inside_a_window(device, window, past):
    """The mean of the last `window` values; what lies before them, even NaN, is not seen."""
    rng, hd, n = np.random.default_rng(0), 16, 5
    values = rng.standard_normal((past + n, 2 * hd)).astype(np.float32)
    keys = np.ones((past + n, 2 * hd), np.float32)
    unseen = max(0, past + 1 - window)
    keys[:unseen] = values[:unseen] = np.nan
    plan = Plan(device, state=Tensor.from_numpy(device, np.array([past, n], np.uint32), "state"))
    q = put(device, rng.standard_normal((n, 2 * hd)), "q")
    y = ops.attention(plan, q, put(device, keys, "keys"), put(device, values, "values"), 2, 2, 0.25, window)
    plan.finish(keep=[y]).run()
    means = [values[max(0, past + t + 1 - window) : past + t + 1].mean(axis=0) for t in range(n)]
    np.testing.assert_allclose(y.numpy(), means, atol=1e-5)
    plan.free()


def test_rows_lie_where_they_can_be_bound():
    for count, channels in itertools.product((0, 1, 6, 18, 54), (4, 12, 96, 768, 1024)):
        rows = ops.lead_rows(count, channels)
        assert rows >= count
        assert rows * channels * 4 % 256 == 0
    assert [ops.lead_rows(54, channels) for channels in (96, 192, 384, 768)] == [54] * 4  # no more than needed
