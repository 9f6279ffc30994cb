"""The engine on tiny models: whatever way tokens take through chunks, cache and samplers, the numbers stay the same."""

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from reference.gpu_engine import log_softmax
from reference.text_model import TextModel as NumPyModel
from tiny_gguf import write_tiny

from qwen3omni_wgpu.engine import Engine, Token
from qwen3omni_wgpu.errors import InvalidRequest, OmniError, OutOfDeviceMemory
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.gpu import Device, NumericalError, Pending, Plan, Profiler, Tensor
from qwen3omni_wgpu.gpu.kernel import shader_root
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.ops.attention import most_keys
from qwen3omni_wgpu.reference.sample import penalize
from qwen3omni_wgpu.runner import Runner
from qwen3omni_wgpu.sampler import GenerationConfig, Sampler

pytestmark = pytest.mark.gpu

VOCAB = 223
NEAR = 1e-3  # of the largest logit: sums in another order, exp and sin of a few units in the last place
CTX = 160


def config(max_tokens: int | None = 12, **settings) -> GenerationConfig:
    return GenerationConfig(**{"max_tokens": max_tokens, "temperature": 0, "seed": 1, **settings}).resolved({})


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> GGUFFile:
    path = tmp_path_factory.mktemp("tiny") / "dense.gguf"
    return read_gguf(write_tiny(path, arch="qwen3", type="q8_0", vocab=VOCAB, tokenizer=False, seed=5, tied=True))


@pytest.fixture(scope="module")
def model(file, device) -> TextModel:
    return TextModel.load(file, device)


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return np.random.default_rng(11).integers(0, VOCAB, 130).tolist()


@pytest.fixture(scope="module")
def truth(file, ids) -> np.ndarray:
    """Logits of every position from the NumPy model."""
    return NumPyModel(file).forward(ids)


@pytest.fixture
def engine(model):
    made = Engine(model, CTX, kv_type="f32")
    yield made
    made.free()


def fresh(model: TextModel, ctx_size: int = CTX) -> Engine:
    return Engine(model, ctx_size, kv_type="f32")


def answer(engine: Engine, ids, settings: GenerationConfig, eos=frozenset()) -> list[Token]:
    return list(engine.generate(list(ids), settings, eos))


def answer_ids(engine: Engine, ids, settings: GenerationConfig) -> list[int]:
    return [token.id for token in answer(engine, ids, settings)]


def next_logprobs(engine: Engine, ids) -> dict[int, float]:
    (token,) = answer(engine, ids, config(1, logprobs=20))
    return dict(token.top)


def same_logprobs(found: dict[int, float], logits: np.ndarray) -> None:
    expected = log_softmax(logits[None])[0]
    assert len(found) == 20
    assert set(found) >= set(np.argsort(-logits)[:5].tolist())
    for token, value in found.items():
        assert value == pytest.approx(expected[token], abs=float(2 * NEAR * np.abs(logits).max()))


# Chunks and cache ----------------------------------------------------------------------------------------------------

BORDERS = (1, 2, 7, 8, 9, 31, 32, 33, 127, 128, 129)


@pytest.mark.parametrize("n", BORDERS)
def test_logits_across_chunk_borders(engine, ids, truth, n):
    found = engine.logits(ids[:n])
    assert found.shape == (n, VOCAB)
    assert np.abs(found - truth[:n]).max() < NEAR * np.abs(truth).max()
    assert engine.tokens == ids[:n]


@pytest.mark.parametrize("n", BORDERS)
def test_prompts_across_chunk_borders(engine, ids, truth, n):
    same_logprobs(next_logprobs(engine, ids[:n]), truth[n - 1])


@pytest.mark.parametrize("pieces", [[1] * 40, [8, 8, 8, 8, 8], [9, 30, 1], [33, 7], [39, 1]], ids=str)
def test_any_pieces_make_the_same_cache(engine, ids, truth, pieces):
    start = 0
    for length in pieces:
        engine.prefill(ids[start : start + length])
        start += length
        assert engine.n_past == start
    assert engine.tokens == ids[:40]
    same_logprobs(next_logprobs(engine, ids[:41]), truth[40])
    assert engine.timings.prompt_n == 1


