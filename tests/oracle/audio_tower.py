"""transformers' audio tower with the weights of a checkpoint folder, in float32 with eager attention."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configuration
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

PREFIX = "thinker.audio_tower."


class AudioOracle:
    """tensors: Hugging Face name -> weights, of which the tower's are taken; folder: where config.json lies."""

    def __init__(self, folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = json.loads((folder / "config.json").read_text())["thinker_config"]["audio_config"]
        settings = configuration.Qwen3OmniMoeAudioEncoderConfig(**self.config)
        tower = modeling.Qwen3OmniMoeAudioEncoder._from_config(settings, attn_implementation="eager")
        mine = {
            name.removeprefix(PREFIX): torch.from_numpy(np.asarray(value, np.float32))
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        tower.load_state_dict(mine)  # strict: all of them, and no others
        self.tower = tower.float().eval()

    def rows(self, mel: np.ndarray) -> np.ndarray:
        """Features [bins, T] of one clip -> float32 [tokens, output_dim]."""
        with torch.inference_mode():
            out = self.tower(torch.from_numpy(mel), feature_lens=torch.tensor([mel.shape[1]]))
        return out.last_hidden_state.numpy()
