"""Settings and token choice on the host, against plain re-statements of the rules."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, OmniError
from qwen3omni_wgpu.reference import sample as reference
from qwen3omni_wgpu.sampler import MAX_CANDIDATES, GenerationConfig, Sampler

OFF = {"top_k": 0, "top_p": 1.0, "min_p": 0.0}


def sampler(prompt=(), **settings) -> Sampler:
    return Sampler(GenerationConfig(**{"seed": 1, **settings}).resolved({}), prompt)


def pick(chooser: Sampler, logits: np.ndarray, candidates: int | None = None) -> tuple[int, bool]:
    """The token chosen from what a GPU would hand back, and whether all logits had to be fetched."""
    logits = np.asarray(logits, np.float32)
    count = min(candidates or max(1, chooser.wanted), len(logits))
    ids, values, total = reference.top_k(logits, count)
    fetched = []

    def full() -> np.ndarray:
        fetched.append(True)
        return logits

    return chooser.pick(ids, values, total, full), bool(fetched)


def seen(logits, **settings) -> set[int]:
    """Every token drawn under 40 seeds, all filters off but the given ones."""
    return {pick(sampler(seed=seed, **{"temperature": 1.0, **OFF, **settings}), logits)[0] for seed in range(40)}


def expected_probabilities(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) -> np.ndarray:
    """The chain written as in a paper, over the whole vocabulary, without any shortcut."""
    logits = np.asarray(logits, np.float64)
    order = np.argsort(-logits, kind="stable")
    if top_k:
        order = order[:top_k]
    p = np.exp(logits[order] - logits.max())
    p /= p.sum()
    if top_p < 1:
        keep = np.cumsum(p) - p < top_p  # a token stays while the mass before it has not reached top_p
        keep[0] = True
        order, p = order[keep], p[keep]
    keep = p >= min_p * p.max()
    order = order[keep]
    out = np.zeros(len(logits))
    out[order] = np.exp((logits[order] - logits[order].max()) / temperature)
    return out / out.sum()


def chi_square(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Pearson's statistic in standard deviations above its mean (about normal for these degrees of freedom)."""
    used = probabilities > 0
    expected = probabilities[used] * counts.sum()
    statistic = np.sum((counts[used] - expected) ** 2 / expected)
    freedom = max(1, used.sum() - 1)
    return (statistic - freedom) / math.sqrt(2 * freedom)


# ------------------------------------------------------------------------ settings


def test_defaults_are_llama_cpps():
    config = GenerationConfig().resolved({})
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.8, 40, 0.95, 0.05)
    assert (config.repeat_penalty, config.repeat_last_n) == (1.0, 64)
    assert (config.presence_penalty, config.frequency_penalty) == (0.0, 0.0)
    assert (config.max_tokens, config.logprobs, config.stop) == (None, 0, ())


def test_the_models_defaults_come_before_ours_and_after_the_callers():
    metadata = {"general.sampling.temp": 0.5, "general.sampling.top_k": 7, "general.sampling.penalty_repeat": 1.05}
    config = GenerationConfig(top_k=3).resolved(metadata)
    assert (config.temperature, config.top_k, config.repeat_penalty, config.top_p) == (0.5, 3, 1.05, 0.95)


def test_a_missing_seed_becomes_a_number_that_repeats_the_answer():
    first, second = GenerationConfig().resolved({}), GenerationConfig().resolved({})
    assert isinstance(first.seed, int)
    assert first.seed != second.seed
    assert first.resolved({}) == first


def test_one_stop_text_is_not_taken_for_its_letters():
    assert GenerationConfig(stop="END").resolved({}).stop == ("END",)


@pytest.mark.parametrize(("name", "value"), [
    ("temperature", -0.1), ("temperature", math.nan), ("temperature", math.inf), ("temperature", "hot"),
    ("top_k", -1), ("top_k", 2.5), ("top_k", True), ("top_p", 1.01), ("top_p", -0.1), ("min_p", 2.0),
    ("repeat_penalty", 0.0), ("repeat_last_n", -2), ("presence_penalty", math.nan), ("frequency_penalty", 1e9),
    ("max_tokens", -1), ("seed", -1), ("seed", 2**64), ("logprobs", 129), ("stop", ("",)), ("stop", (3,)),
    ("voice", " "), ("voice", 3), ("talker_temperature", -0.5), ("talker_top_k", 1.5), ("talker_top_p", 1.5),
    ("talker_repeat_penalty", 0), ("talker_max_tokens", -1), ("predictor_temperature", math.inf),
])  # fmt: skip
def test_a_bad_setting_is_named(name, value):
    with pytest.raises(InvalidRequest, match=name):
        GenerationConfig(**{name: value}).resolved({})


