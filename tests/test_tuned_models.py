"""Models whose kernels were tuned: what they ask is known before they ask it, and their answers stay the same."""

import json

import numpy as np
import pytest
from tiny_checkpoint import write_tiny_checkpoint
from tiny_gguf import write_tiny

from qwen3omni_wgpu import GenerationConfig, Omni, tuned_table, tuner
from qwen3omni_wgpu.cli import run
from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.gpu import Tensor, stopwatch
from qwen3omni_wgpu.models.code_predictor import CodePredictorModel
from qwen3omni_wgpu.models.rehearse import rehearse
from qwen3omni_wgpu.models.talker import TalkerModel
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.ops.cases import problems
from qwen3omni_wgpu.ops.choice import candidates
from qwen3omni_wgpu.runner import Runner
from qwen3omni_wgpu.voice.settings import SpeechSettings
from qwen3omni_wgpu.voice.talker import Talker

pytestmark = pytest.mark.gpu

GREEDY = GenerationConfig(temperature=0, max_tokens=6)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny(tmp_path_factory.mktemp("tuned") / "tiny.gguf", arch="qwen3moe", type="q8_0", seed=3)


@pytest.fixture
def unasked(device, monkeypatch):
    monkeypatch.setattr(device, "asked", {})
    return device


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, and a short tuning: one op, two candidates each."""
    monkeypatch.setattr(stopwatch, "EVICT_BYTES", 1 << 20)
    monkeypatch.setattr(tuned_table.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    monkeypatch.setattr(tuner, "candidates", lambda device, problem: candidates(device, problem)[:2])
    monkeypatch.setattr(tuner, "PROBLEMS", {"fused": problems.PROBLEMS["fused"]})
    return tmp_path / "qwen3omni" / "tuned"


def test_all_that_an_engine_asks_was_rehearsed(tiny, unasked):
    model = TextModel.load(read_gguf(tiny), unasked)
    engine = Engine(model, 64)
    rehearsed = {problem.key for problem in engine.rehearse()}
    assert unasked.asked == {}
    config = GREEDY.resolved({})
    assert len(list(engine.generate(list(range(3, 40)), config, frozenset()))) == 6
    assert len(unasked.asked) > 5
    assert set(unasked.asked) <= rehearsed
    engine.free()
    model.free()


@pytest.mark.parametrize("number", [0, 1])
def test_layers_of_another_type_are_rehearsed_too(number, tiny, unasked):
    name = f"blk.{number}.attn_output.weight"
    model = TextModel.load(read_gguf(tiny), unasked)
    engine = Engine(model, 64)
    before = {problem.key for problem in engine.rehearse()}
    old = model.weights[name]
    model.weights[name] = Tensor.pending(unasked, old.shape, "q4_1", "another type")
    found = {problem.key for problem in rehearse(model, engine._cache, (1,))}
    new = {key for key in found if "type=q4_1" in key}
    assert len(new) == 1
    assert found - new <= before
    model.weights[name] = old
    engine.free()
    model.free()


def test_all_that_a_talker_asks_was_rehearsed(tmp_path, unasked):
    write_tiny_checkpoint(tmp_path, np.random.default_rng())
    file = open_parts(tmp_path, type="f16")["talker"]
    models = TalkerModel.load(file, unasked), CodePredictorModel.load(file, unasked)
    talker = Talker(*models, Runner(unasked), ctx_size=64)
    rehearsed = {problem.key for problem in talker.rehearse()}
    assert unasked.asked == {}
    dim = models[0].config.decoder.dim
    rows = np.random.default_rng().standard_normal((9, dim)).astype(np.float32)
    talker.start(rows, np.zeros((9, 3), np.float32), rows[0], SpeechSettings(greedy=True))
    talker.step()
    assert len(unasked.asked) > 5
    assert set(unasked.asked) <= rehearsed
    talker.free()
    for model in models:
        model.free()


def test_the_first_load_tunes_and_the_next_knows(tiny, adapter, cache, monkeypatch):
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        assert omni.device.tuned == {}  # conftest.py switches it off
        expected = omni.generate("hello", config=GREEDY).token_ids
    assert not cache.exists()
    events = []
    with Omni.from_pretrained(tiny, device=adapter, tune="on", progress=events.append) as omni:
        tuned = dict(omni.device.tuned)
        assert omni.generate("hello", config=GREEDY).token_ids == expected
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["choices"].keys() == tuned.keys()
    assert {key.split()[0] for key in tuned} == {"fused"}
    seen = [(event.done, event.total) for event in events if event.phase == "tune"]
    assert seen == [(i, len(tuned)) for i in range(len(tuned) + 1)]
    monkeypatch.setattr(tuner, "Stopwatch", None)  # would be called
    monkeypatch.setenv("QWEN3OMNI_TUNE", "auto")
    with Omni.from_pretrained(tiny, device=adapter) as omni:
        assert omni.device.tuned == tuned
    with Omni.from_pretrained(tiny, device=adapter, tune="off") as omni:
        assert omni.device.tuned == {}


def test_a_wrong_word_for_tune(tiny):
    with pytest.raises(InvalidRequest, match="tune is 'yes', but must be auto, on or off"):
        Omni.from_pretrained(tiny, tune="yes")  # type: ignore[arg-type]


def test_doctor_tunes_anew(tiny, adapter, cache, capsys):
    arguments = ("doctor", "--tune", "--cpu", "--device", adapter, "-m", str(tiny))
    assert run(arguments) == 0
    out = capsys.readouterr().out
    assert "OK    tuned kernels: 0 choices are forgotten" in out
    assert "OK    fused d=64" in out
    assert "the rule's speed" in out
    assert "op rms_norm" not in out  # no self-test
    (path,) = cache.iterdir()
    assert f"choices are kept in {path}" in out
    first = json.loads(path.read_text())["choices"]
    assert run((*arguments, "--json")) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tuned"]["choices"].keys() == first.keys()
    assert any(check["found"] == f"{len(first)} choices are forgotten" for check in report["checks"])


def test_doctor_without_a_model_says_which_to_give(adapter, cache, tmp_path, capsys):
    missing = tmp_path / "none.gguf"
    assert run(("doctor", "--tune", "--cpu", "--device", adapter, "-m", str(missing))) == 1
    out = capsys.readouterr().out
    assert "FAIL  tuning: the model could not be tuned" in out
    assert str(missing) in out.splitlines()[-1]


def test_tune_and_no_tune_contradict(capsys):
    assert run(("doctor", "--tune", "--no-tune")) == 2
    assert "contradict" in capsys.readouterr().err
