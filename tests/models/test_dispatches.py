"""How many dispatches a decoded token takes at the true dimensions: counted from recorded plans, without weights.

A dispatch costs 0.7 to 1.6 us of GPU time on the target and about as much of the host's (docs/LOG.md).
"""

from collections import Counter

import pytest

from qwen3omni_wgpu.cost import PaperDevice, Sketch, decode_plan, load, paper_model

LAYER, TOKEN = 6, 300
CONTEXT = 32768


@pytest.fixture(scope="module")
def steps():
    device = PaperDevice.described(load("strix-halo").device)
    return decode_plan(paper_model(Sketch.shipped(), device), CONTEXT - 1, CONTEXT).steps


def test_a_layer_of_the_30b_thinker_takes_at_most_six_dispatches(steps):
    layers = Counter(step.op.split(".")[1] for step in steps if step.op.startswith("blk."))
    assert len(layers) == 48
    assert max(layers.values()) <= LAYER, Counter(step.op for step in steps if step.op.startswith("blk.0."))


def test_a_token_of_the_30b_thinker_takes_at_most_300_dispatches(steps):
    assert 48 < len(steps) <= TOKEN
    # embedding, 48 layers, head with the final norm, the choice of the token
    assert steps[0].op == "embed"
    assert steps[-1].op == "argmax"
