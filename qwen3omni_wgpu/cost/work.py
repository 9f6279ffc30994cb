"""What a recorded step asks of a device: its family, bytes and FLOPs, all from the plan."""

from __future__ import annotations

import re
from dataclasses import dataclass
from math import prod

from ..gpu import Plan, Tensor
from ..gpu.plan import Step
from ..models.text import TextModel

# Families whose kernels reach different shares of a device's rates.
FAMILIES = ("matvec", "expert matvec", "matmul", "expert matmul", "attention", "rows")
# More tokens than this make a matrix product one of tiles.
MATVEC_TOKENS = 8
_SCOPE = re.compile(r"^.*?blk\.\d+\.")


@dataclass(frozen=True)
class Work:
    """One dispatch. arithmetic: "float", "packed" (4x8-bit) or "matrix" (cooperative); weight: type and row length.

    tokens: that the plan was recorded for. groups, threads: of the grid, and in all its groups.
    """

    op: str
    family: str
    arithmetic: str
    weight: str
    row: int
    tokens: int
    nbytes: int
    flops: float
    groups: int
    threads: int


def works(plan: Plan, model: TextModel, tokens: int, used: int | None = None) -> list[Work]:
    """Every step of a plan of `tokens` tokens, of which only `used` are there: kernels skip the others."""
    matrices = [tensor for tensor in model.weights.values() if len(tensor.shape) > 1]
    # Known by their bytes: experts may be bound as slices, which are tensors of their own.
    weights = {id(part.storage) for tensor in matrices for part in tensor.parts}
    share = 1.0 if used is None else used / tokens
    return [_work(step, weights, tokens, share) for step in plan.steps]


def _work(step: Step, weights: set[int], tokens: int, share: float) -> Work:
    op, params = _SCOPE.sub("", step.op), dict(step.kernel.params)
    read = (tensor for tensor, part in step.inputs if id(part.storage) in weights)
    matrix = next(read, None) if step.flops else None  # looking up rows is no product
    packed = bool(params.get("PACKED"))
    groups = prod(step.grid)
    return Work(
        op=op,
        family=_family(op, matrix, tokens),
        arithmetic="matrix" if "coop" in step.kernel.file else "packed" if packed else "float",
        weight=matrix.dtype if matrix is not None else "",
        row=matrix.shape[-1] if matrix is not None else 0,
        tokens=tokens,
        nbytes=step.nbytes,
        flops=step.flops * share,
        groups=groups,
        threads=groups * int(params.get("WG", 64)),
    )


def _family(op: str, matrix: Tensor | None, tokens: int) -> str:
    if "attention" in op or "attend" in op or op.startswith("flash"):
        return "attention"
    if matrix is None:
        return "rows"
    kind = "matvec" if tokens <= MATVEC_TOKENS else "matmul"
    return f"expert {kind}" if len(matrix.shape) == 3 else kind
