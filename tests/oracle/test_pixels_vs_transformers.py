"""Live: pictures and video against transformers' processors, both backends. Run with `pytest -m oracle`."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("transformers")
pytest.importorskip("av")
import torch
from films import film
from PIL import Image
from transformers.image_utils import load_image as load_image_there
from transformers.video_utils import read_video_pyav

from oracle.hf_pictures import frame_limit, frame_sizes, image_processor, sampled, video_processor
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.image import PictureRules, load_image, smart_resize
from qwen3omni_wgpu.inputs.video import chosen, frame_count, load_video
from qwen3omni_wgpu.inputs.video import frame_limit as our_frame_limit

pytestmark = pytest.mark.oracle

RULES = PictureRules()
# torchvision's weights have 15 bits, Pillow's 22. Measured on noise: 0.6 % of the values are one level off, 1.1e-6 two.
LEVELS, OFTEN, TWO = 2, 0.02, 1e-4
ROUNDING = 1e-6  # of values from -1 to 1: torchvision scales and shifts in one step
SHAPES = [(1, 1), (7, 1400), (480, 640), (48, 48), (80, 80), (333, 517), (1080, 1920), (517, 90), (100, 1), (1500, 260)]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def near(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.shape == theirs.shape
    off = np.abs(ours - theirs) * 127.5
    assert off.max() < LEVELS + 0.01
    assert np.mean(off > 0.5) < OFTEN
    assert np.mean(off > 1.5) <= TWO


def smooth(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    small = Image.fromarray(rng.integers(0, 256, (max(1, height // 9), max(1, width // 9), 3), dtype=np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def noise(rng: np.random.Generator, height: int, width: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("content", [smooth, noise])
def test_torchvision_backend(rng, shape, content):
    image = content(rng, *shape)
    picture = load_image(image, RULES)
    out = image_processor("torchvision")(images=[image], return_tensors="np")
    assert tuple(out["image_grid_thw"][0]) == picture.grid
    near(picture.patches(0, int(np.prod(picture.grid))), out["pixel_values"])


@pytest.mark.parametrize("shape", [(h, w) for h, w in SHAPES if h < 1080], ids=str)
def test_pil_backend(rng, shape):
    """To the last bit where heights grow: there Pillow works across before down, in every version."""
    image = noise(rng, *shape)
    picture = load_image(image, RULES)
    out = image_processor("pil")(images=[image])
    assert tuple(out["image_grid_thw"][0]) == picture.grid
    rows = picture.patches(0, int(np.prod(picture.grid)))
    if picture.pixels.shape[0] >= shape[0]:
        np.testing.assert_array_equal(rows, out["pixel_values"])
    else:  # Pillow 13 may go down first, which clips other values
        assert np.abs(rows - out["pixel_values"]).mean() < 0.03


@pytest.mark.parametrize("mode", ["L", "LA", "P", "PA", "RGBA", "CMYK", "1", "YCbCr", "RGBX"])
def test_modes(rng, mode):
    """On white and to RGB as transformers does it, exactly."""
    small = Image.fromarray(rng.integers(0, 256, (64, 96, 4), dtype=np.uint8))
    image = small.convert("RGB").convert(mode) if mode in ("CMYK", "YCbCr", "RGBX") else small.convert(mode)
    out = image_processor("pil")(images=[image])
    np.testing.assert_array_equal(load_image(image, RULES).patches(0, 24), out["pixel_values"])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(rng, tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "x.jpg"
    smooth(rng, 200, 310).save(path, exif=exif)
    out = image_processor("pil")(images=[load_image_there(str(path))])
    picture = load_image(path, RULES)
    assert tuple(out["image_grid_thw"][0]) == picture.grid
    # not to the last bit: see test_pil_backend
    assert np.abs(picture.patches(0, int(np.prod(picture.grid))) - out["pixel_values"]).max() < 4 / 127.5


def test_sizes(rng):
    for _ in range(3000):
        height, width = (int(10**e) for e in rng.uniform(0, 4.3, 2))
        for least, most in ((3136, 12845056), (131072, 786432), (131072, 137625)):
            try:
                expected = frame_sizes(height, width, least, most)
            except ValueError:
                with pytest.raises(InvalidRequest):
                    smart_resize(height, width, 32, least, most)
            else:
                assert smart_resize(height, width, 32, least, most) == expected


def test_frames(rng):
    for _ in range(300):
        total, rate = int(10 ** rng.uniform(0.31, 4)), float(rng.choice([5, 12.5, 24, 25, 30000 / 1001, 30, 60]))
        fps = float(rng.choice([0.25, 0.5, 1, 2, 4, 10]))
        expected = sampled(total, rate, fps)
        count = frame_count(total, total / rate, fps, 4, 768, 2)
        assert count == len(expected)
        assert chosen(np.arange(total) * 512, total * 512, count).tolist() == expected


def test_limits(rng):
    for count in rng.integers(2, 4000, 60).tolist():
        assert our_frame_limit(count, RULES) == frame_limit(count)


FILMS = {
    "mp4": {"frames": 75, "rate": 25},
    "29.97": {"rate": Fraction(30000, 1001), "frames": 100, "codec": "libx264", "size": (272, 480)},
    "shrunk": {"frames": 30, "size": (1080, 1920), "codec": "mpeg4"},
    "odd": {"frames": 33, "rate": 15, "size": (130, 98), "codec": "ffv1", "kind": "avi", "pixels": "bgr0"},
}


@pytest.mark.parametrize("name", FILMS)
def test_video(tmp_path: Path, name: str):
    """The whole way: decoding, choice of frames, sizes, pixels, patches."""
    path = tmp_path / "film"
    path.write_bytes(film(**FILMS[name]))
    processor = video_processor()
    frames, metadata = read_video_pyav(str(path), lambda metadata: processor.sample_frames(metadata, fps=2.0).numpy())
    out = processor(videos=[torch.from_numpy(frames).permute(0, 3, 1, 2)], return_tensors="pt")
    video = load_video(path, RULES)
    assert tuple(out["video_grid_thw"][0].tolist()) == video.grid
    near(video.patches(0, int(np.prod(video.grid))), out["pixel_values_videos"].numpy())
    assert video.seconds_per_grid == pytest.approx(2 * metadata.duration / len(frames))


def test_given_frames(rng):
    frames = rng.integers(0, 256, (3, 120, 200, 3), dtype=np.uint8)
    out = video_processor()(videos=[frames], return_tensors="pt")
    video = load_video(frames, RULES)
    assert tuple(out["video_grid_thw"][0].tolist()) == video.grid
    near(video.patches(0, int(np.prod(video.grid))), out["pixel_values_videos"].numpy())


def test_no_resizing_no_difference(rng):
    """Patches alone: the only difference to torchvision is rounding in float32."""
    image = noise(rng, 96, 64)
    out = image_processor("torchvision")(images=[image], return_tensors="np")["pixel_values"]
    np.testing.assert_allclose(load_image(image, RULES).patches(0, 24), out, rtol=0, atol=ROUNDING)
