"""`qwen3omni bench --media`: how long a sound or a picture takes, from samples or pixels to embeddings."""

import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any

from qwen3omni_wgpu.errors import InvalidRequest

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from qwen3omni_wgpu.omni import Omni

_RATE = 16000


@dataclass(frozen=True)
class MediaTest:
    """kind "aud": size seconds of sound. kind "img": a picture with sides of size pixels."""

    kind: str
    size: int

    @property
    def name(self) -> str:
        return f"{self.kind}{self.size}"


@dataclass(frozen=True)
class Measured:
    """seconds of every repetition. tokens: embeddings made; patches: of a picture, else None; flops: of the tower."""

    test: MediaTest
    seconds: list[float]
    tokens: int
    patches: int | None
    flops: int


def media_tests(text: str) -> list[MediaTest]:
    """`aud30,img1024` as tests. InvalidRequest for what is no such list."""
    found = [re.fullmatch(r"(aud|img)([1-9]\d{0,4})", name) for name in text.split(",") if text]
    if not all(found):
        raise InvalidRequest(
            f"--media {text!r} is not a list of audN (N seconds of sound) and imgN (N x N pixels) like aud30,img1024"
        )
    return [MediaTest(match[1], int(match[2])) for match in found if match]


def measured(omni: "Omni", tests: list[MediaTest], repeat: int) -> Iterator[Measured]:
    """Each test, after a run that loads the tower and compiles its shaders.

    Every run gets something new to hear or see, so that nothing already encoded can be taken from a cache. Raises what
    Omni.encode_audio and encode_image raise: UnsupportedModel or ModelNotFound for a model without towers.
    """
    for test in tests:
        seconds, tokens = [], 0
        for seed in range(repeat + 1):
            given: Any = sound(test.size, seed) if test.kind == "aud" else picture(test.size, seed)
            start = time.perf_counter()
            tokens = len(omni.encode_audio(given, _RATE) if test.kind == "aud" else omni.encode_image(given)[0])
            seconds.append(time.perf_counter() - start)
        metadata = omni.part("mmproj").metadata
        patches, flops = None, 0
        if test.kind == "aud":
            flops = audio_flops(metadata, test.size * _RATE // metadata["clip.audio.hop_length"])
        else:
            patches = tokens * metadata["clip.vision.spatial_merge_size"] ** 2
            flops = vision_flops(metadata, 1, patches)
        yield Measured(test, seconds[1:], tokens, patches, flops)


def sound(seconds: int, seed: int) -> "np.ndarray":
    """Something like a voice: float32 [seconds * 16000], a gliding pitch with overtones, syllables and some noise."""
    import numpy as np

    rng = np.random.default_rng(seed)
    count = seconds * _RATE
    turns = np.interp(np.arange(count), np.linspace(0, count, 4 * seconds + 1), rng.uniform(90, 250, 4 * seconds + 1))
    phase = 2 * np.pi * np.cumsum(turns) / _RATE
    voice = sum(np.sin(overtone * phase) / overtone for overtone in range(1, 12))
    loudness = np.abs(np.sin(2 * np.pi * 2.3 * np.arange(count) / _RATE + rng.uniform(0, 6)))
    return (0.2 * voice * loudness + 0.005 * rng.standard_normal(count)).astype(np.float32)


def picture(side: int, seed: int) -> "Image":
    """RGB, side x side: soft patches of colour under fine noise."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (max(1, side // 32), max(1, side // 32), 3), dtype=np.uint8)
    soft = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((soft + rng.integers(-20, 21, soft.shape)).clip(0, 255).astype(np.uint8))


# Work ------------------------------------------------------------------------------------------------------------


def audio_flops(metadata: Mapping[str, Any], frames: int) -> int:
    """Twice the multiplications of the audio tower's convolutions, matmuls and attention for so many mel frames."""
    get = _reader(metadata, "clip.audio.")
    dim, hidden, channels, chunk = (
        get("embedding_length"), get("feed_forward_length"), get("downsample_hidden_size"), 2 * get("n_window"),
    )  # fmt: skip
    # A clip of several chunks has its last one filled up; one chunk alone ends where it ends.
    chunks, width = ceil(frames / chunk), min(frames, chunk)
    full, rest = divmod(frames, chunk)
    work, height, inner = 0, get("num_mel_bins"), 1
    for _ in range(3):
        height, width = ceil(height / 2), ceil(width / 2)
        work += chunks * height * width * channels * inner * 9
        inner = channels
    work += chunks * width * channels * height * dim
    tokens = full * ceil(chunk / 8) + ceil(rest / 8)
    window = width * (get("n_window_infer") // chunk)
    cuts = [min(window, tokens - start) for start in range(0, tokens, window)]
    layer = tokens * (4 * dim * dim + 2 * dim * hidden) + 2 * dim * sum(cut * cut for cut in cuts)
    work += get("block_count") * layer + tokens * dim * (dim + get("projection_dim"))
    return 2 * work


def vision_flops(metadata: Mapping[str, Any], steps: int, patches: int) -> int:
    """The same of the vision tower for a picture (one step) or a video of so many time steps with `patches` each."""
    get = _reader(metadata, "clip.vision.")
    dim, hidden, out = get("embedding_length"), get("feed_forward_length"), get("projection_dim")
    count = steps * patches
    work = count * get("in_channels") * get("temporal_patch_size") * get("patch_size") ** 2 * dim
    layer = count * (4 * dim * dim + 2 * dim * hidden) + 2 * dim * steps * patches**2
    merged = dim * get("spatial_merge_size") ** 2
    mergers = 1 + len(metadata.get("clip.vision.deepstack_visual_indexes", ()))
    work += get("block_count") * layer
    work += mergers * count // get("spatial_merge_size") ** 2 * merged * (merged + out)
    return 2 * work


def _reader(metadata: Mapping[str, Any], prefix: str) -> Any:
    return lambda key: int(metadata[prefix + key])