def test_padding_does_not_reach_the_cache(engine, ids, truth):
    """A chunk of 9 runs in a bucket of 32; the 23 empty rows must not overwrite what comes later."""
    engine.prefill(ids[:40])
    engine.reset(keep=20)
    engine.prefill(ids[20:29])
    engine.prefill(ids[29:40])
    same_logprobs(next_logprobs(engine, ids[:41]), truth[40])


def test_prefix_is_reused(engine, model, ids):
    first, second = ids[:50], [*ids[:30], *ids[60:90]]
    answer(engine, first, config(5))
    assert engine.tokens[:50] == first
    found = answer(engine, second, config(12, logprobs=3))
    assert engine.timings.prompt_n == 30
    expected = answer(other := fresh(model), second, config(12, logprobs=3))
    assert other.timings.prompt_n == 60
    assert [token.id for token in found] == [token.id for token in expected]
    for one, two in zip(found, expected, strict=True):
        assert one.logprob == pytest.approx(two.logprob, abs=0.02)
    other.free()


def test_a_continued_chat_runs_only_what_is_new(engine, model, ids):
    prompt = ids[:20]
    said = answer_ids(engine, prompt, config(8))
    assert engine.tokens == [*prompt, *said[:-1]]  # the last token was never run
    turn = [*prompt, *said, *ids[40:45]]
    found = answer_ids(engine, turn, config(8))
    assert engine.timings.prompt_n == 1 + 5
    other = fresh(model)
    assert found == answer_ids(other, turn, config(8))
    other.free()


def test_the_same_prompt_again_runs_its_last_token(engine, ids):
    first = answer_ids(engine, ids[:40], config(10))
    assert answer_ids(engine, ids[:40], config(10)) == first
    assert engine.timings.prompt_n == 1


def test_reset(engine, model, ids):
    expected = answer_ids(fresh(model), ids[:30], config(6))
    engine.prefill(ids[:60])
    engine.reset(keep=10)
    assert engine.tokens == ids[:10]
    assert engine.n_past == 10
    assert answer_ids(engine, ids[:30], config(6)) == expected
    assert engine.timings.prompt_n == 20
    engine.reset()
    assert engine.n_past == 0
    assert answer_ids(engine, ids[:30], config(6)) == expected
    assert engine.timings.prompt_n == 30


def test_progress(engine, ids):
    seen: list[tuple[int, int]] = []
    engine.prefill(ids, lambda done, total: seen.append((done, total)))
    largest = engine.buckets[-1]
    assert seen == [(min(done, 130), 130) for done in range(largest, 130 + largest, largest)]
    assert engine.n_past == 130


def test_two_engines_share_a_model(model, ids):
    one, two = fresh(model), fresh(model)
    expected = [answer_ids(engine, start, config(8)) for engine, start in ((one, ids[:9]), (two, ids[9:30]))]
    streams = one.generate(ids[:9], config(8), frozenset()), two.generate(ids[9:30], config(8), frozenset())
    found = [[], []]
    for pair in itertools.zip_longest(*streams):
        for tokens, token in zip(found, pair, strict=True):
            tokens.append(token.id)
    assert found == expected
    one.free()
    two.free()


# The end of the context ----------------------------------------------------------------------------------------------

WAYS = {"greedy": {}, "sampled": {"temperature": 1.0}, "penalised": {"repeat_penalty": 1.2}}
each_way = pytest.mark.parametrize("way", WAYS)


@each_way
def test_a_full_context_ends_the_answer(model, ids, way):
    engine = fresh(model, 16)
    found = answer(engine, ids[:10], config(None, **WAYS[way]))
    assert len(found) == 7  # six more rows, and one token from the logits of the last
    assert [token.finish for token in found] == [None] * 6 + ["length"]
    assert engine.n_past <= 16
    larger = fresh(model)
    assert [token.id for token in found] == answer_ids(larger, ids[:10], config(7, **WAYS[way]))
    # and the full cache is still good
    turn = ids[:10] + [token.id for token in found[:4]]
    settings = config(2, **WAYS[way])
    assert answer_ids(engine, turn, settings) == answer_ids(larger, turn, settings)
    engine.free()
    larger.free()


@each_way
def test_a_prompt_as_long_as_the_context(model, ids, way):
    engine = fresh(model, 33)
    found = answer(engine, ids[:33], config(9, **WAYS[way]))
    assert [token.finish for token in found] == ["length"]
    engine.free()


