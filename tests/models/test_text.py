"""The text model on the GPU: against transformers' goldens, and against the NumPy model for new random weights."""

import numpy as np
import pytest
from reference.goldens import read_tiny, tiny_names
from reference.gpu_engine import (
    decode,
    decode_logprobs,
    log_softmax,
    open_engine,
    relative,
    same_until_a_tie,
)
from reference.text_model import TextModel as NumPyModel
from tiny_gguf import write_tiny

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.gpu import Plan, Tensor
from qwen3omni_wgpu.models.config import kv_bytes_per_token, kv_row_bytes
from qwen3omni_wgpu.models.text import KVCache, forward

pytestmark = pytest.mark.gpu

# Of the largest logit, on any GPU: sums are in another order, and WGSL lets a GPU's sin and cos be off by 2^-11.
FLOAT32 = 1e-3
# Of the largest logit on a software adapter, whose functions are exact to a few bits: 2.3e-6 was measured on lavapipe.
# Half precision slipped in anywhere makes 3e-4.
SOFTWARE = 5e-5
# NumPy rounds keys and values to f16 too. Where one lies on the border between two steps, both sides may round it
# differently; that moves single values by a whole step, 1e-3 of their size.
HALF = 2e-3
# The same with steps of 1/127 of a block's largest value, eight times as large.
BLOCKS = 8 * HALF
BORDERS = {"f32": FLOAT32, "f16": HALF, "q8_0": BLOCKS}
SAFE_GAP = 1e-3  # router logits nearer than this may rightly be ordered either way
TYPES = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1"]
ARCHS = ["llama", "qwen3", "qwen3moe", "qwen3vlmoe"]


def tiny(folder, **recipe) -> GGUFFile:
    return read_gguf(write_tiny(folder / "tiny.gguf", **({"vocab": 223, "tokenizer": False} | recipe)))


def tolerance(device) -> float:
    # What the driver says, whichever kind of adapter it is taken for.
    return SOFTWARE if device.handle.adapter.info["adapter_type"] == "CPU" else FLOAT32


def new_seed() -> int:
    """Another one in every run; a failing test shows it among its local values."""
    return int(np.random.SeedSequence().generate_state(1)[0])


