"""Talker and code predictor in NumPy, from the tensors of a Hugging Face checkpoint: the truth for the GPU.

Written from the model's description: no cache, every step runs its whole sequence again. Shapes: x [N, D].
"""

from collections.abc import Mapping
from typing import Any

import numpy as np


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


class Decoder:
    """Layers of one of the two; `w`: tensors by their names below `prefix`."""

    def __init__(self, tensors: Mapping[str, np.ndarray], prefix: str, config: Mapping[str, Any]) -> None:
        self.w = {
            name.removeprefix(prefix): np.asarray(value, np.float32)
            for name, value in tensors.items()
            if name.startswith(prefix)
        }
        self.config = config
        self.router_gap = float("inf")  # how near the router came to choosing otherwise, in logits

    def forward(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Rows [N, D] at positions [N, 3] -> normalised hidden states [N, D]."""
        for i in range(self.config["num_hidden_layers"]):
            name = f"layers.{i}."
            x = x + self.attention(self.norm(x, name + "input_layernorm"), name + "self_attn.", positions)
            h = self.norm(x, name + "post_attention_layernorm")
            x = x + (self.experts(h, name + "mlp.") if "num_experts" in self.config else self.swiglu(h, name + "mlp."))
        return self.norm(x, "norm")

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        mean = (x.astype(np.float64) ** 2).mean(axis=-1, keepdims=True)
        return (x / np.sqrt(mean + self.config["rms_norm_eps"])).astype(np.float32) * self.w[f"{name}.weight"]

    def swiglu(self, h: np.ndarray, name: str) -> np.ndarray:
        gate, up, down = (self.w[f"{name}{part}_proj.weight"] for part in ("gate", "up", "down"))
        return (silu(h @ gate.T) * (h @ up.T)) @ down.T

    def experts(self, h: np.ndarray, name: str) -> np.ndarray:
        k = self.config["num_experts_per_tok"]
        logits = h @ self.w[f"{name}gate.weight"].T
        order = np.argsort(-logits, axis=1)
        falling = np.take_along_axis(logits, order, axis=1)
        if k < logits.shape[1]:
            self.router_gap = min(self.router_gap, float((falling[:, k - 1] - falling[:, k]).min()))
        y = np.zeros_like(h)
        for t, (chosen, values) in enumerate(zip(order[:, :k], falling[:, :k], strict=True)):
            weights = np.exp(values - values[0]) / np.exp(values - values[0]).sum()
            for e, weight in zip(chosen, weights, strict=True):
                y[t] += weight * self.swiglu(h[t : t + 1], f"{name}experts.{e}.")[0]
        share = 1 / (1 + np.exp(-h @ self.w[f"{name}shared_expert_gate.weight"].T))
        return y + share * self.swiglu(h, f"{name}shared_expert.")

    def attention(self, h: np.ndarray, name: str, positions: np.ndarray) -> np.ndarray:
        c, n = self.config, len(h)
        heads = {"q": c["num_attention_heads"], "k": c["num_key_value_heads"], "v": c["num_key_value_heads"]}
        q, k, v = ((h @ self.w[f"{name}{p}_proj.weight"].T).reshape(n, heads[p], -1) for p in "qkv")
        q, k = (self.turn(self.norm(x, f"{name}{p}_norm"), positions) for p, x in (("q", q), ("k", k)))
        group, mask = heads["q"] // heads["k"], np.tril(np.ones((n, n), bool))
        mixed = np.empty_like(q)
        for j in range(heads["q"]):
            scores = np.where(mask, q[:, j] @ k[:, j // group].T / np.float32(q.shape[2] ** 0.5), -np.inf)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            mixed[:, j] = weights / weights.sum(axis=1, keepdims=True) @ v[:, j // group]
        return mixed.reshape(n, -1) @ self.w[f"{name}o_proj.weight"].T

    def turn(self, x: np.ndarray, positions: np.ndarray) -> np.ndarray:
        half = x.shape[2] // 2
        rates = self.config["rope_theta"] ** (-np.arange(half) / half)
        axes = np.zeros(half, int)
        if rope := self.config.get("rope_scaling"):
            _, h, w = rope["mrope_section"]
            axes[1 : 3 * h : 3], axes[2 : 3 * w : 3] = 1, 2
        angles = (positions[:, axes] * rates)[:, None]
        a, b = x[..., :half], x[..., half:]
        turned = a * np.cos(angles) - b * np.sin(angles), b * np.cos(angles) + a * np.sin(angles)
        return np.concatenate(turned, axis=2).astype(np.float32)


class TalkerTwin:
    """tensors: Hugging Face name -> array; config: talker_config of config.json."""

    def __init__(self, tensors: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> None:
        self.talker = Decoder(tensors, "talker.model.", config["text_config"])
        self.predictor = Decoder(tensors, "talker.code_predictor.model.", config["code_predictor_config"])
        self.w = {name: np.asarray(tensors[name], np.float32) for name in tensors if name.startswith("talker.")}
        self.groups, self.codes = config["num_code_groups"], config["code_predictor_config"]["vocab_size"]
        self.eos = config["codec_eos_token_id"]

    def project(self, name: str, x: np.ndarray) -> np.ndarray:
        """text_projection or hidden_projection: [n, T] -> [n, D]."""
        for layer in ("fc1", "fc2"):
            key = f"talker.{name}.linear_{layer}"
            x = (silu(x) if layer == "fc2" else x) @ self.w[f"{key}.weight"].T + self.w[f"{key}.bias"]
        return x

    def code(self, group: int, number: int) -> np.ndarray:
        """The embedding of a code: [1, D]."""
        name = f"code_predictor.model.codec_embedding.{group - 1}" if group else "model.codec_embedding"
        return self.w[f"talker.{name}.weight"][number][None]

    def residual(self, h: np.ndarray, codes: np.ndarray) -> np.ndarray:
        """Logits of groups 1 .. G - 1, [G - 1, V], given the frame's codes [G] and the talker's hidden state [1, D]."""
        x = np.concatenate([h, *(self.code(g, code) for g, code in enumerate(codes[:-1]))])
        states = self.predictor.forward(x, np.repeat(np.arange(len(x))[:, None], 3, axis=1))
        heads = (self.w[f"talker.code_predictor.lm_head.{g}.weight"] for g in range(self.groups - 1))
        return np.concatenate([state[None] @ head.T for state, head in zip(states[1:], heads, strict=True)])

    def frame(self, codes: np.ndarray, text: np.ndarray) -> np.ndarray:
        """The talker's row for a frame [G] and a text row [D]: [1, D]."""
        return sum((self.code(g, code) for g, code in enumerate(codes)), text[None])

    def logits(self, h: np.ndarray) -> np.ndarray:
        return h @ self.w["talker.codec_head.weight"].T

    def allowed(self, logits: np.ndarray) -> np.ndarray:
        """Logits [V] without control ids, but with the end."""
        kept = np.full_like(logits, -np.inf)
        kept[: self.codes], kept[self.eos] = logits[: self.codes], logits[self.eos]
        return kept