def test_too_long_prompts_are_refused(model, ids):
    engine = fresh(model, 20)
    engine.prefill(ids[:15])
    before = list(engine.tokens)
    with pytest.raises(InvalidRequest, match=r"prompt has 21 tokens and the context holds 20; .*--ctx-size"):
        next(engine.generate(ids[:21], config(), frozenset()))
    with pytest.raises(InvalidRequest, match=r"21 tokens do not fit the context of 20; .*--ctx-size"):
        engine.prefill(ids[:6])
    assert engine.tokens == before
    with pytest.raises(InvalidRequest, match=r"21 tokens do not fit the context of 20"):
        engine.logits(ids[:21])
    with pytest.raises(InvalidRequest, match="empty"):
        next(engine.generate([], config(), frozenset()))
    engine.free()


@pytest.mark.parametrize("bad", [VOCAB, 2**31, -1])
def test_ids_outside_the_vocabulary(engine, ids, truth, bad):
    wrong = [*ids[:3], bad, *ids[3:6]]
    for call in (
        lambda: engine.prefill(wrong),
        lambda: engine.logits(wrong),
        lambda: next(engine.generate(wrong, config(), frozenset())),
    ):
        with pytest.raises(InvalidRequest, match=rf"token {bad} .*223"):
            call()
    same_logprobs(next_logprobs(engine, ids[:7]), truth[6])


def test_max_tokens(engine, model, ids):
    assert answer(engine, ids[:9], config(0)) == []
    assert engine.tokens == ids[:9]
    assert engine.timings.prompt_n == 9
    (token,) = answer(engine, ids[:9], config(1))
    assert token.finish == "length"
    assert engine.timings.predicted_n == 0
    assert [token.finish for token in answer(engine, ids[:9], config(3))] == [None, None, "length"]


@each_way
def test_an_end_token_ends_the_answer(engine, model, ids, way):
    settings = config(20, **WAYS[way])
    free = answer_ids(engine, ids[:9], settings)
    at = next(i for i in range(3, 20) if free[i] not in free[:i])
    engine.reset()
    found = answer(engine, ids[:9], settings, eos=frozenset({free[at], 10**6}))
    assert [token.id for token in found] == free[: at + 1]
    assert [token.finish for token in found] == [None] * at + ["stop"]
    # It is not in the cache, and going on is as if nothing had happened.
    assert engine.tokens[: 9 + at] == ids[:9] + free[:at]
    assert engine.n_past == 9 + at
    turn = ids[:9] + free[:at]
    assert answer_ids(engine, turn, config(4)) == answer_ids(fresh(model), turn, config(4))


@each_way
@pytest.mark.parametrize("taken", [1, 2, 5])
def test_closing_early_leaves_a_valid_cache(engine, model, ids, device, way, taken):
    settings = config(20, **WAYS[way])
    whole = answer_ids(fresh(model), ids[:9], settings)
    sizes: list[int] = []
    for _ in range(4):
        stream = engine.generate(ids[:9], settings, frozenset())
        assert [next(stream).id for _ in range(taken)] == whole[:taken]
        stream.close()
        assert engine.tokens == (ids[:9] + whole)[: engine.n_past]
        assert engine.n_past >= 9
        sizes.append(device.allocated)
    assert len(set(sizes[1:])) == 1  # (in the first round the prompt's plan was recorded, too)
    assert answer_ids(engine, ids[:9], settings) == whole
    assert answer_ids(engine, ids[:9] + whole[:1] + ids[50:60], settings) == answer_ids(
        fresh(model), ids[:9] + whole[:1] + ids[50:60], settings
    )


def test_timings(engine, ids):
    tokens = answer(engine, ids[:33], config(6))
    timings = engine.timings
    assert (timings.prompt_n, timings.predicted_n) == (33, len(tokens) - 1)
    assert timings.prompt_s > 0
    assert timings.predicted_s > 0


# Sampling ------------------------------------------------------------------------------------------------------------


def test_greedy_is_the_largest_logit(engine, ids):
    prompt = ids[:25]
    found = answer(engine, prompt, config(15))
    logits = engine.logits(prompt + [token.id for token in found[:-1]])[24:]
    np.testing.assert_array_equal([token.id for token in found], logits.argmax(axis=1))
    assert all(type(token.id) is int for token in found)
    assert all(token.logprob is None and token.top is None for token in found)


