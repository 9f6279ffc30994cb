"""Random prompts with media, and what transformers' processor and get_rope_index make of them.

Used live by the oracle tests and by tools/make_position_goldens.py. Needs torch and transformers (the [oracle] extra).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from transformers import Qwen3OmniMoeProcessor, Qwen3OmniMoeThinkerForConditionalGeneration
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import _get_feat_extract_output_lengths

from qwen3omni_wgpu.inputs.placeholders import AudioPart, ImagePart, MediaTokens, Part, VideoPart

TOKENS = MediaTokens(audio=10, image=11, video=12, vision_start=13, vision_end=14, audio_start=15, audio_end=16)
_FIRST_TEXT = 20


@dataclass(frozen=True)
class Mix:
    """One prompt: `ids` as the chat template writes them; frames of mel for every sound, in the prompt's order.

    exact: no time in it needs rounding, so the reference puts pads in the same order in its processor (which computes
    in float64, from 0) and in its positions (float32, from where the video starts).
    """

    ids: list[int]
    parts: list[Part]
    frames: list[int]
    with_sound: bool
    exact: bool


def random_mix(rng: np.random.Generator, parts: int) -> Mix:
    """A prompt with so many parts of all kinds. The reference knows videos with sound or without, never both."""
    with_sound, exact = bool(rng.integers(2)), bool(rng.integers(2))
    mix = Mix(_text(rng), [], [], with_sound, exact)
    for kind in rng.choice(["audio", "image", "video"], parts):
        grid = (1, *_sides(rng))
        if kind == "audio":
            mix.parts.append(AudioPart(_sound(rng, mix)))
        elif kind == "image":
            mix.parts.append(ImagePart(grid))
        else:
            seconds = int(rng.integers(1, 200)) / 64 if exact else 2 / float(rng.choice([0.7, 1.5, 29.97, 2.9]))
            steps = int(rng.integers(1, 7))
            mix.parts.append(VideoPart((steps, *grid[1:]), seconds, _sound(rng, mix) if with_sound else None))
        start, pad, end = _around(mix.parts[-1])
        mix.ids.extend([start, pad, end, *_text(rng)])
    return mix


def _text(rng: np.random.Generator) -> list[int]:
    length = int(rng.choice([0, 1, 3, int(rng.integers(4, 60))]))
    return rng.integers(_FIRST_TEXT, 1000, length).tolist()


def _sides(rng: np.random.Generator) -> tuple[int, int]:
    rows, columns = (2 * rng.integers(1, 9, 2)).tolist()
    return rows, columns


def _sound(rng: np.random.Generator, mix: Mix) -> int:
    mix.frames.append(int(rng.choice([int(rng.integers(1, 700)), 1, 99, 100, 101])))
    return int(_get_feat_extract_output_lengths(torch.tensor(mix.frames[-1])))


def _around(part: Part) -> tuple[int, int, int]:
    if isinstance(part, AudioPart):
        return TOKENS.audio_start, TOKENS.audio, TOKENS.audio_end
    return TOKENS.vision_start, TOKENS.image if isinstance(part, ImagePart) else TOKENS.video, TOKENS.vision_end


# The reference ---------------------------------------------------------------------------------------------------


def reference_ids(mix: Mix) -> list[int]:
    """The processor's replacements of the pad tokens; one letter stands for each token."""
    letters = {"i": TOKENS.image, "v": TOKENS.video, "a": TOKENS.audio, "<": TOKENS.audio_start, ">": TOKENS.audio_end}
    processor: Any = SimpleNamespace(
        image_token="i",
        video_token="v",
        audio_token="a",
        audio_bos_token="<",
        audio_eos_token=">",
        image_processor=SimpleNamespace(merge_size=TOKENS.merge),
        video_processor=SimpleNamespace(merge_size=TOKENS.merge),
    )
    kind, sounds = Qwen3OmniMoeProcessor, iter(mix.frames)
    made = iter([_replacement(kind, processor, part, sounds) for part in mix.parts])
    pads = (TOKENS.audio, TOKENS.image, TOKENS.video)
    nested = [[letters[letter] for letter in next(made)] if token in pads else [token] for token in mix.ids]
    return [token for run in nested for token in run]


def _replacement(kind: Any, processor: Any, part: Part, frames: Any) -> str:
    if isinstance(part, AudioPart):
        return kind.replace_audio_token(processor, _sounds(next(frames)), 0)
    grid = np.array([part.grid])
    if isinstance(part, ImagePart):
        return kind.replace_image_token(processor, {"image_grid_thw": grid}, 0)
    inputs = {"video_grid_thw": grid, "video_second_per_grid": [part.seconds_per_grid]}
    if part.audio_tokens is None:
        return kind.replace_video_token(processor, inputs, 0, load_audio_from_video=False)
    scale = int(TOKENS.position_id_per_seconds)
    return kind.replace_video_with_audio_token(
        processor, inputs, 0, _sounds(next(frames)), 0, position_id_per_seconds=scale
    )


def _sounds(frames: int) -> dict[str, Any]:
    return {"num_audio_tokens": _get_feat_extract_output_lengths(torch.tensor([frames])).tolist()}


class _Thinker(Qwen3OmniMoeThinkerForConditionalGeneration):
    """Just enough of the model for its positions."""

    def __init__(self) -> None:
        torch.nn.Module.__init__(self)
        self.spatial_merge_size = TOKENS.merge
        self.config: Any = SimpleNamespace(
            image_token_id=TOKENS.image,
            video_token_id=TOKENS.video,
            audio_token_id=TOKENS.audio,
            vision_start_token_id=TOKENS.vision_start,
            audio_start_token_id=TOKENS.audio_start,
            position_id_per_seconds=int(TOKENS.position_id_per_seconds),
            audio_config=SimpleNamespace(n_window=50),
        )


def reference_positions(ids: Sequence[int], mix: Mix) -> np.ndarray:
    """get_rope_index of the expanded ids: float32 [N, 3]."""
    images = [part.grid for part in mix.parts if isinstance(part, ImagePart)]
    videos = [part for part in mix.parts if isinstance(part, VideoPart)]
    given = torch.tensor([list(ids)])
    positions, _ = _Thinker().get_rope_index(
        given,
        torch.tensor(images) if images else None,
        torch.tensor([video.grid for video in videos]) if videos else None,
        torch.ones_like(given),
        mix.with_sound,
        torch.tensor(mix.frames) if mix.frames else None,
        torch.tensor([video.seconds_per_grid for video in videos]) if videos else None,
    )
    return positions[:, 0].T.numpy().copy()
