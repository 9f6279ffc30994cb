"""Live: which tokens may be drawn, and how likely, against transformers' processors in the order of generate()."""

import numpy as np
import pytest

from qwen3omni_wgpu.reference.sample import allowed, distribution

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

pytestmark = pytest.mark.oracle
V = 3072


def theirs(logits: np.ndarray, drawn: list[int], settings: tuple[float, int, float, float], left: list[int]):
    temperature, k, p, repeat = settings
    steps = [RepetitionPenaltyLogitsProcessor(repeat), SuppressTokensLogitsProcessor(left, device="cpu")]
    steps += [TemperatureLogitsWarper(temperature)] if temperature != 1 else []
    steps += [TopKLogitsWarper(k)] if k else []
    steps += [TopPLogitsWarper(p)] if p < 1 else []
    scores = LogitsProcessorList(steps)(torch.tensor([drawn]), torch.from_numpy(logits[None]))
    return torch.softmax(scores.double(), -1)[0].numpy()


@pytest.mark.parametrize(
    "settings", [(0.9, 50, 1.0, 1.05), (1.0, 50, 0.8, 1.0), (0.7, 0, 0.95, 2.0), (2.0, 3, 0.5, 0.5), (1.0, 1, 1.0, 1.3)]
)
@pytest.mark.parametrize("ties", [False, True])
def test_probabilities(settings, ties):
    rng = np.random.default_rng()
    for _ in range(20):
        logits = (rng.standard_normal(V) * 3).astype(np.float32)
        logits = np.round(logits) if ties else logits
        drawn = rng.integers(0, 2048, 200).tolist()
        left = [i for i in range(2048, V) if i != 2150]
        seen = np.bincount(drawn, minlength=V)
        temperature, k, p, repeat = settings
        found = distribution(allowed(logits, seen, repeat, (2048, V), 2150), temperature, k, p)
        expected = theirs(logits, drawn, settings, left)
        if ties and p < 1:  # which of them stay at the border of top-p is open there: torch's sort is not stable
            found, expected = np.sort(found), np.sort(expected)
        # A sum that meets top-p within rounding, or a tie by rounding, may keep one token more or fewer.
        other = (found > 0) != (expected > 0)
        assert other.sum() <= 1
        if not other.any():
            np.testing.assert_allclose(found, expected, atol=1e-6)
