"""Norms that leave their result in 8 bits, too: the same as quantising it afterwards, and when it is done."""

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.cases import normal, weight

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("d", [32, 96, 576, 4096])
def test_a_norms_quants_are_those_of_its_result(device, residual, d):
    rng = np.random.default_rng()
    plan = Plan(device, activations="q8")
    x, w = normal(plan, rng, 6, d), normal(plan, rng, d, name="weight")
    x.write(np.stack([row * size for row, size in zip(x.numpy(), (1, 0, 1e4, 1e-3, 1, 1), strict=True)]))
    if residual:
        # Of rows that cancel, nothing is left: every quant and every scale is 0.
        rest = Tensor.from_numpy(device, np.where(np.arange(6)[:, None] == 4, -x.numpy(), 0.5).astype(np.float32), "r")
        _, y = ops.add_rms_norm(plan, x, rest, w, 1e-6)
    else:
        y = ops.rms_norm(plan, x, w, 1e-6)
    made = ops.quantize_q8(plan, y)
    assert [step.op for step in plan.steps] == ["add_rms_norm" if residual else "rms_norm"]
    plan.finish(keep=[y, *made]).run()
    after = Plan(device)
    expected = ops.quantize_q8(after, Tensor.from_numpy(device, y.numpy(), "y"))
    after.finish(keep=expected).run()
    found, wanted = ([tensor.numpy() for tensor in tensors] for tensors in (made, expected))
    off = np.abs(found[0].view(np.int8).astype(int) - wanted[0].view(np.int8))
    # Two kernels may divide with another last bit: a value on a border goes the other way.
    assert off.max() <= 1
    assert np.count_nonzero(off) <= 2
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-6)
    steps = found[1].reshape(6, -1, 4).sum(axis=2)
    assert (np.abs(found[2] - wanted[2]) <= 1e-4 * (1 + 127 * 8 * steps)).all()
    zero = 4 if residual else 1
    assert not found[0][zero].any()
    assert not found[1][zero].any()
    plan.free()
    after.free()


def steps_of(device: Device, activations: str, d: int, kind: str = "q8_0") -> list[str]:
    plan, rng = Plan(device, activations=activations, dry=True), np.random.default_rng()
    x, norm = normal(plan, rng, 20, d), normal(plan, rng, d, name="weight")
    _, h = ops.add_rms_norm(plan, x, x, norm, 1e-6)
    ops.matmul(plan, h, weight(plan, rng, (64, d), kind))
    ops.matmul(plan, h, weight(plan, rng, (32, d), kind))
    return [step.op for step in plan.steps]


def test_when_norms_quantise(device, monkeypatch):
    assert steps_of(device, "q8", 96) == ["add_rms_norm", "matmul", "matmul"]
    assert steps_of(device, "f32", 96) == ["add_rms_norm", "matmul", "matmul"]
    # A row of floats that is not whole blocks stays as it is.
    assert steps_of(device, "q8", 100, "f16") == ["add_rms_norm", "matmul", "matmul"]
    # Nine buffers are more than WebGPU promises.
    monkeypatch.setitem(device.limits, "max-storage-buffers-per-shader-stage", 8)
    assert steps_of(device, "q8", 96) == ["add_rms_norm", "quantize_q8", "matmul", "matmul"]