def safe_ids(model: NumPyModel, seed: int, count: int) -> np.ndarray:
    """Random tokens for which no expert is chosen by a hair."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        ids = rng.integers(0, model.config.vocab_size, count)
        model.forward(ids)
        if model.router_gap > SAFE_GAP:
            return ids
    raise AssertionError(f"seed {seed}: every sequence has a near tie in the router")


@pytest.mark.usefixtures("adapter_kind")
@pytest.mark.parametrize("name", tiny_names())
def test_logits_equal_transformers(name, tmp_path, device):
    golden = read_tiny(name)
    file = tiny(tmp_path, **golden.recipe)
    golden.check(file)
    assert relative(open_engine(file, device).logits(golden.ids.tolist()), golden.logits) < tolerance(device)


def logits_at(engine: Engine, ids: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """One fresh prefill with positions [N, 3] (t, h, w) of any kind, as images and videos will need: float32 [N, V]."""
    model, device = engine.model, engine.device
    state = Tensor.from_numpy(device, np.array([0, len(ids)], np.uint32), "state")
    plan = Plan(device, "prefill with positions", state, model.activations)
    tokens = Tensor.from_numpy(device, ids.astype(np.uint32), "ids")
    x = ops.embed(plan, model.weights["token_embd.weight"], tokens)
    cache = KVCache.empty(device, model.config, len(ids), "f32")
    h = forward(plan, model, x, Tensor.from_numpy(device, positions, "positions"), cache)
    logits = ops.matmul(plan, h, model.head)
    plan.finish(keep=[logits]).run()
    return logits.numpy()


@pytest.mark.usefixtures("adapter_kind")
@pytest.mark.parametrize("name", [name for name in tiny_names() if name.startswith("qwen3vlmoe")])
def test_logits_at_any_positions_equal_transformers(name, tmp_path, device):
    golden = read_tiny(name)
    engine = open_engine(tiny(tmp_path, **golden.recipe), device)
    assert golden.positions is not None
    assert relative(logits_at(engine, golden.ids, golden.positions), golden.mrope_logits) < tolerance(device)


@pytest.mark.usefixtures("adapter_kind")
@pytest.mark.parametrize("name", tiny_names())
def test_greedy_ids_equal_transformers(name, tmp_path, device):
    golden = read_tiny(name)
    found = decode(open_engine(tiny(tmp_path, **golden.recipe), device), golden.ids, len(golden.greedy))
    compared = same_until_a_tie(found, golden.greedy, golden.margins, near=2 * FLOAT32 * np.abs(golden.logits).max())
    assert compared >= 8


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("arch", ARCHS)
def test_logits_equal_numpy(arch, kind, tmp_path, device):
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch=arch, type=kind, seed=seed, tied=bool(seed % 2)))
    ids = safe_ids(model, seed, 8 + seed % 17)
    assert relative(open_engine(model.file, device).logits(ids.tolist()), model.forward(ids)) < tolerance(device)


@pytest.mark.parametrize("count", [1, 2, 8, 9, 65])
def test_any_number_of_tokens(count, tmp_path, device):
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch="qwen3moe", type="q8_0", seed=seed))
    ids = safe_ids(model, seed, count)
    assert relative(open_engine(model.file, device).logits(ids.tolist()), model.forward(ids)) < tolerance(device)


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["llama", "qwen3vlmoe"])
def test_a_long_prompt(arch, tmp_path, device):
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch=arch, type="q8_0", seed=seed, context_length=1024))
    ids = np.random.default_rng(seed).integers(0, model.config.vocab_size, 700)
    expected = model.forward(ids)
    error = np.abs(open_engine(model.file, device, ctx_size=700).logits(ids.tolist()) - expected).max(axis=1)
    # hundreds of router decisions always include a few near ties, so here a few rows may differ
    wrong = error > FLOAT32 * np.abs(expected).max()
    assert wrong.mean() <= (0.03 if model.config.n_experts else 0)


PIECES = {"one chunk": [24], "token by token": [1] * 24, "uneven": [9, 1, 8, 6], "then decode": [23]}


@pytest.mark.parametrize("kv_type", ["f32", "f16", "q8_0"])
@pytest.mark.parametrize("arch", ARCHS)
def test_prefill_in_pieces_and_decode_agree_with_numpy(arch, kv_type, tmp_path, device):
    """However the cache was filled, the next eight steps see what NumPy computes for the whole sequence at once."""
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch=arch, type="q4_1", seed=seed), kv_type=kv_type)
    engine = open_engine(model.file, device, kv_type=kv_type)
    for attempt in range(20):  # until the continuation has no near tie in the router either
        ids = safe_ids(model, seed + attempt, 24).tolist()
        steps = decode(engine, ids, 8)
        logits = model.forward(np.array(ids + steps[:-1]))
        if model.router_gap > SAFE_GAP:
            break
    assert model.router_gap > SAFE_GAP, f"seed {seed}"
    expected, size = log_softmax(logits)[len(ids) - 1 :], np.abs(logits).max()
    for name, pieces in PIECES.items():
        engine.reset()
        start = 0
        for length in pieces:
            engine.prefill(ids[start : start + length], None)
            start += length
        assert engine.n_past == start
        assert list(engine.tokens) == ids[:start]
        for step, found in enumerate(decode_logprobs(engine, ids, 8)):
            error = max(abs(value - expected[step, token]) for token, value in found.items())
            assert error < 2 * BORDERS[kv_type] * size, f"{name}, step {step}"


def test_a_shared_beginning_is_kept_and_a_different_end_is_not(tmp_path, device):
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch="qwen3", seed=seed))
    first = np.random.default_rng(seed).integers(0, 223, 30).tolist()
    second = [*first[:20], *reversed(first)]
    engine = open_engine(model.file, device)
    decode(engine, first, 5)
    found = decode_logprobs(engine, second, 1)[0]
    expected = model.forward(np.array(second))
    error = max(abs(value - log_softmax(expected)[-1, token]) for token, value in found.items())
    assert error < 2 * FLOAT32 * np.abs(expected).max()


@pytest.mark.parametrize("arch", ARCHS)
def test_the_cache_has_the_type_that_was_asked_for(arch, tmp_path, device):
    """f16 is f32 with rounded keys and values; each is nearer to its own NumPy model than to the other's."""
    seed = new_seed()
    file = tiny(tmp_path, arch=arch, type="q8_0", seed=seed)
    models = {kv_type: NumPyModel(file, kv_type=kv_type) for kv_type in ("f32", "f16")}
    ids = safe_ids(models["f16"], seed, 21)
    for kv_type in models:
        found = open_engine(file, device, kv_type=kv_type).logits(ids.tolist())
        errors = {other: relative(found, models[other].forward(ids)) for other in models}
        assert errors[kv_type] < HALF
        assert errors[kv_type] == min(errors.values())


