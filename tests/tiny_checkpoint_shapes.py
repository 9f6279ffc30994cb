"""Every tensor of a Qwen3-Omni checkpoint by its Hugging Face name, from config.json; and random weights for it.

Written from the model's description, apart from the converter's table, so that each checks the other.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

Shape = tuple[int, ...]
Named = Iterator[tuple[str, Shape]]


def shapes(config: dict[str, Any]) -> Named:
    """Name and shape of every tensor; config in the releases' spelling."""
    thinker = config["thinker_config"]
    text = thinker["text_config"]
    yield "thinker.model.embed_tokens.weight", (text["vocab_size"], text["hidden_size"])
    yield from _below("thinker.model", _text_model(text))
    yield "thinker.lm_head.weight", (text["vocab_size"], text["hidden_size"])
    yield from _below("thinker.audio_tower", _audio(thinker["audio_config"]))
    yield from _below("thinker.visual", _vision(thinker["vision_config"]))
    if "talker_config" in config:
        yield from _below("talker", _talker(config["talker_config"]))
        yield from _below("talker.code_predictor", _code_predictor(config["talker_config"]["code_predictor_config"]))
        yield from _below("code2wav", _code2wav(config["code2wav_config"]))


def random_tensor(rng: np.random.Generator, name: str, shape: Shape) -> np.ndarray:
    """float32 values whose scale keeps activations near 1 and the best token clear of the others."""
    normal = rng.standard_normal(shape, dtype=np.float32)
    leaf, fan_in = name.rsplit(".", 1)[-1], int(np.prod(shape[1:]))
    if leaf in ("scale", "gamma"):
        return rng.uniform(0.3, 0.7, shape).astype(np.float32)
    if leaf in ("alpha", "beta"):
        return normal * np.float32(0.3)
    if leaf == "bias":
        return normal * np.float32(0.05)
    if len(shape) == 1:
        return 1 + normal * np.float32(0.15)
    fixed = {"code_embedding": 4.0, "codec_embedding": 0.5, "embed_tokens": 1.0, "pos_embed": 0.5}
    for part, deviation in fixed.items():
        if part in name:
            return normal * np.float32(deviation)
    if ".block.1.conv." in name or (".0.conv." in name and "upsample" in name):
        fan_in = shape[0] * (2 if "block" in name else 1)  # transposed convolutions are stored [in, out, taps]
    gains = {"lm_head": 3.0, "codec_head": 3.0, "mlp.gate.weight": 2.0, "shared_expert_gate": 2.0, "experts": 1.2}
    gains |= {".conv1.": 0.5, ".conv2.": 0.5}  # of residual units
    factor = next((value for part, value in gains.items() if part in name), 1.0)
    if len(shape) == 3 and shape[0] == 1:
        factor = 0.12  # the waveform must stay within -1 to 1
    return normal * np.float32(factor / fan_in**0.5)


def _below(prefix: str, named: Named) -> Named:
    for name, shape in named:
        yield f"{prefix}.{name}", shape


def _norm(name: str, size: int) -> Named:
    yield f"{name}.weight", (size,)
    yield f"{name}.bias", (size,)


def _linear(name: str, out: int, inputs: int) -> Named:
    yield f"{name}.weight", (out, inputs)
    yield f"{name}.bias", (out,)


def _attention(c: dict[str, Any], head_dim: int, qk_norm: bool = True) -> Named:
    dim, q, kv = c["hidden_size"], c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    yield "self_attn.q_proj.weight", (q, dim)
    yield "self_attn.k_proj.weight", (kv, dim)
    yield "self_attn.v_proj.weight", (kv, dim)
    yield "self_attn.o_proj.weight", (dim, q)
    if qk_norm:
        yield "self_attn.q_norm.weight", (head_dim,)
        yield "self_attn.k_norm.weight", (head_dim,)


def _swiglu(dim: int, inner: int) -> Named:
    yield "gate_proj.weight", (inner, dim)
    yield "up_proj.weight", (inner, dim)
    yield "down_proj.weight", (dim, inner)


def _text_model(c: dict[str, Any]) -> Named:
    """Layers and final norm of a mixture of experts: thinker, or talker with its shared expert."""
    dim = c["hidden_size"]
    for i in range(c["num_hidden_layers"]):
        yield f"layers.{i}.input_layernorm.weight", (dim,)
        yield f"layers.{i}.post_attention_layernorm.weight", (dim,)
        yield from _below(f"layers.{i}", _attention(c, c["head_dim"]))
        yield f"layers.{i}.mlp.gate.weight", (c["num_experts"], dim)
        for e in range(c["num_experts"]):
            yield from _below(f"layers.{i}.mlp.experts.{e}", _swiglu(dim, c["moe_intermediate_size"]))
        if shared := c.get("shared_expert_intermediate_size"):
            yield from _below(f"layers.{i}.mlp.shared_expert", _swiglu(dim, shared))
            yield f"layers.{i}.mlp.shared_expert_gate.weight", (1, dim)
    yield "norm.weight", (dim,)


