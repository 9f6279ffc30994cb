"""The text model: a decoder-only transformer of the llama, qwen3, qwen3moe and qwen3vlmoe families.

    h = x + Attention(RMSNorm(x))
    x = h + FFN(RMSNorm(h))          FFN: SwiGLU, or the K best of E SwiGLU experts by a softmax router
                                          (and, in Qwen3-Omni's talker, one more that every token takes)

Dims: N tokens, D model, H heads, KV key/value heads, HD head, F feed-forward, E experts, K experts a token,
V vocabulary. Weights keep their GGUF names. Source: transformers modeling_llama, modeling_qwen3, modeling_qwen3_moe and
the thinker of modeling_qwen3_omni_moe; llama.cpp's tensor names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .. import ops
from ..formats.gguf import GGUFFile
from ..formats.tensors import dequantize
from ..gpu import Device, Plan, Tensor
from ..ops.fused import MOST_TOKENS
from ..reference.rope import rope_frequencies
from ..weights import load_weights
from . import shared_expert
from .config import TextConfig, layer_kv_type, tensor_shapes, text_config

# Matrices that read the same input and lie in one tensor where their types agree.
TOGETHER = {
    "attn_qkv": ("attn_q", "attn_k", "attn_v"),
    "ffn_gate_up": ("ffn_gate", "ffn_up"),
    # Of a mixture with a shared expert, which is taken for some more experts (models/shared_expert.py).
    "ffn_router": ("ffn_gate_inp", "ffn_gate_inp_shexp"),
    "ffn_gate_up_exps": ("ffn_gate_exps", "ffn_gate_shexp", "ffn_up_exps", "ffn_up_shexp"),
    "ffn_all_down_exps": ("ffn_down_exps", "ffn_down_shexp"),
    "ffn_both_exps": ("ffn_gate_exps", "ffn_up_exps"),  # without a shared expert
}
_QK_NORMS = ("attn_q_norm.weight", "attn_k_norm.weight")  # these two lie in one tensor


def _joined(names: Mapping[str, str]) -> dict[str, list[str]]:
    """Joined name -> the file's names of its members, wherever all of them are wanted. names: ours -> the file's."""
    found = {}
    taken: set[str] = set()
    for block in {name.removesuffix(".weight").rpartition(".")[0] for name in names}:
        for joined, leaves in TOGETHER.items():
            members = [f"{block}.{leaf}.weight" for leaf in leaves]
            if all(member in names for member in members) and taken.isdisjoint(members):
                taken.update(members)
                found[f"{block}.{joined}.weight"] = [names[member] for member in members]
    return found


@dataclass
class TextModel:
    """Weights on a device with what is needed to run them. `activations`: "f32", or "q8" for packed dot products."""

    device: Device
    config: TextConfig
    weights: dict[str, Tensor]
    qk_norms: list[Tensor]  # [2 HD] a layer: q's weights, then k's; empty without QK-norm
    freqs: Tensor  # radians per position of every rotated pair
    activations: str = "f32"
    scope: str = ""  # prefix of op names in profiles, where a plan has several models

    @classmethod
    def load(
        cls,
        file: GGUFFile,
        device: Device,
        activations: str = "f32",
        progress: Callable[[int, int], None] | None = None,
    ) -> TextModel:
        """Check the file's metadata and shapes, then read its tensors into GPU memory.

        activations "auto": "q8" on a GPU, where the packed matvec takes a quarter of the float one's cycles (ACO);
        "f32" on a software adapter, where they have no instruction of their own (docs/LOG.md).
        """
        config = text_config(file)
        return cls.read(file, device, config, {name: name for name in tensor_shapes(config)}, activations, progress)

    @classmethod
    def read(
        cls,
        file: GGUFFile,
        device: Device,
        config: TextConfig,
        names: Mapping[str, str],
        activations: str = "f32",
        progress: Callable[[int, int], None] | None = None,
    ) -> TextModel:
        """Read the tensors of a checked configuration. names: ours, as `tensor_shapes` has them -> the file's."""
        if activations == "auto":
            activations = "f32" if device.info.software else "q8"
        wanted = {name: theirs for name, theirs in names.items() if not name.endswith(_QK_NORMS)}
        ours = {theirs: name for name, theirs in wanted.items()}
        source = shared_expert.as_experts(file, config, names) if config.shared_dim else file
        read = load_weights(device, source, ours, progress, _joined(wanted))
        weights = {ours.get(name, name): tensor for name, tensor in read.items()}
        if config.shared_dim:
            try:
                shared_expert.settle(file, config, names, weights)
            except BaseException:
                for tensor in weights.values():
                    tensor.free()
                raise
        factors = file.tensors.get("rope_freqs.weight")
        freqs = rope_frequencies(
            config.rope_dim, config.rope_theta, config.rope_scale, dequantize(factors) if factors else None
        )
        norms = []
        if config.qk_norm:
            for i in range(config.n_layers):
                pair = [dequantize(file.tensors[names[f"blk.{i}.{name}"]]) for name in _QK_NORMS]
                norms.append(Tensor.from_numpy(device, np.concatenate(pair), f"blk.{i}.attn_qk_norm"))
        return cls(device, config, weights, norms, Tensor.from_numpy(device, freqs, "rope freqs"), activations)

    def layer(self, i: int, name: str) -> Tensor:
        return self.weights[f"blk.{i}.{name}.weight"]

    def together(self, i: int, name: str) -> list[Tensor]:
        """Matrices that read the same input: one tensor where the file's types allowed joining them."""
        if f"blk.{i}.{name}.weight" in self.weights:
            return [self.layer(i, name)]
        return [self.layer(i, member) for member in TOGETHER[name]]

    @property
    def head(self) -> Tensor:
        return self.weights["token_embd.weight" if self.config.tied_head else "output.weight"]

    def free(self) -> None:
        for tensor in (*self.weights.values(), *self.qk_norms, self.freqs):
            tensor.free()
        self.weights = {}


