"""Pictures: sizes, pixels and patches are transformers', every kind and mode is read, and what is not is said so."""

import io
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, features
from reference.goldens import FOLDER

from qwen3omni_wgpu.convert.mmproj import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.formats.checkpoint import read_json
from qwen3omni_wgpu.inputs.image import Picture, PictureRules, load_image, patch_rows, smart_resize
from qwen3omni_wgpu.inputs.sources import Access

RULES = PictureRules()
GOLDENS = np.load(FOLDER / "pictures.npz")
MOST = 8192  # of the goldens' pictures, see tools/make_picture_goldens.py
# torchvision's weights have 15 bits, Pillow's 22: on noise 0.6 % of the values differ by a level, 1e-6 of them by two.
LEVEL, OFTEN = 1, 0.02


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


@pytest.fixture(autouse=True)
def _no_warnings() -> Iterator[None]:
    """Pillow prints nothing beside the one line of an error."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    assert [str(warning.message) for warning in caught if "PIL" in Path(warning.filename).parts] == []


def noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def stored(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def as_is(source: Any, **options: Any) -> np.ndarray:
    """The pixels of a 64 x 96 picture, which need no resizing."""
    pixels = load_image(source, RULES, **options).pixels
    assert pixels.shape == (64, 96, 3)
    return pixels


def refused(source: Any, rules: PictureRules = RULES, **options: Any) -> str:
    """The message for a picture that must not be taken: one line, short enough to read."""
    with pytest.raises(InvalidRequest) as caught:
        load_image(source, rules, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Against transformers -----------------------------------------------------------------------------------------------


def test_sizes_are_those_of_transformers() -> None:
    for height, width, least, most, tall, wide in GOLDENS["sizes"].tolist():
        assert smart_resize(height, width, 32, least, most) == (tall, wide), (height, width, least, most)


@pytest.mark.parametrize("name", ["pixel", "wide", "tall", "flat", "shrunk", "squeezed"])
def test_pixels_are_those_of_transformers(name: str) -> None:
    picture = load_image(GOLDENS[name], replace(RULES, max_pixels=MOST))
    expected = GOLDENS[f"{name}_levels"]
    assert picture.pixels.shape == expected.shape
    assert picture.grid == (1, expected.shape[0] // 16, expected.shape[1] // 16)
    off = np.abs(picture.pixels.astype(int) - expected)
    assert off.max() <= LEVEL
    assert np.mean(off > 0) < OFTEN


def test_patches_are_those_of_transformers_to_the_last_bit() -> None:
    picture, rows = load_image(GOLDENS["exact"], RULES), GOLDENS["exact_rows"]
    assert picture.grid == (1, 4, 6)
    np.testing.assert_array_equal(picture.pixels, GOLDENS["exact"])
    np.testing.assert_array_equal(picture.patches(0, 24), rows)
    assert rows.dtype == picture.patches(0, 24).dtype == np.float32


# Patches -------------------------------------------------------------------------------------------------------------


def by_hand(frames: np.ndarray, rules: PictureRules) -> np.ndarray:
    """All rows, one patch at a time."""
    n, height, width, _ = frames.shape
    side, values = rules.factor, (frames / 255.0 - rules.mean) / rules.std
    rows = []
    for t in range(-(-n // rules.temporal)):
        depth = [min(t * rules.temporal + i, n - 1) for i in range(rules.temporal)]
        for top in range(0, height, side):
            for left in range(0, width, side):
                for y in range(top, top + side, rules.patch):
                    for x in range(left, left + side, rules.patch):
                        cut = values[depth, y : y + rules.patch, x : x + rules.patch]
                        rows.append(cut.transpose(3, 0, 1, 2).ravel())  # channel, frame, y, x
    return np.array(rows)


@pytest.mark.parametrize(
    ("patch", "merge", "temporal", "count"), [(16, 2, 2, 1), (4, 3, 2, 5), (2, 2, 3, 6), (8, 1, 1, 2)]
)
def test_any_rows(rng: np.random.Generator, patch: int, merge: int, temporal: int, count: int) -> None:
    rules = PictureRules(patch, merge, temporal, mean=(0.4, 0.5, 0.6), std=(0.2, 0.5, 0.9))
    frames = rng.integers(0, 256, (count, 2 * rules.factor, 3 * rules.factor, 3), dtype=np.uint8)
    expected = by_hand(frames, rules)
    found = patch_rows(frames, 0, len(expected), rules)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6)  # float32, values up to 5
    for _ in range(20):
        start, stop = np.sort(rng.integers(0, len(expected) + 1, 2)).tolist()
        np.testing.assert_array_equal(patch_rows(frames, start, stop, rules), found[start:stop])
    for start, stop in ((-1, 2), (3, 2), (0, len(expected) + 1)):
        with pytest.raises(InvalidRequest, match=f"there are {len(expected)}$"):
            patch_rows(frames, start, stop, rules)


def test_rows_take_memory_for_themselves_alone() -> None:
    pixels = np.zeros((2048, 2048, 3), np.uint8)
    picture = Picture(pixels, RULES, b"", "x")
    picture.patches(0, 1)
    tracemalloc.start()
    rows = picture.patches(4000, 4256)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2.5 * rows.nbytes  # all rows of the picture would be 64 times as much


# Kinds and modes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000", "JPEG", "AVIF", "ICO"])
def test_kinds(rng: np.random.Generator, tmp_path: Path, kind: str) -> None:
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    small = Image.fromarray(noise(rng, 8, 12))
    pixels = np.asarray(small.resize((96, 64), Image.Resampling.BICUBIC))
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 98, "subsampling": 0}, "AVIF": {"quality": 98}}
    data = stored(
        Image.fromarray(pixels), kind, **options.get(kind, {}), **({"sizes": [(96, 64)]} if kind == "ICO" else {})
    )
    path = tmp_path / "picture.wrong"  # the content decides, not the name
    path.write_bytes(data)
    found = as_is(path)
    lossy = {"GIF": 40.0, "JPEG": 4.0, "AVIF": 6.0}.get(kind, 0.0)  # mean distance; another picture's is about 80
    assert np.abs(found.astype(int) - pixels).mean() <= lossy
    with Image.open(path) as image:
        for source in (str(path), data, io.BytesIO(data), image, path.as_uri()):
            np.testing.assert_array_equal(as_is(source), found)


def test_only_the_first_picture_of_an_animation(rng: np.random.Generator) -> None:
    images = [Image.fromarray(noise(rng, 64, 96)) for _ in range(3)]
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True}), ("TIFF", {})):
        data = stored(images[0], kind, save_all=True, append_images=images[1:], **options)
        np.testing.assert_array_equal(as_is(data), np.asarray(images[0]), err_msg=kind)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(rng: np.random.Generator, orientation: int) -> None:
    upright = noise(rng, 64, 96)
    turned = {  # how a camera stores it; the tag undoes that
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: np.rot90(upright, 2).transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }[orientation]
    image = Image.fromarray(np.ascontiguousarray(turned))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(as_is(stored(image, kind, exif=exif)), upright, err_msg=kind)


def test_damaged_exif_data_do_no_harm(rng: np.random.Generator) -> None:
    pixels = noise(rng, 64, 96)
    for exif in (b"Exif\0\0nonsense", b"Exif\0\0II*\0\xff\xff\xff\xff", b"II"):
        np.testing.assert_array_equal(as_is(stored(Image.fromarray(pixels), exif=exif)), pixels)


def test_transparency_is_put_on_white(rng: np.random.Generator) -> None:
    colour, alpha = noise(rng, 64, 96), rng.integers(0, 256, (64, 96, 1), dtype=np.uint8)
    alpha[:8], alpha[8:16] = 0, 255
    expected = colour * (alpha / 255) + 255 * (1 - alpha / 255)
    rgba = Image.fromarray(np.concatenate([colour, alpha], axis=2))
    sources = (
        rgba,
        stored(rgba),
        stored(rgba, "WEBP", lossless=True, exact=True),
        stored(rgba, "TIFF"),
        np.array(rgba),
    )
    for source in sources:
        assert np.abs(as_is(source) - expected).max() <= 1  # rounding
    assert np.abs(as_is(rgba.convert("RGBa")) - expected)[16:].max() <= 2  # rounded once more before
    grey = Image.merge("LA", (Image.fromarray(colour[..., 0]), Image.fromarray(alpha[..., 0])))
    expected = np.repeat(expected[..., :1], 3, axis=2)
    for source in (grey, stored(grey)):
        assert np.abs(as_is(source) - expected).max() <= 1
    assert np.abs(as_is(grey.convert("La"))[16:] - expected[16:]).max() <= 2


def test_transparency_in_strips(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    rgba = Image.fromarray(rng.integers(0, 256, (64, 96, 4), dtype=np.uint8))
    whole = as_is(rgba)
    monkeypatch.setattr("qwen3omni_wgpu.inputs.image._STRIP", 96 * 7)
    np.testing.assert_array_equal(as_is(rgba), whole)


def test_one_colour_that_means_transparent(rng: np.random.Generator) -> None:
    pixels = noise(rng, 64, 96) | 1
    pixels[:9, :9] = (10, 20, 30)
    expected = pixels.copy()
    expected[:9, :9] = 255
    np.testing.assert_array_equal(as_is(stored(Image.fromarray(pixels), transparency=(10, 20, 30))), expected)
    grey = Image.fromarray(pixels[..., 0])
    np.testing.assert_array_equal(as_is(stored(grey, transparency=10)), np.repeat(expected[..., :1], 3, axis=2))
    deep = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8 | 77)
    found = as_is(stored(deep, transparency=10 << 8 | 77))
    np.testing.assert_array_equal(found, np.repeat(expected[..., :1], 3, axis=2))


def test_palettes(rng: np.random.Generator) -> None:
    indices, palette = rng.integers(0, 8, (64, 96), dtype=np.uint8), rng.integers(0, 255, (8, 3), dtype=np.uint8)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    for source in (image, stored(image), stored(image, "GIF"), stored(image, "BMP")):
        np.testing.assert_array_equal(as_is(source), palette[indices])
    with_hole = palette.copy()
    with_hole[3] = 255
    for kind in ("PNG", "GIF"):
        np.testing.assert_array_equal(as_is(stored(image, kind, transparency=3)), with_hole[indices])
    half = stored(image, transparency=bytes([255, 255, 255, 128]))
    with_hole[3] = np.round(palette[3] * (128 / 255) + 255 * (127 / 255))
    assert np.abs(as_is(half).astype(int) - with_hole[indices]).max() <= 1


def test_grey_and_deep_pictures(rng: np.random.Generator) -> None:
    deep = rng.integers(0, 65536, (64, 96), dtype=np.uint16)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    image = Image.fromarray(deep)
    for source in (image, stored(image), stored(image, "TIFF"), stored(image, "PPM"), stored(image, "JPEG2000")):
        np.testing.assert_array_equal(as_is(source), expected)
    grey = Image.fromarray(expected[..., 0])
    for source in (grey, stored(grey), stored(grey, "TIFF"), expected[..., 0], expected[..., :1]):
        np.testing.assert_array_equal(as_is(source), expected)
    bits = Image.fromarray(np.where(deep > 30000, 255, 0).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    for source in (bits, stored(bits)):
        np.testing.assert_array_equal(as_is(source)[..., 1], np.where(deep > 30000, 255, 0))
    for mode in ("I", "F"):
        assert "has pixels of 32 bits" in refused(Image.new(mode, (96, 64)))


def test_other_colour_spaces(rng: np.random.Generator) -> None:
    small = Image.fromarray(noise(rng, 4, 6)).resize((96, 64), Image.Resampling.BICUBIC)
    pixels = np.asarray(small).astype(int)
    for mode, off in (("CMYK", 1), ("YCbCr", 4), ("HSV", 12)):  # levels, from rounding there and back
        assert np.abs(as_is(small.convert(mode)) - pixels).max() <= off, mode
    cmyk = stored(small.convert("CMYK"), "JPEG", quality=98, subsampling=0)
    assert np.abs(as_is(cmyk) - pixels).mean() < 4


def test_one_pixel(rng: np.random.Generator) -> None:
    picture = load_image(stored(Image.new("RGB", (1, 1), (10, 200, 30))), RULES)
    assert picture.grid == (1, 4, 4)
    assert (picture.pixels == (10, 200, 30)).all()
    expected = np.repeat((np.array([10, 200, 30]) / 127.5 - 1), 2 * 16 * 16)
    np.testing.assert_allclose(picture.patches(0, 16), np.tile(expected, (16, 1)), atol=1e-6)


# Identity ------------------------------------------------------------------------------------------------------------


def test_digest(rng: np.random.Generator) -> None:
    pixels = noise(rng, 64, 96)
    picture = load_image(pixels, RULES)
    assert len(picture.digest) == 16
    assert load_image(stored(Image.fromarray(pixels), "BMP"), RULES).digest == picture.digest
    other = pixels.copy()
    other[63, 95, 2] ^= 1
    others = [
        load_image(other, RULES),
        load_image(np.ascontiguousarray(pixels.reshape(32, 192, 3)), RULES),
        load_image(pixels, replace(RULES, mean=(0.5, 0.5, 0.4))),
        load_image(pixels, replace(RULES, patch=32, merge=1)),
    ]
    assert len({picture.digest, *(one.digest for one in others)}) == 5


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_truncated(rng: np.random.Generator, tmp_path: Path, kind: str) -> None:
    data = stored(Image.fromarray(noise(rng, 200, 300)), kind)
    for share in (0.03, 0.5, 0.95):
        path = tmp_path / "half.png"
        path.write_bytes(data[: int(len(data) * share)])
        message = refused(path)
        assert str(path) in message
        assert "damaged" in message


def test_what_is_no_picture(tmp_path: Path) -> None:
    for name, data in (
        ("text.png", b"no picture\n" * 99),
        ("sound.jpg", b"RIFF\0\0\0\0WAVEfmt "),
        ("nulls.gif", bytes(500)),
    ):
        path = tmp_path / name
        path.write_bytes(data)
        assert "is not a picture, or damaged; use PNG, JPEG" in refused(path)
    (tmp_path / "empty.png").touch()
    assert "is empty (0 bytes)" in refused(tmp_path / "empty.png")
    assert "check the path of the picture file" in refused(tmp_path / "none.png")
    assert "not fetched unless that is allowed" in refused("http://localhost/a.png")
    assert "a picture is named by" in refused(3)


def test_postscript_is_not_run(tmp_path: Path) -> None:
    """Pillow would start Ghostscript."""
    path = tmp_path / "x.eps"
    path.write_bytes(stored(Image.new("RGB", (96, 64)), "EPS"))
    assert "is not a picture" in refused(path)


def header_only(width: int, height: int) -> bytes:
    """A PNG of a few bytes that announces any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(bytes(9000)))


