"""Prompts with pictures, sound and video through transformers' own processor and thinker, in float32.

Needs torch, torchvision and transformers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tiny_checkpoint import CHAT_TEMPLATE, PREPROCESSOR
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from oracle.hf_models import OmniOracle

_NAMED = {
    "image_token": "<|image_pad|>",
    "audio_token": "<|audio_pad|>",
    "video_token": "<|video_pad|>",
    "vision_bos_token": "<|vision_start|>",
    "vision_eos_token": "<|vision_end|>",
    "audio_bos_token": "<|audio_start|>",
    "audio_eos_token": "<|audio_end|>",
}


@dataclass(frozen=True)
class MediaAnswer:
    """ids [N] expanded, positions float32 [N, 3], logits float32 [N, V]; greedy and margins [G] continue them.

    decoded: float32 [G, V], the logits that the greedy ids were chosen from.
    """

    ids: np.ndarray
    positions: np.ndarray
    logits: np.ndarray
    greedy: np.ndarray
    margins: np.ndarray
    decoded: np.ndarray


class MediaOracle(OmniOracle):
    """The thinker of a checkpoint folder that tests/tiny_checkpoint.py wrote, with the processor that belongs to it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.processor = processor(folder)

    def answer(self, messages: Sequence[Mapping[str, Any]], steps: int, fps: float = 2.0) -> MediaAnswer:
        """messages: content lists of parts whose sources are arrays; a video may have "sound": samples."""
        inputs = self._inputs(messages, fps)
        ids = inputs["input_ids"]
        positions, _ = self.model.get_rope_index(
            ids,
            inputs.get("image_grid_thw"),
            inputs.get("video_grid_thw"),
            inputs["attention_mask"],
            inputs.get("use_audio_in_video", False),
            inputs["feature_attention_mask"].sum(-1) if "feature_attention_mask" in inputs else None,
            inputs.get("video_second_per_grid"),
        )
        with torch.inference_mode():
            logits = self.model(**inputs).logits[0].numpy()
            self.model.rope_deltas = None
            done = self.model.generate(
                **inputs,
                max_new_tokens=steps,
                do_sample=False,
                eos_token_id=None,
                output_logits=True,
                return_dict_in_generate=True,
            )
        decoded = torch.stack([row[0] for row in done.logits])
        best = decoded.topk(2)
        margins = (best.values[:, 0] - best.values[:, 1]).numpy()
        greedy = done.sequences[0, ids.shape[1] :].numpy()
        places = positions[:, 0].T.numpy().astype(np.float32)
        return MediaAnswer(ids[0].numpy(), places, logits, greedy, margins, decoded.numpy())

    def _inputs(self, messages: Sequence[Mapping[str, Any]], fps: float) -> dict[str, Any]:
        parts = [part for message in messages if not isinstance(message["content"], str) for part in message["content"]]
        images = [part["image"] for part in parts if part["type"] == "image"]
        videos = [part["video"] for part in parts if part["type"] == "video"]
        audio, sources = [], []
        for part in parts:
            if part["type"] == "audio":
                audio.append(part["audio"])
                sources.append(None)
            elif part["type"] == "video" and part.get("sound") is not None:
                audio.append(part["sound"])
                sources.append(sum(source is not None for source in sources))
        text = self.processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        of_videos = any(source is not None for source in sources)
        inputs = self.processor(
            text=text,
            images=images or None,
            videos=[np.ascontiguousarray(video.transpose(0, 3, 1, 2)) for video in videos] or None,
            audio=audio or None,
            audio_from_video_indices=sources or None,
            load_audio_from_video=of_videos,
            videos_kwargs={"fps": fps, "do_sample_frames": False},
            return_tensors="pt",
        )
        inputs = dict(inputs)
        inputs.pop("mm_token_type_ids", None)
        if "video_second_per_grid" in inputs:
            inputs["video_second_per_grid"] = torch.as_tensor(inputs["video_second_per_grid"], dtype=torch.float32)
        if of_videos:
            inputs["use_audio_in_video"] = True
        return inputs


def processor(folder: Path) -> transformers.Qwen3OmniMoeProcessor:
    """The processor that a release's preprocessor_config.json makes, around the folder's tokenizer."""
    tokenizer = transformers.Qwen2Tokenizer.from_pretrained(folder, extra_special_tokens=_NAMED)
    p = PREPROCESSOR
    pictures = {
        "patch_size": p["patch_size"],
        "merge_size": p["merge_size"],
        "temporal_patch_size": p["temporal_patch_size"],
        "image_mean": p["image_mean"],
        "image_std": p["image_std"],
    }
    return transformers.Qwen3OmniMoeProcessor(
        image_processor=Qwen2VLImageProcessorPil(min_pixels=p["min_pixels"], max_pixels=p["max_pixels"], **pictures),
        video_processor=transformers.Qwen2VLVideoProcessor(**pictures),
        feature_extractor=transformers.WhisperFeatureExtractor(
            feature_size=p["feature_size"],
            sampling_rate=p["sampling_rate"],
            hop_length=p["hop_length"],
            n_fft=p["n_fft"],
            return_attention_mask=True,
        ),
        tokenizer=tokenizer,
        chat_template=CHAT_TEMPLATE,
    )
