"""transformers' processors of pictures and video with the settings of Qwen3-Omni. Needs torch and torchvision."""

from typing import Any

import numpy as np
import torch
from transformers.models.qwen2_vl import video_processing_qwen2_vl
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor
from transformers.models.qwen2_vl.video_processing_qwen2_vl import Qwen2VLVideoProcessor
from transformers.video_utils import VideoMetadata

_SETTINGS: dict[str, Any] = {
    "patch_size": 16,
    "merge_size": 2,
    "temporal_patch_size": 2,
    "image_mean": [0.5] * 3,
    "image_std": [0.5] * 3,
}


def image_processor(backend: str, most: int = 12845056) -> Any:
    """backend: "pil" or "torchvision"."""
    kind = {"pil": Qwen2VLImageProcessorPil, "torchvision": Qwen2VLImageProcessor}[backend]
    return kind(size={"shortest_edge": 3136, "longest_edge": most}, **_SETTINGS)


def video_processor(least: int = 131072, most: int = 786432) -> Any:
    size = {"shortest_edge": least, "longest_edge": most}
    return Qwen2VLVideoProcessor(size=size, cap_pixels_per_frame=True, do_sample_frames=False, **_SETTINGS)


def frame_sizes(height: int, width: int, least: int, most: int) -> tuple[int, int]:
    return video_processing_qwen2_vl.smart_resize(height, width, 32, least, most)


def sampled(total: int, rate: float, fps: float) -> list[int]:
    """Indices of the frames that are taken of `total` with `rate` a second.

    torch.arange gives one more, past the last frame, where its step was rounded down.
    """
    metadata = VideoMetadata(total_num_frames=total, fps=rate, duration=total / rate)
    return [i for i in video_processor().sample_frames(metadata, fps=fps).tolist() if i < total]


def frame_limit(count: int) -> int:
    """Most pixels of a frame among `count`: what the processor hands to smart_resize."""
    found = []

    def keep(height: int, width: int, factor: int, min_pixels: int, max_pixels: int) -> tuple[int, int]:
        found.append(max_pixels)
        return height, width

    real = video_processing_qwen2_vl.smart_resize
    video_processing_qwen2_vl.smart_resize = keep
    try:
        processor = video_processor()
        frames = torch.zeros(1, 1, 1, 1, 1, dtype=torch.uint8).expand(1, count, 3, 32, 32)
        processor.resize(
            frames, processor._standardize_kwargs(size=processor.size)["size"], 3, 32, cap_pixels_per_frame=True
        )
    finally:
        video_processing_qwen2_vl.smart_resize = real
    return found[0]


def levels(rows: np.ndarray, grid: Any, depth: int = 2) -> np.ndarray:
    """Rows of patches back to frames uint8 [F, H, W, 3]; each value must be a whole level."""
    t, h, w = (int(n) for n in grid)
    scaled = (np.asarray(rows, np.float64) * 0.5 + 0.5) * 255
    assert np.abs(scaled - scaled.round()).max() < 1e-4
    patches = scaled.round().astype(np.uint8).reshape(t, h // 2, w // 2, 2, 2, 3, depth, 16, 16)
    # t, block row, block column, row, column, channel, frame, y, x -> t, frame, block row, row, y, block column, ...
    return patches.transpose(0, 6, 1, 3, 7, 2, 4, 8, 5).reshape(t * depth, h * 16, w * 16, 3)
