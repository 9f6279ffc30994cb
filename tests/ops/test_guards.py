"""What an op says at its door: which tensor, what it is, what was expected."""

from collections.abc import Callable

import numpy as np
import pytest

from qwen3omni_wgpu import ops
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.ops.attention import most_keys
from qwen3omni_wgpu.ops.cases import BUILDERS

pytestmark = pytest.mark.gpu


class Door:
    """A plan with tensors to hand in; nothing is ever run."""

    def __init__(self, device: Device):
        self.plan = Plan(device)

    def __call__(self, name: str, *shape: int, dtype: str = "f32") -> Tensor:
        return self.plan.empty(shape, dtype, name)


# op -> [(call, what the message must say)]
CALLS: dict[str, list[tuple[Callable[[Plan, Door], object], str]]] = {
    "matmul": [
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("blk.0.attn_q.weight", 8, 96)),
         "matmul: h is f32 [3, 64], expected f32 [any, 96]"),
        (lambda p, t: ops.matmul(p, t("h", 3, 42), t("w", 8, 42)), "matmul: w has rows of 42, not a multiple of 4"),
        (lambda p, t: ops.matmul(p, t("h", 3, 40), t("w", 8, 40, dtype="q8_0")),
         "matmul: w has rows of 40, not a multiple of 32"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("w", 8, 64), bias=t("b", 9)),
         "matmul: b is f32 [9], expected f32 [8]"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("w", 8, 64), act="relu"),
         "matmul: no activation 'relu', expected gelu or gelu_tanh"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("w", 2, 8, 64)),
         "matmul: w is f32 [2, 8, 64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any]"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("w", 8, 64, dtype="u32")),
         "matmul: w is u32 [8, 64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any]"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64, dtype="f16"), t("w", 8, 64)),
         "matmul: h is f16 [3, 64], expected f32 [any, 64]"),
        (lambda p, t: ops.matmul(p, t("h", 3, 64), t("w", 8, 64), out=t("logits", 3, 9)),
         "matmul: logits is f32 [3, 9], expected f32 [3, 8]"),
        (lambda p, t: ops.matmul(p, t("h", 1, 64), t("w", 8, 64), norm=(t("norm", 63), 1e-6)),
         "matmul: norm is f32 [63], expected f32 [64]"),
        (lambda p, t: ops.matmul(p, t("h", 1, 64), t("w", 8, 64), residual=t("x", 2, 8)),
         "matmul: x is f32 [2, 8], expected f32 [1, 8]"),
        (lambda p, t: ops.matmul(p, t("h", 1, 64), t("w", 7, 64), residual=t("x", 1, 7)),
         "matmul: w has 7 rows, with a residual not a multiple of 4"),
        (lambda p, t: ops.matmul(p, t("h", 1, 64), t("w", 8, 64), residual=t("x", 1, 8), out=t("y", 1, 8)),
         "matmul: a result with a residual goes to a tensor of its own"),
    ],
    "moe_sort": [
        (lambda p, t: ops.moe_sort(p, t("ids", 3, 2), 8, 16), "moe_sort: ids is f32 [3, 2], expected u32 [any, any]"),
        (lambda p, t: ops.moe_sort(p, t("ids", 3, 2, dtype="u32"), 8, 0), "moe_sort: tiles of 0 slots for 8 experts"),
    ],
    "moe_matmul": [
        (lambda p, t: ops.moe_matmul(p, t("h", 3, 64), t("exps", 4, 64), t("ids", 3, 2, dtype="u32")),
         "moe_matmul: exps is f32 [4, 64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any, any]"),
        (lambda p, t: ops.moe_matmul(p, t("h", 3, 64), t("exps", 4, 8, 64), t("ids", 3, 2)),
         "moe_matmul: ids is f32 [3, 2], expected u32 [any, any]"),
        (lambda p, t: ops.moe_matmul(p, t("h", 3, 32), t("exps", 4, 8, 64), t("ids", 3, 2, dtype="u32")),
         "moe_matmul: h is f32 [3, 32], expected f32 [any, 64]"),
        (lambda p, t: ops.moe_matmul(p, t("h", 5, 64), t("exps", 4, 8, 64), t("ids", 3, 2, dtype="u32")),
         "moe_matmul: h has 5 rows for 3 tokens, 2 experts each"),
        (lambda p, t: ops.moe_matmul(p, t("h", 3, 16), t("exps", 4, 8, 16), t("ids", 3, 2, dtype="u32")),
         "moe_matmul: exps has rows of 16, not a multiple of 32"),
    ],
    "moe_swiglu": [
        (lambda p, t: ops.moe_swiglu(p, t("h", 1, 64), [t("exps", 8, 64)], t("ids", 1, 2, dtype="u32")),
         "moe_swiglu: exps is f32 [8, 64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any, any]"),
        (lambda p, t: ops.moe_swiglu(p, t("h", 1, 64), [t("gate", 4, 8, 64), t("up", 4, 8, 32)], t("ids", 1, 2)),
         "moe_swiglu: up is f32 [4, 8, 32], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, 8, 64]"),
        (lambda p, t: ops.moe_swiglu(p, t("h", 1, 64), [t("exps", 8, 8, 64)], t("ids", 1, 2)),
         "moe_swiglu: ids is f32 [1, 2], expected u32 [any, any]"),
        (lambda p, t: ops.moe_swiglu(p, t("h", 3, 64), [t("exps", 8, 8, 64)], t("ids", 1, 2, dtype="u32")),
         "moe_swiglu: h is f32 [3, 64], expected f32 [1, 64]"),
        (lambda p, t: ops.moe_swiglu(p, t("h", 1, 48), [t("exps", 8, 8, 48)], t("ids", 1, 2, dtype="u32")),
         "moe_swiglu: exps has rows of 48, not a multiple of 32"),
        (lambda p, t: ops.moe_swiglu(p, t("h", 1, 64), [t("exps", 7, 8, 64)], t("ids", 1, 2, dtype="u32")),
         "moe_swiglu: exps [7, 8, 64] is not as many gates as ups"),
    ],
    "moe_down": [
        (lambda p, t: ops.moe_down(p, t("h", 2, 32), t("exps", 4, 8), t("ids", 1, 2, dtype="u32"), t("weights", 1, 2)),
         "moe_down: exps is f32 [4, 8], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any, any]"),
        (lambda p, t: ops.moe_down(p, t("h", 2, 32), t("exps", 4, 8, 32), t("ids", 1, 2), t("weights", 1, 2)),
         "moe_down: ids is f32 [1, 2], expected u32 [any, any]"),
        (lambda p, t: ops.moe_down(p, t("h", 2, 32), t("exps", 4, 8, 32), t("ids", 1, 2, dtype="u32"), t("w", 1, 3)),
         "moe_down: w is f32 [1, 3], expected f32 [1, 2]"),
        (lambda p, t: ops.moe_down(p, t("h", 1, 32), t("exps", 4, 8, 32), t("ids", 1, 2, dtype="u32"), t("w", 1, 2)),
         "moe_down: h is f32 [1, 32], expected f32 [2, 32]"),
        (lambda p, t: ops.moe_down(p, t("h", 2, 48), t("exps", 4, 8, 48), t("ids", 1, 2, dtype="u32"), t("w", 1, 2)),
         "moe_down: exps has rows of 48, not a multiple of 32"),
        (lambda p, t: ops.moe_down(p, t("h", 2, 32), t("exps", 4, 6, 32), t("ids", 1, 2, dtype="u32"), t("w", 1, 2)),
         "moe_down: exps has 6 rows an expert, not a multiple of 4"),
        (lambda p, t: ops.moe_down(p, t("h", 2, 32), t("exps", 4, 8, 32), t("ids", 1, 2, dtype="u32"), t("w", 1, 2),
                                   residual=t("x", 2, 8)),
         "moe_down: x is f32 [2, 8], expected f32 [1, 8]"),
    ],
    "moe_route": [
        (lambda p, t: ops.moe_route(p, t("h", 1, 64), t("router", 64), 2, True),
         "moe_route: router is f32 [64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any]"),
        (lambda p, t: ops.moe_route(p, t("h", 1, 64), t("router", 8, 32), 2, True),
         "moe_route: h is f32 [1, 64], expected f32 [any, 32]"),
        (lambda p, t: ops.moe_route(p, t("h", 1, 64), t("router", 8, 64), 8, True, always=1),
         "moe_route: top-8 of 7 experts"),
        (lambda p, t: ops.moe_route(p, t("h", 1, 48), t("router", 8, 48), 2, True),
         "moe_route: router has rows of 48, not a multiple of 32"),
        (lambda p, t: ops.moe_route(p, t("h", 1, 64), t("router", 8, 64), 2, True, norm=(t("norm", 8), 1e-6)),
         "moe_route: norm is f32 [8], expected f32 [64]"),
    ],
    "moe_route_swiglu": [
        (lambda p, t: ops.moe_route_swiglu(p, t("h", 1, 64), t("router", 8, 64), [t("exps", 16, 64)], 2, True),
         "moe_route_swiglu: exps is f32 [16, 64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [16, any, 64]"),
        (lambda p, t: ops.moe_route_swiglu(p, t("h", 1, 64), t("router", 8, 64), [t("exps", 14, 8, 64)], 2, True),
         "moe_route_swiglu: exps is f32 [14, 8, 64], "
         "expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [16, any, 64]"),
        (lambda p, t: ops.moe_route_swiglu(p, t("h", 1, 64), t("router", 8, 64), [t("exps", 16, 8, 64)], 8, True,
                                           always=1),
         "moe_route_swiglu: top-8 of 7 experts"),
    ],
    "quantize_q8": [
        (lambda p, t: ops.quantize_q8(p, t("h", 64)), "quantize_q8: h is f32 [64], expected f32 [any, any]"),
        (lambda p, t: ops.quantize_q8(p, t("h", 2, 40)), "quantize_q8: h has rows of 40, not a multiple of 32"),
    ],
    "embed": [
        (lambda p, t: ops.embed(p, t("token_embd.weight", 64), t("ids", 3, dtype="u32")),
         "embed: token_embd.weight is f32 [64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any]"),
        (lambda p, t: ops.embed(p, t("w", 9, 64), t("ids", 3, dtype="i32")),
         "embed: ids is i32 [3], expected u32 [any]"),
        (lambda p, t: ops.embed(p, t("w", 9, 48), t("ids", 3, dtype="u32")),
         "embed: w has rows of 48, not a multiple of 32"),
    ],
    "embed_code": [
        (lambda p, t: ops.embed_code(p, t("codes", 64), t("id", 1, dtype="u32"), t("total", 1, 64)),
         "embed_code: codes is f32 [64], expected f32 or f16 or bf16 or q8_0 or q4_0 or q4_1 [any, any]"),
        (lambda p, t: ops.embed_code(p, t("codes", 9, 64), t("id", 2, dtype="u32"), t("total", 1, 64)),
         "embed_code: id is u32 [2], expected u32 [1]"),
        (lambda p, t: ops.embed_code(p, t("codes", 9, 64), t("id", 1, dtype="u32"), t("total", 1, 32)),
         "embed_code: total is f32 [1, 32], expected f32 [1, 64]"),
        (lambda p, t: ops.embed_code(p, t("c", 9, 64), t("id", 1, dtype="u32"), t("total", 1, 64), t("h", 2, 64)),
         "embed_code: h is f32 [2, 64], expected f32 [1, 64]"),
        (lambda p, t: ops.embed_code(p, t("c", 9, 48), t("id", 1, dtype="u32"), t("total", 1, 48)),
         "embed_code: c has rows of 48, not a multiple of 32"),
    ],
    "conv_columns": [
        (lambda p, t: ops.conv_columns(p, t("mel", 100, 1), t("valid", 1, dtype="u32"), (5, 7)),
         "conv_columns: mel has 100 rows, not pictures of 5 x 7"),
        (lambda p, t: ops.conv_columns(p, t("mel", 70, 1), t("valid", 1), (5, 7)),
         "conv_columns: valid is f32 [1], expected u32 [1]"),
    ],
    "embed_mean": [
        (lambda p, t: ops.embed_mean(p, t("codes", 9, 64), t("ids", 3, dtype="u32")),
         "embed_mean: ids is u32 [3], expected u32 [any, any]"),
        (lambda p, t: ops.embed_mean(p, t("codes", 9, 48), t("ids", 3, 2, dtype="u32")),
         "embed_mean: codes has rows of 48, not a multiple of 32"),
    ],
    "conv1d": [
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 16), t("after", 1, 5)),
         "conv1d: x is f32 [6, 8], expected f32 [any, 16]"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8, dtype="q8_0"), t("after", 1, 5)),
         "conv1d: w is q8_0 [5, 8], expected f32 or f16 or bf16 [any, any]"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 6), t("w", 5, 6), t("after", 1, 5)),
         "conv1d: w has rows of 6, not 1 times a multiple of 4"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 17), t("after", 1, 5), taps=2),
         "conv1d: w has rows of 17, not 2 times a multiple of 4"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 16), t("after", 1, 5), taps=2),
         "conv1d: x has 0 rows in front, 1 are read"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8), t("after", 1, 5), per_token=4),
         "conv1d: x has 6 rows, not 4 a token"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8), t("after", 1, 5), snake=True),
         "conv1d: after is f32 [1, 5], expected f32 [3, 5]"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8), t("after", 1, 5), act="relu"),
         "conv1d: no activation 'relu', expected gelu or clamp"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8), t("after", 1, 5), residual=t("r", 6, 4)),
         "conv1d: r is f32 [6, 4], expected f32 [6, 5]"),
        (lambda p, t: ops.conv1d(p, t("x", 6, 8), t("w", 5, 8), t("after", 1, 5), hidden=2),
         "conv1d: state is u32 [2], expected u32 [3]"),
    ],
    "conv1d_depthwise": [
        (lambda p, t: ops.conv1d_depthwise(p, ops.empty_rows(p, 6, 8, 1, "x"), t("w", 7, 9), t("b", 9)),
         "conv1d_depthwise: x is f32 [14, 8], expected f32 [any, 9]"),
        (lambda p, t: ops.conv1d_depthwise(p, ops.empty_rows(p, 6, 8, 1, "x"), t("w", 7, 8), t("b", 9)),
         "conv1d_depthwise: b is f32 [9], expected f32 [8]"),
        (lambda p, t: ops.conv1d_depthwise(p, ops.empty_rows(p, 6, 8, 1, "x"), t("w", 10, 8), t("b", 8)),
         "conv1d_depthwise: x has 8 rows in front, 9 are read"),
        (lambda p, t: ops.conv1d_depthwise(p, ops.empty_rows(p, 6, 6, 1, "x"), t("w", 7, 6), t("b", 6)),
         "conv1d_depthwise: x has rows of 6, not a multiple of 4"),
        (lambda p, t: ops.conv1d_depthwise(p, ops.empty_rows(p, 6, 8, 1, "x"), t("w", 7, 8), t("b", 8), 4),
         "conv1d_depthwise: x has 6 rows, not 4 a token"),
    ],
    "carry_rows": [
        (lambda p, t: ops.carry_rows(p, ops.empty_rows(p, 6, 8, 3, "x"), t("kept", 3, 8)),
         "carry_rows: kept is f32 [3, 8], expected f32 [8, 8]"),
        (lambda p, t: ops.carry_rows(p, ops.empty_rows(p, 6, 8, 0, "x"), t("kept", 0, 8)),
         "carry_rows: x has no rows in front"),
        (lambda p, t: ops.carry_rows(p, ops.empty_rows(p, 6, 6, 1, "x"), t("kept", 32, 6)),
         "carry_rows: x has rows of 6, not a multiple of 4"),
    ],
    "shift_rows": [
        (lambda p, t: ops.shift_rows(p, t("cache", 9, 8), 10), "shift_rows: 10 rows of cache, which has 9"),
        (lambda p, t: ops.shift_rows(p, t("cache", 9, 6), 3),
         "shift_rows: cache has rows of 6, not a multiple of 4"),
    ],
    "add_rows": [
        (lambda p, t: ops.add_rows(p, t("x", 3, 64), t("pos", 9, 32), t("ids", 3, 1, dtype="u32"), t("w", 3, 1)),
         "add_rows: x is f32 [3, 64], expected f32 [any, 32]"),
        (lambda p, t: ops.add_rows(p, t("x", 3, 64), t("pos", 9, 64), t("ids", 4, 1, dtype="u32"), t("w", 4, 1)),
         "add_rows: ids is u32 [4, 1], expected u32 [3, any]"),
        (lambda p, t: ops.add_rows(p, t("x", 3, 64), t("pos", 9, 64), t("ids", 3, 4, dtype="u32"), t("w", 3, 1)),
         "add_rows: w is f32 [3, 1], expected f32 [3, 4]"),
        (lambda p, t: ops.add_rows(p, t("x", 3, 63), t("pos", 9, 63), t("ids", 3, 1, dtype="u32"), t("w", 3, 1)),
         "add_rows: pos has rows of 63, not a multiple of 4"),
    ],
    "rms_norm": [
        (lambda p, t: ops.rms_norm(p, t("h", 3, 64), t("output_norm.weight", 63), 1e-6),
         "rms_norm: h is f32 [3, 64], expected f32 [any, 63]"),
        (lambda p, t: ops.rms_norm(p, t("h", 3, 64), t("w", 1, 64), 1e-6),
         "rms_norm: w is f32 [1, 64], expected f32 [any]"),
    ],
    "add_rms_norm": [
        (lambda p, t: ops.add_rms_norm(p, t("x", 3, 64), t("residual", 4, 64), t("w", 64), 1e-6),
         "add_rms_norm: residual is f32 [4, 64], expected f32 [3, 64]"),
        (lambda p, t: ops.add_rms_norm(p, t("x", 3, 64), t("residual", 3, 64), t("w", 64), 1e-6, t("factors", 63)),
         "add_rms_norm: factors is f32 [63], expected f32 [64]"),
    ],
    "layer_norm": [
        (lambda p, t: ops.layer_norm(p, t("h", 3, 64), t("w", 63), t("b", 63), 1e-6),
         "layer_norm: h is f32 [3, 64], expected f32 [any, 63]"),
        (lambda p, t: ops.layer_norm(p, t("h", 3, 64), t("w", 64), t("b", 63), 1e-6),
         "layer_norm: b is f32 [63], expected f32 [64]"),
        (lambda p, t: ops.layer_norm(p, t("h", 5, 64), t("w", 64), t("b", 64), 1e-6, 4),
         "layer_norm: h has 5 rows, not 4 a token"),
    ],
    "add_layer_norm": [
        (lambda p, t: ops.add_layer_norm(p, t("x", 3, 64), t("residual", 4, 64), t("w", 64), t("b", 64), 1e-6),
         "add_layer_norm: residual is f32 [4, 64], expected f32 [3, 64]"),
        (lambda p, t: ops.add_layer_norm(p, t("x", 3, 64), t("residual", 3, 64), t("w", 64), t("b", 4), 1e-6),
         "add_layer_norm: b is f32 [4], expected f32 [64]"),
    ],
    "rope": [
        (lambda p, t: ops.rope(p, t("q", 2, 130), t("pos", 2, 3), t("f", 16), 4, style="neox"),
         "rope: q has rows of 130 for 4 heads"),
        (lambda p, t: ops.rope(p, t("q", 2, 128), t("pos", 2), t("f", 16), 4, style="neox"),
         "rope: pos is f32 [2], expected f32 [any, 3]"),
        (lambda p, t: ops.rope(p, t("q", 2, 128), t("pos", 1, 3), t("f", 16), 4, style="neox"),
         "rope: 1 positions for 2 tokens"),
        (lambda p, t: ops.rope(p, t("q", 2, 128), t("pos", 2, 3), t("f", 17), 4, style="neox"),
         "rope: 17 pairs do not fit heads of 32"),
        (lambda p, t: ops.rope(p, t("q", 2, 128), t("pos", 2, 3), t("f", 16), 4, style="yarn"),
         "rope: unknown style 'yarn'"),
        (lambda p, t: ops.rope(p, t("q", 2, 120), t("pos", 2, 3), t("f", 15), 4, style="neox", sections="halves"),
         "rope: 15 pairs have no halves"),
        (lambda p, t: ops.rope(p, t("q", 2, 128), t("pos", 2, 3), t("f", 16), 4, style="neox", norm=t("qn", 64)),
         "rope: qn is f32 [64], expected f32 [32]"),
        (lambda p, t: ops.rope(p, t("k", 2, 128), t("pos", 2, 3), t("f", 16), 4, style="neox", cache=t("c", 9, 64)),
         "rope: c is f32 [9, 64], expected f32 or f16 [any, 128]"),
    ],
    "rope_qkv": [
        (lambda p, t: ops.rope_qkv(p, t("qkv", 2, 130), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32), t("v", 9, 32),
                                   style="neox"),
         "rope_qkv: qkv has rows of 130 for 2 + 2 x 1 heads"),
        (lambda p, t: ops.rope_qkv(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 64), t("v", 9, 64),
                                   style="neox"),
         "rope_qkv: k is f32 [9, 64], expected f32 or f16 or kv_q10 [any, 32]"),
        (lambda p, t: ops.rope_qkv(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32), t("v", 8, 32),
                                   style="neox"),
         "rope_qkv: v is f32 [8, 32], expected f32 [9, 32]"),
        (lambda p, t: ops.rope_qkv(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32), t("v", 9, 32),
                                   style="neox", norms=t("norms", 32)),
         "rope_qkv: norms is f32 [32], expected f32 [64]"),
    ],
    "rope_attention": [
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 130), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32),
                                         t("v", 9, 32), 1.0, style="neox"),
         "rope_attention: qkv has rows of 130 for 2 + 2 x 1 heads"),
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 224), t("pos", 2, 3), t("f", 16), 3, 2, t("k", 9, 64),
                                         t("v", 9, 64), 1.0, style="neox"),
         "rope_attention: 3 heads do not share 2 key/value heads evenly"),
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 17), 2, 1, t("k", 9, 32),
                                         t("v", 9, 32), 1.0, style="neox"),
         "rope_attention: 17 pairs do not fit heads of 32"),
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 64),
                                         t("v", 9, 32), 1.0, style="neox"),
         "rope_attention: k is f32 [9, 64], expected f32 or f16 or kv_q10 [any, 32]"),
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32),
                                         t("v", 8, 32), 1.0, style="neox"),
         "rope_attention: v is f32 [8, 32], expected f32 [9, 32]"),
        (lambda p, t: ops.rope_attention(p, t("qkv", 2, 128), t("pos", 2, 3), t("f", 16), 2, 1, t("k", 9, 32),
                                         t("v", 9, 32), 1.0, style="neox", norms=t("norms", 32)),
         "rope_attention: norms is f32 [32], expected f32 [64]"),
    ],
    "matmul_joined": [
        (lambda p, t: ops.matmul_joined(p, t("h", 3, 64), [t("q", 8, 64), t("k", 8, 96)]),
         "matmul_joined: h is f32 [3, 64], expected f32 [any, 96]"),
        (lambda p, t: ops.matmul_joined(p, t("h", 3, 64), [t("q", 8, 64)], norm=(t("norm", 1, 64), 1e-6)),
         "matmul_joined: norm is f32 [1, 64], expected f32 [64]"),
    ],
    "matmul_swiglu": [
        (lambda p, t: ops.matmul_swiglu(p, t("h", 3, 64), [t("gate_up", 9, 64)]),
         "matmul_swiglu: gate_up [9, 64] is not two halves"),
        (lambda p, t: ops.matmul_swiglu(p, t("h", 3, 64), [t("gate_up", 8, 32)]),
         "matmul_swiglu: h is f32 [3, 64], expected f32 [any, 32]"),
        (lambda p, t: ops.matmul_swiglu(p, t("h", 3, 64), [t("gate_up", 8, 64)], norm=(t("norm", 8), 1e-6)),
         "matmul_swiglu: norm is f32 [8], expected f32 [64]"),
    ],
    "swiglu_joined": [
        (lambda p, t: ops.swiglu_joined(p, t("gate_up", 2, 12)),
         "swiglu_joined: gate_up [2, 12] is not two halves in fours"),
    ],
    "store_rows": [
        (lambda p, t: ops.store_rows(p, t("v", 2, 64), t("cache.v.3", 9, 32)),
         "store_rows: cache.v.3 is f32 [9, 32], expected f32 or f16 [any, 64]"),
        (lambda p, t: ops.store_rows(p, t("v", 2, 63), t("c", 9, 63, dtype="f16")),
         "store_rows: v has rows of 63, an odd number"),
    ],
    "load_rows": [
        (lambda p, t: ops.load_rows(p, t("x", 9), 2), "load_rows: x is f32 [9], expected f32 [any, any]"),
        (lambda p, t: ops.load_rows(p, t("x", 9, 30), 2), "load_rows: x has rows of 30, not a multiple of 4"),
    ],
    "attention": [
        (lambda p, t: ops.attention(p, t("q", 2, 128), t("k", 9, 64), t("v", 9, 64), 4, 3, 1.0),
         "attention: 4 heads do not share 3 key/value heads evenly"),
        (lambda p, t: ops.attention(p, t("q", 2, 130), t("k", 9, 64), t("v", 9, 64), 4, 2, 1.0),
         "attention: q has rows of 130 for 4 heads"),
        (lambda p, t: ops.attention(p, t("q", 2, 24), t("k", 9, 12), t("v", 9, 12), 4, 2, 1.0),
         "attention: heads of 6 are not a multiple of 4"),
        (lambda p, t: ops.attention(p, t("q", 2, 128), t("k", 9, 32), t("v", 9, 64), 4, 2, 1.0),
         "attention: k is f32 [9, 32], expected f32 or f16 or kv_q10 [any, 64]"),
        (lambda p, t: ops.attention(p, t("q", 2, 128), t("k", 9, 64), t("v", 8, 64), 4, 2, 1.0),
         "attention: v is f32 [8, 64], expected f32 [9, 64]"),
        (lambda p, t: ops.attention(p, t("q", 2, 128), t("k", 9, 64, dtype="f16"), t("v", 9, 64), 4, 2, 1.0),
         "attention: v is f32 [9, 64], expected f16 [9, 64]"),
        (lambda p, t: ops.attention(p, t("q", 1, 65 * 4), t("k", 9, 4), t("v", 9, 4), 65, 1, 1.0),
         "attention: 65 heads a key/value head, at most 64"),
        (lambda p, t: ops.attention(p, t("q", 1, 96), t("k", 9, 96, dtype="kv_q10"), t("v", 9, 96, dtype="kv_q8"), 3, 3,
                                    1.0),
         "attention: k is kv_q10, which is for heads of 64 and 128, not 32"),
        (lambda p, t: ops.attention(p, t("q", 1, 64), t("k", 9, 64, dtype="kv_q10"), t("v", 9, 64, dtype="kv_q10"), 1,
                                    1, 1.0),
         "attention: v is kv_q10 [9, 64], expected kv_q8 [9, 64]"),
    ],
    "window_attention": [
        (lambda p, t: ops.window_attention(p, t("q", 2, 130), t("k", 9, 130), t("v", 9, 130), t("w", 1, 4, dtype="u32"),
                                           4, 1.0),
         "window_attention: q has rows of 130 for 4 heads"),
        (lambda p, t: ops.window_attention(p, t("q", 2, 24), t("k", 9, 24), t("v", 9, 24), t("w", 1, 4, dtype="u32"),
                                           4, 1.0),
         "window_attention: heads of 6 are no multiple of 4 up to 128"),
        (lambda p, t: ops.window_attention(p, t("q", 2, 132), t("k", 9, 132), t("v", 9, 132), t("w", 1, 4, dtype="u32"),
                                           1, 1.0),
         "window_attention: heads of 132 are no multiple of 4 up to 128"),
        (lambda p, t: ops.window_attention(p, t("q", 2, 128), t("k", 9, 64), t("v", 9, 64), t("w", 1, 4, dtype="u32"),
                                           4, 1.0),
         "window_attention: k is f32 [9, 64], expected f32 or f16 [any, 128]"),
        (lambda p, t: ops.window_attention(p, t("q", 2, 128), t("k", 9, 128, dtype="f16"), t("v", 9, 128),
                                           t("w", 1, 4, dtype="u32"), 4, 1.0),
         "window_attention: v is f32 [9, 128], expected f16 [9, 128]"),
        (lambda p, t: ops.window_attention(p, t("q", 2, 128), t("k", 9, 128), t("v", 9, 128), t("w", 1, 4), 4, 1.0),
         "window_attention: w is f32 [1, 4], expected u32 [any, 4]"),
    ],
    "swiglu": [
        (lambda p, t: ops.swiglu(p, t("gate", 2, 64), t("up", 2, 60)),
         "swiglu: up is f32 [2, 60], expected f32 [2, 64]"),
        (lambda p, t: ops.swiglu(p, t("gate", 2, 7), t("up", 2, 7)), "swiglu: gate [2, 7] is not in fours a token"),
        (lambda p, t: ops.swiglu(p, t("gate", 3, 8), t("up", 3, 8), 2), "swiglu: gate [3, 8] is not in fours a token"),
    ],
    "add": [
        (lambda p, t: ops.add(p, t("a", 2, 64), t("b", 3, 64)), "add: b is f32 [3, 64], expected f32 [2, 64]"),
        (lambda p, t: ops.add(p, t("", 64), t("b", 64)), "add: a tensor is f32 [64], expected f32 [any, any]"),
    ],
    "replace_rows": [
        (lambda p, t: ops.replace_rows(p, t("x", 4, 64), t("media", 5, 64), t("flags", 4, dtype="u32")),
         "replace_rows: media is f32 [5, 64], expected f32 [4, 64]"),
        (lambda p, t: ops.replace_rows(p, t("x", 4, 64), t("media", 4, 64), t("flags", 4)),
         "replace_rows: flags is f32 [4], expected u32 [4]"),
        (lambda p, t: ops.replace_rows(p, t("x", 4, 66), t("media", 4, 66), t("flags", 4, dtype="u32")),
         "replace_rows: x has rows of 66, not a multiple of 4"),
    ],
    "softmax": [(lambda p, t: ops.softmax(p, t("x", 5)), "softmax: x is f32 [5], expected f32 [any, any]")],
    "moe_gate": [
        (lambda p, t: ops.moe_gate(p, t("router", 8), 2, True), "moe_gate: router is f32 [8], expected f32 [any, any]"),
        (lambda p, t: ops.moe_gate(p, t("router", 1, 8), 9, True), "moe_gate: top-9 of 8 experts"),
        (lambda p, t: ops.moe_gate(p, t("router", 1, 8), 0, True), "moe_gate: top-0 of 8 experts"),
        (lambda p, t: ops.moe_gate(p, t("router", 1, 8), 8, True, 2), "moe_gate: top-8 of 7 experts"),
    ],
    "moe_combine": [
        (lambda p, t: ops.moe_combine(p, t("y", 5, 64), t("weights", 3, 2)),
         "moe_combine: y is f32 [5, 64], expected f32 [6, any]"),
        (lambda p, t: ops.moe_combine(p, t("y", 6, 62), t("weights", 3, 2)),
         "moe_combine: y has rows of 62, not a multiple of 4"),
    ],
    "argmax": [
        (lambda p, t: ops.argmax(p, t("logits", 9)), "argmax: logits is f32 [9], expected f32 [any, any]"),
        (lambda p, t: ops.argmax(p, t("logits", 1, 9), out=t("ids", 1)), "argmax: ids is f32 [1], expected u32 [any]"),
        (lambda p, t: ops.argmax(p, t("logits", 3, 9), out=t("ids", 2, dtype="u32")),
         "argmax: ids has 2 rows for 3 of logits"),
    ],
    "top_k": [
        (lambda p, t: ops.top_k(p, t("logits", 2, 9), 3), "top_k: logits is f32 [2, 9], expected f32 [1, any]"),
        (lambda p, t: ops.top_k(p, t("logits", 1, 9), 10), "top_k: the 10 largest of 9 logits"),
        (lambda p, t: ops.top_k(p, t("logits", 1, 999), 129), "top_k: the 129 largest are wanted, at most 128"),
    ],
    "pick": [
        (lambda p, t: ops.pick(p, t("logits", 2, 9), t("settings", 9), 3),
         "pick: logits is f32 [2, 9], expected f32 [1, any]"),
        (lambda p, t: ops.pick(p, t("logits", 1, 9), t("settings", 8), 3),
         "pick: settings is f32 [8], expected f32 [9]"),
        (lambda p, t: ops.pick(p, t("logits", 1, 9), t("settings", 9), 10),
         "pick: the best 10 of 9 logits, at most 128"),
        (lambda p, t: ops.pick(p, t("logits", 1, 999), t("settings", 9), 129),
         "pick: the best 129 of 999 logits, at most 128"),
        (lambda p, t: ops.pick(p, t("logits", 1, 1 << 24), t("settings", 9), 3),
         "pick: logits has 16777216 logits, and settings hold ids below 2**24 only"),
        (lambda p, t: ops.pick(p, t("logits", 1, 9), t("settings", 9), 3, seen=t("seen", 8, dtype="u32")),
         "pick: seen is u32 [8], expected u32 [9]"),
        (lambda p, t: ops.pick(p, t("logits", 1, 9), t("settings", 9), 3, out=t("ids", 1)),
         "pick: ids is f32 [1], expected u32 [any]"),
    ],
    "penalize": [
        (lambda p, t: ops.penalize(p, t("logits", 9), t("recent", 2, 2, dtype="u32"), t("options", 4)),
         "penalize: logits is f32 [9], expected f32 [1, any]"),
        (lambda p, t: ops.penalize(p, t("logits", 1, 9), t("recent", 2, dtype="u32"), t("options", 4)),
         "penalize: recent is u32 [2], expected u32 [any, 2]"),
        (lambda p, t: ops.penalize(p, t("logits", 1, 9), t("recent", 2, 2, dtype="u32"), t("options", 3)),
         "penalize: options is f32 [3], expected f32 [4]"),
    ],
    "sample": [
        (lambda p, t: ops.sample(p, t("logits", 2, 9), t("random", 1), t("settings", 4)),
         "sample: logits is f32 [2, 9], expected f32 [1, any]"),
        (lambda p, t: ops.sample(p, t("logits", 1, 4097), t("random", 1), t("settings", 4)),
         "sample: logits has 4097 logits, at most 4096"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 4), draw=3),
         "sample: random has 3 numbers, not number 3"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 3)),
         "sample: settings is f32 [3], expected f32 [4]"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 4),
                                 seen=t("seen", 8, dtype="u32")),
         "sample: seen is u32 [8], expected u32 [9]"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 4), codes=t("codes", 2)),
         "sample: codes is f32 [2], expected u32 [any]"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 4),
                                 codes=t("codes", 2, dtype="u32"), at=2),
         "sample: codes has 2 places, not place 2"),
        (lambda p, t: ops.sample(p, t("logits", 1, 9), t("random", 3), t("settings", 4), left_out=(3, 10)),
         "sample: cannot leave out 3 to 10 of 9 logits"),
    ],
    "select_row": [(lambda p, t: ops.select_row(p, t("h", 5)), "select_row: h is f32 [5], expected f32 [any, any]")],
}  # fmt: skip
FLAT = [(op, i) for op, calls in CALLS.items() for i in range(len(calls))]


