"""What a text model will ask of a device (ops/choice.py): its plans are recorded dry, nothing runs or is compiled."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ops
from ..gpu import Plan, Tensor
from ..ops.choice import Problem
from ..ops.fused import MOST_TOKENS
from .text import KVCache, TextModel, final_norm, forward, stream


def rehearse(model: TextModel, buckets: Sequence[int], ctx_size: int, kv_type: str) -> list[Problem]:
    """The problems of steps of so many tokens each, logits of the last one included. `device.asked` stays as it was."""
    asked = model.device.asked
    before = dict(asked)
    asked.clear()
    try:
        for n in buckets:
            _record(model, n, ctx_size, kv_type)
        return list(asked.values())
    finally:
        asked.clear()
        asked.update(before)


def _record(model: TextModel, n: int, ctx_size: int, kv_type: str) -> Plan:
    """One step of n tokens as engine.py records it."""
    c = model.config
    plan = Plan(model.device, f"rehearsal {n}", activations=model.activations, dry=True)
    shape = (ctx_size, c.n_kv_heads * c.head_dim)
    row = Tensor.pending(model.device, shape, kv_type, "cache")  # one for all: nothing is ever written
    cache = KVCache([row] * c.n_layers, [row] * c.n_layers)
    x = ops.embed(plan, model.weights["token_embd.weight"], plan.empty((n,), "u32", "ids"))
    run = stream if n <= MOST_TOKENS else forward
    h = run(plan, model, x, plan.empty((n, 3), "f32", "positions"), cache)
    norm = final_norm(model) if n <= MOST_TOKENS else None
    ops.matmul(plan, ops.select_row(plan, h) if n > 1 else h, model.head, norm=norm)
    return plan
