"""Speech on the GPU, frame by frame: against transformers' goldens, and against NumPy for new random weights."""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reference.talker import TalkerTwin
from reference.talker_goldens import read_talker, talker_names
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.inputs.talker_prompt import talker_prompt
from qwen3omni_wgpu.models.code_predictor import CodePredictorConfig, CodePredictorModel
from qwen3omni_wgpu.models.talker import TalkerConfig, TalkerModel
from qwen3omni_wgpu.runner import Runner
from qwen3omni_wgpu.voice.settings import SpeechSettings
from qwen3omni_wgpu.voice.talker import Talker

pytestmark = pytest.mark.gpu

# Of the largest value. Sums are in another order: 1e-6 was measured on lavapipe. A GPU's sin and cos may be off by
# 2^-11.
SOFTWARE, HARDWARE = 2e-5, 1e-3
GREEDY = SpeechSettings(greedy=True)
EVERYTHING = SpeechSettings(seed=7, temperature=4.0, top_k=0, predictor_temperature=4.0, predictor_top_k=0,
                            predictor_top_p=1.0)  # fmt: skip
SAFE = 1e-4  # choices of the twin's router nearer than this may rightly go the other way


def new_seed() -> int:
    """Another one in every run; a failing test shows it among its local values."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def tolerance(device) -> float:
    return SOFTWARE if device.info.software else HARDWARE


def talker_file(folder: Path, type: str = "f32") -> GGUFFile:
    return open_parts(folder, type=type)["talker"]


class Loaded:
    """A talker with the models under it."""

    def __init__(self, file: GGUFFile, device, ctx_size: int = 96) -> None:
        self.models = TalkerModel.load(file, device), CodePredictorModel.load(file, device)
        self.talker = Talker(*self.models, Runner(device), ctx_size=ctx_size, kv_type="f32")

    def __enter__(self) -> Talker:
        return self.talker

    def __exit__(self, *_: object) -> None:
        self.talker.free()
        for model in self.models:
            model.free()


class Case:
    """A new random checkpoint, its twin, and a random prompt at positions of all kinds."""

    def __init__(self, folder: Path, seed: int, rows: int = 7, type: str = "f32", **recipe: Any) -> None:
        stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), **{"dtype": type} | recipe)
        self.file = talker_file(folder, type)
        self.config = TalkerConfig.from_gguf(self.file)
        self.twin = TalkerTwin(stored, json.loads((folder / "config.json").read_text())["talker_config"])
        rng = np.random.default_rng(seed)
        dim = self.config.decoder.dim
        self.rows = rng.standard_normal((rows, dim)).astype(np.float32)
        self.positions = np.cumsum(rng.integers(0, 3, (rows, 3)), axis=0).astype(np.float32)
        self.pad, self.text = rng.standard_normal((2, dim)).astype(np.float32)

    def start(self, talker: Talker, settings: SpeechSettings = GREEDY) -> None:
        talker.start(self.rows, self.positions, self.pad, settings)

    def compare(self, talker: Talker, frames: int, limit: float) -> None:
        """Every frame's hidden state and logits, given the codes that were chosen before."""
        rows, positions = self.rows, self.positions
        for number in range(frames):
            h = self.twin.talker.forward(rows, positions)[-1:]
            if self.twin.talker.router_gap < SAFE:
                return
            assert relative(talker.hidden, h[0]) < limit, number
            assert relative(talker.next_logits, self.twin.logits(h)[0]) < limit, number
            text = self.text if number % 2 else None
            codes = talker.step(text)
            if codes is None:
                return
            residual = self.twin.residual(h, codes)
            assert relative(residual_logits(talker), residual) < limit, number
            row = self.twin.frame(codes, self.pad if text is None else text)
            rows, positions = np.concatenate([rows, row]), np.concatenate([positions, positions[-1:] + 1])


def residual_logits(talker: Talker) -> np.ndarray:
    return np.concatenate([tensor.numpy() for tensor in talker.residual_logits])


