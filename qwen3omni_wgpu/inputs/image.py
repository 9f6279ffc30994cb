"""Pictures as the vision tower takes them: decoded, upright, on white, resized, and cut into rows of patches.

Sizes, pixels and values are those of transformers' Qwen2VLImageProcessor with the settings of Qwen3-Omni.
"""

import hashlib
import math
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.inputs.sources import DEFAULT_ACCESS, Access, Blob, Source, open_source

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Grid = tuple[int, int, int]

MAX_SOURCE_PIXELS = 1 << 27  # 134 million: the largest cameras have 102, decoded they take 0.5 GB
_LONGEST = 200  # times the shorter side; the reference's limit
_PREFIX = "clip.vision."

# Kinds with a signature of their own. Pillow knows more, but takes any file for some of them, and runs Ghostscript
# for EPS.
_FORMATS = ["PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000", "PPM", "QOI", "ICO", "ICNS"]
_KNOWN_KINDS = "PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"

# What Pillow's decoders raise on damaged files, besides Image.DecompressionBombError.
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
    struct.error,
    zlib.error,
)

_ORIENTATION = 0x0112  # the EXIF tag
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_STRAIGHT = {"La": "LA", "RGBa": "RGBA"}  # premultiplied -> straight alpha
_WHITE = (255, 255, 255, 255)
_STRIP = 1 << 22  # pixels of a picture with alpha that are put on white at a time

_silence = threading.Lock()


@dataclass(frozen=True)
class PictureRules:
    """How pictures and video frames become patches.

    patch: side of a patch in pixels. merge: side in patches of the square that becomes one token. temporal: frames a
    patch is deep. min and max_pixels: bounds of a picture's area after resizing, video_...: of a frame's. mean, std:
    of each channel, for values of 0 to 1.
    """

    patch: int = 16
    merge: int = 2
    temporal: int = 2
    min_pixels: int = 3136
    max_pixels: int = 12845056
    video_min_pixels: int = 131072
    video_max_pixels: int = 786432
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "PictureRules":
        """From the `clip.vision.*` of an mmproj file. What it lacks is as in the release, except for the patch size.

        InvalidModelFile when a value is missing or cannot be right.
        """
        if f"{_PREFIX}patch_size" not in metadata:
            raise InvalidModelFile(f"{_PREFIX}patch_size is missing: this file has no vision tower; convert it again")
        size = {
            "patch": _integer(metadata, "patch_size", cls.patch, 1024),
            "merge": _integer(metadata, "spatial_merge_size", cls.merge, 64),
            "temporal": _integer(metadata, "temporal_patch_size", cls.temporal, 64),
        }
        limits = {
            name: _integer(metadata, key, getattr(cls, name), 1 << 40)
            for name, key in (
                ("min_pixels", "image_min_pixels"),
                ("max_pixels", "image_max_pixels"),
                ("video_min_pixels", "video_min_pixels"),
                ("video_max_pixels", "video_max_pixels"),
            )
        }
        if limits["min_pixels"] > limits["max_pixels"] or limits["video_min_pixels"] > limits["video_max_pixels"]:
            raise InvalidModelFile(f"{_PREFIX}*_min_pixels is more than *_max_pixels: {limits}; convert the file again")
        _integer(metadata, "in_channels", 3, 3, least=3)
        mean = _channels(metadata, "image_mean", cls.mean)
        std = _channels(metadata, "image_std", cls.std)
        if min(std) <= 0:
            raise InvalidModelFile(f"{_PREFIX}image_std is {list(std)}, expected positive numbers")
        return cls(**size, **limits, mean=mean, std=std)

    @property
    def factor(self) -> int:
        """Side in pixels of the square that becomes one token; sizes are multiples of it."""
        return self.patch * self.merge

    @property
    def patch_dim(self) -> int:
        """Values of one patch."""
        return 3 * self.temporal * self.patch**2

    @cached_property
    def levels(self) -> Floats:
        """[3, 256]: what the 8-bit levels of each channel become, in the reference's steps of rounding."""
        level = (np.arange(256) * (1 / 255)).astype(np.float32)
        mean, std = (np.asarray(value, np.float32)[:, None] for value in (self.mean, self.std))
        return (level - mean) / std


def _integer(metadata: Mapping[str, Any], key: str, default: int, most: int, least: int = 1) -> int:
    value = metadata.get(_PREFIX + key, default)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        expected = f"{least} to {most}" if least < most else f"{least}"
        raise InvalidModelFile(f"{_PREFIX}{key} is {value!r}, expected {expected}; convert the file again")
    return value