def _audio(c: dict[str, Any]) -> Named:
    dim, channels, inner = c["d_model"], c["downsample_hidden_size"], c["encoder_ffn_dim"]
    for i in (1, 2, 3):
        yield f"conv2d{i}.weight", (channels, 1 if i == 1 else channels, 3, 3)
        yield f"conv2d{i}.bias", (channels,)
    yield "conv_out.weight", (dim, channels * c["num_mel_bins"] // 8)
    for i in range(c["encoder_layers"]):
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _linear(f"layers.{i}.self_attn.{name}", dim, dim)
        yield from _norm(f"layers.{i}.self_attn_layer_norm", dim)
        yield from _norm(f"layers.{i}.final_layer_norm", dim)
        yield from _linear(f"layers.{i}.fc1", inner, dim)
        yield from _linear(f"layers.{i}.fc2", dim, inner)
    yield from _norm("ln_post", dim)
    yield from _linear("proj1", dim, dim)
    yield from _linear("proj2", c["output_dim"], dim)


def _vision(c: dict[str, Any]) -> Named:
    dim, inner, patch = c["hidden_size"], c["intermediate_size"], c["patch_size"]
    merged, out = dim * c["spatial_merge_size"] ** 2, c["out_hidden_size"]
    yield "patch_embed.proj.weight", (dim, c["in_channels"], c["temporal_patch_size"], patch, patch)
    yield "patch_embed.proj.bias", (dim,)
    yield "pos_embed.weight", (c["num_position_embeddings"], dim)
    for i in range(c["depth"]):
        yield from _norm(f"blocks.{i}.norm1", dim)
        yield from _norm(f"blocks.{i}.norm2", dim)
        yield from _linear(f"blocks.{i}.attn.qkv", 3 * dim, dim)
        yield from _linear(f"blocks.{i}.attn.proj", dim, dim)
        yield from _linear(f"blocks.{i}.mlp.linear_fc1", inner, dim)
        yield from _linear(f"blocks.{i}.mlp.linear_fc2", dim, inner)
    mergers = [("merger", dim)] + [(f"merger_list.{i}", merged) for i in range(len(c["deepstack_visual_indexes"]))]
    for name, size in mergers:  # the main one normalises each patch, the others four of them together
        yield from _norm(f"{name}.ln_q", size)
        yield from _linear(f"{name}.mlp.0", merged, merged)
        yield from _linear(f"{name}.mlp.2", out, merged)


def _talker(c: dict[str, Any]) -> Named:
    text = c["text_config"]
    dim, inner = text["hidden_size"], text["intermediate_size"]
    yield "model.codec_embedding.weight", (text["vocab_size"], dim)
    yield from _below("model", _text_model(text))
    yield "codec_head.weight", (text["vocab_size"], dim)
    for name in ("text_projection", "hidden_projection"):
        yield from _linear(f"{name}.linear_fc1", inner, c["thinker_hidden_size"])
        yield from _linear(f"{name}.linear_fc2", dim, inner)


def _code_predictor(c: dict[str, Any]) -> Named:
    dim = c["hidden_size"]
    for g in range(c["num_code_groups"] - 1):
        yield f"model.codec_embedding.{g}.weight", (c["vocab_size"], dim)
        yield f"lm_head.{g}.weight", (c["vocab_size"], dim)
    for i in range(c["num_hidden_layers"]):
        yield f"model.layers.{i}.input_layernorm.weight", (dim,)
        yield f"model.layers.{i}.post_attention_layernorm.weight", (dim,)
        yield from _below(f"model.layers.{i}", _attention(c, c["head_dim"]))
        yield from _below(f"model.layers.{i}.mlp", _swiglu(dim, c["intermediate_size"]))
    yield "model.norm.weight", (dim,)


def _code2wav(c: dict[str, Any]) -> Named:
    dim = c["hidden_size"]
    yield "code_embedding.weight", (c["codebook_size"] * c["num_quantizers"], dim)
    for i in range(c["num_hidden_layers"]):
        layer = f"pre_transformer.layers.{i}"
        yield from _below(layer, _attention(c, dim // c["num_attention_heads"], qk_norm=False))
        yield from _below(f"{layer}.mlp", _swiglu(dim, c["intermediate_size"]))
        for name in ("input_layernorm.weight", "post_attention_layernorm.weight"):
            yield f"{layer}.{name}", (dim,)
        for name in ("self_attn_layer_scale.scale", "mlp_layer_scale.scale"):
            yield f"{layer}.{name}", (dim,)
    yield "pre_transformer.norm.weight", (dim,)
    for i, ratio in enumerate(c["upsampling_ratios"]):
        yield from _conv(f"upsample.{i}.0.conv", (dim, dim, ratio), dim)
        yield from _conv(f"upsample.{i}.1.dwconv.conv", (dim, 1, 7), dim)
        yield from _norm(f"upsample.{i}.1.norm", dim)
        yield from _linear(f"upsample.{i}.1.pwconv1", 4 * dim, dim)
        yield from _linear(f"upsample.{i}.1.pwconv2", dim, 4 * dim)
        yield f"upsample.{i}.1.gamma", (dim,)
    yield from _decoder(c, dim)


def _decoder(c: dict[str, Any], dim: int) -> Named:
    width, blocks = c["decoder_dim"], len(c["upsample_rates"])
    yield from _conv("decoder.0.conv", (width, dim, 7), width)
    for b, rate in enumerate(c["upsample_rates"]):
        before, after = width >> b, width >> (b + 1)
        block = f"decoder.{b + 1}.block"
        yield from _snake(f"{block}.0", before)
        yield from _conv(f"{block}.1.conv", (before, after, 2 * rate), after)
        for unit in (2, 3, 4):
            yield from _snake(f"{block}.{unit}.act1", after)
            yield from _snake(f"{block}.{unit}.act2", after)
            yield from _conv(f"{block}.{unit}.conv1.conv", (after, after, 7), after)
            yield from _conv(f"{block}.{unit}.conv2.conv", (after, after, 1), after)
    last = width >> blocks
    yield from _snake(f"decoder.{blocks + 1}", last)
    yield from _conv(f"decoder.{blocks + 2}.conv", (1, last, 7), 1)


def _conv(name: str, shape: Shape, out: int) -> Named:
    yield f"{name}.weight", shape
    yield f"{name}.bias", (out,)


def _snake(name: str, size: int) -> Named:
    yield f"{name}.alpha", (size,)
    yield f"{name}.beta", (size,)
