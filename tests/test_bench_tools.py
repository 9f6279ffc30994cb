"""bench/compare.py and bench/plot.py on files as the benchmarks write them."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parent.parent / "bench"


@pytest.fixture
def tool(tmp_path):
    """tool("compare", files as (name, text), ...): what the script printed; its status where it should fail."""

    def call(name, *files, before=(), fails=False):
        for file, text in files:
            (tmp_path / file).write_text(text, encoding="utf-8")
        command = [sys.executable, str(BENCH / f"{name}.py"), *before, *(file for file, _ in files)]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        if fails:
            assert done.returncode == 1, done.stderr
            assert len(done.stderr.splitlines()) == 1, done.stderr
            return done.stderr
        assert done.returncode == 0, done.stderr
        return done.stdout

    return call


def ours(tests, **more):
    about = {"build_version": "1.2", "gpu_info": "a card"} | more
    return [about | {"n_prompt": p, "n_gen": n, "n_depth": d, "avg_ts": rate} for (p, n, d), rate in tests.items()]


def theirs(tests):
    """As llama-bench has it: a build's number, samples, no depth in old versions."""
    rows = []
    for (p, n, d), rate in tests.items():
        samples = [rate, 0.9 * rate, 5 * rate]  # the median is the rate
        row = {"build_commit": "abc1234", "gpu_info": "a card", "n_prompt": p, "n_gen": n, "avg_ts": 2.3 * rate}
        rows.append(row | {"samples_ts": samples} | ({"n_depth": d} if d else {}))
    return rows


def test_ratios(tool):
    draw = random.Random()
    tests = [(512, 0, 0), (0, 128, 0), (0, 128, 4096)]
    mine, other = ({test: draw.uniform(1, 100) for test in tests} for _ in range(2))
    mine[0, 64, 0], other[128, 0, 0] = 3.0, 4.0
    lines = "\n".join(map(json.dumps, theirs(other)))
    out = tool("compare", ("a.json", json.dumps(ours(mine))), ("b.jsonl", lines)).splitlines()
    assert out[0] == "| test | qwen3omni 1.2, a card | llama.cpp abc1234, a card | ratio |"
    names = ["pp512", "tg128", "tg128 @ d4096"]
    for line, name, test in zip(out[2:5], names, tests, strict=True):
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        assert cells == [name, f"{mine[test]:.2f}", f"{other[test]:.2f}", f"{mine[test] / other[test]:.2f}x"]
    assert out[5:7] == ["only in qwen3omni 1.2, a card: tg64", "only in llama.cpp abc1234, a card: pp128"]
    ratios = json.loads(out[-1])["ratios"]["llama.cpp abc1234, a card"]
    assert ratios == pytest.approx({name: mine[test] / other[test] for name, test in zip(names, tests, strict=True)})


def test_predictions_and_peers(tool):
    tests = {(0, 128, 0): 60.0}
    predicted = json.dumps(ours(tests, predicted=True, profile="strix-halo"))
    assert "| predicted for strix-halo |" in tool("compare", ("a.json", predicted), ("b.json", json.dumps(ours(tests))))
    phases = {"prefill": {"ours": [8.0, 2.0, 6.0], "llama.cpp": [3.0]}, "decode": {"ours": [5.0], "llama.cpp": [2.0]}}
    out = tool("compare", ("peer.txt", f"decode: 5 against 2\n{json.dumps(phases)}\n"))
    assert json.loads(out.splitlines()[-1])["ratios"] == {"llama.cpp": {"pp1": 2.0, "tg1": 2.5}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("a.json", "[]"), ("b.json", "[]")], "a.json: neither"),
        ([("a.json", "hello")], "a.json: neither"),
        ([("a.json", '[{"n_prompt": 1}]')], "a.json: neither"),
        ([("a.json", json.dumps(ours({(1, 0, 0): 1.0})))], "give ours and another"),
        ([("a.json", json.dumps(ours({(1, 0, 0): 1.0}))), ("b.json", json.dumps(ours({(2, 0, 0): 1.0})))], "no test"),
    ],
)
def test_what_cannot_be_compared(tool, files, words):
    assert words in tool("compare", *files, fails=True)


def test_a_file_that_is_not_there(tool, tmp_path):
    assert "No such file" in tool("compare", before=["missing.json"], fails=True)


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_depth_curves(tool, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    tests = {(512, 0, d): 900.0 / (1 + d) for d in (0, 4, 16)} | {(0, 128, d): 60.0 / (1 + d) for d in (0, 4, 16)}
    files = [("a.json", json.dumps(ours(tests))), ("b.json", json.dumps(theirs(tests)))]
    tool("plot", *files, before=["depth", f"out.{suffix}"])
    assert_picture(tmp_path / f"out.{suffix}")


def test_a_roofline(tool, tmp_path):
    pytest.importorskip("matplotlib")
    rows = [
        {"op": f"{op}(n={n})", "gpu_info": "a card", "bytes": 1000, "flops": n * flops, "seconds": 1e-6, "peak_gbps": 9}
        for op, flops in (("matmul", 500), ("add", 0), ("rms_norm", 3))
        for n in (1, 128)
    ]
    tool("plot", ("ops.jsonl", "\n".join(map(json.dumps, rows))), before=["roofline", "roof.svg"])
    assert_picture(tmp_path / "roof.svg")
    text = (tmp_path / "roof.svg").read_text(encoding="utf-8")
    assert "a card" in text or "<svg" in text


def assert_picture(path):
    data = path.read_bytes()
    assert data.startswith(b"\x89PNG") if path.suffix == ".png" else b"<svg" in data
    assert len(data) > 5000


def test_without_matplotlib_one_line_says_what_to_install(tool, tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ImportError", encoding="utf-8")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(BENCH)!r}]; import plot; plot.pyplot()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "matplotlib is missing: pip install 'qwen3omni-wgpu[plot]'\n")


def test_plots_refuse_other_names(tool):
    files = [("a.json", json.dumps(ours({(1, 0, 0): 1.0})))]
    assert "must end in .png or .svg" in tool("plot", *files, before=["depth", "out.pdf"], fails=True)