def _channels(metadata: Mapping[str, Any], key: str, default: tuple[float, float, float]) -> tuple[float, float, float]:
    values = metadata.get(_PREFIX + key, default)
    numbers = isinstance(values, list | tuple) and all(
        isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v) for v in values
    )
    if not numbers or len(values) != 3:
        raise InvalidModelFile(f"{_PREFIX}{key} is {values!r}, expected three numbers; convert the file again")
    red, green, blue = (float(v) for v in values)
    return red, green, blue


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int, name: str = "the picture"
) -> tuple[int, int]:
    """Height and width after resizing: multiples of `factor`, the area within the bounds where the shape allows it.

    Source: smart_resize of transformers' qwen2_vl. InvalidRequest for a picture without pixels, or with one side more
    than 200 times the other.
    """
    if min(height, width) < 1:
        raise InvalidRequest(f"{name}: is {width} x {height} pixels, there is nothing to see; use another file")
    if max(height, width) > _LONGEST * min(height, width):
        raise InvalidRequest(
            f"{name}: is {width} x {height} pixels, one side more than {_LONGEST} times the other; cut it into pieces"
        )
    tall, wide = round(height / factor) * factor, round(width / factor) * factor  # half to even, as the reference
    if tall * wide > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        tall = max(factor, math.floor(height / shrink / factor) * factor)
        wide = max(factor, math.floor(width / shrink / factor) * factor)
    elif tall * wide < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        tall = math.ceil(height * grow / factor) * factor
        wide = math.ceil(width * grow / factor) * factor
    return tall, wide


# Patches ---------------------------------------------------------------------------------------------------------


