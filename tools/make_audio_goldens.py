"""Write tests/goldens/audio_*.npz: what transformers' audio tower makes of random features, in float32.

    pip install -e '.[oracle]'
    python tools/make_audio_goldens.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.audio_tower import AudioOracle  # noqa: E402
from reference.audio_goldens import features, kept  # noqa: E402
from reference.goldens import FOLDER, arrays_hash  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

# name -> (recipe, lengths in frames). Around a chunk (100), a window (200), and 8 and 31 seconds.
GOLDENS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "short": ({"seed": 31, "dtype": "f32", "thinker_hidden": 32}, (1, 8, 9, 57, 99, 100)),
    "long": ({"seed": 32, "dtype": "f32", "thinker_hidden": 32}, (101, 199, 200, 201, 337, 800, 3103)),
}


def main() -> None:
    for name, (recipe, lengths) in GOLDENS.items():
        with tempfile.TemporaryDirectory() as folder:
            arguments = dict(recipe)
            seed = arguments.pop("seed")
            stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **arguments)
            model = AudioOracle(Path(folder), stored)
            rows = {f"rows_{frames}": kept(model.rows(features(seed, frames))) for frames in lengths}
        path = FOLDER / f"audio_{name}.npz"
        np.savez_compressed(path, recipe=json.dumps(recipe), sha256=arrays_hash(stored), **rows)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
