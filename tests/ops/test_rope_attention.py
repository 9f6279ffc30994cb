"""Attention of few tokens in one dispatch: token by token as all at once, padding, what else is in the cache."""

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.attention_ways import Way
from qwen3omni_wgpu.reference.rope import rope_frequencies

pytestmark = pytest.mark.gpu
HEADS, KV, HD, STEPS = 4, 2, 32, 16
COUNTING = {"memory-decoration-coherent"}


class Layer:
    """Inputs of 16 tokens, their positions and a cache full of NaN."""

    def __init__(self, device: Device, kind: str):
        self.device, self.rng = device, np.random.default_rng()
        self.x = self.rng.standard_normal((STEPS, (HEADS + 2 * KV) * HD)).astype(np.float32)
        self.places = np.repeat(np.arange(STEPS, dtype=np.float32)[:, None], 3, axis=1)
        self.freqs = Tensor.from_numpy(device, rope_frequencies(HD, 1e6), "freqs")
        self.norms = Tensor.from_numpy(device, self.rng.uniform(0.5, 1.5, 2 * HD).astype(np.float32), "norms")
        blank = np.full((STEPS, KV * HD), np.nan, np.float16 if kind == "f16" else np.float32)
        self.keys, self.values = (Tensor.from_numpy(device, blank, name) for name in "kv")

    def run(self, first: int, n: int, used: int, *, apart: bool = False) -> np.ndarray:
        """Tokens `first` to `first + used` in a plan for n -> [used, H * HD]."""
        plan = Plan(self.device)
        plan.state = Tensor.from_numpy(self.device, np.array([first, used], np.uint32), "state")
        rows = np.zeros((n, self.x.shape[1]), np.float32)
        rows[:used] = self.x[first : first + used]
        places = np.zeros((n, 3), np.float32)
        places[:used] = self.places[first : first + used]
        x, positions = (Tensor.from_numpy(self.device, array, name) for array, name in ((rows, "x"), (places, "at")))
        common = (plan, x, positions, self.freqs, HEADS, KV, self.keys, self.values)
        if apart:
            q = ops.rope_qkv(*common, style="neox", norms=self.norms, eps=1e-6)
            y = ops.attention(plan, q, self.keys, self.values, HEADS, KV, 0.2)
        else:
            y = ops.rope_attention(*common, 0.2, style="neox", norms=self.norms, eps=1e-6)
            assert len(plan.steps) == (1 if n <= 2 else 2)
        plan.finish(keep=[y]).run()
        found = y.numpy()[:used]
        plan.free()
        return found


@pytest.mark.parametrize("kind", ["f32", "f16"])
@pytest.mark.parametrize("first", [1, 2])
def test_token_by_token_as_all_at_once(device, kind, first):
    """As the code predictor goes: one or two tokens, then one at a time; nothing unwritten is ever read."""
    layer = Layer(device, kind)
    steps = [(0, first), *((i, 1) for i in range(first, STEPS))]
    found = np.concatenate([layer.run(at, n, n) for at, n in steps])
    cached = [tensor.numpy().astype(np.float32) for tensor in (layer.keys, layer.values)]
    expected = layer.run(0, STEPS, STEPS, apart=True)
    # Sums in another order; a key on the border between two halves may round the other way: a score is off by
    # 0.2 * 25 * 2^-11 at worst, and the mean of values a few units apart by as much.
    np.testing.assert_allclose(found, expected, atol=5e-3 if kind == "f16" else 5e-5)
    for tensor, array in zip((layer.keys, layer.values), cached, strict=True):
        np.testing.assert_allclose(tensor.numpy().astype(np.float32), array, atol=5e-3 if kind == "f16" else 2e-5)


def test_a_token_of_padding_is_neither_written_nor_seen(device):
    layer = Layer(device, "f32")
    layer.run(0, 2, 2)
    keys = layer.keys.numpy()
    one = layer.run(2, 2, 1)
    assert np.isnan(layer.keys.numpy()[3:]).all()
    assert np.isnan(layer.values.numpy()[3:]).all()
    np.testing.assert_array_equal(layer.keys.numpy()[:2], keys[:2])
    np.testing.assert_array_equal(layer.run(2, 1, 1), one)