def speech(talker: Talker, frames: int) -> list[list[int]]:
    found = [talker.step() for _ in range(frames)]
    return [codes.tolist() for codes in found if codes is not None]


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    """For tests that do not look at its answers."""
    return Case(tmp_path_factory.mktemp("case") / "model", 5)


@pytest.fixture(scope="module")
def shared(case, device) -> Iterator[Talker]:
    with Loaded(case.file, device) as talker:
        yield talker


@pytest.fixture
def talker(case, shared) -> Talker:
    case.start(shared)
    return shared


# Against transformers ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", talker_names())
def test_speech_equals_transformers(name, tmp_path, device):
    """Every code of every frame; the golden's choices are clear ones."""
    golden = read_talker(name)
    golden.write(tmp_path / "model")
    s, limit = golden.spoken, tolerance(device)
    assert golden.margin > 20 * limit * 1e-2
    with Loaded(talker_file(tmp_path / "model"), device, ctx_size=400) as talker:
        talker.start(s.rows, s.row_positions, s.pad, SpeechSettings(greedy=True, repeat_penalty=1.05))
        for frame, expected in enumerate(s.codes):
            assert relative(talker.hidden, s.hidden[frame]) < limit, frame
            assert relative(talker.next_logits[: s.logits.shape[1]], s.logits[frame]) < limit, frame
            codes = talker.step(s.text(frame))
            assert codes is not None, frame
            assert codes.tolist() == expected.tolist(), frame
            if frame < len(s.residual):
                assert relative(residual_logits(talker), s.residual[frame]) < limit, frame
        assert relative(talker.hidden, s.hidden[-1]) < limit
        if name == "ends":
            assert talker.step() is None
            assert talker.finish == "stop"
        assert talker.frames == len(s.codes)


def test_projections_equal_transformers(tmp_path, device):
    """The rows of a whole prompt, text and media, from the thinker's rows."""
    golden = read_talker("media")
    tensors = golden.write(tmp_path / "model")
    s, file = golden.spoken, talker_file(tmp_path / "model")
    config = TalkerConfig.from_gguf(file)
    prompt = talker_prompt(s.ids.tolist(), s.positions, s.answer[:-1].tolist(), config, config.voice(None))
    assert prompt is not None
    table = np.asarray(tensors["thinker.model.embed_tokens.weight"], np.float32)
    with Loaded(file, device) as talker:
        rows = talker.rows(prompt, table[prompt.text_ids], s.states)
    assert relative(rows, s.rows) < tolerance(device)


# Against NumPy -----------------------------------------------------------------------------------------------------


def test_frames_equal_numpy(tmp_path, device):
    seed = new_seed()
    case = Case(tmp_path / "model", seed)
    with Loaded(case.file, device) as talker:
        case.start(talker)
        case.compare(talker, 5, tolerance(device))


def test_other_sizes_equal_numpy(tmp_path, device):
    seed = new_seed()
    sizes = {"groups": 3, "codes": 64, "talker_heads": 4, "talker_kv_heads": 2, "experts": 6, "talker_shared": 32}
    case = Case(tmp_path / "model", seed, **sizes, talker_layers=1, predictor_layers=1)
    with Loaded(case.file, device) as talker:
        case.start(talker)
        case.compare(talker, 3, tolerance(device))


# Of the largest logit: (talker, code predictor), at least three times the worst of 200 seeds. Half a step of 127 a
# weight; 2^-11.
NEAR = {"q8_0": (8e-2, 6e-2), "f16": (6e-3, 1e-2)}


