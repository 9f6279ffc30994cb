"""Ops that are one dispatch for one or two tokens: as the separate ones, when they are taken, ties, wrong numbers."""

from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops import Variant
from qwen3omni_wgpu.ops.cases import PAIRS, normal, weight

pytestmark = pytest.mark.gpu
# All experts are chosen: of two that differ by rounding only, either order gives the same sum.
D, F, E, K = 96, 64, 4, 4


class Layer:
    """Random weights of a layer with a mixture of experts, the same for every number of tokens."""

    def __init__(self, device: Device, activations: str):
        self.plan, self.rng = Plan(device, activations=activations), np.random.default_rng()
        made = {"w": (D, D), "gate_up": (2 * F, D), "down": (D, F), "exps": (2 * E, F, D), "downs": (E, D, F)}
        self.w = {name: weight(self.plan, self.rng, shape, "q8_0", name) for name, shape in made.items()}
        self.router = weight(self.plan, self.rng, (E, D), "f32", "router")
        self.norms = [(normal(self.plan, self.rng, D, name="norm"), 1e-5) for _ in range(2)]

    def record(self, x: Tensor) -> Tensor:
        plan, w = self.plan, self.w
        x = ops.matmul(plan, x, w["w"], norm=self.norms[0], residual=x)
        hidden = ops.matmul_swiglu(plan, x, [w["gate_up"]], norm=self.norms[1])
        x = ops.matmul(plan, hidden, w["down"], residual=x)
        h, ids, weights = ops.moe_route(plan, x, self.router, K, True, norm=self.norms[0])
        hidden = ops.moe_swiglu(plan, h, [w["exps"]], ids)
        return ops.moe_down(plan, hidden, w["downs"], ids, weights, residual=x)


@pytest.mark.parametrize("activations", ["f32", "q8"])
def test_a_layer_of_six_dispatches_is_as_one_of_many(device, activations):
    layer = Layer(device, activations)
    plan = layer.plan
    x = normal(plan, layer.rng, 3, D)
    few = [layer.record(Tensor.from_numpy(device, x.numpy()[rows], "x")) for rows in (slice(0, 2), slice(2, 3))]
    assert [step.op for step in plan.steps] == 2 * [
        "matmul", "matmul_swiglu", "matmul", "moe_route", "moe_swiglu", "moe_down"
    ]  # fmt: skip
    many = layer.record(x)
    assert len(plan.steps) > 12 + 12
    plan.finish(keep=[*few, many]).run()
    found, expected = np.concatenate([tensor.numpy() for tensor in few]), many.numpy()
    plan.free()
    # In 8 bits a value on a border may round the other way, which the next matrices carry on.
    np.testing.assert_allclose(found, expected, atol=(2e-2 if activations == "q8" else 2e-4) * np.abs(expected).max())


def steps_of(plan: Plan, **calls: Any) -> list[str]:
    plan.steps.clear()
    ops.matmul(plan, **calls)
    return [step.op for step in plan.steps]


def test_what_takes_one_dispatch(device, monkeypatch):
    plan = Plan(device)
    w, norm = weight(plan, np.random.default_rng(), (F, D), "q8_0"), (plan.empty((D,), "f32", "norm"), 1e-6)
    made = {n: plan.empty((n, D), "f32", f"x{n}") for n in (1, 2, 3)}
    assert steps_of(plan, x=made[1], w=w, norm=norm) == ["matmul"]
    assert steps_of(plan, x=made[2], w=w, residual=plan.empty((2, F))) == ["matmul"]
    assert steps_of(plan, x=made[3], w=w, norm=norm) == ["rms_norm", "matmul"]
    assert steps_of(plan, x=made[3], w=w, residual=plan.empty((3, F))) == ["matmul", "add"]
    # Three tokens' norm is there already; another weight or another eps is another norm.
    assert steps_of(plan, x=made[3], w=w, norm=norm) == ["matmul"]
    assert steps_of(plan, x=made[3], w=w, norm=(norm[0], 1e-5)) == ["rms_norm", "matmul"]
    assert steps_of(plan, x=made[3], w=w, norm=(plan.empty((D,), "f32", "other"), 1e-6)) == ["rms_norm", "matmul"]
    bias = plan.empty((F,), "f32", "bias")
    assert steps_of(plan, x=made[1], w=w, norm=norm, bias=bias) == ["rms_norm", "matmul"]
    # x does not fit the memory of a workgroup.
    monkeypatch.setitem(device.limits, "max-compute-workgroup-storage-size", 4 * D)
    assert steps_of(plan, x=made[2], w=w, norm=norm) == ["rms_norm", "matmul"]