def test_greedy_is_the_same_with_logprobs(engine, ids):
    """One way is decided on the GPU, one step ahead; the other on the host."""
    plain = answer_ids(engine, ids[:25], config(15))
    assert answer_ids(engine, ids[:25], config(15, logprobs=1)) == plain


def test_logprobs(engine, file, ids):
    prompt = ids[:25]
    found = answer(engine, prompt, config(6, logprobs=7, temperature=1.3, top_k=3))
    expected = log_softmax(NumPyModel(file).forward(prompt + [token.id for token in found]))[24:]
    for token, row in zip(found, expected, strict=False):
        assert token.logprob == pytest.approx(row[token.id], abs=0.02)
        assert len(token.top) == 7
        values = [value for _, value in token.top]
        assert values == sorted(values, reverse=True)
        np.testing.assert_allclose(values, row[[i for i, _ in token.top]], atol=0.02)
        np.testing.assert_allclose(values, np.sort(row)[::-1][:7], atol=0.02)


def test_a_logprob_outside_the_candidates(engine, ids):
    """A very hot draw takes tokens that are not among the few that came back."""
    found = answer(engine, ids[:9], config(40, logprobs=1, temperature=50.0, top_k=0, top_p=1.0, min_p=0.0))
    logits = engine.logits(ids[:9] + [token.id for token in found])[8:-1]
    expected = log_softmax(logits)[np.arange(40), [token.id for token in found]]
    np.testing.assert_allclose([token.logprob for token in found], expected, atol=0.02)
    assert any(token.id != token.top[0][0] for token in found)


SAMPLERS = {
    "defaults": {},
    "hot": {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0},
    "few": {"temperature": 1.5, "top_k": 3, "top_p": 1.0, "min_p": 0.0},
    "nucleus": {"temperature": 2.0, "top_k": 0, "top_p": 0.9, "min_p": 0.0},
    "min_p": {"temperature": 2.0, "top_k": 0, "top_p": 1.0, "min_p": 0.1},
    "many": {"temperature": 2.0, "top_k": 200, "top_p": 0.99, "min_p": 0.0},
    "penalties": {"temperature": 1.0, "repeat_penalty": 1.5, "presence_penalty": 0.4, "frequency_penalty": 0.2},
}


def host_answer(logits_of, prompt: list[int], settings: GenerationConfig, count: int) -> list[int]:
    """The same answer from whole rows of logits, in NumPy."""
    sampler, said = Sampler(settings, prompt), []
    for _ in range(count):
        row = logits_of(prompt + said)[-1]
        if sampler.penalising:
            row = penalize(row, *sampler.penalties(), *sampler.penalty_options)
        order = np.argsort(-row, kind="stable")
        wide = row.astype(np.float64)
        logsumexp = float(wide.max() + np.log(np.exp(wide - wide.max()).sum()))
        said.append(sampler.pick(order.astype(np.uint32), row[order], logsumexp, lambda row=row: row))
        sampler.accept(said[-1])
    return said


@pytest.mark.parametrize("name", SAMPLERS)
def test_sampling_equals_numpy_over_all_logits(engine, model, ids, name):
    settings = config(12, **({"temperature": 0.8} | SAMPLERS[name]))
    found = answer_ids(engine, ids[:17], settings)
    other = fresh(model)
    assert found == host_answer(other.logits, ids[:17], settings, 12)
    other.free()


