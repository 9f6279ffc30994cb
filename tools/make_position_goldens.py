"""Write tests/goldens/media_positions.npz: prompts with media as transformers' processor and get_rope_index make them.

    pip install -e '.[oracle]'
    python tools/make_position_goldens.py

The prompts are random ones of tests/oracle/media_positions.py.
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.media_positions import Mix, random_mix, reference_ids, reference_positions  # noqa: E402
from reference.goldens import FOLDER  # noqa: E402

from qwen3omni_wgpu.inputs.placeholders import AudioPart, ImagePart, Part  # noqa: E402

MIXES, SEED = 60, 77


def main() -> None:
    rng = np.random.default_rng(SEED)
    arrays: dict[str, np.ndarray] = {}
    number = 0
    while number < MIXES:
        mix = random_mix(rng, number % 6)
        expanded = reference_ids(mix)
        if mix.ids:
            arrays |= {f"{number:02}.{name}": array for name, array in _golden(mix, expanded).items()}
            number += 1
    path = FOLDER / "media_positions.npz"
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type] - the stub takes the arrays for its own option
    print(f"{path}: {MIXES} prompts, {path.stat().st_size} bytes")


def _golden(mix: Mix, expanded: list[int]) -> dict[str, np.ndarray]:
    return {
        "ids": np.array(mix.ids, np.int32),
        "parts": np.array([_row(part) for part in mix.parts], np.float64).reshape(-1, 6),
        "expanded": np.array(expanded, np.int32),
        "positions": reference_positions(expanded, mix),
    }


def _row(part: Part) -> tuple[float, ...]:
    """(kind, time steps, rows, columns, seconds per step, tokens of sound or -1)."""
    if isinstance(part, AudioPart):
        return (0, 0, 0, 0, 0, part.n_tokens)
    if isinstance(part, ImagePart):
        return (1, *part.grid, 0, -1)
    return (2, *part.grid, part.seconds_per_grid, -1 if part.audio_tokens is None else part.audio_tokens)


if __name__ == "__main__":
    main()