def test_settings_of_speech_are_kept_as_they_are():
    """Their defaults are in the talker's file, which the thinker's metadata know nothing of."""
    given = {
        "voice": "Ethan", "talker_temperature": 0, "talker_top_k": 1, "talker_top_p": 0.5, "talker_repeat_penalty": 1.1,
        "talker_max_tokens": 100, "predictor_temperature": 0.5,
    }  # fmt: skip
    config = GenerationConfig(**given).resolved({})
    assert {name: getattr(config, name) for name in given} == given
    unset = GenerationConfig().resolved({})
    assert {getattr(unset, name) for name in given} == {None}


def test_a_bad_default_in_the_file_is_named():
    with pytest.raises(InvalidModelFile, match=r"general\.sampling\.temp"):
        GenerationConfig().resolved({"general.sampling.temp": "warm"})


def test_an_unresolved_config_is_refused():
    with pytest.raises(InvalidRequest, match="resolved"):
        Sampler(GenerationConfig(), ())


# ------------------------------------------------------------------------ what is asked of the GPU


@pytest.mark.parametrize(("settings", "wanted"), [
    ({"temperature": 0}, 0), ({"temperature": 0, "logprobs": 5}, 5), ({}, 40), ({"top_k": 1}, 1), ({"top_k": 128}, 128),
    ({"top_k": 129}, MAX_CANDIDATES), ({"top_k": 0}, MAX_CANDIDATES), ({"top_k": 3, "logprobs": 9}, 9),
])  # fmt: skip
def test_wanted(settings, wanted):
    assert sampler(**settings).wanted == wanted


def test_greedy_takes_the_first_and_never_fetches_all():
    chooser = sampler(temperature=0, **OFF)
    assert chooser.greedy
    assert pick(chooser, [1.0, 3.0, 3.0, 2.0]) == (1, False)


@pytest.mark.parametrize(("settings", "fetches"), [
    ({"top_k": 5}, False),                              # all five are among the candidates
    ({"top_k": 0, "top_p": 1.0, "min_p": 0.0}, True),   # everything may be drawn
    ({"top_k": 0, "top_p": 0.5, "min_p": 0.0}, False),  # the nucleus ends within the candidates
    ({"top_k": 0, "top_p": 0.999999, "min_p": 0.0}, True),
    ({"top_k": 0, "top_p": 1.0, "min_p": 0.1}, False),  # the candidates already reach below the threshold
    ({"top_k": 0, "top_p": 1.0, "min_p": 1e-9}, True),
    ({"top_k": 0, "top_p": 0.999999, "min_p": 0.1}, False),
    ({"top_k": 200, "top_p": 0.5, "min_p": 0.0}, True),  # a share of 200 tokens' mass, and only 128 are here
    ({"top_k": 200, "top_p": 1.0, "min_p": 0.1}, False),
])  # fmt: skip
def test_all_logits_are_fetched_only_when_needed(settings, fetches):
    logits = -0.1 * np.arange(1000)
    assert pick(sampler(**settings), logits)[1] is fetches


@given(
    st.integers(0, 2**31), st.sampled_from([1, 5, 40, 300]), st.sampled_from([0, 1, 3, 50, 200]),
    st.sampled_from([0.0, 0.3, 0.9, 0.999, 1.0]), st.sampled_from([0.0, 0.02, 0.5, 1.0]), st.sampled_from([1, 8, 64]),
)  # fmt: skip
def test_few_candidates_choose_what_all_would(seed, vocabulary, top_k, top_p, min_p, candidates):
    """The shortcut over a few candidates draws the same token as the whole vocabulary with the same random number."""
    logits = np.random.default_rng(seed).normal(0, 3, vocabulary).astype(np.float32)
    settings = {"seed": seed, "top_k": top_k, "top_p": top_p, "min_p": min_p, "temperature": 0.7}
    short = pick(sampler(**settings), logits, candidates)[0]
    assert short == pick(sampler(**settings), logits, vocabulary)[0]
    assert expected_probabilities(logits, 0.7, top_k, top_p, min_p)[short] > 0


# ------------------------------------------------------------------------ distribution


