"""Memory a model needs, stage by stage, from headers alone."""

from collections import Counter
from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3omni_wgpu.formats.gguf import GGUFFile
    from qwen3omni_wgpu.models.config import TextConfig

# Stage -> components of the network whose weights it needs, beside those of the stages before it.
STAGES = {
    "text": ("thinker_text",),
    "text + audio in": ("audio_encoder",),
    "text + audio + images in": ("vision_encoder",),
    "speech out": ("talker", "code_predictor", "code2wav"),
}
CHUNK = 512  # tokens of a prompt that a GPU runs at once (engine.BUCKETS_GPU)


def components(parts: "Mapping[str, GGUFFile]") -> dict[str, dict[str, Any]]:
    """Component -> bytes, parameters, tensors and bytes by type."""
    from qwen3omni_wgpu.convert.parts import component_of

    found: dict[str, dict[str, Any]] = {}
    for part, file in parts.items():
        for name, info in file.tensors.items():
            row = found.setdefault(
                component_of(part, name), {"part": part, "bytes": 0, "parameters": 0, "tensors": 0, "types": Counter()}
            )
            row["bytes"] += info.nbytes
            row["parameters"] += prod(info.shape)
            row["tensors"] += 1
            row["types"][info.type] += info.nbytes
    return found


def kinds(thinker: "GGUFFile") -> dict[str, int]:
    """What the text model's bytes are: experts, attention, feed-forward, embedding, ..., largest first."""
    found: Counter[str] = Counter()
    for name, info in thinker.tensors.items():
        kind = name.split(".")[2] if name.startswith("blk.") else name.split(".")[0]
        for sign, group in (("_exps", "experts"), ("attn", "attention"), ("ffn", "feed-forward")):
            if sign in kind:
                kind = group
                break
        found[kind] += info.nbytes
    return dict(found.most_common())


def workspace_bytes(config: "TextConfig", chunk: int = CHUNK) -> int:
    """Upper bound of the engine's intermediate results for a chunk of a prompt, with its logits.

    Two rows of every width that one layer has, in float32: the plan shares their memory between layers.
    """
    c = config
    wide = (c.n_heads + 2 * c.n_kv_heads) * c.head_dim + 4 * c.dim
    hidden = c.n_experts_used * (2 * c.expert_dim + c.dim) + c.n_experts if c.n_experts else 2 * c.ffn_dim
    return 4 * (2 * chunk * (wide + hidden) + 2 * c.vocab_size)


def talker_kv_bytes_per_token(file: "GGUFFile") -> int:
    """Bytes of one position (a token of the prompt, or a frame of speech) in the talker's KV cache, in float16."""
    keys = ("block_count", "attention.head_count_kv", "attention.key_length")
    layers, heads, dim = (file.metadata[f"{file.metadata['general.architecture']}.{key}"] for key in keys)
    return 2 * 2 * layers * heads * dim


def stages(parts: "Mapping[str, GGUFFile]", config: "TextConfig", context: int) -> dict[str, int]:
    """Stage -> bytes of weights, KV caches and intermediate results on the device, for the stages this model has."""
    from qwen3omni_wgpu.models.config import kv_bytes_per_token

    rows = components(parts)
    total = kv_bytes_per_token(config, "f16") * context + workspace_bytes(config)
    found: dict[str, int] = {}
    for stage, names in STAGES.items():
        if not any(name in rows for name in names):
            continue
        total += sum(rows[name]["bytes"] for name in names if name in rows)
        if stage == "speech out":
            total += talker_kv_bytes_per_token(parts["talker"]) * context
        found[stage] = total
    return found
