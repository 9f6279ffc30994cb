"""`qwen3omni perplexity` against a plain computation, and logits stored and compared."""

import json

import numpy as np
import pytest

TEXT = "hello world and the token in the world of tokens, hello and hello"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path


def log_softmax(logits: np.ndarray) -> np.ndarray:
    x = logits.astype(np.float64)
    return x - np.log(np.sum(np.exp(x)))


def expected_nll(model, size: int) -> list[float]:
    """The second half of every whole chunk, position by position."""
    ids = model.tokenizer.encode(TEXT, add_special=True)
    out = []
    for start in range(0, len(ids) - size + 1, size):
        piece = ids[start : start + size]
        logits = model.engine.logits(piece)
        out += [-log_softmax(logits[i])[piece[i + 1]] for i in range(size // 2, size - 1)]
    return out


@pytest.mark.parametrize("size", [8, 16])
def test_perplexity_and_its_error(command, fake, text_file, size):
    model = fake()
    report = json.loads(command("perplexity", "-f", str(text_file), "-c", str(size), "--json").out)
    nll = np.array(expected_nll(model, size))
    assert report["tokens"] == len(nll) > 4
    assert report["perplexity"] == pytest.approx(np.exp(nll.mean()))
    assert report["nll_error"] == pytest.approx(nll.std(ddof=1) / np.sqrt(len(nll)))
    assert report["perplexity_error"] == pytest.approx(report["perplexity"] * report["nll_error"])


def test_one_short_text_is_one_chunk(command, fake, text_file):
    model = fake()
    report = json.loads(command("perplexity", "-f", str(text_file), "--json").out)
    count = len(model.tokenizer.encode(TEXT, add_special=True))
    assert (report["chunks"], report["ctx_size"]) == (1, 512)
    assert report["tokens"] == count - 1 - count // 2


def test_chunks_can_be_limited(command, fake, text_file):
    fake()
    report = json.loads(command("perplexity", "-f", str(text_file), "-c", "8", "--chunks", "2", "--json").out)
    assert (report["chunks"], report["tokens"]) == (2, 2 * 3)


def test_the_text_of_the_report(command, fake, text_file):
    fake()
    result = command("perplexity", "-f", str(text_file), "-c", "8")
    assert result.out.startswith("perplexity")
    assert "±" in result.out
    assert "KL" not in result.out


def test_stored_logits_against_themselves(command, fake, text_file, tmp_path):
    fake()
    store = tmp_path / "base.npy"
    command("perplexity", "-f", str(text_file), "-c", "8", "--save-logits", str(store))
    result = command("perplexity", "-f", str(text_file), "-c", "8", "--kl-base", str(store), "--json")
    report = json.loads(result.out)
    assert report["kl_divergence"] == pytest.approx(0, abs=1e-12)
    assert report["top1_agreement"] == 1
    assert report["base_perplexity"] == pytest.approx(report["perplexity"])


def test_divergence_and_agreement(command, fake, text_file, tmp_path):
    model = fake()
    store = tmp_path / "base.npy"
    command("perplexity", "-f", str(text_file), "-c", "8", "--save-logits", str(store))
    base = np.load(store)
    assert base.dtype.names == ("chunk", "position", "token", "logits")
    original, rng = model.engine.logits, np.random.default_rng(0)
    noisy = {}

    def disturbed(ids):
        logits = original(ids)
        noisy.setdefault(len(noisy), logits + rng.normal(0, 0.02, logits.shape).astype(np.float32))
        return noisy[len(noisy) - 1]

    model.engine.logits = disturbed
    result = command("perplexity", "-f", str(text_file), "-c", "8", "--kl-base", str(store), "--json")
    report = json.loads(result.out)
    kl, same = [], []
    for record in base:
        p = log_softmax(record["logits"])
        q = log_softmax(noisy[record["chunk"]][record["position"]])
        kl.append(np.sum(np.exp(p) * (p - q)))
        same.append(np.argmax(p) == np.argmax(q))
    assert report["kl_divergence"] == pytest.approx(np.mean(kl))
    assert report["kl_divergence_max"] == pytest.approx(np.max(kl))
    assert report["kl_divergence_error"] == pytest.approx(np.std(kl, ddof=1) / np.sqrt(len(kl)))
    assert 0 < report["top1_agreement"] == np.mean(same) < 1
    shown = command("perplexity", "-f", str(text_file), "-c", "8", "--kl-base", str(store)).out
    assert "KL divergence" in shown
    assert "same top token" in shown


def test_stored_logits_of_something_else(command, fake, text_file, tmp_path):
    fake()
    store = tmp_path / "base.npy"
    command("perplexity", "-f", str(text_file), "-c", "8", "--chunks", "1", "--save-logits", str(store))
    compare = ["--kl-base", str(store), "-c"]
    command("perplexity", "-f", str(text_file), *compare, "16").failed_with("--ctx-size")
    command("perplexity", "-f", str(text_file), *compare, "8").failed_with("--chunks")
    other = tmp_path / "other.txt"
    other.write_text("something else entirely")
    command("perplexity", "-f", str(other), *compare, "8").failed_with("another text")


@pytest.mark.parametrize("content", [b"", b"no numpy file", None])
def test_files_that_hold_no_logits(command, fake, text_file, tmp_path, content):
    fake()
    path = tmp_path / "x.npy"
    if content is None:
        np.save(path, np.zeros(3))
    else:
        path.write_bytes(content)
    command("perplexity", "-f", str(text_file), "--kl-base", str(path)).failed_with("x.npy")


def test_refusals(command, fake, text_file, tmp_path):
    fake()
    (tmp_path / "short.txt").write_text("hi")
    command("perplexity", "-f", str(tmp_path / "short.txt")).failed_with("at least 4")
    command("perplexity", "-f", str(text_file), "--kl-base", "none.npy").failed_with("none.npy")
    target = str(tmp_path / "no/folder.npy")
    command("perplexity", "-f", str(text_file), "--save-logits", target).failed_with("folder.npy")