@pytest.mark.parametrize(("op", "i"), FLAT, ids=lambda value: str(value))
def test_message(device: Device, op: str, i: int) -> None:
    call, message = CALLS[op][i]
    door = Door(device)
    with pytest.raises(ops.ShapeError) as caught:
        call(door.plan, door)
    assert str(caught.value) == message
    assert door.plan.steps == []  # nothing is recorded by a call that failed


def test_every_op_has_a_guard():
    assert set(CALLS) == set(BUILDERS)


def test_attention_refuses_more_keys_than_the_driver_walks_through(device, monkeypatch):
    """llvmpipe ends a thread's loops after 65535 rounds without a word."""
    monkeypatch.setattr(Device, "max_rounds", 6000)
    most = most_keys(device, 4, 2, 32)
    assert 0 < most < 20000
    door = Door(device)
    q = door("q", 3, 128)
    ops.attention(door.plan, q, door("cache.k.0", most, 64), door("v", most, 64), 4, 2, 1.0)
    with pytest.raises(ops.ShapeError, match=rf"attention: cache\.k\.0 has {most + 1} rows, this device can do {most}"):
        ops.attention(door.plan, q, door("cache.k.0", most + 1, 64), door("v", most + 1, 64), 4, 2, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("heads", "kv", "hd"), [(1, 1, 32), (8, 1, 128), (32, 1, 64)])
def test_attention_is_right_up_to_there(device, heads, kv, hd):
    most = most_keys(device, heads, kv, hd)
    if most > 1 << 20:
        pytest.skip("this driver does not count rounds")
    rng = np.random.default_rng(0)
    plan = Plan(device)
    plan.state = Tensor.from_numpy(device, np.array([most - 1, 1], np.uint32), "state")
    keys, values = (
        Tensor.from_numpy(device, rng.standard_normal((most, kv * hd)).astype(np.float16), name) for name in "kv"
    )
    q = Tensor.from_numpy(device, rng.standard_normal((1, heads * hd)).astype(np.float32), "q")
    y = ops.attention(plan, q, keys, values, heads, kv, hd**-0.5)
    plan.finish(keep=[y]).run_debug(ops.values)
    plan.free()
