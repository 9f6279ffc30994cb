"""Plans of the real 30B model, recorded dry: its dimensions, weights that are never there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

from qwen3omni_wgpu.cost.paper import Sketch
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.models.config import TextConfig, tensor_shapes
from qwen3omni_wgpu.models.text import TOGETHER, KVCache, TextModel, logits
from qwen3omni_wgpu.ops.cases.case import case

THINKER = replace(Sketch.shipped().config, n_layers=1)
TALKER = TextConfig(
    architecture="qwen3moe", n_layers=1, dim=1024, n_heads=16, n_kv_heads=2, head_dim=128, ffn_dim=0,
    vocab_size=3072, norm_eps=1e-6, rope_theta=1e6, rope_dim=128, rope_style="neox", rope_scale=1.0,
    mrope_sections=(24, 20, 20), qk_norm=True, n_experts=128, n_experts_used=6, expert_dim=384, norm_topk=True,
    context_length=65536, tied_head=False, shared_dim=768,
)  # fmt: skip
CODE_PREDICTOR = TextConfig(
    architecture="qwen3", n_layers=1, dim=1024, n_heads=16, n_kv_heads=8, head_dim=128, ffn_dim=3072,
    vocab_size=2048, norm_eps=1e-6, rope_theta=1e6, rope_dim=128, rope_style="neox", rope_scale=1.0,
    mrope_sections=None, qk_norm=True, n_experts=0, n_experts_used=0, expert_dim=0, norm_topk=False,
    context_length=32768, tied_head=False,
)  # fmt: skip
# Tokens of a prefill chunk; room in the cache, and in that of a frame's codes.
CHUNK, CONTEXT, CODES = 512, 32768, 16
# Matrices of the towers and of the vocoder's transformer, in the types that they are converted to.
PARTS = (
    *(case("matmul", type="f16", n=1024, f=f, d=d, bias=True, gelu=act)
      for f, d, act in ((3456, 1152, None), (4304, 1152, "gelu_tanh"), (1152, 4304, None),  # vision
                        (4608, 4608, "gelu"), (2048, 4608, None),  # its merger
                        (1280, 1280, None), (5120, 1280, "gelu"), (1280, 5120, None))),  # audio
    case("matmul_swiglu", type="f16", n=32, f=3072, d=1024),  # vocoder
    case("matmul", type="f16", n=32, f=1024, d=3072),
)  # fmt: skip


def model_plans() -> Iterator[tuple[str, Callable[[Device], Plan]]]:
    """(name, function that records it on a device) of the model's parts, the thinker in both arithmetics."""
    for act in ("q8", "f32"):
        yield f"thinker decode {act}", partial(_recorded, THINKER, "q8_0", act, 1)
        yield f"thinker prefill {act}", partial(_recorded, THINKER, "q8_0", act, CHUNK)
    yield "talker frame q8", partial(_recorded, TALKER, "q8_0", "q8", 1)
    yield "talker prefill q8", partial(_recorded, TALKER, "q8_0", "q8", 32)
    for n in (1, 2):
        yield f"code predictor {n}", partial(_recorded, CODE_PREDICTOR, "f16", "q8", n, context=CODES)
    for part in PARTS:
        yield part.name, part.dry


def _recorded(config: TextConfig, dtype: str, activations: str, n: int, device: Device, context: int = CONTEXT) -> Plan:
    """One layer with embedding and head: n tokens of them."""
    plan = Plan(device, dry=True, activations=activations)
    model = _model(device, config, dtype, activations)
    cache = KVCache.empty(device, config, context, "f16")
    ids = Tensor.pending(device, (n,), "u32", "ids")
    positions = Tensor.pending(device, (n, 3), "f32", "positions")
    out = Tensor.pending(device, (1, config.vocab_size), "f32", "logits")
    logits(plan, model, ids, positions, cache, "last", out)
    cache.free()
    return plan


def _model(device: Device, config: TextConfig, dtype: str, activations: str) -> TextModel:
    weights = {name: _weight(device, name, shape, dtype) for name, shape in _shapes(config).items()}
    freqs = Tensor.pending(device, (config.rope_dim // 2,), "f32", "freqs")
    norms = [Tensor.pending(device, (2 * config.head_dim,), "f32", "qk norms")] if config.qk_norm else []
    return TextModel(device, config, weights, norms, freqs, activations)


def _weight(device: Device, name: str, shape: tuple[int, ...], dtype: str) -> Tensor:
    kept = len(shape) == 1 or "gate_inp" in name or "router" in name
    return Tensor.split(device, shape, "f32" if kept else dtype, name, lambda _size, _label: None)


def _shapes(config: TextConfig) -> dict[str, tuple[int, ...]]:
    """Of all tensors as the loader leaves them: what is read together joined, a shared expert cut into experts."""
    shapes = dict(tensor_shapes(config))
    f, d = config.expert_dim, config.dim
    for name in shapes:
        if "_shexp" in name and "gate_inp" not in name:
            pieces = config.shared_dim // f
            shapes[name] = (pieces, d, f) if "down" in name else (pieces, f, d)
    for joined, leaves in TOGETHER.items():
        for i in range(config.n_layers):
            members = [f"blk.{i}.{leaf}.weight" for leaf in leaves]
            if all(member in shapes for member in members):
                parts = [shapes.pop(member) for member in members]
                shapes[f"blk.{i}.{joined}.weight"] = (sum(part[0] for part in parts), *parts[0][1:])
    return shapes