@pytest.mark.parametrize("arch", ["llama", "qwen3"])  # experts may be chosen otherwise for a hair
def test_a_cache_of_8_bits_is_near_one_of_16(arch, tmp_path, device):
    """For a prompt and for the token that follows it: within 1e-2 of the logits, at worst and in the mean square."""
    seed = new_seed()
    file = tiny(tmp_path, arch=arch, type="f16", seed=seed)
    ids = np.random.default_rng(seed).integers(0, 223, 21).tolist()
    half, blocks = (open_engine(file, device, kv_type=kv_type) for kv_type in ("f16", "q8_0"))
    logits = half.logits(ids)
    rounded = blocks.logits(ids)
    assert 1e-5 < np.linalg.norm(rounded - logits) / np.linalg.norm(logits) < 1e-2
    assert relative(rounded, logits) < 1e-2
    assert relative(rounded[-1], logits[-1]) < 1e-2
    found = [decode_logprobs(engine, ids, 1)[0] for engine in (half, blocks)]
    # The log-softmax may double a logit's error.
    both = found[0].keys() & found[1].keys()  # of all that are asked for, the least likely may differ
    assert len(both) > len(found[0]) // 2
    assert max(abs(found[0][token] - found[1][token]) for token in both) < 2e-2 * np.abs(logits).max()


@pytest.mark.usefixtures("adapter_kind")
@pytest.mark.parametrize("kind", ["q8_0", "q4_0", "q4_1"])
@pytest.mark.parametrize("arch", ["llama", "qwen3"])
def test_packed_activations_are_near_float_ones(arch, kind, tmp_path, device):
    """Which matmuls are packed is the kernels' choice, so only the size of the error is known: half a step of 127."""
    seed = new_seed()
    model = NumPyModel(tiny(tmp_path, arch=arch, type=kind, seed=seed, dim=128))
    ids = np.random.default_rng(seed).integers(0, 223, 19)
    expected = model.forward(ids)
    found = open_engine(model.file, device, activations="q8").logits(ids.tolist())
    # rounding to 8 bits makes 1e-2 of the largest logit here (measured in NumPy: 1.1e-2 to 2.6e-2 at the worst token)
    assert relative(found, expected) < 6e-2
    assert np.median(np.abs(found - expected).max(axis=1)) < 3e-2 * np.abs(expected).max()


def test_the_first_layers_of_a_deep_model_keep_float16(tmp_path, device):
    """Four of sixteen under "q8_0", and the tuner hears of both kinds; none of fifteen. Memory is counted so, too."""
    for n_layers, halves in ((16, 4), (15, 0)):
        file = tiny(tmp_path, arch="llama", n_layers=n_layers)
        engine = open_engine(file, device, ctx_size=64, kv_type="q8_0")
        cache, config = engine._cache, engine.model.config
        assert [keys.dtype for keys in cache.keys] == ["f16"] * halves + ["kv_q10"] * (n_layers - halves)
        assert [values.dtype for values in cache.values] == ["f16"] * halves + ["kv_q8"] * (n_layers - halves)
        assert 64 * kv_bytes_per_token(config, "q8_0") == sum(t.nbytes for t in (*cache.keys, *cache.values))
        assert 64 * kv_row_bytes(config, "q8_0") == max(keys.nbytes for keys in cache.keys)
        asked = {problem["type"] for problem in engine.rehearse() if problem.op == "attention"}
        assert asked == ({"f16", "kv_q8"} if halves else {"kv_q8"})
        engine.free()
