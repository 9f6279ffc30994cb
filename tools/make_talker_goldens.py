"""Write tests/goldens/talker_*.npz: greedy speech of random checkpoints by transformers' own generate, in float32.

    pip install -e '.[oracle]'
    python tools/make_talker_goldens.py

A seed is taken only if every choice of a code is a clear one, so that the codes can be compared one by one.
"""

import dataclasses
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from media_prompts import prompts  # noqa: E402
from oracle.talker import SpeechOracle  # noqa: E402
from reference.goldens import FOLDER, arrays_hash  # noqa: E402
from reference.talker_goldens import Spoken, margin  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

# transformers suppresses the last 1024 ids of the talker.
BASE = {"dtype": "f32", "thinker_hidden": 32, "talker_vocab": 48 + 1024}
CLEAR = 1e-3  # logits
KEPT = 4  # frames whose residual logits are kept
SAYS = {"role": "user", "content": "say hello the world"}
TURNS = [{"role": "system", "content": "what is"}, SAYS, {"role": "assistant", "content": "hello"}, SAYS, SAYS]
# name -> (first seed, messages, tokens of the answer, most frames, whether the talker must end by itself)
GOLDENS: dict[str, tuple[int, list[dict[str, Any]], int, int, bool]] = {
    "long": (100, TURNS, 20, 72, False),
    "ends": (200, [SAYS], 2, 40, True),
    "media": (300, prompts()["turns"], 5, 6, False),
    "video": (400, prompts()["video_with_sound"], 3, 6, False),
}


def find(first: int, messages: list[dict[str, Any]], words: int, frames: int, ends: bool) -> tuple[dict, str, Spoken]:
    """(recipe, hash of the weights, speech) of the first seed that will do."""
    for seed in itertools.count(first):
        with tempfile.TemporaryDirectory() as folder:
            stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **BASE)
            try:
                spoken = SpeechOracle(Path(folder)).speak(messages, words, frames)
            except RuntimeError as error:  # transformers cannot be silent: it stacks the codes of no frames
                print(f"  seed {seed}: {error}")
                continue
        print(f"  seed {seed}: {len(spoken.codes)} frames, margin {margin(spoken):.1e}", flush=True)
        if margin(spoken) > CLEAR and (4 < len(spoken.codes) < frames if ends else len(spoken.codes) == frames):
            return {"seed": seed, **BASE}, arrays_hash(stored), spoken
    raise AssertionError


def main() -> None:
    for name, wanted in GOLDENS.items():
        recipe, digest, spoken = find(*wanted)
        clear = margin(spoken)
        spoken = dataclasses.replace(spoken, residual=spoken.residual[:KEPT], logits=spoken.logits[:, :64])
        path = FOLDER / f"talker_{name}.npz"
        np.savez_compressed(path, recipe=json.dumps(recipe), sha256=digest, margin=clear, **vars(spoken))
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
