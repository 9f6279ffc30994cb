"""What the models are made of: each op checks its tensors, picks a kernel and appends it to a plan."""

from .attention import attention, store_rows
from .attention_windows import window_attention, window_tiles
from .codes import embed_code
from .conv import conv_columns
from .conv1d import Tile, conv1d, conv1d_depthwise
from .elementwise import add, replace_rows, softmax, swiglu, swiglu_joined
from .gather import add_rows, embed, embed_mean, select_row
from .guard import ShapeError, values
from .matmul import Variant, matmul, matmul_joined, matmul_swiglu, moe_matmul, quantize_q8
from .moe import moe_combine, moe_gate
from .moe_experts import moe_down, moe_swiglu
from .moe_route import moe_route, moe_route_swiglu
from .moe_sort import moe_sort
from .norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from .pick import pick, top_k
from .rope import rope, rope_qkv
from .rope_attention import rope_attention
from .rows import load_rows
from .sample import argmax, penalize, sample
from .streams import Rows, carry_rows, empty_rows, lead_rows, shift_rows

__all__ = [
    "Rows",
    "ShapeError",
    "Tile",
    "Variant",
    "add",
    "add_layer_norm",
    "add_rms_norm",
    "add_rows",
    "argmax",
    "attention",
    "carry_rows",
    "conv1d",
    "conv1d_depthwise",
    "conv_columns",
    "embed",
    "embed_code",
    "embed_mean",
    "empty_rows",
    "layer_norm",
    "lead_rows",
    "load_rows",
    "matmul",
    "matmul_joined",
    "matmul_swiglu",
    "moe_combine",
    "moe_down",
    "moe_gate",
    "moe_matmul",
    "moe_route",
    "moe_route_swiglu",
    "moe_sort",
    "moe_swiglu",
    "penalize",
    "pick",
    "quantize_q8",
    "replace_rows",
    "rms_norm",
    "rope",
    "rope_attention",
    "rope_qkv",
    "sample",
    "select_row",
    "shift_rows",
    "softmax",
    "store_rows",
    "swiglu",
    "swiglu_joined",
    "top_k",
    "values",
    "window_attention",
    "window_tiles",
]