def route(device: Device, x: np.ndarray, router: np.ndarray, k: int, **more: Any) -> list[np.ndarray]:
    plan = Plan(device)
    tensors = [Tensor.from_numpy(device, array.astype(np.float32), name) for name, array in (("x", x), ("w", router))]
    _, ids, weights = ops.moe_route(plan, *tensors, k, True, **more)
    assert [step.op for step in plan.steps] == ["moe_route"]
    plan.finish(keep=[ids, weights]).run()
    found = [ids.numpy(), weights.numpy()]
    plan.free()
    return found


def test_of_equal_experts_the_lower_come_first(device):
    x, router = np.ones((2, 32)), np.zeros((11, 32))
    router[[2, 5, 9]] = 1.0
    ids, weights = route(device, x, router, 5)
    assert ids.tolist() == [[2, 5, 9, 0, 1]] * 2
    np.testing.assert_allclose(weights, [[1 / 3, 1 / 3, 1 / 3, 0, 0]] * 2, atol=1e-6)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_experts_are_there_whatever_the_numbers_are(device, wrong):
    """The ids are addresses for the next matmuls."""
    x = np.random.default_rng().standard_normal((2, 64))
    x[1, 7] = wrong
    router = np.random.default_rng().standard_normal((12, 64))
    ids, _ = route(device, x, router, 4, always=2)
    assert ids[:, 4:].tolist() == [[11, 12]] * 2
    for row in ids[:, :4]:
        assert len(set(row.tolist())) == 4
        assert row.max() < 11


FOR_GPUS = Variant(**PAIRS[0])


def ranked(device: Device, x: np.ndarray, router: np.ndarray, k: int, always: int) -> list[np.ndarray]:
    """Ids and weights of x, whose norm is the plain one, as the experts' matvec of GPUs makes them."""
    plan, d = Plan(device), x.shape[1]
    tensors = [Tensor.from_numpy(device, array.astype(np.float32), name) for name, array in (("x", x), ("w", router))]
    norm = Tensor.from_numpy(device, np.ones(d, np.float32), "norm"), 1e-6
    count = len(router) - (always > 0) + always
    gate_up = [weight(plan, np.random.default_rng(), (2 * count, 8, d), "q8_0")]
    _, *made = ops.moe_route_swiglu(plan, *tensors, gate_up, k, True, norm=norm, always=always, variant=FOR_GPUS)
    assert [step.op for step in plan.steps] == ["moe_route", "moe_swiglu"]
    plan.finish(keep=made).run()
    found = [tensor.numpy() for tensor in made]
    plan.free()
    return found


@pytest.mark.parametrize("e", [11, 67, 200])
def test_of_equal_experts_the_lower_come_first_whoever_ranks_them(device, e):
    """Equal ones within four neighbours and apart, in the order of their ids."""
    rng = np.random.default_rng()
    order = rng.permutation(e)
    size = np.sort(rng.integers(-2, 3, e))[::-1]  # many are equal
    router = np.zeros((e, 64))
    router[order] = size[:, None] / 64
    ids, weights = ranked(device, np.ones((2, 64)), router, 10, 0)
    expected = np.argsort(-router[:, 0], kind="stable")[:10]
    assert ids.tolist() == [expected.tolist()] * 2
    shares = np.exp(64 * router[expected, 0])
    np.testing.assert_allclose(weights, [shares / shares.sum()] * 2, atol=1e-5)


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_ranked_experts_are_there_whatever_the_numbers_are(device, wrong):
    x, router = np.random.default_rng().standard_normal((2, 64)), np.random.default_rng().standard_normal((12, 64))
    x[1, 7] = wrong
    router[3, 5] = wrong
    ids, _ = ranked(device, x, router, 4, 2)
    assert ids[:, 4:].tolist() == [[11, 12]] * 2
    for row in ids[:, :4]:
        assert len(set(row.tolist())) == 4
        assert row.max() < 11