def test_new_keys_and_values_are_read_as_they_are_stored(device):
    """1 + 2^-12 is 1 in float16; a query of 4096 would tell the two apart."""
    hd = 4
    x = np.zeros((2, 3, hd), np.float32)
    x[:, 0, 0], x[:, 1, 0] = 4096, (1, 1 + 2**-12)
    x[:, 2] = [[1, 2, 3, 4], [1 + 2**-12, 4, 5, 6]]
    plan = Plan(device)
    plan.state = Tensor.from_numpy(device, np.array([0, 2], np.uint32), "state")
    freqs, places = (Tensor.empty(device, shape, "f32", "zeros") for shape in ((hd // 2,), (2, 3)))
    keys, values = (Tensor.empty(device, (8, hd), "f16", name) for name in "kv")
    qkv = Tensor.from_numpy(device, x.reshape(2, -1), "qkv")
    y = ops.rope_attention(plan, qkv, places, freqs, 1, 1, keys, values, 1.0, style="neox")
    plan.finish(keep=[y]).run()
    np.testing.assert_array_equal(y.numpy(), [[1, 2, 3, 4], [1, 3, 4, 5]])
    plan.free()


@pytest.mark.parametrize("past", [0, 1, 64, 65])
@pytest.mark.parametrize("last", [True, False])
def test_a_key_in_parts_is_read_as_it_is_stored(device, last, past):
    """The same for one token with a longer cache; with 64 keys before it, its own is alone in its part."""
    hd = 64
    x = np.zeros((3, hd), np.float32)
    x[:, 0] = 4096, 1 + 2**-12, 1 + 2**-12
    x[2, 1:] = np.arange(1, hd)
    old = np.zeros((2, 100, hd), np.float16)
    old[0, :past, 0], old[1, :past] = 1, 3
    plan = Plan(device)
    plan.state = Tensor.from_numpy(device, np.array([past, 1], np.uint32), "state")
    freqs, places = (Tensor.empty(device, shape, "f32", "zeros") for shape in ((hd // 2,), (1, 3)))
    keys, values = (Tensor.from_numpy(device, array, name) for array, name in zip(old, "kv", strict=True))
    qkv = Tensor.from_numpy(device, x.reshape(1, -1), "qkv")
    way = Way("split", 8, 64, 2, 1, last=last)
    y = ops.rope_attention(plan, qkv, places, freqs, 1, 1, keys, values, 1.0, style="neox", way=way)
    plan.finish(keep=[y]).run()
    # All scores are alike, so this is the mean of the values.
    expected = (3 * past + np.array([1, *range(1, hd)])) / (past + 1)
    np.testing.assert_allclose(y.numpy()[0], expected, rtol=1e-6)
    np.testing.assert_array_equal(values.numpy()[past], [1, *range(1, hd)])
    plan.free()


@pytest.mark.parametrize("counting", [True, False])
def test_how_many_dispatches_it_takes(device, counting, monkeypatch):
    """One for few tokens with few keys and for one with any; another where workgroups cannot see what others wrote."""
    monkeypatch.setattr(device, "features", device.features | COUNTING if counting else device.features - COUNTING)
    plan = Plan(device)
    for n, rows, steps in ((2, 32, 1), (1, 33, 1 if counting else 2), (2, 33, 2 if counting else 3), (3, 32, 2)):
        plan.steps.clear()
        x, positions = plan.empty((n, 8 * HD), "f32", "x"), plan.empty((n, 3), "f32", "positions")
        keys, values = (plan.empty((rows, KV * HD), "f32", name) for name in "kv")
        freqs = plan.empty((HD // 2,), "f32", "freqs")
        ops.rope_attention(plan, x, positions, freqs, HEADS, KV, keys, values, 1.0, style="neox")
        assert len(plan.steps) == steps
