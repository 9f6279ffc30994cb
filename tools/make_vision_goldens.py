"""Write tests/goldens/vision_*.npz: what transformers' vision tower makes of random patches, in float32.

    pip install -e '.[oracle]'
    python tools/make_vision_goldens.py

Each holds the recipe of a checkpoint, and for every grid its rows and deepstack rows.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.vision_tower import VisionOracle  # noqa: E402
from reference.goldens import FOLDER, arrays_hash  # noqa: E402
from reference.vision_goldens import Grid, kept, pixels  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

# Heads of 72 with rows that are no whole blocks, as in the release; the position table has 4 x 4 and 5 x 5 places.
HEADS_OF_72 = {"vision_dim": 144, "vision_ffn": 148, "vision_depth": 4, "vision_side": 5, "deepstack": (0, 1, 3)}
BASE = {"dtype": "f32", "thinker_hidden": 32}
# name -> (recipe, grids). The least picture, the table's own size, much larger and longer ones, films.
GOLDENS: dict[str, tuple[dict[str, Any], tuple[Grid, ...]]] = {
    "small": ({"seed": 41, **BASE}, ((1, 2, 2), (1, 4, 4), (1, 6, 10), (1, 2, 30), (2, 4, 6), (3, 8, 4), (20, 2, 2))),
    "large": ({"seed": 42, **BASE}, ((1, 20, 22), (5, 12, 14), (2, 18, 16))),
    "heads_of_72": ({"seed": 43, **BASE, **HEADS_OF_72}, ((1, 8, 6), (2, 4, 4))),
}


def main() -> None:
    for name, (recipe, grids) in GOLDENS.items():
        with tempfile.TemporaryDirectory() as folder:
            arguments = dict(recipe)
            seed = arguments.pop("seed")
            stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **arguments)
            model = VisionOracle(Path(folder), stored)
            arrays = {}
            for grid in grids:
                rows, taps = model.rows(pixels(seed, grid), grid)
                key = "x".join(map(str, grid))
                arrays |= {f"rows_{key}": kept(rows), f"taps_{key}": kept(taps)}
        path = FOLDER / f"vision_{name}.npz"
        np.savez_compressed(path, recipe=json.dumps(recipe), sha256=arrays_hash(stored), **arrays)
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