@pytest.mark.parametrize("settings", [
    {"temperature": 1.0, **OFF},
    {"temperature": 0.5, **OFF},
    {"temperature": 3.0, **OFF, "top_k": 6},
    {"temperature": 1.0, **OFF, "top_p": 0.8},
    {"temperature": 2.0, **OFF, "min_p": 0.1},
    {"temperature": 1.5, "top_k": 9, "top_p": 0.9, "min_p": 0.05},  # nucleus of the nine, floor, temperature
], ids=str)  # fmt: skip
def test_distribution(settings):
    logits = np.array([2.0, 1.5, 1.2, 1.0, 0.6, 0.3, 0.0, -0.4, -0.7, -1.0, -1.5, -2.0])
    chooser = sampler(seed=7, **settings)
    counts = np.zeros(len(logits))
    for _ in range(6000):
        counts[pick(chooser, logits)[0]] += 1
    expected = expected_probabilities(logits, **settings)
    assert set(np.flatnonzero(counts)) <= set(np.flatnonzero(expected))
    assert chi_square(counts, expected) < 4


def test_chain_order_filters_come_before_temperature():
    """At temperature 100 the two tokens would be equally likely; min_p sees them before that and drops the second."""
    assert seen([2.0, 1.0, 0.0], temperature=100.0, min_p=0.5) == {0}


def test_chain_order_top_k_comes_before_top_p():
    """Of four equal tokens 0.4 of the mass needs two; after top_k 2 the same share needs one."""
    assert seen([1.0, 1.0, 1.0, 1.0], top_p=0.4) == {0, 1}
    assert seen([1.0, 1.0, 1.0, 1.0], top_k=2, top_p=0.4) == {0}


def test_same_seed_same_tokens():
    logits = np.zeros(50)
    choosers = [sampler(seed=3), sampler(seed=3), sampler(seed=4)]
    draws = [[pick(chooser, logits)[0] for _ in range(20)] for chooser in choosers]
    assert draws[0] == draws[1] != draws[2]


# ------------------------------------------------------------------------ edges


@pytest.mark.parametrize("settings", [{"top_p": 0.0}, {"min_p": 1.0}, {"top_k": 1}, {"temperature": 1e-12}], ids=str)
def test_the_strictest_settings_leave_the_best_token(settings):
    assert seen([0.0, 1.0, 0.5], **settings) == {1}


def test_ties_at_the_border_of_top_k_go_to_the_lower_id():
    assert seen([0.0, 5.0, 5.0, 5.0], top_k=2) == {1, 2}
    many = np.zeros(1000)
    many[::2] = 1.0  # 500 equal best ones, of which the first 130 stay, more than the GPU hands back
    assert max(seen(many, top_k=130)) <= 258


def test_the_nucleus_of_a_large_top_k_is_a_share_of_its_mass():
    """The floor alone would keep 23 tokens here, and all of them are among the candidates; the nucleus keeps fewer."""
    logits = -0.1 * np.arange(1000)
    kept = np.flatnonzero(expected_probabilities(logits, top_k=200, top_p=0.5, min_p=0.1))
    assert len(kept) < 10
    assert seen(logits, top_k=200, top_p=0.5, min_p=0.1) <= set(kept)


@pytest.mark.parametrize("settings", [{}, {"top_k": 40, "top_p": 0.95}, {"min_p": 1e-9}], ids=str)
def test_forbidden_tokens_are_never_drawn(settings):
    logits = np.full(300, -np.inf)
    logits[[5, 200]] = 1.0
    assert seen(logits, **settings) == {5, 200}


@pytest.mark.parametrize("temperature", [0, 1.0])
def test_no_possible_token_is_an_error(temperature):
    chooser, nothing = sampler(temperature=temperature), np.full(4, -np.inf, np.float32)
    with pytest.raises(InvalidRequest, match="no token is possible"):
        chooser.pick(np.arange(4, dtype=np.uint32), nothing, -math.inf, lambda: nothing)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_numbers_that_are_not_finite_are_an_error(value):
    chooser = sampler()
    with pytest.raises(OmniError, match="doctor"):
        chooser.pick(np.array([0], np.uint32), np.array([value], np.float32), value, lambda: np.array([value]))


# ------------------------------------------------------------------------ penalties


def penalized(chooser: Sampler, logits, repeat=1.0, presence=0.0, frequency=0.0) -> np.ndarray:
    ids, counts = chooser.penalties()
    assert (ids.dtype, counts.dtype) == (np.uint32, np.uint32)
    return reference.penalize(np.asarray(logits, np.float32), ids, counts, repeat, presence, frequency)