def test_padding_is_not_ranked(device):
    """Of two tokens one counts: the other's slots keep what was in them."""
    plan, rng = Plan(device), np.random.default_rng()
    plan.state = Tensor.from_numpy(device, np.array([0, 1], np.uint32), "state")
    x, norm = normal(plan, rng, 2, 64), (normal(plan, rng, 64, name="norm"), 1e-6)
    router, gate_up = weight(plan, rng, (9, 64), "f32", "router"), [weight(plan, rng, (18, 8, 64), "q8_0")]
    made = ops.moe_route_swiglu(plan, x, router, gate_up, 3, True, norm=norm, variant=FOR_GPUS)
    plan.finish(keep=made)
    for tensor in made:
        tensor.fill(7)
    before = [tensor.numpy() for tensor in made]
    plan.run()
    for tensor, was in zip(made, before, strict=True):
        rows = len(was) // 2
        assert (tensor.numpy()[:rows] != was[:rows]).all()
        np.testing.assert_array_equal(tensor.numpy()[rows:], was[rows:])
    plan.free()


def test_what_the_experts_rank(device):
    """One tensor of gates and ups, a norm, and shares that sum to 1; else the ids are there before."""
    plan, rng = Plan(device), np.random.default_rng()
    w = {"norm": (plan.empty((64,), "f32", "norm"), 1e-6), "variant": FOR_GPUS}
    router = {e: weight(plan, rng, (e, 64), "f32", "router") for e in (8, 257)}
    both = {e: [weight(plan, rng, (2 * e, 8, 64), "q8_0")] for e in (8, 257)}
    apart = [weight(plan, rng, (8, 8, 64), "q8_0") for _ in range(2)]
    made = {n: plan.empty((n, 64), "f32", "x") for n in (1, 3)}

    def steps(n: int, e: int, gate_up: list[Tensor] | None = None, renormalise: bool = True, **how: Any) -> list[str]:
        plan.steps.clear()
        ops.moe_route_swiglu(plan, made[n], router[e], gate_up or both[e], 2, renormalise, **how)
        return [step.op for step in plan.steps]

    assert steps(1, 8, **w) == ["moe_route", "moe_swiglu"]
    assert steps(1, 8, renormalise=False, **w) == ["moe_route", "moe_gate", "moe_swiglu"]
    assert steps(1, 257, **w) == ["moe_route", "moe_gate", "moe_swiglu"]
    assert steps(1, 8, apart, **w) == ["moe_route", "moe_gate", "moe_matmul", "moe_matmul", "swiglu"]
    assert "moe_gate" in steps(3, 8, norm=w["norm"])
    assert steps(1, 8, norm=w["norm"]) == ["moe_route", "moe_swiglu"]  # a small router ranks, too


@pytest.mark.parametrize("variant", [None, FOR_GPUS], ids=["rule", "for GPUs"])
def test_experts_that_are_not_there_add_nothing(device, variant):
    plan, rng = Plan(device), np.random.default_rng()
    w, residual = weight(plan, rng, (E, 32, 64), "f32"), normal(plan, rng, 1, 32)
    ids = Tensor.from_numpy(device, np.array([[E, E + 7]], np.uint32), "ids")
    x = normal(plan, rng, 2, 64)
    y = ops.moe_down(plan, x, w, ids, normal(plan, rng, 1, 2), residual=residual, variant=variant)
    plan.finish(keep=[y]).run()
    np.testing.assert_array_equal(y.numpy(), residual.numpy())
    plan.free()


def test_padding_is_left_alone(device):
    """Of two tokens one counts: the other's row keeps what was in it."""
    plan, rng = Plan(device), np.random.default_rng()
    plan.state = Tensor.from_numpy(device, np.array([0, 1], np.uint32), "state")
    x, w = normal(plan, rng, 2, 192), weight(plan, rng, (37, 192), "q8_0")
    out = Tensor.from_numpy(device, np.full((2, 37), 7.0, np.float32), "out")
    ops.matmul(plan, x, w, norm=(normal(plan, rng, 192, name="norm"), 1e-5), variant=FOR_GPUS, out=out)
    plan.finish(keep=[out]).run()
    found = out.numpy()
    plan.free()
    np.testing.assert_array_equal(found[1], 7.0)
    assert (found[0] != 7.0).all()