def patch_rows(frames: Bytes, start: int, stop: int, rules: PictureRules) -> Floats:
    """Rows start to stop of the reference's pixel_values: float32 [stop - start, patch_dim].

    frames: [F, H, W, 3]; one frame alone stands still for the depth of a patch. Rows go by temporal step, then by
    squares of merge x merge patches row by row, then row by row in a square. A row's values go by channel, frame, y, x.
    """
    n_frames, height, width, _ = frames.shape
    patch, merge, depth = rules.patch, rules.merge, rules.temporal
    tall, wide = height // patch, width // patch
    total = -(-n_frames // depth) * tall * wide
    if not 0 <= start <= stop <= total:
        raise InvalidRequest(f"patches {start} to {stop} were asked for, but there are {total}")
    step, place = np.divmod(np.arange(start, stop), tall * wide)
    square, inner = np.divmod(place, merge * merge)
    row = square // (wide // merge) * merge + inner // merge
    column = square % (wide // merge) * merge + inner % merge
    grid = frames.reshape(n_frames, tall, patch, wide, patch, 3)
    rows = np.empty((stop - start, 3, depth, patch, patch), np.float32)
    for frame in range(depth):
        cut = grid[np.minimum(step * depth + frame, n_frames - 1), row, :, column]  # [n, patch, patch, 3]
        for channel in range(3):
            rows[:, channel, frame] = rules.levels[channel][cut[..., channel]]
    return rows.reshape(stop - start, rules.patch_dim)


def content_digest(kind: str, frames: Bytes, rules: PictureRules, *more: object) -> bytes:
    """16 bytes that stand for what the tower sees: the pixels, and how they are cut and scaled."""
    digest = hashlib.sha256()
    digest.update(repr((kind, frames.shape, rules.patch, rules.merge, rules.temporal, rules.mean, rules.std)).encode())
    digest.update(repr(more).encode())
    digest.update(np.ascontiguousarray(frames).data)
    return digest.digest()[:16]


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture as the tower sees it. pixels: uint8 [H, W, 3]. digest: 16 bytes, of the content. name: for messages."""

    pixels: Bytes
    rules: PictureRules
    digest: bytes
    name: str

    @property
    def grid(self) -> Grid:
        """Patches along time (1), height and width."""
        height, width, _ = self.pixels.shape
        return 1, height // self.rules.patch, width // self.rules.patch

    def patches(self, start: int, stop: int) -> Floats:
        """Rows start to stop of the reference's pixel_values; see `patch_rows`."""
        return patch_rows(self.pixels[None], start, stop, self.rules)


# Loading ---------------------------------------------------------------------------------------------------------


def load_image(
    source: Source | Image.Image | Bytes,
    rules: PictureRules,
    *,
    access: Access = DEFAULT_ACCESS,
    max_source_pixels: int = MAX_SOURCE_PIXELS,
) -> Picture:
    """A picture of any common kind and mode, upright by its EXIF data, on white where it is transparent, resized.

    source: a file (see `open_source`), a Pillow image, or uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4]. Of an
    animation the first picture. Colour profiles are not applied: the reference does not either.
    max_source_pixels: larger pictures are refused before they are decoded. Pillow's own limit for files stays.
    Raises InvalidRequest in one line: what `open_source` refuses, not a picture, damaged, too large, too long.
    """
    image, name = decode(source, access=access, max_source_pixels=max_source_pixels)
    size = smart_resize(image.height, image.width, rules.factor, rules.min_pixels, rules.max_pixels, name)
    pixels = resized(image, size)
    return Picture(pixels, rules, content_digest("image", pixels, rules), name)


def decode(
    source: Source | Image.Image | Bytes, *, access: Access = DEFAULT_ACCESS, max_source_pixels: int = MAX_SOURCE_PIXELS
) -> tuple[Image.Image, str]:
    """The picture in RGB, upright and in full size, and its name for messages. Else as `load_image`."""
    if isinstance(source, np.ndarray):
        return _rgb(_from_array(source), "the picture", max_source_pixels), "the picture"
    if isinstance(source, Image.Image):
        name = str(getattr(source, "filename", "") or "the picture")
        return _rgb(source, name, max_source_pixels), name
    blob = open_source(source, "picture", access)
    with blob.open() as file, _identify(file, blob, max_source_pixels) as image:
        return _rgb(image, blob.name, max_source_pixels), blob.name


def resized(image: Image.Image, size: tuple[int, int]) -> Bytes:
    """uint8 [H, W, 3] of an RGB image. size: (H, W). Bicubic with antialiasing.

    Across, then down, as torchvision does. Left alone, Pillow 13 goes down first where that is faster, and as each
    pass clips to 0..255 that changes sharp edges by up to 26 levels.
    """
    height, width = size
    across = image.resize((width, image.height), Image.Resampling.BICUBIC)
    return np.asarray(across.resize((width, height), Image.Resampling.BICUBIC))


def _from_array(array: Bytes) -> Image.Image:
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise InvalidRequest(
            f"a picture's array is uint8 [H, W], [H, W, 1], [H, W, 3] or [H, W, 4], not {array.dtype} "
            f"{list(array.shape)}; convert it to that"
        )
    if 0 in array.shape:
        raise InvalidRequest(f"the picture's array {list(array.shape)} has no pixels; give one that has")
    return Image.fromarray(np.ascontiguousarray(array[..., 0] if array.shape[2:] == (1,) else array))


def _identify(file: BinaryIO, blob: Blob, max_source_pixels: int) -> Image.Image:
    """The header read, nothing decoded."""
    Image.init()
    kinds = [kind for kind in _FORMATS if kind in Image.OPEN]
    try:
        with _quiet():  # Pillow warns of large pictures, but the limit is ours
            image = Image.open(file, formats=kinds)
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{blob.name}: has far more pixels than Pillow decodes; make it smaller first") from error
    except Image.UnidentifiedImageError as error:
        raise InvalidRequest(f"{blob.name}: is not a picture, or damaged; use {_KNOWN_KINDS}") from error
    except _DAMAGE as error:
        raise _damaged(blob.name, error) from error
    return image


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings. Their filters belong to all threads, hence the lock."""
    with _silence, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _damaged(name: str, error: BaseException) -> InvalidRequest:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return InvalidRequest(f"{name}: the picture cannot be decoded ({reason}); it is damaged or truncated, get it again")


def _rgb(image: Image.Image, name: str, max_source_pixels: int) -> Image.Image:
    if image.width * image.height > max_source_pixels:
        raise InvalidRequest(
            f"{name}: has {image.width} x {image.height} pixels, more than the {max_source_pixels:,} that are decoded; "
            "make it smaller first"
        )
    if 0 in image.size:
        raise InvalidRequest(f"{name}: is {image.width} x {image.height} pixels, there is nothing to see")
    try:
        with _quiet():
            image.load()
        return _on_white(_upright(_eight_bits(image, name)))
    except Image.DecompressionBombError as error:
        raise InvalidRequest(f"{name}: unpacks to more pixels than its header says; get it again") from error
    except _DAMAGE as error:
        raise _damaged(name, error) from error


def _upright(image: Image.Image) -> Image.Image:
    """Turned and mirrored as the EXIF data say. Unreadable EXIF data say nothing: the pixels are sound."""
    try:
        with _quiet():
            turn = _UPRIGHT.get(image.getexif().get(_ORIENTATION, 1))
    except _DAMAGE:
        return image
    return image if turn is None else image.transpose(turn)


def _eight_bits(image: Image.Image, name: str) -> Image.Image:
    """The upper 8 bits of 16, where Pillow would cut every level above 255 to white."""
    if image.mode == "F" or (image.mode == "I" and image.format not in ("PPM", "PNG")):
        raise InvalidRequest(
            f"{name}: has pixels of 32 bits, and nothing says which of them are black and white; convert it to 8 or 16"
        )
    if not image.mode.startswith("I"):
        return image.convert(_STRAIGHT[image.mode]) if image.mode in _STRAIGHT else image
    levels = np.asarray(image)
    grey = Image.fromarray((levels >> 8).astype(np.uint8))
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Image.fromarray(np.where(levels == clear, 0, 255).astype(np.uint8)))
    grey.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return grey


def _on_white(image: Image.Image) -> Image.Image:
    """RGB. Strip by strip where there is transparency: it takes several copies of what it works on."""
    if "A" not in image.getbands() and image.info.get("transparency") is None:
        return image if image.mode == "RGB" else image.convert("RGB")
    found = Image.new("RGB", image.size)
    rows = max(1, _STRIP // image.width)
    for top in range(0, image.height, rows):
        strip = image.crop((0, top, image.width, min(top + rows, image.height))).convert("RGBA")
        white = Image.new("RGBA", strip.size, _WHITE)
        found.paste(Image.alpha_composite(white, strip).convert("RGB"), (0, top))
    return found
