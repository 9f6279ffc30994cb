"""Write tests/goldens/pictures.npz: sizes, pixels, frames and patches as transformers' processors make them.

    pip install -e '.[oracle]' torchvision
    python tools/make_picture_goldens.py

sizes: rows of height, width, min_pixels, max_pixels, resized height, resized width. NAME is a picture or a video's
frames, NAME_levels its resized pixels, the values of the reference's rows as 8-bit levels. exact, exact_rows: a picture
that keeps its size and its rows as they are. samples: rows of total, milliseconds, fps, then the number of frames;
indices: theirs, one after the other. limits: frames, most pixels of each.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from oracle.hf_pictures import (  # noqa: E402
    frame_limit,
    frame_sizes,
    image_processor,
    levels,
    sampled,
    video_processor,
)
from reference.goldens import FOLDER  # noqa: E402

SEED = 32
PICTURES = {
    "pixel": (1, 1),
    "wide": (37, 90),
    "tall": (90, 41),
    "flat": (7, 300),
    "shrunk": (103, 171),
    "squeezed": (39, 114),
}
MOST = 8192  # pixels; in the release it would take millions for a picture to be shrunk
VIDEO, LIMITS = (5, 41, 73), (2048, 4096)


def picture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Smooth on the left, noise on the right: rounding, and edges that overshoot."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    found = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    found[:, width // 2 :] = rng.integers(0, 256, (height, width - width // 2, 3))
    return found


def sizes(rng: np.random.Generator) -> np.ndarray:
    rows = []
    for i in range(400):
        long = int(10 ** rng.uniform(0, 4.2))
        short = max(1, int(long / 10 ** rng.uniform(0, 2.3)), -(-long // 200))
        height, width = (long, short) if rng.random() < 0.5 else (short, long)
        limits = (3136, 12845056) if i % 2 else (131072, 786432)
        rows.append((height, width, *limits, *frame_sizes(height, width, *limits)))
    return np.array(rows, np.int32)


def main() -> None:
    rng = np.random.default_rng(SEED)
    arrays = {"sizes": sizes(rng)}
    for name, shape in PICTURES.items():
        source = picture(rng, *shape)
        out = image_processor("torchvision", MOST)(images=[Image.fromarray(source)], return_tensors="np")
        arrays |= {name: source, f"{name}_levels": levels(out["pixel_values"], out["image_grid_thw"][0])[0]}
    arrays["exact"] = picture(rng, 64, 96)
    arrays["exact_rows"] = image_processor("pil")(images=[Image.fromarray(arrays["exact"])])["pixel_values"]
    frames = np.stack([picture(rng, *VIDEO[1:]) for _ in range(VIDEO[0])])
    out = video_processor(*LIMITS)(videos=[frames], return_tensors="np")
    arrays |= {"video": frames, "video_levels": levels(out["pixel_values_videos"], out["video_grid_thw"][0])}
    samples, indices = [], []
    for _ in range(60):
        total, fps = int(10 ** rng.uniform(0.31, 3.9)), float(rng.choice([0.5, 1, 2, 3, 7.5]))
        rate = float(rng.choice([10, 15, 24, 25, 30, 50, 60]))
        places = sampled(total, rate, fps)
        samples.append((total, total / rate, fps, len(places)))
        indices.extend(places)
    counts = [2, 4, 40, 120, 298, 300, 302, 400, 500, 768, 5000]
    arrays |= {
        "samples": np.array(samples),
        "indices": np.array(indices, np.int32),
        "limits": np.array([(n, frame_limit(n)) for n in counts], np.int32),
    }
    np.savez_compressed(FOLDER / "pictures.npz", **arrays)


if __name__ == "__main__":
    main()
