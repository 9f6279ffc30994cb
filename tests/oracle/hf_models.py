"""transformers models with the weights of a GGUF, dequantised, in float32 with eager attention and eager experts.

The configuration is read from the GGUF's metadata here, on purpose without models/config.py: an error there must show
up as a difference. Needs torch and transformers (the [oracle] extra).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import transformers

from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.formats.tensors import dequantize

FAR_ID = 1 << 30  # no vocabulary reaches it: placeholder ids of the thinker that random tokens must never hit


@dataclass(frozen=True)
class Oracle:
    """`model` and how to ask it: logits of a sequence, and greedy continuation."""

    model: torch.nn.Module
    mrope: bool

    def logits(self, ids: Sequence[int], positions: np.ndarray | None = None) -> np.ndarray:
        """float32 [N, V] of all positions; positions float32 [N, 3] only where the model has M-RoPE."""
        with torch.inference_mode():
            out = self.model(input_ids=torch.tensor([list(ids)]), position_ids=self._positions(0, len(ids), positions))
        return out.logits[0].numpy()

    def greedy(self, ids: Sequence[int], count: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids int64 [count], top-2 margin float32 [count]) of the continuation, whatever tokens come (no eos stop)."""
        cache = transformers.DynamicCache()
        chosen, margins, fed, past = [], [], list(ids), 0
        with torch.inference_mode():
            for _ in range(count):
                out = self.model(
                    input_ids=torch.tensor([fed]),
                    position_ids=self._positions(past, len(fed), None),
                    past_key_values=cache,
                    use_cache=True,
                )
                best = out.logits[0, -1].topk(2)
                chosen.append(int(best.indices[0]))
                margins.append(float(best.values[0] - best.values[1]))
                past, fed = past + len(fed), [chosen[-1]]
        return np.array(chosen), np.array(margins, dtype=np.float32)

    def _positions(self, start: int, count: int, positions: np.ndarray | None) -> torch.Tensor:
        if not self.mrope:
            assert positions is None, "this architecture has no M-RoPE"
            return torch.arange(start, start + count)[None]
        if positions is None:
            return torch.arange(start, start + count).expand(3, 1, -1)
        return torch.from_numpy(np.ascontiguousarray(positions.T, dtype=np.float32))[:, None]


class OmniOracle(Oracle):
    """The thinker of a Qwen3-Omni checkpoint folder, loaded by transformers itself."""

    def __init__(self, folder: Path) -> None:
        kind = transformers.Qwen3OmniMoeForConditionalGeneration
        if not json.loads((folder / "config.json").read_text())["enable_audio_output"]:
            kind = transformers.Qwen3OmniMoeThinkerForConditionalGeneration
        model, notes = kind.from_pretrained(
            folder,
            dtype=torch.float32,
            attn_implementation="eager",
            experts_implementation="eager",
            output_loading_info=True,
        )
        assert not any(notes.values()), notes
        super().__init__(getattr(model, "thinker", model).eval(), mrope=True)


def oracle(file: GGUFFile) -> Oracle:
    """The transformers twin of `file`: Llama, Qwen3, Qwen3-MoE or the thinker of Qwen3-Omni."""
    architecture = file.metadata["general.architecture"]
    build = {"llama": _llama, "qwen3": _qwen3, "qwen3moe": _qwen3moe, "qwen3vlmoe": _thinker}[architecture]
    return Oracle(build(file).eval(), mrope=architecture == "qwen3vlmoe")


def _llama(file: GGUFFile) -> torch.nn.Module:
    model = _new(transformers.LlamaForCausalLM, transformers.LlamaConfig(**_common(file)))
    _load(model.model, _decoder(file))
    _load_head(model, file)
    if "rope_freqs.weight" in file.tensors:
        # llama 3's rope as a file stores it: one divisor a frequency
        model.model.rotary_emb.inv_freq /= _tensor(file, "rope_freqs.weight")
    return model


def _qwen3(file: GGUFFile) -> torch.nn.Module:
    model = _new(transformers.Qwen3ForCausalLM, transformers.Qwen3Config(**_common(file)))
    _load(model.model, _decoder(file))
    _load_head(model, file)
    return model


def _qwen3moe(file: GGUFFile) -> torch.nn.Module:
    model = _new(transformers.Qwen3MoeForCausalLM, transformers.Qwen3MoeConfig(**_common(file), **_moe(file)))
    _load(model.model, _decoder(file))
    _load_head(model, file)
    return model


