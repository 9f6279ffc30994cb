"""The audio tower in NumPy, from the tensors of a Hugging Face checkpoint: the truth that the GPU is compared with.

Written from the model's description: all chunks at once, attention as one matrix with a mask, nothing that
models/audio.py or the op twins compute. Shapes: mel [bins, T]; chunks [B, C, F, T] as in torch.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = "thinker.audio_tower."


def gelu(x: np.ndarray) -> np.ndarray:
    erf = np.frompyfunc(math.erf, 1, 1)
    return (x * (1 + erf(x.astype(np.float64) / math.sqrt(2)).astype(np.float64)) / 2).astype(np.float32)


class AudioTower:
    """tensors: Hugging Face name -> array; config: audio_config of config.json."""

    def __init__(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        self.w = {
            name.removeprefix(PREFIX): np.asarray(value, np.float32)
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        self.config = config

    def forward(self, mel: np.ndarray) -> np.ndarray:
        """Features float32 [bins, T] of one clip -> float32 [tokens, output_dim]."""
        c = self.config
        frames, chunk = mel.shape[1], 2 * c["n_window"]
        width = min(frames, chunk)  # a single short chunk is as wide as it is
        count = -(-frames // chunk)
        padded = np.pad(mel, ((0, 0), (0, count * width - frames)))
        x = padded.reshape(len(mel), count, 1, width).transpose(1, 2, 0, 3)
        for i in (1, 2, 3):
            x = gelu(self.convolution(x, f"conv2d{i}"))
        each = x.shape[3]
        x = x.transpose(0, 3, 1, 2).reshape(count, each, -1) @ self.w["conv_out.weight"].T
        x = x + sinusoids(each, c["d_model"])
        last = frames - (count - 1) * chunk
        n = (count - 1) * each + -(-last // 8)
        x = x.reshape(count * each, -1)[:n]
        windows = np.arange(n) // (each * (c["n_window_infer"] // chunk))
        mask = windows[:, None] == windows[None, :]
        for i in range(c["encoder_layers"]):
            x = self.layer(x, f"layers.{i}", mask)
        x = self.norm(x, "ln_post")
        return self.linear(gelu(self.linear(x, "proj1")), "proj2")

    def convolution(self, x: np.ndarray, name: str) -> np.ndarray:
        """3x3, stride 2, padding 1: [B, C, F, T] -> [B, C', F / 2, T / 2], halves rounded up."""
        kernel, bias = self.w[f"{name}.weight"], self.w[f"{name}.bias"]
        b, _, f, t = x.shape
        padded = np.pad(x, ((0, 0), (0, 0), (1, 2), (1, 2)))
        y = np.zeros((b, len(kernel), (f + 1) // 2, (t + 1) // 2), np.float32)
        for i in range(3):
            for j in range(3):
                y += np.einsum("oc,bcft->boft", kernel[:, :, i, j], padded[:, :, i : i + f : 2, j : j + t : 2])
        return y + bias[:, None, None]

    def layer(self, x: np.ndarray, name: str, mask: np.ndarray) -> np.ndarray:
        heads = self.config["encoder_attention_heads"]
        h = self.norm(x, f"{name}.self_attn_layer_norm")
        q, k, v = (
            self.linear(h, f"{name}.self_attn.{p}_proj").reshape(len(x), heads, -1).swapaxes(0, 1) for p in "qkv"
        )
        scores = np.where(mask, q @ k.swapaxes(1, 2) / np.float32(math.sqrt(q.shape[2])), -np.inf)
        weights = np.exp(scores - scores.max(axis=2, keepdims=True))
        mixed = weights / weights.sum(axis=2, keepdims=True) @ v
        x = x + self.linear(mixed.swapaxes(0, 1).reshape(len(x), -1), f"{name}.self_attn.out_proj")
        h = self.norm(x, f"{name}.final_layer_norm")
        return x + self.linear(gelu(self.linear(h, f"{name}.fc1")), f"{name}.fc2")

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=1, keepdims=True) + np.float32(1e-5))
        return centred / spread * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Sines of all frequencies, then cosines: [length, dim]."""
    rates = np.exp(-np.log(10000) / (dim // 2 - 1) * np.arange(dim // 2))
    angles = np.arange(length)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