@pytest.mark.parametrize("type", NEAR)
def test_other_types_are_near(type, tmp_path, device):
    """The code predictor is never quantised, but its first code's embedding is the talker's."""
    seed = new_seed()
    folder = tmp_path / "model"
    case = Case(folder, seed)
    with Loaded(talker_file(folder, type), device) as talker:
        case.start(talker)
        h = case.twin.talker.forward(case.rows, case.positions)[-1:]
        if case.twin.talker.router_gap > 0.2:  # else another expert may be taken
            assert relative(talker.next_logits, case.twin.logits(h)[0]) < NEAR[type][0]
        h = talker.hidden[None]
        codes = talker.step()
        if codes is not None:
            assert relative(residual_logits(talker), case.twin.residual(h, codes)) < NEAR[type][1]


def test_projections_equal_numpy(case, shared, device):
    rng = np.random.default_rng(new_seed())
    for n in (1, 5):
        x = rng.standard_normal((n, case.config.thinker_dim)).astype(np.float32)
        assert relative(shared.project_text(x), case.twin.project("text_projection", x)) < tolerance(device)
        assert relative(shared.project_hidden(x), case.twin.project("hidden_projection", x)) < tolerance(device)
    assert shared.project_text(np.zeros((0, case.config.thinker_dim), np.float32)).shape == (0, 32)
    ids = rng.integers(0, 96, 11)
    np.testing.assert_allclose(shared.embed_codec(ids), np.concatenate([case.twin.code(0, i) for i in ids]), atol=1e-6)


def test_long_prompts_go_in_pieces(case, device, monkeypatch):
    """The same hidden state however the rows are dealt out; rows beyond a piece's end are not seen."""
    h = case.twin.talker.forward(case.rows, case.positions)[-1]
    for buckets in ((1, 8), (1, 3), (1,)):
        monkeypatch.setattr("qwen3omni_wgpu.voice.talker.BUCKETS", buckets)
        with Loaded(case.file, device) as talker:
            case.start(talker)
            assert talker.n_past == len(case.rows)
            assert relative(talker.hidden, h) < tolerance(device), buckets


# What is drawn -----------------------------------------------------------------------------------------------------


def test_the_same_seed_says_the_same(case, talker):
    case.start(talker, EVERYTHING)
    first = speech(talker, 5)
    case.start(talker, EVERYTHING)
    assert speech(talker, 5) == first
    case.start(talker, SpeechSettings(**vars(EVERYTHING) | {"seed": 8}))
    assert speech(talker, 5) != first


def test_a_new_seed_every_time(case, talker):
    case.start(talker, SpeechSettings())
    first = talker.settings.seed
    case.start(talker, SpeechSettings())
    assert first is not None
    assert talker.settings.seed != first


def test_nothing_is_left_of_an_earlier_speech(case, talker):
    """Cache, penalties and positions start again."""
    first = speech(talker, 6)
    assert len(first) == 6
    for _ in range(2):
        case.start(talker)
        assert speech(talker, 6) == first


def test_control_ids_are_never_drawn(case, talker):
    """Half of the vocabulary is control ids; at this temperature most draws would be one of them."""
    settings = SpeechSettings(seed=new_seed(), temperature=100.0, top_k=0, predictor_temperature=100.0)
    found = []
    for number in range(3):
        case.start(talker, SpeechSettings(**vars(settings) | {"seed": settings.seed + number}))
        found += speech(talker, 30)
    codes = np.array(found)
    assert codes.min() >= 0
    assert codes.max() < case.config.codes
    assert len(set(codes[:, 0])) > 10  # 20 frames at the very least, most of them different
    assert len(set(codes[:, 1:].ravel())) > 30
    # Every code has a random number of its own: with one for all, those of a frame would be neighbours.
    assert min(len(set(frame[1:])) for frame in found) > 4


