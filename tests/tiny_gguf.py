"""Complete random GGUF models for tests: small ones of every architecture, and one with the true dimensions of the 30B.

The values are chosen so that activations stay near 1 and the best token stands out, so greedy comparisons are sharp.
"""

from collections.abc import Iterator
from math import prod
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import quantize

from qwen3omni_wgpu.models.config import TextConfig, tensor_shapes

TYPES = {
    "f32": gguf.GGMLQuantizationType.F32,
    "f16": gguf.GGMLQuantizationType.F16,
    "bf16": gguf.GGMLQuantizationType.BF16,
    "q8_0": gguf.GGMLQuantizationType.Q8_0,
    "q4_0": gguf.GGMLQuantizationType.Q4_0,
    "q4_1": gguf.GGMLQuantizationType.Q4_1,
}
FILE_TYPES = {"f32": 0, "f16": 1, "bf16": 32, "q8_0": 7, "q4_0": 2, "q4_1": 3}
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
_WORDS = ("the", "and", "ing", "he", "in", "er", "on", "hello", "world", "token")


def write_tiny(
    path: str | Path,
    *,
    arch: str = "qwen3moe",
    seed: int = 0,
    dim: int = 64,
    n_layers: int = 2,
    n_heads: int = 4,
    n_kv_heads: int = 2,
    head_dim: int = 64,
    ffn_dim: int = 128,
    expert_dim: int = 64,
    n_experts: int = 8,
    n_experts_used: int = 2,
    vocab: int = 320,
    type: str = "f32",
    norm_topk: bool = True,
    tied: bool = False,
    sections: tuple[int, ...] | None = None,
    context_length: int = 512,
    tokenizer: bool = True,
    rope_theta: float = 10000.0,
    norm_eps: float = 1e-6,
) -> Path:
    """Write a whole random model; ffn_dim counts for llama and qwen3, the expert arguments for qwen3moe and qwen3vlmoe.

    type: of all matrices except the router, which stays f32 as the norms do. sections: (t, h, w) of interleaved M-RoPE,
    qwen3vlmoe only, by default split as Qwen3-Omni does (24:20:20).
    """
    moe = arch in ("qwen3moe", "qwen3vlmoe")
    if arch == "qwen3vlmoe" and sections is None:
        side = 20 * head_dim // 128
        sections = (head_dim // 2 - 2 * side, side, side)
    config = TextConfig(
        architecture=arch,
        n_layers=n_layers,
        dim=dim,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_dim=0 if moe else ffn_dim,
        vocab_size=vocab,
        norm_eps=norm_eps,
        rope_theta=rope_theta,
        rope_dim=head_dim,
        rope_style="interleaved" if arch == "llama" else "neox",
        rope_scale=1.0,
        mrope_sections=sections[:3] if sections else None,
        qk_norm=arch != "llama",
        n_experts=n_experts if moe else 0,
        n_experts_used=n_experts_used if moe else 0,
        expert_dim=expert_dim if moe else 0,
        norm_topk=moe and norm_topk,
        context_length=context_length,
        tied_head=tied,
    )
    return write_random(path, config, type=type, seed=seed, tokenizer=tokenizer)


def write_random(
    path: str | Path, config: TextConfig, *, type: str = "f32", seed: int = 0, tokenizer: bool = True
) -> Path:
    """Write random weights for any configuration, through float32 arrays (so: small ones)."""
    writer = gguf.GGUFWriter(path, config.architecture)
    add_metadata(writer, config, type)
    if tokenizer:
        add_tokenizer(writer, config.vocab_size)
    rng = np.random.default_rng(seed)
    for name, shape in tensor_shapes(config).items():
        kind = TYPES["f32" if _stays_f32(name, shape) else type]
        writer.add_tensor(name, quantize(_values(rng, name, shape, config), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_layer_slice_30b(
    path: str | Path, n_layers: int = 1, type: str = "q8_0", seed: int = 0, tokenizer: bool = True
) -> Path:
    """Qwen3-Omni-30B's thinker cut to a few layers: 1.3 GB for one, 640 MB more for each further one, in Q8_0.

    Random blocks are written straight to the file, 16 MB at a time, so this is quick and takes little memory.
    """
    if type != "q8_0":
        raise ValueError(f"type {type!r}: only q8_0 is written block-wise")
    config = TextConfig(
        architecture="qwen3vlmoe",
        n_layers=n_layers,
        dim=2048,
        n_heads=32,
        n_kv_heads=4,
        head_dim=128,
        ffn_dim=0,
        vocab_size=152064,
        norm_eps=1e-6,
        rope_theta=1e6,
        rope_dim=128,
        rope_style="neox",
        rope_scale=1.0,
        mrope_sections=(24, 20, 20),
        qk_norm=True,
        n_experts=128,
        n_experts_used=8,
        expert_dim=768,
        norm_topk=True,
        context_length=65536,
        tied_head=False,
    )
    writer = gguf.GGUFWriter(path, config.architecture)
    add_metadata(writer, config, type)
    if tokenizer:
        add_tokenizer(writer, config.vocab_size)
    shapes = tensor_shapes(config)
    for name, shape in shapes.items():
        kind = TYPES["f32" if _stays_f32(name, shape) else type]
        per_block, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        writer.add_tensor_info(
            name, shape, np.dtype(np.float32), prod(shape) // per_block * block_bytes, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    rng = np.random.default_rng(seed)
    assert writer.fout is not None
    out = writer.fout[0]
    writer.write_padding(out, out.tell())
    for name, shape in shapes.items():
        start = out.tell()
        if _stays_f32(name, shape):
            out.write(_values(rng, name, shape, config).tobytes())
        else:
            for chunk in q8_chunks(rng, prod(shape) // 32, _deviation(name, shape, config)):
                out.write(chunk.data)
        writer.write_padding(out, out.tell() - start)
    writer.close()
    return Path(path)


def add_metadata(writer: gguf.GGUFWriter, config: TextConfig, type: str) -> None:
    """The keys that llama.cpp's converter writes for these architectures, and ours for the router."""
    arch = config.architecture
    writer.add_type("model")
    writer.add_name(f"tiny random {arch}")
    writer.add_block_count(config.n_layers)
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.dim)
    writer.add_feed_forward_length(config.ffn_dim or config.expert_dim)
    writer.add_head_count(config.n_heads)
    writer.add_head_count_kv(config.n_kv_heads)
    writer.add_key_length(config.head_dim)
    writer.add_value_length(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_file_type(FILE_TYPES[type])
    writer.add_quantization_version(2)
    if arch == "llama":
        writer.add_rope_dimension_count(config.rope_dim)
        writer.add_vocab_size(config.vocab_size)
    if config.n_experts:
        writer.add_expert_count(config.n_experts)
        writer.add_expert_used_count(config.n_experts_used)
        writer.add_expert_feed_forward_length(config.expert_dim)
        if not config.norm_topk:
            writer.add_bool(f"{arch}.expert_weights_norm", False)
    if config.mrope_sections:
        writer.add_rope_dimension_sections([*config.mrope_sections, 0])
        writer.add_uint32(f"{arch}.n_deepstack_layers", min(3, config.n_layers))


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """Byte-level BPE: 256 byte symbols, a few merges, ChatML's special tokens, unused tokens up to `vocab`."""
    symbols = list(byte_symbols().values())
    merges = _merges()
    tokens = symbols + ["".join(pair) for pair in merges]
    if len(tokens) + len(SPECIALS) > vocab:
        raise ValueError(f"vocab {vocab}: the tiny tokenizer has {len(tokens) + len(SPECIALS)} tokens")
    first_special = len(tokens)
    tokens += SPECIALS
    types = [gguf.TokenType.NORMAL] * first_special + [gguf.TokenType.CONTROL] * len(SPECIALS)
    padding = vocab - len(tokens)
    tokens += [f"[PAD{i}]" for i in range(len(tokens), vocab)]
    types += [gguf.TokenType.UNUSED] * padding
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_eos_token_id(first_special + SPECIALS.index("<|im_end|>"))
    writer.add_bos_token_id(first_special + SPECIALS.index("<|endoftext|>"))
    writer.add_pad_token_id(first_special + SPECIALS.index("<|endoftext|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for every byte: itself where printable, else the next free code point from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _merges() -> list[tuple[str, str]]:
    """Pairs that build a few words, with and without a leading space, from the left."""
    merges: dict[tuple[str, str], None] = {}
    for word in _WORDS:
        for text in (word, "Ġ" + word):
            for end in range(1, len(text)):
                merges[text[:end], text[end]] = None
    return list(merges)


def _stays_f32(name: str, shape: tuple[int, ...]) -> bool:
    return len(shape) == 1 or "ffn_gate_inp" in name


def _deviation(name: str, shape: tuple[int, ...], config: TextConfig) -> float:
    """Standard deviation of a matrix: 1.2 / sqrt(fan in), more where a clear winner is wanted."""
    if name == "token_embd.weight":
        return 3 / config.dim**0.5 if config.tied_head else 1.0
    wanted = 3.0 if name == "output.weight" else 2.0 if "ffn_gate_inp" in name else 1.2
    return wanted / shape[-1] ** 0.5


def _values(rng: np.random.Generator, name: str, shape: tuple[int, ...], config: TextConfig) -> np.ndarray:
    normal = rng.standard_normal(shape, dtype=np.float32)
    if len(shape) == 1:
        return 1 + np.float32(0.15) * normal
    return normal * np.float32(_deviation(name, shape, config))


def q8_chunks(rng: np.random.Generator, blocks: int, deviation: float) -> Iterator[np.ndarray]:
    """Q8_0 blocks (f16 scale, 32 int8) of uniform random quants, scaled to about the wanted deviation."""
    block = np.dtype([("scale", "<f2"), ("quants", "i1", 32)])
    per_chunk = 16_000_000 // block.itemsize
    for start in range(0, blocks, per_chunk):
        count = min(per_chunk, blocks - start)
        chunk = np.empty(count, block)
        quants = np.frombuffer(rng.bytes(count * 32), np.int8)
        chunk["quants"] = np.maximum(quants, -127).reshape(count, 32)
        chunk["scale"] = rng.uniform(0.7, 1.3, count) * deviation / 73.3
        yield chunk