def test_penalties_look_back_at_prompt_and_answer():
    chooser = sampler([1, 2, 2], repeat_penalty=2.0, repeat_last_n=3)
    np.testing.assert_allclose(penalized(chooser, [4, 4, -4, 4], repeat=2.0), [4, 2, -8, 4])
    chooser.accept(3)  # 1 leaves the window
    np.testing.assert_allclose(penalized(chooser, [4, 4, -4, 4], repeat=2.0), [4, 4, -8, 2])
    np.testing.assert_allclose(penalized(chooser, [4, 4, 4, 4], presence=1, frequency=0.5), [4, 4, 2, 2.5])


@given(st.lists(st.integers(0, 5), max_size=30), st.sampled_from([-1, 0, 1, 4, 100]))
def test_the_window_holds_the_last_tokens(tokens, last_n):
    chooser = sampler(tokens[:7], presence_penalty=1.0, repeat_last_n=last_n)
    for token in tokens[7:]:
        chooser.accept(token)
    kept = tokens if last_n == -1 else tokens[len(tokens) - min(last_n, len(tokens)) :]
    ids, counts = chooser.penalties()
    assert dict(zip(ids.tolist(), counts.tolist(), strict=True)) == Counter(kept)


def test_no_penalty_means_nothing_to_send():
    for chooser in (sampler([1, 2, 3]), sampler([1, 2, 3], repeat_penalty=1.3, repeat_last_n=0)):
        ids, counts = chooser.penalties()
        assert len(ids) == len(counts) == 0
        assert not chooser.penalising


def test_what_the_gpu_needs_for_penalties():
    chooser = sampler([1], repeat_penalty=1.3, presence_penalty=0.25, frequency_penalty=0.125)
    assert chooser.penalising
    assert chooser.penalty_options == (1.3, 0.25, 0.125)


# ------------------------------------------------------------------------ draws on the GPU


@pytest.mark.parametrize(("settings", "decided"), [
    ({"temperature": 0, "top_k": 0}, True), ({}, True), ({"top_k": 1}, True), ({"top_k": MAX_CANDIDATES}, True),
    ({"top_k": MAX_CANDIDATES + 1}, False), ({"top_k": 0}, False),
])  # fmt: skip
def test_what_a_few_candidates_always_decide(settings, decided):
    assert sampler(**settings).decided is decided


def test_the_numbers_of_a_draw():
    chooser = sampler(temperature=0.5, top_k=9, top_p=0.75, min_p=0.25, repeat_penalty=1.5, presence_penalty=0.25)
    numbers = chooser.numbers(77)
    assert numbers.dtype == np.float32
    np.testing.assert_allclose(numbers[:4], [0.5, 9, 0.75, math.log(0.25)], rtol=1e-6)
    assert numbers[5:].tolist() == [77, 1.5, 0.25, 0]
    assert 0 <= numbers[4] < 1
    assert chooser.numbers(77)[4] != numbers[4]


def test_numbers_are_those_that_pick_draws_with():
    """Of equal logits the number alone decides which one comes."""
    logits, settings = np.zeros(100, np.float32), {"temperature": 1.0, "top_k": 100, "top_p": 1.0, "min_p": 0.0}
    host, gpu = sampler(seed=3, **settings), sampler(seed=3, **settings)
    for _ in range(50):
        assert pick(host, logits)[0] == int(gpu.numbers(0)[4] * 100)


@pytest.mark.parametrize("settings", [
    {"temperature": 0, "top_k": 7, "top_p": 0.1}, {"temperature": 1e-300}, {"min_p": 0.0}, {"min_p": 5e-324},
    {"temperature": 1e300}, {"top_k": 2**31}, {"repeat_penalty": 1e300},
], ids=str)  # fmt: skip
def test_numbers_that_float32_cannot_hold(settings):
    numbers = sampler(**settings).numbers(0)
    assert np.isfinite(numbers).all()
    assert numbers[0] >= 1e-31
    if settings.get("temperature") == 0:
        assert numbers[:3].tolist() == [1, 1, 1]  # the best one, whatever else is set


@given(st.lists(st.integers(0, 5), max_size=30), st.sampled_from([-1, 0, 1, 4, 100]))
def test_what_leaves_the_window(tokens, last_n):
    """Counting what comes and taking off what leaves gives the same counts."""
    chooser = sampler(tokens[:7], presence_penalty=1.0, repeat_last_n=last_n)
    ids, times = chooser.penalties()
    counts = Counter(dict(zip(ids.tolist(), times.tolist(), strict=True)))
    for token in tokens[7:]:
        leaving = chooser.leaving
        chooser.accept(token)
        if last_n:
            counts.update([token])
            counts.subtract([] if leaving is None else [leaving])
        ids, times = chooser.penalties()
        assert +counts == Counter(dict(zip(ids.tolist(), times.tolist(), strict=True)))