def test_settings_reach_their_codes(case, talker):
    """top_k 1 is greedy; each half of the settings is for its own codes."""
    greedy = speech(talker, 4)
    narrow = {"top_k": 1, "predictor_top_k": 1, "repeat_penalty": 1.05}
    case.start(talker, SpeechSettings(seed=1, **narrow))
    assert speech(talker, 4) == greedy
    case.start(talker, SpeechSettings(seed=new_seed(), temperature=100.0, top_k=0, predictor_temperature=0.0))
    firsts = set()
    for _ in range(12):
        codes = talker.step()
        if codes is None:
            break
        firsts.add(int(codes[0]))
        assert codes[1:].tolist() == residual_logits(talker).argmax(axis=1).tolist()
    case.start(talker, SpeechSettings(seed=new_seed(), temperature=0.0, predictor_temperature=100.0, predictor_top_k=0,
                                      predictor_top_p=1.0))  # fmt: skip
    frame = talker.step()
    assert frame is not None
    assert frame[0] == greedy[0][0]
    assert frame[1:].tolist() != greedy[0][1:]


def test_the_penalty_is_for_codes_that_were_said(case, talker):
    """So large that no code comes twice, among those above zero; and it is only for code 0."""
    case.start(talker, SpeechSettings(greedy=True, repeat_penalty=1000.0))
    first = [codes[0] for codes in speech(talker, 6)]
    assert len(set(first)) == len(first)


# Its end -----------------------------------------------------------------------------------------------------------


def test_at_most_so_many_frames(case, talker):
    case.start(talker, SpeechSettings(greedy=True, max_frames=3))
    assert len(speech(talker, 3)) == 3
    assert talker.finish is None
    assert talker.step() is None
    assert talker.finish == "length"
    case.start(talker, SpeechSettings(greedy=True, max_frames=0))
    assert talker.step() is None


def test_a_full_context_ends_it(case, device):
    with Loaded(case.file, device, ctx_size=len(case.rows) + 2) as talker:
        case.start(talker)
        assert len(speech(talker, 5)) == 2
        assert talker.finish == "length"


def test_the_end_is_the_end(case, talker, monkeypatch):
    """Also for those who go on asking; nothing runs any more."""
    logits = np.full((1, case.config.decoder.vocab_size), -5, np.float32)
    logits[0, case.config.codec.eos] = 5
    talker._logits.write(logits)
    assert talker.step() is None
    assert talker.finish == "stop"
    monkeypatch.setattr(Talker, "_run_frame", lambda _: pytest.fail("it went on"))
    assert talker.step() is None


def test_before_a_start(case, device):
    with Loaded(case.file, device) as talker:
        assert talker.step() is None


def test_no_numbers(case, talker):
    talker._logits.fill(0xFF)
    with pytest.raises(OmniError, match=r"codes that do not exist.*doctor"):
        talker.step()


# How it runs -------------------------------------------------------------------------------------------------------


def test_every_op_agrees_with_its_twin(case, device, monkeypatch):
    """The debug runner: NaN in what an op does not write, every result against NumPy."""
    with Loaded(case.file, device) as talker:
        case.start(talker, EVERYTHING)
        expected = speech(talker, 2)
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    with Loaded(case.file, device) as talker:
        case.start(talker, EVERYTHING)
        assert speech(talker, 2) == expected


def test_one_submit_a_frame(case, talker, monkeypatch, device):
    talker.step()
    submits = []
    submit = type(device).submit
    monkeypatch.setattr(type(device), "submit", lambda self, commands: submits.append(1) or submit(self, commands))
    talker.step()
    assert sum(submits) == 1


def test_dispatches_of_the_30b(tmp_path, device, adapter_kind):
    """As many layers as the release has: at most 600 a frame, and each of them costs time on any GPU."""
    # Rows of whole pairs of blocks, as the kernels of GPUs take them.
    Case(tmp_path / "model", 1, talker_layers=20, predictor_layers=5, talker_hidden=64, talker_moe=64)
    with Loaded(talker_file(tmp_path / "model"), device) as talker:
        assert talker.dispatches <= 550


