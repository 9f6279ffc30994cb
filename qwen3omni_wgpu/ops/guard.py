"""What every op checks at its door, and how tensors become float32 arrays for the NumPy twins."""

from __future__ import annotations

import math
from collections.abc import Sequence

import gguf
import numpy as np

from ..errors import OmniError
from ..gpu import Device, Plan, Tensor
from ..reference.attention import CACHE_BITS, from_cache_bytes

FLOATS = ("f32",)
WEIGHTS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
QUANTISED = ("q8_0", "q4_0", "q4_1")


class ShapeError(OmniError):
    """An op was given a tensor of the wrong shape or type; the message names it."""


def expect(op: str, tensor: Tensor, shape: Sequence[int | None], dtypes: Sequence[str] = FLOATS) -> None:
    """Raise ShapeError unless the tensor has the type and shape (None = any length)."""
    fits = len(tensor.shape) == len(shape) and all(
        want is None or want == have for want, have in zip(shape, tensor.shape, strict=True)
    )
    if not fits or tensor.dtype not in dtypes:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise ShapeError(
            f"{op}: {tensor.name or 'a tensor'} is {tensor.dtype} {list(tensor.shape)}, "
            f"expected {' or '.join(dtypes)} [{wanted}]"
        )


def require(op: str, condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(f"{op}: {message}")


def values(tensor: Tensor) -> np.ndarray:
    """The tensor's values on the host: dequantised to float32, integers as they are."""
    raw = tensor.numpy()
    if tensor.dtype in ("f32", "u32", "i32"):
        return raw
    if tensor.dtype == "f16":
        return raw.astype(np.float32)
    if tensor.dtype in CACHE_BITS:
        return from_cache_bytes(raw, tensor.shape, CACHE_BITS[tensor.dtype])
    kind = gguf.GGMLQuantizationType[tensor.dtype.upper()]
    return gguf.quants.dequantize(raw, kind).reshape(tensor.shape)


def grid_1d(plan: Plan, threads: int, workgroup: int) -> tuple[int, int, int]:
    """Workgroups for `threads` along x, folded into y where x would exceed the device's limit."""
    groups = math.ceil(threads / workgroup)
    limit = plan.device.limits["max-compute-workgroups-per-dimension"]
    if groups <= limit:
        return groups, 1, 1
    return limit, math.ceil(groups / limit), 1


def workgroup_for(device: Device, size: int, largest: int = 256) -> int:
    """Threads that share `size` items through workgroup memory: a power of two, at most `largest`.

    A software adapter runs a workgroup on one core and pays for every barrier, so there few threads do more each.
    """
    if device.info.software:
        largest = min(largest, 16)
    return min(largest, 1 << max(0, math.ceil(math.log2(max(1, size)))))