def test_decompression_bombs_are_refused_from_their_header() -> None:
    tracemalloc.start()
    for width, height in ((12000, 12000), (60000, 60000), (2**31 - 1, 2**31 - 1)):
        assert "make it smaller first" in refused(header_only(width, height))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20
    assert "damaged" in refused(header_only(10000, 10000))  # below the limit, so it was looked into
    assert "far more pixels than Pillow decodes" in refused(header_only(60000, 60000))
    limited = refused(stored(Image.new("RGB", (96, 64))), max_source_pixels=6000)
    assert "has 96 x 64 pixels, more than the 6,000 that are decoded" in limited
    assert "more than the 6,000" in refused(np.zeros((64, 96, 3), np.uint8), max_source_pixels=6000)


def test_strips_are_refused() -> None:
    assert "one side more than 200 times the other" in refused(np.zeros((1, 201, 3), np.uint8))
    assert load_image(np.zeros((200, 1, 3), np.uint8), RULES).pixels.shape == (800, 32, 3)
    message = refused(stored(Image.new("L", (4100, 20))))
    assert message.startswith("the picture: is 4100 x 20 pixels")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((64, 96, 3), np.float32), r"not float32 \[64, 96, 3\]"),
        (np.zeros((64, 96, 2), np.uint8), r"not uint8 \[64, 96, 2\]"),
        (np.zeros((3, 64, 96), np.uint8), r"not uint8 \[3, 64, 96\]"),
        (np.zeros((2, 64, 96, 3), np.uint8), r"not uint8 \[2, 64, 96, 3\]"),
        (np.zeros((64, 0, 3), np.uint8), "has no pixels"),
    ],
)
def test_arrays_that_are_no_pictures(array: np.ndarray, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        load_image(array, RULES)


def test_limits_of_access() -> None:
    data = stored(Image.new("RGB", (96, 64)))
    assert "bytes that are taken into memory" in refused(data, access=Access(max_bytes=50))


# Rules ---------------------------------------------------------------------------------------------------------------


def test_rules_of_the_release() -> None:
    config = read_json(Path(__file__).parent.parent / "data" / "config_30b.json")
    written = metadata(config, {}, "x")
    assert PictureRules.from_gguf(written) == PictureRules()
    changed = {
        "clip.vision.patch_size": 8,
        "clip.vision.spatial_merge_size": 4,
        "clip.vision.temporal_patch_size": 3,
        "clip.vision.image_min_pixels": 7,
        "clip.vision.image_max_pixels": 8,
        "clip.vision.video_min_pixels": 9,
        "clip.vision.video_max_pixels": 10,
        "clip.vision.image_mean": [0.1, 0.2, 0.3],
        "clip.vision.image_std": [0.4, 0.5, 0.6],
    }
    rules = PictureRules.from_gguf({**written, **changed})
    assert rules == PictureRules(8, 4, 3, 7, 8, 9, 10, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6))
    assert (rules.factor, rules.patch_dim) == (32, 3 * 3 * 64)
    assert PictureRules.from_gguf({"clip.vision.patch_size": 16}) == PictureRules()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", 0),
        ("patch_size", True),
        ("patch_size", "16"),
        ("spatial_merge_size", -2),
        ("temporal_patch_size", 2.0),
        ("in_channels", 4),
        ("image_min_pixels", 1 << 30),
        ("video_max_pixels", 5),
        ("image_mean", [0.5, 0.5]),
        ("image_mean", [0.5, 0.5, float("nan")]),
        ("image_std", [0.5, 0.0, 0.5]),
        ("image_std", 0.5),
    ],
)
def test_rules_that_cannot_be(key: str, value: Any) -> None:
    with pytest.raises(InvalidModelFile, match=r"clip\.vision\.") as caught:
        PictureRules.from_gguf({"clip.vision.patch_size": 16, f"clip.vision.{key}": value})
    assert "\n" not in str(caught.value)


def test_a_file_without_vision() -> None:
    with pytest.raises(InvalidModelFile, match="no vision tower"):
        PictureRules.from_gguf({"clip.audio.n_fft": 400})