def test_what_a_talker_refuses(case, talker, device):
    rows, positions, pad = case.rows, case.positions, case.pad
    for arguments, message in (
        ((rows[:, :5], positions, pad), r"rows: float32 \[7, 5\], but the talker takes float32 \[any, 32\]"),
        ((rows, positions[:3], pad), r"positions: float32 \[3, 3\].*\[7, 3\]"),
        ((rows, positions, pad[:3]), r"pad: float32 \[3\].*\[32\]"),
        ((rows.astype(np.float64), positions, pad), r"rows: float64"),
        ((rows[:0], positions[:0], pad), "has 0 rows and its context holds 96"),
        ((np.tile(rows, (14, 1)), np.tile(positions, (14, 1)), pad), "has 98 rows and its context holds 96"),
    ):
        with pytest.raises(InvalidRequest, match=message):
            talker.start(*arguments)
    case.start(talker)
    with pytest.raises(InvalidRequest, match=r"a text row: float32 \[3\]"):
        talker.step(pad[:3])
    with pytest.raises(InvalidRequest, match=r"context of 0 rows is not possible"):
        Talker(talker.model, talker.predictor, Runner(device), ctx_size=0)


@pytest.mark.parametrize(
    ("metadata", "error", "message"),
    [
        ({"hidden_act": "gelu"}, UnsupportedModel, "hidden_act"),
        ({"code_predictor.hidden_act": "gelu"}, UnsupportedModel, "code_predictor.hidden_act"),
        ({"codec.eos_id": 96}, InvalidModelFile, "codec.eos_id"),
        ({"codec.bos_id": None}, InvalidModelFile, "codec.bos_id"),
        ({"token.tts_pad_id": None}, InvalidModelFile, "token.tts_pad_id"),
        ({"speaker.names": ["a"]}, InvalidModelFile, "speaker.names"),
        ({"speaker.ids": [1, 2, "x"]}, InvalidModelFile, "speaker.ids"),
        ({"speaker.default": "bob"}, InvalidModelFile, "speaker.default"),
        ({"num_code_groups": 15}, InvalidModelFile, "num_code_groups"),
        ({"code_predictor.vocab_size": 96}, InvalidModelFile, "vocab_size"),
        ({"code_predictor.block_count": 1}, UnsupportedModel, "a.gen.code.blk.1"),
        ({"code_predictor.block_count": 3}, InvalidModelFile, "a.gen.code.blk.2"),
        ({"block_count": 1}, UnsupportedModel, "blk.1"),
        ({"expert_shared_feed_forward_length": 32}, InvalidModelFile, "shexp"),
        ({"expert_shared_feed_forward_length": 0}, UnsupportedModel, "shexp"),
        ({"projection.feed_forward_length": 32}, InvalidModelFile, "text_proj"),
    ],
)
def test_files_that_cannot_be_right(metadata, error, message, case):
    values = case.file.metadata | {f"qwen3omni-talker.{key}": value for key, value in metadata.items()}
    file = dataclasses.replace(case.file, metadata={key: v for key, v in values.items() if v is not None})
    with pytest.raises(error, match=message):
        _ = TalkerConfig.from_gguf(file), CodePredictorConfig.from_gguf(file)


def test_shared_experts_that_are_no_experts(case, device, tmp_path):
    info = case.file.tensors["blk.1.ffn_up_shexp.weight"]
    other = dataclasses.replace(info, type="f16")
    file = dataclasses.replace(case.file, tensors=case.file.tensors | {info.name: other})
    with pytest.raises(UnsupportedModel, match=r"'blk.1.ffn_up_shexp.weight' has type f16 and .* f32; only equal"):
        TalkerModel.load(file, device)
    odd = Case(tmp_path / "model", 1, talker_shared=48)
    with pytest.raises(UnsupportedModel, match="48 hidden values, no multiple of the others' 32"):
        TalkerModel.load(odd.file, device)


def test_another_kind_of_file(case, device):
    file = dataclasses.replace(case.file, metadata=case.file.metadata | {"general.architecture": "qwen3vlmoe"})
    with pytest.raises(UnsupportedModel, match="architecture 'qwen3vlmoe' cannot speak; name a file"):
        TalkerModel.load(file, device)
