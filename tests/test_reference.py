"""The NumPy twins against closed forms and independent formulations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qwen3omni_wgpu.reference.attention import attention
from qwen3omni_wgpu.reference.elementwise import add, softmax, swiglu
from qwen3omni_wgpu.reference.gather import embed
from qwen3omni_wgpu.reference.matmul import dequantize_q8, matmul, matmul_q8, moe_matmul, quantize_q8
from qwen3omni_wgpu.reference.moe import moe_combine, moe_gate
from qwen3omni_wgpu.reference.norm import add_rms_norm, rms_norm
from qwen3omni_wgpu.reference.rope import rope, rope_axes, rope_frequencies
from qwen3omni_wgpu.reference.sample import argmax, logsumexp, penalize, top_k

SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def close(actual: np.ndarray, expected: np.ndarray, rtol: float = 1e-5) -> None:
    """Largest error relative to the largest expected value: float32 rounding of sums of about a hundred terms."""
    scale = np.abs(expected).max() + 1e-30
    assert actual.dtype == np.float32
    assert np.abs(actual.astype(np.float64) - expected).max() / scale < rtol


# norms


def test_rms_norm_of_three_and_four():
    x = np.array([[3, 4]], dtype=np.float32)
    close(rms_norm(x, np.array([1, 2], dtype=np.float32), 0.0), np.array([[3, 8]]) / math.sqrt(12.5))


def test_rms_norm_eps_is_inside_the_root():
    tiny = np.full((1, 4), 1e-3, dtype=np.float32)
    close(rms_norm(tiny, np.ones(4, dtype=np.float32), 1e-6), tiny / math.sqrt(2e-6))


@given(SEEDS)
def test_rms_norm_has_unit_mean_square_and_no_mean_removal(seed):
    x, ones = normal(seed, 3, 2, 96) + 5, np.ones(96, dtype=np.float32)
    y = rms_norm(x, ones, 0.0)
    close(np.mean(y * y, axis=-1), np.ones((3, 2)))
    assert y.mean() > 0.9


def test_add_rms_norm_returns_sum_and_norm():
    x, r, w = normal(1, 3, 64), normal(2, 3, 64), normal(3, 64)
    total, normed = add_rms_norm(x, r, w, 1e-5)
    np.testing.assert_array_equal(total, x + r)
    np.testing.assert_array_equal(normed, rms_norm(x + r, w, 1e-5))


# gather, elementwise


def test_embed_takes_rows():
    table = normal(0, 7, 5)
    np.testing.assert_array_equal(embed(table, np.array([6, 0, 6], dtype=np.uint32)), table[[6, 0, 6]])


def test_swiglu_by_hand_and_at_the_ends():
    gate = np.array([0, 1, -1, 100, -100, -1e5], dtype=np.float32)
    expected = [0, 2 / (1 + math.exp(-1)), -2 / (1 + math.e), 200, 0, 0]
    close(swiglu(gate, np.full(6, 2, dtype=np.float32)), np.array(expected))
    close(add(gate, gate), 2 * gate)


@given(SEEDS, st.floats(-1e4, 1e4))
def test_softmax_does_not_see_an_offset_and_sums_to_one(seed, offset):
    x = np.round(normal(seed, 4, 50) * 64) / 64  # multiples of 1/64 survive an offset of up to 2^17 exactly
    shifted = softmax(x + np.float32(round(offset)))
    close(shifted, softmax(x))
    close(shifted.sum(axis=-1), np.ones(4))


def test_softmax_of_logarithms_and_minus_infinity():
    with np.errstate(divide="ignore"):
        close(softmax(np.log(np.array([[1, 2, 0, 5]], dtype=np.float32))), np.array([[1, 2, 0, 5]]) / 8)


# matmul


@given(SEEDS)
def test_matmul_is_a_sum_over_the_inner_dimension(seed):
    x, w = normal(seed, 3, 96), normal(seed + 1, 5, 96)
    close(matmul(x, w), np.array([[math.fsum(a * b) for b in w.astype(float)] for a in x.astype(float)]))


def test_quantize_q8_rounds_half_away_from_zero():
    x = np.zeros((1, 32), dtype=np.float32)
    x[0, :6] = [127, 0.5, -0.5, 1.5, -2.5, 2.49]
    q, scale, sums = quantize_q8(x)
    assert (q.dtype, scale.dtype, sums.dtype) == (np.int8, np.float32, np.float32)
    assert q[0, :6].tolist() == [127, 1, -1, 2, -3, 2]
    assert scale[0, 0] == 1.0
    assert not scale[0, 1:].any()
    assert sums.tolist() == [[128.0]]


def test_quantize_q8_of_zeros_is_zero():
    q, scale, sums = quantize_q8(np.zeros((2, 64), dtype=np.float32))
    assert not q.any()
    assert not scale.any()
    assert not sums.any()


@given(SEEDS, st.floats(1e-20, 1e20))
def test_quantize_q8_is_half_a_step_off_at_most(seed, size):
    x = normal(seed, 3, 96) * np.float32(size)
    q, scale, sums = quantize_q8(x)
    assert sums.shape == (3, 3)
    group = 96 // scale.shape[1]  # values that share a scale
    step = np.repeat(scale, group, axis=1)
    # the quotient x * (1 / scale) carries two float32 roundings of up to 127, beside the half step
    assert (np.abs(dequantize_q8(q, scale) - x) <= step * (0.5 + 127 * 3e-7)).all()
    assert np.abs(q.reshape(3, -1, group)).max(axis=-1).min() == 127
    close(sums, dequantize_q8(q, scale).reshape(3, 3, 32).sum(axis=-1, dtype=np.float64), 1e-4)


def test_matmul_q8_is_exact_on_what_8_bits_can_hold_and_near_elsewhere():
    x = np.random.default_rng(0).integers(-127, 128, (2, 64)).astype(np.float32)
    x[:, ::8] = 127  # so that every scale is 1
    w = normal(1, 5, 64)
    close(matmul_q8(x, w), matmul(x, w))
    x = normal(2, 4, 256)
    error = np.abs(matmul_q8(x, normal(3, 9, 256)) - matmul(x, normal(3, 9, 256))).max()
    assert 0 < error < 0.02 * math.sqrt(256)


def test_moe_matmul_is_the_dense_product_of_each_chosen_expert():
    w, ids = normal(0, 5, 6, 8), np.array([[4, 0, 2], [1, 1, 3]], dtype=np.uint32)
    shared, own = normal(1, 2, 8), normal(2, 2, 3, 8)
    for n in range(2):
        for k in range(3):
            close(moe_matmul(shared, w, ids)[n, k], w[ids[n, k]] @ shared[n])
            close(moe_matmul(own, w, ids)[n, k], w[ids[n, k]] @ own[n, k])


# mixture of experts


@given(SEEDS, st.integers(2, 128).flatmap(lambda e: st.tuples(st.just(e), st.integers(1, min(e, 8)))))
def test_renormalised_gate_is_a_softmax_over_the_chosen_logits(seed, sizes):
    experts, k = sizes
    logits = normal(seed, 3, experts) * 3
    ids, weights = moe_gate(logits, k, renormalise=True)
    assert ids.dtype == np.uint32
    chosen = np.take_along_axis(logits, ids.astype(np.int64), axis=1)
    close(weights, softmax(chosen))
    assert (np.diff(chosen, axis=1) <= 0).all()
    assert all(
        set(row) == set(sorted(range(experts), key=lambda e: -line[e])[:k])
        for row, line in zip(ids, logits, strict=True)
    )


def test_gate_keeps_probabilities_and_breaks_ties_by_id():
    logits = np.log(np.array([[1, 4, 4, 1, 6]], dtype=np.float32))
    ids, weights = moe_gate(logits, 4, renormalise=False)
    assert ids.tolist() == [[4, 1, 2, 0]]
    close(weights, np.array([[6, 4, 4, 1]]) / 16)


@given(SEEDS)
def test_gate_and_top_k_break_many_ties_by_id(seed):
    logits = np.random.default_rng(seed).integers(0, 4, (2, 128)).astype(np.float32)
    expected = [sorted(range(128), key=lambda i: (-row[i], i))[:60] for row in logits]
    assert moe_gate(logits, 60, renormalise=False)[0].tolist() == expected
    assert top_k(logits[0], 60)[0].tolist() == expected[0]


def test_combine_is_a_weighted_sum():
    y, weights = normal(0, 3, 2, 16), normal(1, 3, 2)
    close(moe_combine(y, weights), weights[:, :1] * y[:, 0] + weights[:, 1:] * y[:, 1])


# rope


def as_complex_rotation(x: np.ndarray, angles: np.ndarray, style: str) -> np.ndarray:
    """Independent formulation in float64: a pair is a complex number that is multiplied by e^(i angle)."""
    half = angles.shape[1]
    turn = np.exp(1j * angles)[:, None, :]
    out = x.astype(np.float64)
    if style == "neox":
        z = (out[..., :half] + 1j * out[..., half : 2 * half]) * turn
        out[..., :half], out[..., half : 2 * half] = z.real, z.imag
    else:
        z = (out[..., 0 : 2 * half : 2] + 1j * out[..., 1 : 2 * half : 2]) * turn
        out[..., 0 : 2 * half : 2], out[..., 1 : 2 * half : 2] = z.real, z.imag
    return out


def test_frequencies_fall_from_one_and_scale_divides():
    f = rope_frequencies(8, 10000.0)
    close(f, np.array([1, 0.1, 0.01, 0.001]))
    close(rope_frequencies(8, 10000.0, scale=4.0), f / 4)
    close(rope_frequencies(8, 10000.0, 2.0, np.array([1, 2, 4, 8])), f / 2 / np.array([1, 2, 4, 8]))


@given(SEEDS, st.sampled_from(["neox", "interleaved"]), st.sampled_from([(64, 64), (128, 128), (64, 32)]))
def test_rope_is_a_complex_rotation_and_leaves_the_tail(seed, style, sizes):
    head, rotated = sizes
    x = normal(seed, 3, 2, head)
    positions = np.repeat(np.random.default_rng(seed).integers(0, 4000, (3, 1)), 3, axis=1).astype(np.float32)
    freqs = rope_frequencies(rotated, 1e6)
    y = rope(x, positions, freqs, style)
    # float32 angles of up to 4000 radians carry errors of 4000 * 2^-24
    close(y, as_complex_rotation(x, positions[:, :1].astype(np.float64) * freqs, style), 5e-4)
    np.testing.assert_array_equal(y[..., rotated:], x[..., rotated:])


def test_rope_at_position_zero_changes_nothing_and_knows_its_styles():
    x, freqs = normal(0, 2, 3, 64), rope_frequencies(64, 1e4)
    np.testing.assert_array_equal(rope(x, np.zeros((2, 3)), freqs, "neox"), x)
    with pytest.raises(ValueError, match="neox"):
        rope(x, np.zeros((2, 3)), freqs, "zigzag")


def test_the_two_pairings_differ_only_by_llama_cpps_permutation():
    x, freqs = normal(0, 4, 2, 64), rope_frequencies(64, 1e4)
    positions = np.repeat(np.arange(4, dtype=np.float32)[:, None], 3, axis=1)
    order = np.arange(64).reshape(2, 32).T.reshape(-1)  # (i, i + 32) -> (2i, 2i + 1)
    expected = rope(x, positions, freqs, "neox")[..., order]
    np.testing.assert_array_equal(rope(x[..., order], positions, freqs, "interleaved"), expected)


def test_rope_scores_depend_on_distance_only():
    q, k, freqs = normal(0, 1, 1, 64), normal(1, 1, 1, 64), rope_frequencies(64, 1e4)
    at = lambda x, p: rope(x, np.full((1, 3), p, dtype=np.float32), freqs, "neox")[0, 0]  # noqa: E731
    close(np.array([at(q, 7) @ at(k, 3)]), np.array([at(q, 104) @ at(k, 100)]), 1e-4)


def test_mrope_axes_of_the_release():
    axes = rope_axes(64, (24, 20, 20))
    assert axes[:7].tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert axes[58:].tolist() == [1, 2, 0, 0, 0, 0]
    assert np.bincount(axes).tolist() == [24, 20, 20]
    assert not rope_axes(64, None).any()


@given(SEEDS, st.sampled_from([(64, (11, 11, 10)), (64, (16, 8, 8)), (128, (24, 20, 20)), (32, (6, 5, 5))]))
def test_mrope_turns_each_pair_by_its_own_axis(seed, sizes):
    dim, sections = sizes
    x = normal(seed, 3, 2, dim)
    positions = np.random.default_rng(seed).uniform(0, 50, (3, 3)).astype(np.float32)
    freqs = rope_frequencies(dim, 1e6)
    angles = np.empty((3, dim // 2))
    for i in range(dim // 2):
        axis = 1 if i % 3 == 1 and i < 3 * sections[1] else 2 if i % 3 == 2 and i < 3 * sections[2] else 0
        angles[:, i] = positions[:, axis].astype(np.float64) * freqs[i]
    close(rope(x, positions, freqs, "neox", sections), as_complex_rotation(x, angles, "neox"), 2e-5)


def test_mrope_with_equal_axes_is_plain_rope():
    x, freqs = normal(0, 3, 2, 128), rope_frequencies(128, 1e6)
    positions = np.repeat(np.array([[0], [5], [17]], dtype=np.float32), 3, axis=1)
    np.testing.assert_array_equal(
        rope(x, positions, freqs, "neox", (24, 20, 20)), rope(x, positions, freqs, "neox", None)
    )


# attention


def masked_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, n_past: int, scale: float) -> np.ndarray:
    """Independent formulation in float64: repeat the key/value heads, mask a full score matrix with -inf."""
    q, k, v = (a.astype(np.float64) for a in (q, k, v))
    k, v = (np.repeat(a, q.shape[1] // k.shape[1], axis=1) for a in (k, v))
    scores = np.einsum("nhd,shd->hns", q, k) * scale
    mask = np.arange(k.shape[0])[None, :] > n_past + np.arange(q.shape[0])[:, None]
    scores[:, mask] = -np.inf
    p = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return np.einsum("hns,shd->nhd", p / p.sum(axis=-1, keepdims=True), v)


@settings(max_examples=30)
@given(
    SEEDS, st.sampled_from([(1, 1), (4, 1), (6, 2), (8, 8)]), st.integers(1, 9), st.integers(0, 9), st.integers(0, 3)
)
def test_attention_equals_a_masked_matrix_product(seed, heads, n, past, spare):
    h, kv = heads
    s = past + n + spare
    q, k, v = normal(seed, n, h, 16), normal(seed + 1, s, kv, 16), normal(seed + 2, s, kv, 16)
    close(attention(q, k, v, past, 0.25), masked_attention(q, k, v, past, 0.25))


def test_attention_of_the_first_token_is_its_own_value():
    v = normal(2, 1, 1, 8)
    close(attention(normal(0, 1, 2, 8), normal(1, 1, 1, 8), v, 0, 1.0), np.repeat(v, 2, axis=1))


def test_attention_never_reads_later_keys():
    q, k, v = normal(0, 3, 2, 8), normal(1, 6, 1, 8), normal(2, 6, 1, 8)
    expected = attention(q, k, v, 1, 0.5)
    k[4:], v[4:] = np.nan, np.nan
    np.testing.assert_array_equal(attention(q, k, v, 1, 0.5), expected)


# sampling


def test_argmax_and_top_k_take_the_lower_id_on_ties():
    x = np.array([1, 7, 3, 7, 3, 3, -1], dtype=np.float32)
    assert argmax(np.stack([x, -x])).tolist() == [1, 6]
    ids, values, total = top_k(x, 4)
    assert ids.dtype == np.uint32
    assert ids.tolist() == [1, 3, 2, 4]
    assert values.tolist() == [7, 7, 3, 3]
    assert total == pytest.approx(math.log(math.fsum(math.exp(v) for v in x)), rel=1e-6)


@given(SEEDS, st.floats(-1e4, 1e4))
def test_logsumexp_moves_with_an_offset(seed, offset):
    x = normal(seed, 200)
    assert float(logsumexp(x + np.float32(offset))) == pytest.approx(offset + float(logsumexp(x)), abs=2e-3)


def test_penalties_by_hand():
    logits = np.array([2, -2, 0, 5, 5, 5], dtype=np.float32)
    ids, counts = np.array([0, 1, 2, 3], dtype=np.uint32), np.array([1, 2, 3, 0], dtype=np.uint32)
    out = penalize(logits, ids, counts, repeat=2.0, presence=0.5, frequency=0.25)
    assert out.tolist() == [2 / 2 - 0.75, -2 * 2 - 1.0, -1.25, 5, 5, 5]
    assert logits.tolist() == [2, -2, 0, 5, 5, 5]


@given(SEEDS)
def test_neutral_penalties_change_nothing(seed):
    logits = normal(seed, 40)
    np.testing.assert_array_equal(penalize(logits, np.arange(9), np.ones(9, dtype=int), 1.0, 0.0, 0.0), logits)