@dataclass
class KVCache:
    """Keys and values of every layer: [ctx_size, KV * HD] each, of types that may differ (config.layer_kv_type)."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, device: Device, config: TextConfig, ctx_size: int, kv_type: str) -> KVCache:
        shape = (ctx_size, config.n_kv_heads * config.head_dim)
        caches: list[list[Tensor]] = [[], []]
        try:
            for i in range(config.n_layers):
                kept = layer_kv_type(config, kv_type, i)
                dtypes = ("kv_q10", "kv_q8") if kept == "q8_0" else (kept, kept)
                for kind, dtype, cache in zip(("k", "v"), dtypes, caches, strict=True):
                    cache.append(Tensor.empty(device, shape, dtype, f"cache.{kind}.{i}"))
        except BaseException:
            for tensor in (*caches[0], *caches[1]):
                tensor.free()
            raise
        return cls(*caches)

    def free(self) -> None:
        for tensor in (*self.keys, *self.values):
            tensor.free()


def logits(
    plan: Plan,
    model: TextModel,
    ids: Tensor,
    positions: Tensor,
    cache: KVCache,
    head: str,
    out: Tensor | None = None,
    media: tuple[Tensor, Tensor] | None = None,
    deepstack: Sequence[Tensor] = (),
    taps: dict[int, Tensor | None] | None = None,
) -> Tensor | None:
    """Token ids [N] through the whole model -> what `head` says: "none", "last" (of the last valid row, into `out`
    [1, V]) or "all" [N, V].

    media: rows [N, D] that replace embeddings and uint32 flags [N] where they do; deepstack and taps as in `forward`.
    """
    x = ops.embed(plan, model.weights["token_embd.weight"], ids)
    if media is not None:
        x = ops.replace_rows(plan, x, *media)
    few = ids.shape[0] <= MOST_TOKENS
    h = (stream if few else forward)(plan, model, x, positions, cache, deepstack, taps)
    norm = final_norm(model) if few else None  # `forward` has it done
    if head == "none":
        return None
    if head == "last" and ids.shape[0] > 1:
        h = ops.select_row(plan, h)
    return ops.matmul(plan, h, model.head, norm=norm, out=out)


def forward(
    plan: Plan,
    model: TextModel,
    x: Tensor,
    positions: Tensor,
    cache: KVCache,
    deepstack: Sequence[Tensor] = (),
    taps: dict[int, Tensor | None] | None = None,
) -> Tensor:
    """Embeddings x [N, D] through all layers -> normalised hidden states [N, D]; keys and values go to the cache.

    deepstack: maps [N, D] of the vision tower, the i-th added to the output of layer i (zero rows for other tokens).
    taps: gets, for the numbers of layers that are its keys, the hidden states [N, D] after them, before deepstack maps.
    """
    c = model.config
    taps = {} if taps is None else taps
    h = ops.rms_norm(plan, x, model.layer(0, "attn_norm"), c.norm_eps)
    for i in range(c.n_layers):
        plan.scope = f"{model.scope}blk.{i}."
        update = attention(plan, model, i, h, positions, cache)
        x, h = ops.add_rms_norm(plan, update, x, model.layer(i, "ffn_norm"), c.norm_eps)
        update = experts(plan, model, i, h) if c.n_experts else mlp(plan, model, i, h)
        if i < len(deepstack):
            if i + 1 in taps:
                taps[i + 1] = ops.add(plan, x, update)
            update = ops.add(plan, update, deepstack[i])
        last = i + 1 == c.n_layers
        norm = model.weights["output_norm.weight"] if last else model.layer(i + 1, "attn_norm")
        x, h = ops.add_rms_norm(plan, update, x, norm, c.norm_eps)
        if taps.get(i + 1, x) is None:
            taps[i + 1] = x
    plan.scope = ""
    return h


def stream(
    plan: Plan,
    model: TextModel,
    x: Tensor,
    positions: Tensor,
    cache: KVCache,
    deepstack: Sequence[Tensor] = (),
    taps: dict[int, Tensor | None] | None = None,
) -> Tensor:
    """As `forward` for one or two tokens, in as few dispatches as there can be: x [N, D] -> [N, D], not yet normalised.

    Norms are computed by the matmuls that read them and additions by those that write. The final norm is `final_norm`.
    """
    c = model.config
    taps = {} if taps is None else taps
    for i in range(c.n_layers):
        plan.scope = f"{model.scope}blk.{i}."
        x = attention(plan, model, i, x, positions, cache, _norm(model, i, "attn_norm"), x)
        norm = _norm(model, i, "ffn_norm")
        x = few_experts(plan, model, i, x, norm) if c.n_experts else mlp(plan, model, i, x, norm, x)
        if i + 1 in taps:
            taps[i + 1] = x
        if i < len(deepstack):
            x = ops.add(plan, x, deepstack[i])
    plan.scope = ""
    return x


Norm = tuple[Tensor, float]


def _norm(model: TextModel, i: int, name: str) -> Norm:
    return model.layer(i, name), model.config.norm_eps


def final_norm(model: TextModel) -> Norm:
    """Of the last layer's output: weight [D], and what is added to the mean square."""
    return model.weights["output_norm.weight"], model.config.norm_eps


