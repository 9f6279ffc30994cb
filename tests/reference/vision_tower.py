"""The vision tower in NumPy, from the tensors of a Hugging Face checkpoint: the truth that the GPU is compared with.

Written from the model's description: loops over rows and columns, one step in time after the other, nothing that
models/vision.py or the op twins compute.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = "thinker.visual."
EPS = 1e-6


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def gelu_tanh(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class VisionTower:
    """tensors: Hugging Face name -> array; config: vision_config of config.json. Computes in float64."""

    def __init__(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        self.w = {
            name.removeprefix(PREFIX): np.asarray(value, np.float64)
            for name, value in tensors.items()
            if name.startswith(PREFIX)
        }
        self.config = config

    def forward(self, patches: np.ndarray, grid: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Patches [N, P] of one grid -> ([N / 4, O], deepstack [TAPS, N / 4, O])."""
        steps = np.split(patches.astype(np.float64), grid[0])
        results = [self.step(step, grid[1], grid[2]) for step in steps]
        return np.concatenate([rows for rows, _ in results]), np.concatenate([taps for _, taps in results], axis=1)

    def step(self, patches: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
        """One step in time."""
        c = self.config
        corners = [(i, j) for i in range(0, height, 2) for j in range(0, width, 2)]
        places = [(i + down, j + right) for i, j in corners for down in (0, 1) for right in (0, 1)]
        kernel = self.w["patch_embed.proj.weight"]
        x = patches @ kernel.reshape(len(kernel), -1).T + self.w["patch_embed.proj.bias"]
        x = x + np.stack([self.position(row, column, height, width) for row, column in places])
        taps = []
        for i in range(c["depth"]):
            x = self.block(x, f"blocks.{i}", np.array(places))
            if i in c["deepstack_visual_indexes"]:
                name = f"merger_list.{c['deepstack_visual_indexes'].index(i)}"
                taps.append(self.project(self.norm(x.reshape(len(x) // 4, -1), f"{name}.ln_q"), name))
        return self.project(self.norm(x, "merger.ln_q").reshape(len(x) // 4, -1), "merger"), np.stack(taps)

    def position(self, row: int, column: int, height: int, width: int) -> np.ndarray:
        """The table's value at a place of the grid, whose corners are the table's."""
        side = round(self.config["num_position_embeddings"] ** 0.5)
        table = self.w["pos_embed.weight"].reshape(side, side, -1)
        down, right = row * (side - 1) / max(height - 1, 1), column * (side - 1) / max(width - 1, 1)
        top, left = int(down), int(right)
        below, beside, a, b = min(top + 1, side - 1), min(left + 1, side - 1), down - top, right - left
        upper = (1 - b) * table[top, left] + b * table[top, beside]
        return (1 - a) * upper + a * ((1 - b) * table[below, left] + b * table[below, beside])

    def block(self, x: np.ndarray, name: str, places: np.ndarray) -> np.ndarray:
        heads = self.config["num_heads"]
        qkv = self.linear(self.norm(x, f"{name}.norm1"), f"{name}.attn.qkv").reshape(len(x), 3, heads, -1)
        q, k = (self.turn(qkv[:, i], places) for i in (0, 1))
        scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(q.shape[-1])
        chances = np.exp(scores - scores.max(axis=-1, keepdims=True))
        chances /= chances.sum(axis=-1, keepdims=True)
        mixed = np.einsum("hqk,khd->qhd", chances, qkv[:, 2]).reshape(len(x), -1)
        x = x + self.linear(mixed, f"{name}.attn.proj")
        hidden = gelu_tanh(self.linear(self.norm(x, f"{name}.norm2"), f"{name}.mlp.linear_fc1"))
        return x + self.linear(hidden, f"{name}.mlp.linear_fc2")

    def turn(self, x: np.ndarray, places: np.ndarray) -> np.ndarray:
        """x [N, H, HD]: each pair (i, i + HD / 2) as a complex number, turned by row (first half of them) or column."""
        half = x.shape[-1] // 2
        speeds = 10000.0 ** (-np.arange(half // 2) / (half // 2))
        angles = np.concatenate([places[:, :1] * speeds, places[:, 1:] * speeds], axis=1)
        turned = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * angles)[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def project(self, h: np.ndarray, name: str) -> np.ndarray:
        return self.linear(gelu(self.linear(h, f"{name}.mlp.0")), f"{name}.mlp.2")

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        return x @ self.w[f"{name}.weight"].T + self.w[f"{name}.bias"]

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(axis=-1, keepdims=True)
        scaled = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + EPS)
        return scaled * self.w[f"{name}.weight"] + self.w[f"{name}.bias"]
