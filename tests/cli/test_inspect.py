"""`qwen3omni inspect` on a model that is known in every byte."""

import json

import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu.errors import UnsupportedDevice
from qwen3omni_wgpu.formats.gguf import read_gguf

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def moe(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("inspect") / "moe.gguf", arch="qwen3moe", type="q8_0", context_length=256)


def test_json(command, moe):
    report = json.loads(command("inspect", str(moe), "--json", "-c", "100").out)
    tensors = read_gguf(moe).tensors
    assert report["architecture"] == "qwen3moe"
    assert report["parts"]["thinker"]["file_bytes"] == moe.stat().st_size
    assert len(report["tensors"]) == len(tensors)
    total = sum(info.nbytes for info in tensors.values())
    assert report["weight_bytes"] == sum(report["thinker_bytes"].values()) == total
    assert report["components"]["thinker_text"]["bytes"] == report["parts"]["thinker"]["weight_bytes"] == total
    experts = sum(info.nbytes for name, info in tensors.items() if "_exps" in name)
    assert report["thinker_bytes"]["experts"] == experts > 0
    config = report["config"]
    per_token = 2 * config["n_layers"] * config["n_kv_heads"] * config["head_dim"] * 2
    assert (report["ctx_size"], report["kv_cache_bytes"]) == (100, 100 * per_token)
    assert report["device"]["fits"] is True
    assert report["metadata"]["tokenizer.ggml.tokens"] == f"list of {config['vocab_size']}"


def test_text(command, moe):
    result = command("inspect", "-m", str(moe), "--tensors")
    assert result.status == 0
    for text in ("qwen3moe", "experts", "KV cache", "fits", "blk.0.attn_q.weight", "general.name"):
        assert text in result.out


def test_a_model_that_does_not_fit(command, moe, monkeypatch):
    monkeypatch.setattr("qwen3omni_wgpu.cli.inspect.free_bytes", lambda shared: 1000)
    report = json.loads(command("inspect", str(moe), "--json").out)
    assert report["device"]["fits"] is False
    assert "needs" in report["device"]["reason"]


def test_without_a_device_the_file_is_still_described(command, moe, monkeypatch):
    def none(*_args, **_kwargs):
        raise UnsupportedDevice("no Vulkan driver")

    monkeypatch.setattr("qwen3omni_wgpu.gpu.Device.open", none)
    result = command("inspect", str(moe))
    assert result.status == 0
    assert "no device: unknown; no Vulkan driver" in result.out


def test_refusals(command, moe, tmp_path):
    command("inspect", str(moe), "-c", "257").failed_with("256")
    command("inspect", str(moe), "-c", "0").failed_with("--ctx-size 0")
    (tmp_path / "x.gguf").write_bytes(b"no model")
    command("inspect", str(tmp_path / "x.gguf")).failed_with("x.gguf")
