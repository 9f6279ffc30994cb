"""Write tests/goldens/code2wav.npz: what transformers' Code2Wav makes of random codes, in float32.

pip install -e '.[oracle]'
python tools/make_code2wav_goldens.py
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.code2wav import Code2WavOracle  # noqa: E402
from reference.code2wav_goldens import CHUNK, CONTEXT, FILE, codes_of, kept  # noqa: E402
from reference.goldens import arrays_hash  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

RECIPE: dict[str, Any] = {"seed": 51, "dtype": "f32"}
# Around the window of attention (6) and what goes through a plan together (4, 8 and 16 frames).
LENGTHS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 17, 33)
# Around the borders of chunks, and where a chunk's context ends.
CHUNKED = (CONTEXT, CHUNK - 1, CHUNK, CHUNK + 1, CHUNK + CONTEXT, 2 * CHUNK, 2 * CHUNK + 1, 95)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        arguments = dict(RECIPE)
        seed = arguments.pop("seed")
        stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **arguments)
        model = Code2WavOracle(Path(folder), stored)
    samples = {f"at_once_{n}": model.at_once(codes_of(seed, n)) for n in LENGTHS}
    samples |= {f"chunked_{n}": model.chunked(codes_of(seed, n), CHUNK, CONTEXT) for n in CHUNKED}
    facts = {"recipe": json.dumps(RECIPE), "sha256": arrays_hash(stored)}
    facts["lengths"] = json.dumps({name: len(values) for name, values in samples.items()})
    np.savez_compressed(FILE, **facts, **{name: kept(values) for name, values in samples.items()})
    clipped = np.mean([np.mean(np.abs(values) == 1) for values in samples.values()])
    print(f"{FILE.relative_to(ROOT)}: {FILE.stat().st_size} bytes, {clipped:.1%} of the samples clipped")


if __name__ == "__main__":
    main()
