"""`qwen3omni bench` over a scripted engine, and `bench ops` for real."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import FakeEngine

from qwen3omni_wgpu.cli import bench
from qwen3omni_wgpu.cli.bench_media import audio_flops, vision_flops
from qwen3omni_wgpu.cli.measure import bytes_per_token
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.models.config import kv_bytes_per_token, text_config
from qwen3omni_wgpu.omni import Omni
from qwen3omni_wgpu.resident import Resident


@pytest.fixture
def benched(command, fake, tiny, monkeypatch):
    """benched(*args): the rows of bench -o json over an engine with plenty to say; and the engine."""
    monkeypatch.setattr(bench, "copy_rate", lambda device: 1e9)

    def call(*args):
        model = fake(*["hello " * 20] * 40)
        model.engine.model.config = text_config(read_gguf(tiny))
        result = command("bench", *args)
        assert result.status == 0, result.err
        return result, model.engine

    return call


def test_the_fields_are_llama_benchs(benched):
    result, _ = benched("-p", "16", "-n", "4", "-r", "2", "-o", "json")
    prompt, answer = json.loads(result.out)
    for row in (prompt, answer):
        for name in ("backend", "gpu_info", "cpu_info", "model_type", "model_size", "test_time", "type_k"):
            assert row[name]
        assert len(row["samples_ns"]) == len(row["samples_ts"]) == 2
        assert row["avg_ts"] == pytest.approx(sum(row["samples_ts"]) / 2)
        assert row["avg_ns"] == pytest.approx(sum(row["samples_ns"]) / 2, abs=2)
        assert row["n_depth"] == 0
    assert (prompt["n_prompt"], prompt["n_gen"], prompt["gbps"]) == (16, 0, None)
    assert (answer["n_prompt"], answer["n_gen"]) == (0, 4)
    assert answer["pct_peak"] == pytest.approx(100 * answer["gbps"])  # the peak was set to 1 GB/s
    assert (prompt["model_type"], prompt["activations"]) == ("qwen3 f32", "f32")


def test_gbps_is_what_a_token_reads(benched, tiny):
    row = json.loads(benched("-p", "0", "-n", "4", "-d", "10", "-r", "1", "-o", "json")[0].out)[0]
    file = read_gguf(tiny)
    read = bytes_per_token(file, text_config(file), 12)
    assert row["gbps"] == pytest.approx(row["avg_ts"] * read / 1e9)


def test_every_measurement_starts_at_its_depth(benched):
    result, engine = benched("-p", "16", "-n", "4", "-d", "0,32", "-r", "2", "-o", "jsonl")
    tests = [json.loads(line)["test"] for line in result.out.splitlines()]
    assert tests == ["pp16", "tg4", "pp16 @ d32", "tg4 @ d32"]
    assert engine.log.count(("prefill", 32)) == 1  # the depth is filled once and then kept
    assert engine.log.count(("prefill", 16)) == 2 * 3  # twice two measurements, each after a warm-up
    assert {keep for what, keep in engine.log if what == "reset"} == {0, 32}


def test_the_first_token_belongs_to_the_prompt(benched, monkeypatch):
    original = FakeEngine.generate

    def slow_start(self, ids, config, eos_ids):
        time.sleep(0.2)
        yield from original(self, ids, config, eos_ids)

    monkeypatch.setattr(FakeEngine, "generate", slow_start)
    result, _ = benched("-p", "0", "-n", "4", "-r", "1", "-o", "json")
    assert json.loads(result.out)[0]["avg_ns"] < 0.1e9


def test_markdown(benched):
    lines = benched("-p", "16", "-n", "4", "-r", "2")[0].out.splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[1:-1]] == [
        "model", "size", "params", "backend", "test", "t/s", "GB/s", "% peak",
    ]  # fmt: skip
    assert "pp16" in lines[2]
    assert "±" in lines[3]


def test_the_context_is_as_long_as_the_longest_test(fake, benched, monkeypatch):
    _, engine = benched("-p", "16,64", "-n", "8", "-d", "0,100", "-r", "1", "-o", "json")
    assert engine.ctx_size == 164


# Towers -----------------------------------------------------------------------------------------------------------

AUDIO = {
    "embedding_length": 48, "feed_forward_length": 40, "downsample_hidden_size": 5, "n_window": 50, "hop_length": 160,
    "num_mel_bins": 24, "n_window_infer": 200, "block_count": 2, "projection_dim": 56,
}  # fmt: skip
VISION = {
    "embedding_length": 48, "feed_forward_length": 40, "projection_dim": 56, "block_count": 3, "in_channels": 3,
    "temporal_patch_size": 2, "patch_size": 16, "spatial_merge_size": 2, "deepstack_visual_indexes": [0, 2],
}  # fmt: skip
TOWERS = {f"clip.audio.{key}": value for key, value in AUDIO.items()}
TOWERS |= {f"clip.vision.{key}": value for key, value in VISION.items()}


@pytest.fixture
def towers(benched, monkeypatch):
    """towers(*args): bench of a model that has towers; and everything they were given."""
    given = []

    def encode_audio(self, samples, rate):
        given.append(samples)
        assert rate == 16000
        return np.zeros((len(samples) // 1600, 8), np.float32)

    def encode_image(self, picture):
        given.append(np.asarray(picture))
        tokens = picture.width * picture.height // 1024
        return np.zeros((tokens, 8), np.float32), np.zeros((2, tokens, 8), np.float32)

    monkeypatch.setattr(Omni, "encode_audio", encode_audio, raising=False)
    monkeypatch.setattr(Omni, "encode_image", encode_image, raising=False)
    part = Resident.part if hasattr(Resident, "part") else None
    mmproj = SimpleNamespace(metadata=TOWERS)
    monkeypatch.setattr(Resident, "part", lambda self, name: mmproj if name == "mmproj" else part(self, name))

    def call(*args):
        return benched(*args)[0].out, given

    return call


def test_towers(towers):
    out, given = towers("-p", "0", "-n", "0", "--media", "aud2,img64", "-r", "3", "-o", "json")
    sound, picture = json.loads(out)
    assert (sound["test"], sound["n_media"], sound["patches_ts"]) == ("aud2", 20, None)
    assert (picture["test"], picture["n_media"], picture["real_time"]) == ("img64", 4, None)
    for row, work in ((sound, audio_flops(TOWERS, 200)), (picture, vision_flops(TOWERS, 1, 16))):
        rates = [1e9 / ns for ns in row["samples_ns"]]
        assert len(rates) == 3
        rate = sum(rates) / 3
        assert row["gflops"] == pytest.approx(work * rate / 1e9, rel=1e-2)  # nanoseconds are whole ones
        assert row["avg_ts"] == pytest.approx(row["n_media"] * rate, rel=1e-2)
        wanted = 2 * rate if row is sound else 16 * rate
        assert (row["real_time"] or row["patches_ts"]) == pytest.approx(wanted, rel=1e-2)
    assert len(given) == 2 * 4  # and a first run of each that is not counted


def test_towers_never_get_the_same_twice(towers):
    _, given = towers("-p", "0", "-n", "0", "--media", "aud1,img96", "-r", "2", "-o", "json")
    sounds, pictures = given[:3], given[3:]
    assert all(samples.shape == (16000,) and samples.dtype == np.float32 for samples in sounds)
    assert all(0.1 < np.abs(samples).max() < 1 for samples in sounds)
    assert all(pixels.shape == (96, 96, 3) and pixels.dtype == np.uint8 for pixels in pictures)
    for group in (sounds, pictures):
        assert len({values.tobytes() for values in group}) == 3


def test_towers_in_markdown(towers):
    lines = towers("-p", "16", "-n", "0", "--media", "aud1,img64", "-r", "1")[0].splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[-4:-1]] == ["ms", "speed", "GFLOP/s"]
    assert "pp16" in lines[2]
    assert "real time" not in lines[2]
    assert "aud1" in lines[3]
    assert "x real time" in lines[3]
    assert "img64" in lines[4]
    assert "patches/s" in lines[4]


def test_towers_are_measured_only_when_asked_for(towers):
    out, given = towers("-p", "16", "-n", "4", "-r", "1", "-o", "csv")
    assert len(out.splitlines()) == 3
    assert given == []


@pytest.mark.parametrize("media", ["aud", "img0", "aud30,", "vid30", "aud30 img64", "aud1000000"])
def test_media_that_are_no_tests(command, fake, media):
    model = fake()
    command("bench", "--media", media).failed_with("--media", media, "aud30,img1024")
    assert model.loads == []


def test_work_of_the_towers():
    """torch's count for transformers' towers of these sizes, see tests/oracle/test_tower_flops.py."""
    assert audio_flops(TOWERS, 137) == 1_559_700
    assert vision_flops(TOWERS, 3, 24) == 22_394_880
    assert audio_flops(TOWERS, 6 * 200) == 6 * audio_flops(TOWERS, 200)  # windows know nothing of each other
    assert vision_flops(TOWERS, 6, 24) == 2 * vision_flops(TOWERS, 3, 24)


def test_bytes_per_token(tmp_path):
    from tiny_gguf import write_tiny

    dense = read_gguf(write_tiny(tmp_path / "dense.gguf", arch="qwen3", tied=True))
    everything = sum(info.nbytes for info in dense.tensors.values())
    config = text_config(dense)
    assert bytes_per_token(dense, config, 0) == everything
    assert bytes_per_token(dense, config, 10) == everything + 10 * kv_bytes_per_token(config, "f16")
    sparse = read_gguf(write_tiny(tmp_path / "moe.gguf", arch="qwen3moe", n_experts=8, n_experts_used=2))
    experts = sum(info.nbytes for name, info in sparse.tensors.items() if "_exps." in name)
    embedding = sparse.tensors["token_embd.weight"]
    others = sum(info.nbytes for info in sparse.tensors.values()) - experts - embedding.nbytes
    row = embedding.nbytes / embedding.shape[0]
    assert bytes_per_token(sparse, text_config(sparse), 0) == others + experts / 4 + row


@pytest.mark.gpu
def test_ops_for_real(command, adapter):
    result = command("bench", "ops", "-k", r"rms_norm\(n=1,", "-r", "2", "-o", "json", "--device", adapter)
    rows = json.loads(result.out)
    assert result.status == 0
    assert len(rows) >= 1
    for row in rows:
        assert row["op"].startswith(("rms_norm(n=1,", "add_rms_norm(n=1,"))
        assert row["seconds"] > 0
        assert row["gbps"] == pytest.approx(row["bytes"] / row["seconds"] / 1e9)
        assert row["pct_peak"] == pytest.approx(100 * row["gbps"] / row["peak_gbps"])
        assert row["max_error"] <= row["tolerance"]
        assert row["error"] == ""


@pytest.mark.gpu
def test_a_wrong_op_is_shown_and_fails(command, adapter, monkeypatch):
    from qwen3omni_wgpu.gpu import NumericalError
    from qwen3omni_wgpu.ops.cases import Case

    original = Case.run

    def broken(self, device, *, repeat=0, check=True, seed=None):
        if check:
            raise NumericalError("differs from its twin")
        return original(self, device, repeat=repeat, check=False)

    monkeypatch.setattr(Case, "run", broken)
    result = command("bench", "ops", "-k", r"^argmax\(n=3", "-r", "1", "--device", adapter)
    assert result.status == 1
    assert "FAIL" in result.out
    assert "differs from its twin" in result.err
