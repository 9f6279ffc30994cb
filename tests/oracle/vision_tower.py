"""transformers' vision tower with the weights of a checkpoint folder, in float32 with eager attention."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configuration
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

PREFIX = "thinker.visual."


class VisionOracle:
    """tensors: Hugging Face name -> weights, of which the tower's are taken; folder: where config.json lies."""

    def __init__(self, folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = json.loads((folder / "config.json").read_text())["thinker_config"]["vision_config"]
        settings = configuration.Qwen3OmniMoeVisionEncoderConfig(**self.config)
        tower = modeling.Qwen3OmniMoeVisionEncoder._from_config(settings, attn_implementation="eager")
        mine = {
            name.removeprefix(PREFIX): torch.from_numpy(np.asarray(value, np.float32))
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        tower.load_state_dict(mine)  # strict: all of them, and no others
        self.tower = tower.float().eval()

    def rows(self, patches: np.ndarray, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Patches [N, P] of one grid -> (float32 [N / 4, O], deepstack float32 [TAPS, N / 4, O])."""
        with torch.inference_mode():
            out = self.tower(torch.from_numpy(patches), grid_thw=torch.tensor([grid]))
        return out.pooler_output.numpy(), np.stack([tap.numpy() for tap in out.deepstack_features])
