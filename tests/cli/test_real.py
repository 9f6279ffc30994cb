"""The commands as a user runs them: a process of their own, a real driver, real files."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu import GenerationConfig, Omni

pytestmark = pytest.mark.gpu


# A random model ---------------------------------------------------------------------------------------------------


def test_generate_writes_what_the_api_writes(process, tiny, adapter):
    result = process("generate", "-m", tiny, "-p", "hello", "-n", 12, "--temp", 0, "--json", "--logprobs", 3)
    document = json.loads(result.out)
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        config = GenerationConfig(max_tokens=12, temperature=0, logprobs=3)
        reply = omni.generate("hello", config=config)
        assert document["token_ids"] == reply.token_ids
        assert document["text"] == reply.text
        assert document["prompt_token_ids"] == reply.prompt_token_ids
        # Greedy means the most likely token of the logits after everything before it.
        logits = omni.logits(reply.prompt_token_ids + reply.token_ids)[len(reply.prompt_token_ids) - 1 : -1]
        assert np.argmax(logits, axis=1).tolist() == reply.token_ids
        shifted = logits.astype(np.float64) - np.log(np.sum(np.exp(logits.astype(np.float64)), axis=1, keepdims=True))
        found = [item.logprob for item in reply.logprobs]
        np.testing.assert_allclose(found, shifted[np.arange(len(found)), reply.token_ids], atol=1e-3)
        assert [item["logprob"] for item in document["logprobs"]] == pytest.approx(found, abs=1e-5)


def test_loading_reports_every_byte(tiny, adapter):
    events = []
    with Omni.from_pretrained(tiny, device=adapter, progress=events.append):
        pass
    assert {event.phase for event in events} == {"load"}
    done = [event.done for event in events]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == events[-1].total > 100_000


@pytest.mark.parametrize("choice", ["f32", "q8"])
def test_activations_are_chosen_by_argument_or_environment(tiny, adapter, monkeypatch, choice):
    with Omni.from_pretrained(tiny, device=adapter, activations=choice) as omni:
        assert omni.engine.model.activations == choice
    monkeypatch.setenv("QWEN3OMNI_ACTIVATIONS", choice)
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        assert omni.engine.model.activations == choice


def test_the_same_seed_gives_the_same_answer(tiny, adapter):
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        config = GenerationConfig(max_tokens=20, temperature=2.0, top_k=0, top_p=1.0, min_p=0.0, seed=11)
        first, second = (omni.generate("hello", config=config).token_ids for _ in range(2))
        assert first == second
        other = omni.generate("hello", config=GenerationConfig(max_tokens=20, temperature=2.0, seed=12)).token_ids
        assert other != first


def test_a_chat_answers_as_if_it_had_started_anew(tiny, adapter):
    """Reusing the KV cache must not change an answer."""
    config = GenerationConfig(max_tokens=10, temperature=0)
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        chat = omni.chat("kind")
        chat.send("hello", config)
        reply = chat.send("world", config)
        assert reply.timings["cached_n"] > 10
        omni.engine.reset()
        assert omni.generate(chat.messages[:-1], config=config).token_ids == reply.token_ids


def test_a_long_prompt_in_chunks(tiny, adapter):
    config = GenerationConfig(max_tokens=5, temperature=0)
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        prompt = [5 + i % 200 for i in range(200)]
        whole = omni.generate(prompt, config=config)
        assert whole.timings["prompt_n"] == 200
        omni.engine.reset()
        omni.engine.buckets = omni.engine.buckets[:2]
        assert omni.generate(prompt, config=config).token_ids == whole.token_ids


def test_a_full_context_ends_the_answer(process, tiny):
    document = json.loads(
        process("generate", "-m", tiny, "-p", "hello", "-c", 40, "--ignore-eos", "--json", "--temp", 0).out
    )
    assert document["finish_reason"] == "length"
    assert len(document["prompt_token_ids"]) + len(document["token_ids"]) in (40, 41)


def test_chat_through_a_pipe(process, tiny):
    result = process("chat", "-m", tiny, "-n", 5, "-q", "--json", stdin="hello\nworld\n")
    assert (result.status, result.err) == (0, ""), result.err
    document = json.loads(result.out)
    assert [message["role"] for message in document["messages"]] == ["user", "assistant"] * 2
    assert document["turns"][1]["timings"]["cached_n"] > 0


def test_bench(process, tiny):
    result = process("bench", "-m", tiny, "-p", 16, "-n", 4, "-d", 8, "-r", 2, "-o", "jsonl")
    assert result.status == 0, result.err
    rows = [json.loads(line) for line in result.out.splitlines()]
    assert [(row["test"], len(row["samples_ns"])) for row in rows] == [("pp16 @ d8", 2), ("tg4 @ d8", 2)]
    assert all(row["avg_ts"] > 0 for row in rows)
    assert rows[1]["gbps"] > 0 < rows[1]["pct_peak"]


def test_perplexity(process, tiny, adapter, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("hello world and the token in the world " * 4)
    result = process("perplexity", "-m", tiny, "-f", text, "-c", 32, "--json", "--save-logits", tmp_path / "l.npy")
    report = json.loads(result.out)
    stored = np.load(tmp_path / "l.npy")
    with Omni.from_pretrained(tiny, device=adapter, ctx_size=32) as omni:
        ids = omni.tokenize(text.read_text(), raw=True)
        logits = omni.logits(ids[:32]).astype(np.float64)
    first = stored[stored["chunk"] == 0]
    np.testing.assert_allclose(first["logits"], logits[16:31], atol=1e-4)
    nll = [-r["logits"][r["token"]] + np.log(np.exp(r["logits"].astype(np.float64)).sum()) for r in stored]
    assert report["perplexity"] == pytest.approx(np.exp(np.mean(nll)), rel=1e-5)
    again = process("perplexity", "-m", tiny, "-f", text, "-c", 32, "--json", "--kl-base", tmp_path / "l.npy")
    report = json.loads(again.out)
    assert report["kl_divergence"] == pytest.approx(0, abs=1e-9)
    assert report["top1_agreement"] == 1


def test_trace(process, tiny, tmp_path):
    path = tmp_path / "trace.json"
    result = process("generate", "-m", tiny, "-p", "hello", "-n", 3, "--trace", path)
    assert result.status == 0, result.err
    events = json.loads(path.read_text())["traceEvents"]
    names = {event["name"] for event in events if event["ph"] == "X"}
    assert any("attention" in name for name in names)
    tracks = {event["args"]["name"] for event in events if event["ph"] == "M"}
    assert "host" in tracks
    assert any(track.startswith("GPU") for track in tracks)


def test_tracing_names_its_own_file(process, tiny, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "qwen3omni_wgpu", "generate", "-m", tiny, "-p", "hi", "-n", "1", "--tracing"],
        cwd=tmp_path,
        capture_output=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert [path.name[:6] for path in tmp_path.glob("*.json")] == ["trace-"]


# Bad input --------------------------------------------------------------------------------------------------------


def broken(tiny, tmp_path, how: str):
    """A damaged copy of a model."""
    data, path = tiny.read_bytes(), tmp_path / "broken.gguf"
    if how == "text":
        data = b"I am no model at all\n"
    elif how == "empty":
        data = b""
    elif how == "short header":
        data = data[:100]
    elif how == "short data":
        data = data[:-1000]
    elif how == "no tokenizer":
        return write_tiny(path, arch="qwen3", tokenizer=False)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("how", ["text", "empty", "short header", "short data", "no tokenizer"])
def test_a_broken_model(process, tiny, tmp_path, how):
    process("generate", "-m", broken(tiny, tmp_path, how), "-p", "hi").failed_with("error")


@pytest.mark.parametrize(("args", "words"), [
    (["-p", "hello " * 400], ["context holds 256"]),
    (["-p", "hi", "-c", "100000"], ["--ctx-size 100000"]),
    (["-p", "hi", "--device", "no such adapter"], ["no such adapter"]),
    (["-p", "hi", "--device", "99"], ["99"]),
])  # fmt: skip
def test_what_cannot_be_done(process, tiny, args, words):
    result = process("generate", "-m", tiny, *args)
    lines = [line for line in result.err.splitlines() if "software adapter" not in line]
    assert (result.status, result.out, len(lines)) == (2, "", 1), result.err
    assert all(word in lines[0] for word in words)


def test_no_adapter(process, tiny, tmp_path):
    nowhere = str(tmp_path / "none.json")
    result = process("generate", "-m", tiny, "-p", "hi", VK_ICD_FILENAMES=nowhere, VK_DRIVER_FILES=nowhere)
    result.failed_with("mesa-vulkan-drivers")


def test_a_bad_environment_variable(process, tiny):
    process("generate", "-m", tiny, "-p", "hi", QWEN3OMNI_TIMEOUT="soon").failed_with("QWEN3OMNI_TIMEOUT")


# SmolLM2 ----------------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_smollm2_answers_sensibly(process, smollm2_path):
    question = "What is the capital of France?"
    result = process("generate", "-m", smollm2_path, "-p", question, "--temp", 0, "-n", 20, "-q")
    assert (result.status, result.err) == (0, "")
    assert "Paris" in result.out


@pytest.mark.model
def test_ctrl_c_in_a_real_answer(smollm2_path, adapter):
    """Once text arrives the key is pressed: the answer ends, the exit status is 130, nobody sees a traceback."""
    command = ["generate", "-m", str(smollm2_path), "-p", "Tell me a very long story.", "--temp", "0", "--ignore-eos"]
    running = subprocess.Popen(
        [sys.executable, "-m", "qwen3omni_wgpu", *command, "-q", "--device", adapter],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # The answer must arrive while it is written without help from outside.
        env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
    )
    try:
        first = running.stdout.read(1)
        assert first
        pressed = time.monotonic()
        running.send_signal(signal.SIGINT)
        out, err = running.communicate(timeout=60)
    finally:
        running.kill()
    assert running.returncode == 130, err
    assert err == b""
    assert out.endswith(b"\n")
    assert time.monotonic() - pressed < 30
