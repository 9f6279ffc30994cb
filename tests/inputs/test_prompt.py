"""Prompts in chunks: what each chunk brings to the device is its share of the whole."""

from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from qwen3omni_wgpu.inputs.prompt import MediaRows, Prompt

DIM = 4


def whole(rng: np.random.Generator, n: int, taps: int) -> tuple[Prompt, np.ndarray, np.ndarray, np.ndarray]:
    """A prompt with media interleaved at random; its rows, flags and deepstack maps token by token."""
    owner = rng.integers(-1, 4, n)  # -1: text; 0 and 1: pictures; 2 and 3: sounds
    rows, flags = rng.standard_normal((n, DIM), dtype=np.float32), (owner >= 0).astype(np.uint32)
    maps = rng.standard_normal((taps, n, DIM), dtype=np.float32)
    maps[:, (owner < 0) | (owner > 1)] = 0
    media = []
    for which in range(4):
        at = np.flatnonzero(owner == which)
        if len(at):
            media.append(MediaRows(at, rows[at], maps[:, at] if which < 2 and taps else None))
    ids = rng.integers(0, 99, n).tolist()
    prompt = Prompt(ids, rng.standard_normal((n, 3)).astype(np.float32), list(ids)).with_media(media)
    return prompt, rows * flags[:, None], flags, maps


@given(st.integers(0, 2**32 - 1), st.integers(1, 40), st.integers(0, 3))
def test_chunks_make_up_the_whole(seed, n, taps):
    rng = np.random.default_rng(seed)
    prompt, rows, flags, maps = whole(rng, n, taps)
    cuts = [0, *sorted(rng.integers(0, n + 1, 3).tolist()), n]
    for start, stop in pairwise(cuts):
        step = prompt.step(start, stop)
        part = slice(start, stop)
        assert (step.ids, step.keys) == (prompt.ids[part], prompt.keys[part])
        np.testing.assert_array_equal(step.positions, prompt.positions[part])
        if not flags[part].any():
            assert step.rows is step.flags is step.deepstack is None
            continue
        np.testing.assert_array_equal(step.flags, flags[part])
        np.testing.assert_array_equal(step.rows * step.flags[:, None], rows[part])
        if step.deepstack is None:
            assert not maps[:, part].any()
        else:
            np.testing.assert_array_equal(step.deepstack, maps[:, part])


def test_text_counts_on_from_where_it_starts():
    np.testing.assert_array_equal(Prompt.text([7, 7]).positions, [[0, 0, 0], [1, 1, 1]])
    prompt = Prompt.text([5, 6, 7], np.array([2.5, 4, 9], np.float32))
    np.testing.assert_array_equal(prompt.positions, [[2.5, 4, 9], [3.5, 5, 10], [4.5, 6, 11]])
    assert prompt.positions.dtype == np.float32
    assert (len(prompt), prompt.keys) == (3, [5, 6, 7])
