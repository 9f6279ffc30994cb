"""A spoken sentence through the whole command line, down to the numbers: tests/goldens/media.npz has transformers'."""

import json

import numpy as np
import pytest
from media_prompts import SPOKEN
from reference.goldens import FOLDER
from tiny_checkpoint import write_tiny_checkpoint

pytestmark = [pytest.mark.gpu]

# Of the largest logit: other orders of summation; 8e-7 was measured on a software adapter.
TOLERANCE = 1e-4


def test_a_spoken_sentence(process, tmp_path):
    with np.load(FOLDER / "media.npz") as data:
        golden = {key: data[key] for key in data.files if key.startswith("spoken_") or key == "recipe"}
    recipe = json.loads(str(golden["recipe"]))
    write_tiny_checkpoint(tmp_path / "Tiny-Omni", np.random.default_rng(recipe.pop("seed")), **recipe)
    asked = ("--audio", SPOKEN, "-p", "what is this", "--temp", "0", "-n", "16", "--ignore-eos", "--logprobs", "20")
    done = process(
        "generate", "-m", tmp_path / "Tiny-Omni", "--type", "f32", "--kv-type", "f32", "-c", "512", "--json", *asked
    )
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert answer["prompt_token_ids"] == golden["spoken_ids"].tolist()
    assert answer["token_ids"] == golden["spoken_greedy"].tolist()
    assert answer["timings"]["media_s"] > 0
    for row, chosen in zip(golden["spoken_decoded"].astype(np.float64), answer["logprobs"], strict=True):
        norm = row.max() + np.log(np.exp(row - row.max()).sum())
        assert len(chosen["top_logprobs"]) == 20
        for top in chosen["top_logprobs"]:
            assert abs(top["logprob"] - (row[top["id"]] - norm)) < TOLERANCE * np.abs(row).max()