def attention(
    plan: Plan, model: TextModel, i: int, h: Tensor, positions: Tensor, cache: KVCache, norm: Norm | None = None,
    residual: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Causal self-attention with grouped heads over the cache: h [N, D], normalised or to be -> [N, D] + residual."""
    c = model.config
    qkv = ops.matmul_joined(plan, h, model.together(i, "attn_qkv"), norm=norm)  # [N, (H + 2 KV) * HD]
    mixed = ops.rope_attention(
        plan,
        qkv,
        positions,
        model.freqs,
        c.n_heads,
        c.n_kv_heads,
        cache.keys[i],
        cache.values[i],
        c.head_dim**-0.5,
        style=c.rope_style,
        sections=c.mrope_sections,
        norms=model.qk_norms[i] if c.qk_norm else None,
        eps=c.norm_eps,
    )  # [N, H * HD]
    return ops.matmul(plan, mixed, model.layer(i, "attn_output"), residual=residual)


def mlp(
    plan: Plan, model: TextModel, i: int, h: Tensor, norm: Norm | None = None, residual: Tensor | None = None
) -> Tensor:
    """SwiGLU: (silu(h Gate^T) * (h Up^T)) Down^T + residual, h [N, D], normalised or to be -> [N, D]."""
    hidden = ops.matmul_swiglu(plan, h, model.together(i, "ffn_gate_up"), norm=norm)  # [N, F]
    return ops.matmul(plan, hidden, model.layer(i, "ffn_down"), residual=residual)


def experts(plan: Plan, model: TextModel, i: int, h: Tensor) -> Tensor:
    """Mixture of experts: softmax router over E, the K best renormalised, their SwiGLU outputs weighted and summed.

    With a shared expert the last of them are its parts, which every token takes.
    """
    c = model.config
    router, gate_up, down, always = _expert_weights(model, i)
    logits = ops.matmul(plan, h, router)  # [N, E], or E + 1 with a shared expert
    ids, weights = ops.moe_gate(plan, logits, c.n_experts_used, c.norm_topk, always)  # [N, K + always] each
    hidden = ops.moe_swiglu(plan, h, gate_up, ids)  # [N * (K + always), F]
    return ops.moe_combine(plan, ops.moe_matmul(plan, hidden, down, ids), weights)


def few_experts(plan: Plan, model: TextModel, i: int, x: Tensor, norm: Norm) -> Tensor:
    """`experts` of one or two tokens with the norm before and the addition after them: x [N, D] -> [N, D]."""
    c = model.config
    router, gate_up, down, always = _expert_weights(model, i)
    hidden, ids, weights = ops.moe_route_swiglu(
        plan, x, router, gate_up, c.n_experts_used, c.norm_topk, norm=norm, always=always
    )  # [N * (K + always), F], and [N, K + always] each
    return ops.moe_down(plan, hidden, down, ids, weights, residual=x)


def _expert_weights(model: TextModel, i: int) -> tuple[Tensor, list[Tensor], Tensor, int]:
    """Router, gates and ups, downs; and how many experts every token takes, behind the others."""
    c = model.config
    if c.shared_dim:
        names, always = ("ffn_router", "ffn_gate_up_exps", "ffn_all_down_exps"), c.shared_dim // c.expert_dim
        router, gate_up, down = (model.layer(i, name) for name in names)
        return router, [gate_up], down, always
    return model.layer(i, "ffn_gate_inp"), model.together(i, "ffn_both_exps"), model.layer(i, "ffn_down_exps"), 0
