"""transformers' Code2Wav with the weights of a checkpoint folder, in float32 with eager attention."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from transformers.models.qwen3_omni_moe import configuration_qwen3_omni_moe as configuration
from transformers.models.qwen3_omni_moe import modeling_qwen3_omni_moe as modeling

PREFIX = "code2wav."


class Code2WavOracle:
    """tensors: Hugging Face name -> weights, of which this part's are taken; folder: where config.json lies."""

    def __init__(self, folder: Path, tensors: Mapping[str, np.ndarray]) -> None:
        self.config = json.loads((folder / "config.json").read_text())["code2wav_config"]
        settings = configuration.Qwen3OmniMoeCode2WavConfig(**self.config)
        net = modeling.Qwen3OmniMoeCode2Wav._from_config(settings, attn_implementation="eager")
        mine = {
            name.removeprefix(PREFIX): torch.from_numpy(np.asarray(value, np.float32))
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        net.load_state_dict(mine)  # strict: all of them, and no others
        self.net = net.float().eval()

    def at_once(self, codes: np.ndarray) -> np.ndarray:
        """Codes int64 [16, frames] -> float32 [samples]."""
        with torch.inference_mode():
            return self.net(torch.from_numpy(codes)[None])[0, 0].numpy()

    def chunked(self, codes: np.ndarray, chunk: int = 300, context: int = 25) -> np.ndarray:
        with torch.inference_mode():
            found = self.net.chunked_decode(torch.from_numpy(codes)[None], chunk_size=chunk, left_context_size=context)
        return found[0, 0].numpy()