def test_a_seed_repeats_the_answer(engine, ids):
    hot = {"temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    first = answer_ids(engine, ids[:9], config(16, seed=7, **hot))
    assert answer_ids(engine, ids[:9], config(16, seed=7, **hot)) == first
    assert answer_ids(engine, ids[:9], config(16, seed=8, **hot)) != first


@pytest.mark.parametrize("window", [1, 2, 5, 64, -1])
def test_a_window_of_penalties_moves_on_the_gpu(engine, model, ids, window):
    """The token that is not read yet is counted on the GPU, and what leaves is taken off in time."""
    options = {"repeat_penalty": 1.4, "presence_penalty": 0.9, "frequency_penalty": 0.7, "repeat_last_n": window}
    other = fresh(model)
    for settings in (config(14, **options), config(14, temperature=1.5, **options)):
        assert answer_ids(engine, ids[:9], settings) == host_answer(other.logits, ids[:9], settings, 14)
    other.free()


@pytest.mark.parametrize("way", WAYS)
def test_a_step_is_submitted_before_the_last_one_is_read(engine, ids, monkeypatch, way):
    """At most two are under way, and none is left."""
    events: list[str] = []
    start, result = Runner.start, Pending.result
    monkeypatch.setattr(Runner, "start", lambda *args: (events.append("submit"), start(*args))[1])
    monkeypatch.setattr(Pending, "result", lambda self: (events.append("read"), result(self))[1])
    answer(engine, ids[:9], config(5, **WAYS[way]))
    assert events == ["submit", "submit", "read", "submit", "read", "submit", "read", "submit", "read", "read"]
    for taken in (1, 3):
        events.clear()
        stream = engine.generate(ids[:9], config(9, **WAYS[way]), frozenset())
        for _ in range(taken):
            next(stream)
        stream.close()
        assert events.count("submit") == events.count("read") == taken + 1


def test_a_drawn_token_is_all_that_is_read(engine, ids, device, monkeypatch):
    settings = config(6, temperature=1.0, repeat_penalty=1.2)
    expected = answer_ids(engine, ids[:9], settings)
    monkeypatch.setattr(Device, "read_buffer", lambda *_: pytest.fail("more was read"))
    monkeypatch.setattr(Sampler, "pick", lambda *_: pytest.fail("drawn on the host"))
    assert answer_ids(engine, ids[:9], settings) == expected
    plan, read = engine._draws.chosen(Sampler(settings, []))
    assert (plan.name, read.nbytes) == ("sample pick 40 penalised", 8)


@pytest.mark.parametrize("way", ["sampled", "penalised"])
def test_no_possible_token_is_an_error(model, device, ids, monkeypatch, way):
    """Every logit minus infinity, which no weights would give: it is written where the prompt's logits were to be."""
    engine = fresh(model)
    answer(engine, ids[:9], config(1))
    monkeypatch.setattr(engine, "_append", lambda *_: engine._logits.write(np.full((1, VOCAB), -np.inf, np.float32)))
    with pytest.raises(InvalidRequest, match="no token is possible"):
        answer(engine, ids[:10], config(1, **WAYS[way]))
    engine.free()


@pytest.mark.parametrize("window", [3, 64, -1, 0])
def test_penalties_equal_numpy(engine, file, ids, window):
    """Greedy under strong penalties, from NumPy logits and NumPy penalties."""
    prompt = [5, 5, 6, 7, 5, *ids[:8], 9]
    options = {"repeat_penalty": 1.7, "presence_penalty": 0.8, "frequency_penalty": 0.5}
    found = answer(engine, prompt, config(8, repeat_last_n=window, logprobs=2, **options))
    numpy = NumPyModel(file)
    said = list(prompt)
    for token in found:
        row = numpy.forward(said)[-1]
        recent = Counter(said if window == -1 else said[-window:] if window else [])
        penalised = penalize(row, np.array(list(recent)), np.array(list(recent.values())), 1.7, 0.8, 0.5)
        logprobs = log_softmax(penalised[None])[0]
        assert penalised[token.id] == pytest.approx(penalised.max(), abs=0.02)
        assert token.logprob == pytest.approx(logprobs[token.id], abs=0.03)
        said.append(token.id)


# Memory --------------------------------------------------------------------------------------------------------------


def test_an_engine_gives_everything_back(model, ids, device):
    answer(first := fresh(model), ids[:9], config(3, temperature=1.0, repeat_penalty=1.1))  # shared tables exist now
    first.free()
    device.wait()
    before = device.allocated
    for _ in range(2):
        engine = fresh(model)
        answer(engine, ids[:40], config(5))
        answer(engine, ids[:40], config(5, temperature=1.0, repeat_penalty=1.1, logprobs=2))
        engine.logits(ids[:9])
        assert device.allocated > before
        engine.free()
        assert device.allocated == before


def test_a_long_answer_needs_no_more_memory(engine, ids, device):
    answer(engine, ids[:9], config(4))
    before = device.allocated
    answer(engine, ids[:9], config(100))
    assert device.allocated == before


def test_cache_sizes(model, device):
    """Two caches a layer of KV * HD values a token."""
    device.wait()
    sizes = {}
    for kv_type in ("f32", "f16", "q8_0"):
        before = device.allocated
        engine = Engine(model, CTX, kv_type=kv_type)
        sizes[kv_type] = device.allocated - before
        engine.free()
    c = model.config
    values = 2 * c.n_layers * CTX * c.n_kv_heads * c.head_dim
    assert sizes["f32"] - sizes["f16"] == 2 * values
    assert sizes["f16"] - sizes["q8_0"] == 2 * values - values // 64 * (42 + 34)


def test_half_precision_cache_is_near(model, ids, truth):
    half, whole = Engine(model, CTX, kv_type="f16"), fresh(model)
    one, two = half.logits(ids[:60]), whole.logits(ids[:60])
    assert 0 < np.abs(one - two).max() < 5e-3 * np.abs(truth).max()
    half.free()
    whole.free()


def test_a_cache_that_no_binding_can_show(model, device, monkeypatch):
    row = model.config.n_kv_heads * model.config.head_dim
    monkeypatch.setitem(device.limits, "max-storage-buffer-binding-size", 100 * row * 4)
    before = device.allocated
    Engine(model, 100, kv_type="f32").free()
    with pytest.raises(OutOfDeviceMemory, match=r"--ctx-size 101 .* largest that fits is 100$") as caught:
        Engine(model, 101, kv_type="f32")
    assert caught.value.needed == 101 * row * 4
    assert caught.value.free == 100 * row * 4
    Engine(model, 200, kv_type="f16").free()
    with pytest.raises(OutOfDeviceMemory, match=r"largest that fits is 200$"):
        Engine(model, 201, kv_type="f16")
    assert device.allocated == before


def test_a_context_beyond_the_drivers_loops(model, device, monkeypatch):
    monkeypatch.setattr(Device, "max_rounds", 1000)
    most = most_keys(device, 4, 2, 64)
    assert 64 <= most < 2000  # some keys a round
    fresh(model, most).free()
    with pytest.raises(InvalidRequest, match=rf"--ctx-size {most + 1} .* largest that works is {most}$"):
        fresh(model, most + 1)


def test_no_room_for_the_cache(model, device, monkeypatch):
    before = device.allocated
    original = Device.create_buffer

    def limited(self, nbytes, label="", **kwargs):
        if label == "cache.v.1":
            raise OutOfDeviceMemory("full", needed=nbytes)
        return original(self, nbytes, label, **kwargs)

    monkeypatch.setattr(Device, "create_buffer", limited)
    with pytest.raises(OutOfDeviceMemory, match="full"):
        fresh(model)
    assert device.allocated == before


WRONG = [(0, "f16", "--ctx-size 0"), (-5, "f16", "-5"), (8, "q8", "q8")]


def test_a_cache_of_8_bits_needs_heads_of_64_or_128(tmp_path, device):
    recipe = {"arch": "qwen3", "head_dim": 32, "vocab": VOCAB, "tokenizer": False}
    with pytest.raises(InvalidRequest, match="heads of 64 or 128, and this one's have 32; use f16"):
        Engine(TextModel.load(read_gguf(write_tiny(tmp_path / "tiny.gguf", **recipe)), device), 64, "q8_0")


@pytest.mark.parametrize(("ctx_size", "kv_type", "says"), WRONG)
def test_wrong_settings(model, ctx_size, kv_type, says):
    with pytest.raises(InvalidRequest, match=says):
        Engine(model, ctx_size, kv_type)


# Other runners -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def moe_file(tmp_path_factory) -> GGUFFile:
    path = tmp_path_factory.mktemp("tiny") / "moe.gguf"
    return read_gguf(write_tiny(path, arch="qwen3vlmoe", type="q4_1", vocab=VOCAB, tokenizer=False, seed=3))


@pytest.mark.parametrize("activations", ["f32", "q8"])
def test_debug_mode_checks_every_op(moe_file, device, ids, monkeypatch, activations):
    model = TextModel.load(moe_file, device, activations)
    penalised = {"temperature": 1.0, "repeat_penalty": 1.3}
    settings = [config(3), config(3, **penalised), config(3, logprobs=2, **penalised)]
    plain = fresh(model)
    expected = [answer_ids(plain, ids[:9], one) for one in settings]
    rows = plain.logits(ids[:9])
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    checked: Counter[str] = Counter()
    original = Plan.run_debug

    def counting(self, values):
        results = original(self, values)
        assert len(results) == sum(step.check is not None for step in self.steps)
        assert all(step.check or step.op in ("matmul", "embed", "moe_matmul", "largest") for step in self.steps)
        checked.update(label.split()[0].split(".")[-1] for label, _, _ in results)
        return results

    monkeypatch.setattr(Plan, "run_debug", counting)
    monkeypatch.setattr(Plan, "run", lambda self: pytest.fail("a step was not checked"))
    debug = fresh(model)
    assert [answer_ids(debug, ids[:9], one) for one in settings] == expected
    np.testing.assert_array_equal(debug.logits(ids[:9]), rows)
    used = {"embed", "rms_norm", "add_rms_norm", "matmul_joined", "rope_qkv", "attention", "matmul", "moe_gate"}
    used |= {"moe_route", "moe_swiglu", "moe_down", "select_row", "argmax"}
    assert set(checked) >= used | ({"quantize_q8"} if activations == "q8" else set())
    for made in (plain, debug):
        made.free()
    model.free()


@pytest.mark.parametrize(
    ("kernel", "shader", "old", "new"),
    [
        ("elementwise", "elementwise.wgsl", "1.0 + exp(-gate)", "1.0 + exp(-1.01 * gate)"),
        ("flash_prefill", "flash_prefill.wgsl", "let past = state[0];", "let past = state[0] + 1u;"),
        ("rope_qkv", "lib/turn.wgsl", "head_in[a] * turn.y - ", "head_in[a] * turn.y + "),
        ("moe_combine", "moe_combine.wgsl", "k < K", "k + 1u < K"),
    ],
)
def test_debug_mode_finds_a_wrong_op_in_a_model(
    moe_file, adapter, ids, tmp_path, monkeypatch, kernel, shader, old, new
):
    import shutil

    shutil.copytree(shader_root(), folder := tmp_path / "shaders")
    text = Path(folder / shader).read_text()
    assert old in text
    (folder / shader).write_text(text.replace(old, new))
    monkeypatch.setenv("QWEN3OMNI_SHADERS", str(folder))
    monkeypatch.setenv("QWEN3OMNI_DEBUG", "1")
    with Device.open(adapter) as device:
        if kernel == "elementwise" and not device.info.software:
            pytest.skip("on GPUs it is part of the matmul")
        engine = fresh(TextModel.load(moe_file, device))
        with pytest.raises(NumericalError, match=rf"blk\.0\.\w+ .*{kernel}"):
            engine.prefill(ids[:9])


def test_profiled_runs_give_the_same_tokens(model, device, ids):
    if "timestamp-query-inside-passes" not in device.features:
        pytest.skip("this adapter has no timestamps")
    plain, timed = fresh(model), fresh(model)
    timed.runner.profiler = Profiler(device)
    drawn = {"temperature": 1.0, "repeat_penalty": 1.2}
    for settings in (config(6), config(6, **drawn), config(6, logprobs=1, **drawn)):
        assert answer_ids(timed, ids[:33], settings) == answer_ids(plain, ids[:33], settings)
    np.testing.assert_array_equal(timed.logits(ids[:9]), plain.logits(ids[:9]))
    labels = {item.label.split()[0] for item in timed.runner.profiler.slices}
    assert {"embed", "blk.0.attention", "blk.1.matmul_swiglu"} <= labels
    assert {"argmax", "largest", "pick", "top_k", "penalize"} <= labels
    assert {"decode 1 last", "prefill 128 last"} <= {item.name for item in timed.runner.profiler.host}
    timed.runner.profiler.host.clear()
    timed.reset()
    answer(timed, ids, config(1))  # logits of a prompt's last chunk alone
    chunks = ["prefill 128 none", "prefill 8 last"] if timed.buckets[-1] == 128 else ["prefill 512 last"]
    assert [item.name for item in timed.runner.profiler.host] == [*chunks, "sample argmax"]
    timed.runner.profiler.free()
    plain.free()
    timed.free()


@each_way
def test_logits_that_are_no_numbers_are_an_error_not_token_0(model, device, ids, monkeypatch, way):
    nan = Tensor.from_numpy(device, np.full(model.config.dim, np.nan, np.float32), "nan")
    with monkeypatch.context() as damaged:
        damaged.setitem(model.weights, "output_norm.weight", nan)
        with pytest.raises(OmniError, match="no numbers"):
            list(fresh(model).generate(ids[:5], config(4, **WAYS[way]), frozenset()))
    nan.free()
    assert len(answer_ids(fresh(model), ids[:5], config(4))) == 4
