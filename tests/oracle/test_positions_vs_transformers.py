"""Live: prompts with media against transformers' processor and get_rope_index. Needs torch, no adapter."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from oracle.media_positions import TOKENS, random_mix, reference_ids, reference_positions
from qwen3omni_wgpu.inputs.placeholders import expand

pytestmark = pytest.mark.oracle

MIXES = 200


def test_random_mixes() -> None:
    """Every bit of the positions, and the order of the pads wherever the reference does not contradict itself."""
    seed = int(np.random.SeedSequence().generate_state(1)[0])
    rng = np.random.default_rng(seed)
    for number in range(MIXES):
        mix = random_mix(rng, int(rng.integers(0, 6)))
        if not mix.ids:
            continue
        found, where = expand(mix.ids, mix.parts, TOKENS), f"seed {seed}, mix {number}: {mix}"
        expected = reference_ids(mix)
        if mix.exact:
            assert found.ids == expected, where
        assert sorted(found.ids) == sorted(expected), where
        positions = reference_positions(found.ids, mix)
        assert positions.dtype == found.positions.dtype == np.float32
        np.testing.assert_array_equal(found.positions, positions, err_msg=where)
