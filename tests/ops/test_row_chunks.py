"""The software adapters' matvec: where it is chosen, and what it takes at once."""

import dataclasses

import pytest

from qwen3omni_wgpu.gpu import Device, nbytes_of
from qwen3omni_wgpu.ops import row_chunks
from qwen3omni_wgpu.ops.choice import Problem, candidates

pytestmark = pytest.mark.gpu

LLVMPIPE = "llvmpipe (LLVM 15.0.6, 256 bits)"
SIZES = [32 * blocks for blocks in (1, 2, 3, 5, 6, 10, 16, 17, 18, 24, 31, 34, 48, 64, 96, 128)]


@pytest.fixture
def llvmpipe(device: Device, monkeypatch) -> Device:
    """Whatever runs the tests, taken for llvmpipe: nothing is compiled."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, name=LLVMPIPE, kind="cpu"))
    monkeypatch.setattr(device, "features", device.features | {"subgroup", "shader-int64"})
    return device


def problem(op: str = "fused", **changes: int | bool | str) -> Problem:
    return Problem.of(op, **{"type": "q8_0", "packed": False, "n": 1, "f": 5120, "d": 2048} | changes)


@pytest.mark.parametrize("dtype", ["q8_0", "q4_0", "q4_1", "f16", "bf16", "f32"])
@pytest.mark.parametrize("d", SIZES)
def test_loads_cover_a_chunk_wherever_it_starts(dtype, d):
    c = {name: int(value) for name, value in row_chunks.chunks(dtype, d).items()}
    size = c["CHUNK"] * c["BLOCK_BYTES"]
    assert c["ROW_BYTES"] == nbytes_of((d,), dtype)
    assert d % (32 * c["CHUNK"]) == 0
    assert size <= row_chunks.MOST_BYTES
    for row in range(33):
        for start in range(row * c["ROW_BYTES"], (row + 1) * c["ROW_BYTES"], size):
            assert start % c["UNIT"] == 0
            assert start % 32 + size <= 32 * c["LOADS"]
    assert 32 * (c["LOADS"] - 1) < size + 32 - c["UNIT"]  # and not one more than that
    assert 8 * c["X_LOADS"] >= 4 * c["CHUNK"] > 8 * (c["X_LOADS"] - 1)


@pytest.mark.parametrize("op", ["matmul", "fused", "moe_swiglu", "moe_matmul"])
def test_the_rule_of_a_software_adapter(op, llvmpipe):
    found = candidates(llvmpipe, problem(op, k=8))
    assert found[0].shader == row_chunks.SHADER
    assert found[0].wide
    assert {variant.shader for variant in found} > {row_chunks.SHADER}  # the others stay, for the tuner


@pytest.mark.parametrize(
    "changes", [{"packed": True}, {"n": 2}, {"f": 64}, {"d": 31 * 32 * 37}, {"op": "moe_down", "d": 8 * 37 * 32}]
)
def test_where_it_is_of_no_use(changes, llvmpipe):
    assert not row_chunks.sizes(llvmpipe, problem(**{"k": 8} | changes))


@pytest.mark.parametrize(
    "name", ["llvmpipe (LLVM 15.0.6, 128 bits)", "llvmpipe (LLVM 19.1.1, 512 bits)", "SwiftShader"]
)
def test_other_vectors(name, llvmpipe, monkeypatch):
    monkeypatch.setattr(llvmpipe, "info", dataclasses.replace(llvmpipe.info, name=name))
    assert not row_chunks.runs_on(llvmpipe)
    assert not row_chunks.sizes(llvmpipe, problem())


@pytest.mark.parametrize("feature", ["subgroup", "shader-int64"])
def test_without_a_feature(feature, llvmpipe, monkeypatch):
    monkeypatch.setattr(llvmpipe, "features", llvmpipe.features - {feature})
    assert not row_chunks.sizes(llvmpipe, problem())


def test_shapes_of_the_models(llvmpipe):
    for f, d in ((960, 576), (3072, 576), (576, 1536), (49152, 576), (5120, 2048), (2048, 4096)):
        assert row_chunks.sizes(llvmpipe, problem(f=f, d=d)), (f, d)
    assert row_chunks.sizes(llvmpipe, problem("moe_down", k=8, f=2048, d=8 * 768))
