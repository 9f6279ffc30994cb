"""The whole text model in NumPy: the truth that the GPU is compared with, built from the op twins and nothing else.

    logits = forward(read_gguf(path), ids)                 # float32 [N, V]
    model = TextModel(file); model.forward(ids)            # keeps the dequantised tensors between calls

Architectures llama, qwen3, qwen3moe and qwen3vlmoe; which parts a layer has follows from the config alone.
Shapes: x [N, D]; q [N, H, HD]; k and v [N, KV, HD]. Weights keep their GGUF names.
"""

from collections.abc import Sequence

import numpy as np

from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.formats.tensors import dequantize
from qwen3omni_wgpu.models.config import layer_kv_type, text_config
from qwen3omni_wgpu.reference.attention import attention, from_cache_bytes, mix_blocks, to_cache_bytes
from qwen3omni_wgpu.reference.elementwise import swiglu
from qwen3omni_wgpu.reference.gather import embed
from qwen3omni_wgpu.reference.matmul import matmul, matmul_q8, moe_matmul, quantize_dequantize_q8
from qwen3omni_wgpu.reference.moe import moe_combine, moe_gate
from qwen3omni_wgpu.reference.norm import rms_norm
from qwen3omni_wgpu.reference.rope import rope, rope_frequencies

PACKED_TYPES = ("q8_0", "q4_0", "q4_1")  # weight types whose matmul has a packed integer variant


class TextModel:
    """Weights of one GGUF, dequantised when first used, and the forward pass over them."""

    def __init__(self, file: GGUFFile, activations: str = "f32", kv_type: str = "f32"):
        """activations "q8" rounds the input of every matmul with integer weights to 8 bits (quantize_q8).

        kv_type rounds keys and values: "f16" to half precision, "q8_0" to blocks of 10 and 8 bits, where a layer does.

        After `forward`, `router_gap` is how far the last chosen
        expert was from the first one left out, in router logits, at the closest of all decisions (inf without experts):
        where it is as small as rounding errors, another implementation may rightly choose another expert.
        """
        self.file = file
        self.config = text_config(file)
        self.activations = activations
        self.kv_type = kv_type
        self.router_gap = float("inf")
        self._tensors: dict[str, np.ndarray] = {}

    def __getitem__(self, name: str) -> np.ndarray:
        if name not in self._tensors:
            self._tensors[name] = dequantize(self.file.tensors[name])
        return self._tensors[name]

    def packed(self, name: str) -> bool:
        return self.activations == "q8" and self.file.tensors[name].type in PACKED_TYPES

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        """x [N, in] times the weight called `name` [out, in] -> [N, out]."""
        return (matmul_q8 if self.packed(name) else matmul)(x, self[name])

    def expert_linear(self, x: np.ndarray, name: str, ids: np.ndarray) -> np.ndarray:
        """x [N, in] or [N, K, in] through the K chosen experts of the stack [E, out, in] -> [N, K, out]."""
        return moe_matmul(quantize_dequantize_q8(x) if self.packed(name) else x, self[name], ids)

    def forward(self, ids: Sequence[int] | np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
        """Logits float32 [N, V] of every position; positions float32 [N, 3] (t, h, w), from 0 on when not given."""
        if positions is None:
            positions = np.repeat(np.arange(len(ids), dtype=np.float32)[:, None], 3, axis=1)
        c = self.config
        self.router_gap = float("inf")
        x = embed(self["token_embd.weight"], np.asarray(ids))
        for layer in range(c.n_layers):
            blk = f"blk.{layer}."
            x = x + self.attention_block(rms_norm(x, self[blk + "attn_norm.weight"], c.norm_eps), blk, positions)
            h = rms_norm(x, self[blk + "ffn_norm.weight"], c.norm_eps)
            x = x + (self.moe_block(h, blk) if c.n_experts else self.dense_block(h, blk))
        x = rms_norm(x, self["output_norm.weight"], c.norm_eps)
        return self.linear(x, "token_embd.weight" if c.tied_head else "output.weight")

    def attention_block(self, h: np.ndarray, blk: str, positions: np.ndarray) -> np.ndarray:
        c, n = self.config, len(h)
        q = self.linear(h, blk + "attn_q.weight").reshape(n, c.n_heads, c.head_dim)
        k = self.linear(h, blk + "attn_k.weight").reshape(n, c.n_kv_heads, c.head_dim)
        v = self.linear(h, blk + "attn_v.weight").reshape(n, c.n_kv_heads, c.head_dim)
        if c.qk_norm:
            q = rms_norm(q, self[blk + "attn_q_norm.weight"], c.norm_eps)
            k = rms_norm(k, self[blk + "attn_k_norm.weight"], c.norm_eps)
        freqs = self.frequencies()
        q = rope(q, positions, freqs, c.rope_style, c.mrope_sections)
        k = rope(k, positions, freqs, c.rope_style, c.mrope_sections)
        kept = layer_kv_type(c, self.kv_type, int(blk.split(".")[1]))
        if kept == "f16":
            k, v = (a.astype(np.float16).astype(np.float32) for a in (k, v))
        if kept == "q8_0":
            k, v = (self.rounded(a, bits) for a, bits in ((k, 10), (v, 8)))
        o = attention(q, k, v, n_past=0, scale=c.head_dim**-0.5)
        return self.linear(o.reshape(n, -1), blk + "attn_output.weight")

    @staticmethod
    def rounded(x: np.ndarray, bits: int) -> np.ndarray:
        """x [N, KV, HD] as a cache of mixed blocks of so many bits keeps it, mixed back."""
        rows = mix_blocks(x).reshape(len(x), -1)
        return mix_blocks(from_cache_bytes(to_cache_bytes(rows, bits), rows.shape, bits)).reshape(x.shape)

    def frequencies(self) -> np.ndarray:
        c = self.config
        factors = self["rope_freqs.weight"] if "rope_freqs.weight" in self.file.tensors else None
        return rope_frequencies(c.rope_dim, c.rope_theta, c.rope_scale, factors)

    def dense_block(self, h: np.ndarray, blk: str) -> np.ndarray:
        gate, up = self.linear(h, blk + "ffn_gate.weight"), self.linear(h, blk + "ffn_up.weight")
        return self.linear(swiglu(gate, up), blk + "ffn_down.weight")

    def moe_block(self, h: np.ndarray, blk: str) -> np.ndarray:
        c = self.config
        logits = self.linear(h, blk + "ffn_gate_inp.weight")
        self.router_gap = min(self.router_gap, smallest_gap(logits, c.n_experts_used))
        ids, weights = moe_gate(logits, c.n_experts_used, c.norm_topk)
        gate = self.expert_linear(h, blk + "ffn_gate_exps.weight", ids)
        up = self.expert_linear(h, blk + "ffn_up_exps.weight", ids)
        return moe_combine(self.expert_linear(swiglu(gate, up), blk + "ffn_down_exps.weight", ids), weights)


def smallest_gap(logits: np.ndarray, k: int) -> float:
    """Over all rows of router logits [N, E]: the least distance of the k-th largest from the next one."""
    if k == logits.shape[1]:
        return float("inf")
    falling = -np.sort(-logits, axis=1)
    return float((falling[:, k - 1] - falling[:, k]).min())


def forward(file: GGUFFile, ids: Sequence[int] | np.ndarray, positions: np.ndarray | None = None) -> np.ndarray:
    """Logits float32 [N, V] of the text model in `file` with float activations."""
    return TextModel(file).forward(ids, positions)