def _thinker(file: GGUFFile) -> torch.nn.Module:
    text = _common(file) | _moe(file)
    text["rope_parameters"]["mrope_section"] = list(_meta(file, "rope.dimension_sections"))[:3]
    del text["tie_word_embeddings"]
    out = text["hidden_size"]
    audio = {"d_model": 32, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "output_dim": out}
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "intermediate_size": 32, "out_hidden_size": out}
    config = transformers.models.qwen3_omni_moe.Qwen3OmniMoeThinkerConfig(
        text_config=text,
        audio_config=audio,
        vision_config=vision | {"deepstack_visual_indexes": []},
        audio_token_id=FAR_ID,
        image_token_id=FAR_ID + 1,
        video_token_id=FAR_ID + 2,
        tie_word_embeddings="output.weight" not in file.tensors,
    )
    model = _new(transformers.Qwen3OmniMoeThinkerForConditionalGeneration, config)
    _load(model.model.language_model, _decoder(file))
    _load_head(model, file)
    return model


def _new(kind: type, config: transformers.PretrainedConfig) -> torch.nn.Module:
    config._attn_implementation = "eager"
    config._experts_implementation = "eager"
    with torch.device("cpu"):
        return kind(config).float()


def _meta(file: GGUFFile, key: str, default: object = None) -> object:
    return file.metadata.get(f"{file.metadata['general.architecture']}.{key}", default)


def _common(file: GGUFFile) -> dict:
    """Arguments that all four configurations share."""
    heads, dim = _meta(file, "attention.head_count"), _meta(file, "embedding_length")
    rope = {"rope_type": "default", "rope_theta": _meta(file, "rope.freq_base", 10000.0)}
    if _meta(file, "rope.scaling.type", "none") == "linear":
        rope |= {"rope_type": "linear", "factor": _meta(file, "rope.scaling.factor")}
    head_dim = _meta(file, "attention.key_length", dim // heads)
    assert _meta(file, "rope.dimension_count", head_dim) == head_dim, "transformers' models rotate whole heads"
    return {
        "vocab_size": file.tensors["token_embd.weight"].shape[0],
        "hidden_size": dim,
        "intermediate_size": _meta(file, "feed_forward_length", 32),
        "num_hidden_layers": _meta(file, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _meta(file, "attention.head_count_kv", heads),
        "head_dim": head_dim,
        "rms_norm_eps": _meta(file, "attention.layer_norm_rms_epsilon"),
        "max_position_embeddings": _meta(file, "context_length"),
        "rope_parameters": rope,
        "attention_bias": False,
        "tie_word_embeddings": "output.weight" not in file.tensors,
    }


def _moe(file: GGUFFile) -> dict:
    return {
        "num_experts": _meta(file, "expert_count"),
        "num_experts_per_tok": _meta(file, "expert_used_count"),
        "moe_intermediate_size": _meta(file, "expert_feed_forward_length"),
        "norm_topk_prob": _meta(file, "expert_weights_norm", True),
        "decoder_sparse_step": 1,
    }


def _tensor(file: GGUFFile, name: str) -> torch.Tensor:
    return torch.from_numpy(np.array(dequantize(file.tensors[name]), dtype=np.float32))


LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "ffn_gate_inp": "mlp.gate",
}


def _decoder(file: GGUFFile) -> dict[str, torch.Tensor]:
    """All tensors below the head under the names of transformers' decoder."""
    state = {
        "embed_tokens.weight": _tensor(file, "token_embd.weight"),
        "norm.weight": _tensor(file, "output_norm.weight"),
    }
    llama = file.metadata["general.architecture"] == "llama"
    heads = {"attn_q": _meta(file, "attention.head_count"), "attn_k": _meta(file, "attention.head_count_kv")}
    for layer in range(_meta(file, "block_count")):
        for ours, theirs in LAYER_NAMES.items():
            if (name := f"blk.{layer}.{ours}.weight") in file.tensors:
                weight = _tensor(file, name)
                if llama and ours in heads:
                    weight = _halves_from_pairs(weight, heads[ours])
                state[f"layers.{layer}.{theirs}.weight"] = weight
        if f"blk.{layer}.ffn_gate_exps.weight" in file.tensors:
            gate, up, down = (_tensor(file, f"blk.{layer}.ffn_{part}_exps.weight") for part in ("gate", "up", "down"))
            state[f"layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat([gate, up], dim=1)
            state[f"layers.{layer}.mlp.experts.down_proj"] = down
    return state


def _halves_from_pairs(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's reordering of q and k rows: pairs (2i, 2i + 1) of a head become (i, i + HD / 2) again."""
    rows, dim = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, dim).transpose(1, 2).reshape(rows, dim)


def _load(module: torch.nn.Module, state: dict[str, torch.Tensor]) -> None:
    module.load_state_dict(state, strict=True)


def _load_head(model: torch.nn.Module, file: GGUFFile) -> None:
    name = "output.weight" if "output.weight" in file.tensors else "token_embd.weight"
    with torch.no_grad():
        model.lm_head.weight.copy_(_tensor(file, name))
