"""Code2Wav in NumPy, all frames at once, channels first as the model's description has it: truth for new weights."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from qwen3omni_wgpu.reference.elementwise import gelu, softmax

PREFIX = "code2wav."


class Code2Wav:
    """stored: Hugging Face name -> weights, of which this part's are taken; config: code2wav_config."""

    def __init__(self, stored: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        self.c = config
        self.w = {
            name.removeprefix(PREFIX): value.astype(np.float64)
            for name, value in stored.items()
            if name.startswith(PREFIX)
        }

    def forward(self, codes: np.ndarray) -> np.ndarray:
        """codes [16, T] -> float64 [1920 T - 555]."""
        tables = codes + self.c["codebook_size"] * np.arange(len(codes))[:, None]
        x = self.w["code_embedding.weight"][tables].mean(axis=0)  # [T, D]
        for i in range(self.c["num_hidden_layers"]):
            x = self.layer(f"pre_transformer.layers.{i}", x)
        x = self.rms(x, "pre_transformer.norm").T  # [D, T]
        for u, ratio in enumerate(self.c["upsampling_ratios"]):
            x = self.next_block(f"upsample.{u}.1", self.longer(f"upsample.{u}.0.conv", x, ratio, 0))
        x = self.causal("decoder.0.conv", x)
        blocks = len(self.c["upsample_rates"])
        for b, rate in enumerate(self.c["upsample_rates"]):
            name = f"decoder.{b + 1}.block"
            x = self.longer(f"{name}.1.conv", self.snake(f"{name}.0", x), rate, rate)
            for unit, dilation in ((2, 1), (3, 3), (4, 9)):
                y = self.causal(f"{name}.{unit}.conv1.conv", self.snake(f"{name}.{unit}.act1", x), dilation)
                x = x + self.causal(f"{name}.{unit}.conv2.conv", self.snake(f"{name}.{unit}.act2", y))
        x = self.causal(f"decoder.{blocks + 2}.conv", self.snake(f"decoder.{blocks + 1}", x))
        return np.clip(x[0], -1, 1)

    def layer(self, name: str, x: np.ndarray) -> np.ndarray:
        mixed = self.attention(f"{name}.self_attn", self.rms(x, f"{name}.input_layernorm"))
        x = x + self.w[f"{name}.self_attn_layer_scale.scale"] * mixed
        h = self.rms(x, f"{name}.post_attention_layernorm")
        gate, up = (h @ self.w[f"{name}.mlp.{part}_proj.weight"].T for part in ("gate", "up"))
        down = (gate / (1 + np.exp(-gate)) * up) @ self.w[f"{name}.mlp.down_proj.weight"].T
        return x + self.w[f"{name}.mlp_layer_scale.scale"] * down

    def attention(self, name: str, h: np.ndarray) -> np.ndarray:
        t, heads = len(h), self.c["num_attention_heads"]
        q, k, v = (
            (h @ self.w[f"{name}.{part}_proj.weight"].T).reshape(t, heads, -1).transpose(1, 0, 2) for part in "qkv"
        )
        half = q.shape[-1] // 2
        angles = np.arange(t)[:, None] * self.c["rope_theta"] ** (-np.arange(half) / half)
        cos, sin = np.cos(angles), np.sin(angles)

        def turned(x: np.ndarray) -> np.ndarray:
            a, b = x[..., :half], x[..., half:]
            return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

        scores = turned(q) @ turned(k).transpose(0, 2, 1) / math.sqrt(2 * half)
        back = np.arange(t)[:, None] - np.arange(t)
        scores = np.where((back >= 0) & (back < self.c["sliding_window"]), scores, -np.inf)
        mixed = (softmax(scores) @ v).transpose(1, 0, 2).reshape(t, -1)
        return mixed @ self.w[f"{name}.o_proj.weight"].T

    def rms(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + self.c["rms_norm_eps"]) * self.w[f"{name}.weight"]

    def longer(self, name: str, x: np.ndarray, stride: int, trimmed: int) -> np.ndarray:
        """A transposed convolution by its definition: every column of x adds its kernel; then both ends are cut."""
        kernel = self.w[f"{name}.weight"]  # [in, out, taps]
        out = np.zeros((kernel.shape[1], (x.shape[1] - 1) * stride + kernel.shape[2]))
        for t in range(x.shape[1]):
            out[:, t * stride : t * stride + kernel.shape[2]] += np.tensordot(x[:, t], kernel, 1)
        return out[:, trimmed : out.shape[1] - trimmed] + self.w[f"{name}.bias"][:, None]

    def causal(self, name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        kernel = self.w[f"{name}.weight"]  # [out, in, taps]
        before = (kernel.shape[2] - 1) * dilation
        padded = np.pad(x, ((0, 0), (before, 0)))
        taps = [kernel[:, :, j] @ padded[:, j * dilation : j * dilation + x.shape[1]] for j in range(kernel.shape[2])]
        return sum(taps) + self.w[f"{name}.bias"][:, None]

    def next_block(self, name: str, x: np.ndarray) -> np.ndarray:
        """ConvNeXt: every channel alone, then a small MLP a column."""
        kernel = self.w[f"{name}.dwconv.conv.weight"][:, 0]
        padded = np.pad(x, ((0, 0), (kernel.shape[1] - 1, 0)))
        y = sum(kernel[:, j : j + 1] * padded[:, j : j + x.shape[1]] for j in range(kernel.shape[1]))
        y = (y + self.w[f"{name}.dwconv.conv.bias"][:, None]).T
        centred = y - y.mean(axis=-1, keepdims=True)
        y = centred / np.sqrt(np.mean(centred**2, axis=-1, keepdims=True) + 1e-6)
        y = y * self.w[f"{name}.norm.weight"] + self.w[f"{name}.norm.bias"]
        y = gelu(y @ self.w[f"{name}.pwconv1.weight"].T + self.w[f"{name}.pwconv1.bias"])
        y = y @ self.w[f"{name}.pwconv2.weight"].T + self.w[f"{name}.pwconv2.bias"]
        return x + (self.w[f"{name}.gamma"] * y).T

    def snake(self, name: str, x: np.ndarray) -> np.ndarray:
        alpha, beta = (np.exp(self.w[f"{name}.{part}"])[:, None] for part in ("alpha", "beta"))
        return x + np.sin(alpha * x) ** 2 / (beta + 1e-9)
