"""`qwen3omni bench --predict`: tables without a GPU and without weights, and a device that is measured on the spot."""

import json

import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu import cost
from qwen3omni_wgpu.cli import predict
from qwen3omni_wgpu.formats.gguf import read_gguf


@pytest.fixture
def no_device(monkeypatch):
    """Whoever opens a device fails."""
    from qwen3omni_wgpu.gpu import Device

    def refuse(*args, **kwargs):
        raise AssertionError("a device was opened")

    monkeypatch.setattr(Device, "open", refuse)


def test_the_30b_needs_neither_weights_nor_a_gpu(command, no_device):
    result = command("bench", "--predict", "strix-halo", "-p", "512", "-n", "128", "-d", "0,4096", "-o", "json")
    assert result.status == 0, result.err
    rows = json.loads(result.out)
    assert [row["test"] for row in rows] == ["pp512", "tg128", "pp512 @ d4096", "tg128 @ d4096"]
    assert "predicted, not measured" in result.err
    for row in rows:
        assert row["predicted"] is True
        assert (row["backend"], row["profile"], row["n_depth"] > 0) == (
            "predicted",
            "strix-halo",
            "d4096" in row["test"],
        )
        assert row["model_type"] == "qwen3vlmoe 30B-A3B q8_0"
        assert row["avg_ts"] == pytest.approx((row["n_prompt"] + row["n_gen"]) / row["avg_ns"] * 1e9, rel=1e-6)
        assert sum(row["seconds_by_family"].values()) <= row["avg_ns"] / 1e9 * 1.001
    assert rows[0]["avg_ts"] > rows[2]["avg_ts"]
    assert rows[1]["avg_ts"] > rows[3]["avg_ts"]
    assert rows[1]["pct_peak"] < 100
    assert rows[0]["gbps"] is None


def test_the_table(command):
    out = command("bench", "--predict", "h200", "-p", "0", "-n", "16").out.splitlines()
    titles = [cell.strip() for cell in out[0].split("|")[1:-1]]
    assert titles == list(predict.COLUMNS)
    assert "h200" in out[2]
    assert "tg16" in out[2]
    assert len(out) == 3


def test_a_file_by_its_header(command, tmp_path, no_device):
    path = write_tiny(tmp_path / "x.gguf", arch="qwen3moe", type="q4_0", n_layers=3)
    row = json.loads(command("bench", "-m", path, "--predict", "strix-halo", "-p", "0", "-n", "4", "--json").out)[0]
    sketch = cost.Sketch.of_file(read_gguf(path))
    assert (row["model_type"], row["model_size"]) == (sketch.label, sketch.nbytes)
    wider = json.loads(command("bench", "--type", "f16", "--predict", "strix-halo", "-p", "0", "-n", "4", "--json").out)
    assert wider[0]["model_type"] == "qwen3vlmoe 30B-A3B f16"


def test_a_cache_of_wider_numbers_costs_more(command):
    rates = []
    for kind in ("f16", "f32"):
        args = ("--predict", "strix-halo", "-p", "0", "-n", "8", "-d", "16384", "--kv-type", kind, "--json")
        rates.append(json.loads(command("bench", *args).out)[0]["avg_ts"])
    assert rates[0] > 1.2 * rates[1]


@pytest.mark.gpu
def test_the_device_at_hand_is_measured(command, tmp_path, adapter, monkeypatch):
    monkeypatch.setattr(predict, "copy_rate", lambda device: 1e10)
    path = write_tiny(tmp_path / "x.gguf", arch="qwen3", n_layers=2)
    args = ("bench", "-m", path, "--predict", "here", "--device", adapter, "-p", "0", "-n", "4", "--json")
    (answer,) = json.loads(command(*args).out)
    assert adapter.lower() in answer["gpu_info"].lower()
    assert (answer["profile"], answer["peak_gbps"]) == ("here", 10)
    assert answer["avg_ts"] > 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--predict", "abacus"], ["no profile 'abacus'", "strix-halo", "lavapipe", ".json"]),
        (["--predict", "missing.json"], ["no profile 'missing.json'"]),
        (["--predict", "strix-halo", "--media", "aud30"], ["-p, -n and -d alone"]),
        (["--predict", "strix-halo", "ops"], ["-p, -n and -d alone"]),
        (["--predict", "strix-halo", "-o", "csv"], ["md, json or jsonl"]),
        (["--predict", "strix-halo", "--type", "q9"], ["q9"]),
    ],
)
def test_what_cannot_be_predicted(command, args, words):
    command("bench", *args).failed_with(*words)
