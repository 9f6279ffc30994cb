"""What cases are made of: random tensors on the device. A dry plan gets shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gguf
import numpy as np

from ...gpu import Device, Plan, Tensor
from ...reference.attention import CACHE_BITS, to_cache_bytes
from ..attention_ways import CACHES
from ..variant import Variant

Rng = np.random.Generator

TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
QUANTISED = ("q8_0", "q4_0", "q4_1")
# Kernel variants that must all be right whatever the rule or the tuner picks on a device.
VARIANTS: tuple[dict[str, Any], ...] = (
    {"shader": "matvec", "lanes": 1, "rows": 4, "tokens": 1, "workgroup": 16},
    {"shader": "matvec", "lanes": 1, "rows": 8, "tokens": 8, "workgroup": 16},
    {"shader": "matvec", "lanes": 1, "rows": 8, "tokens": 1, "workgroup": 8, "wide": True},
    {"shader": "matvec", "lanes": 8, "rows": 2, "tokens": 4, "workgroup": 64},
    {"shader": "matvec", "lanes": 32, "rows": 1, "tokens": 2, "workgroup": 64},
    {"shader": "matvec", "lanes": 16, "rows": 2, "tokens": 8, "workgroup": 64},
    {"shader": "matmul", "lanes": 16, "rows": 4, "tokens": 4, "workgroup": 256},
)
# Tiles of token slots that have one expert in common.
GROUPED: tuple[dict[str, Any], ...] = (
    {"shader": "matmul", "lanes": 16, "rows": 4, "tokens": 4, "workgroup": 128},
    {"shader": "matmul", "lanes": 16, "rows": 4, "tokens": 2, "workgroup": 64},
)
FUSED: dict[str, Any] = {"shader": "fused_matvec", "rows": 4, "tokens": 2, "workgroup": 8, "wide": True}
# The matvec of GPUs: rows of whole pairs of blocks.
PAIRS: tuple[dict[str, Any], ...] = (
    {"shader": "pair_matvec", "lanes": 3, "rows": 1, "tokens": 2, "workgroup": 45},
    {"shader": "pair_matvec", "lanes": 4, "rows": 4, "tokens": 1, "workgroup": 64},
    {"shader": "pair_matvec", "lanes": 32, "rows": 2, "tokens": 2, "workgroup": 64},
    {"shader": "pair_matvec", "lanes": 8, "rows": 2, "tokens": 4, "workgroup": 64},
)
# Larger weights repeat their first rows: drawing and quantising all of them would take longer than their kernel.
DRAWN = 1 << 22
_SHARED = "inputs of cases"  # where a device keeps what `shared_inputs` holds


def uploaded(plan: Plan, array: np.ndarray, name: str = "") -> Tensor:
    return Tensor.from_numpy(plan.device, array, name)


def normal(plan: Plan, rng: Rng, *shape: int, name: str = "x", scale: float = 1.0) -> Tensor:
    if plan.dry:
        return Tensor.pending(plan.device, shape, "f32", name)
    return uploaded(plan, rng.standard_normal(shape, dtype=np.float32) * np.float32(scale), name)


def weight(plan: Plan, rng: Rng, shape: tuple[int, ...], dtype: str, name: str = "w") -> Tensor:
    """Random weights of variance 1 / D in the type's own bytes."""
    if plan.dry:
        return Tensor.split(plan.device, shape, dtype, name, lambda _size, _label: None)
    return _once(plan, (shape, dtype, name), lambda: _drawn(plan, rng, shape, dtype, name))


def _once(plan: Plan, key: Any, make: Callable[[], Tensor]) -> Tensor:
    """A large input; made once for all plans within `shared_inputs`, whose kernels alone differ."""
    shared = plan.device.cache.get(_SHARED)
    if shared is None:
        return make()
    if key not in shared:
        shared[key] = make()
    return shared[key]


@contextmanager
def shared_inputs(device: Device) -> Iterator[None]:
    """Within, plans of cases get the same weights and caches where shape, type and name are the same."""
    device.cache[_SHARED] = {}
    try:
        yield
    finally:
        for tensor in device.cache.pop(_SHARED).values():
            tensor.free()


def _drawn(plan: Plan, rng: Rng, shape: tuple[int, ...], dtype: str, name: str) -> Tensor:
    rows = math.prod(shape[:-1])
    drawn = rows if math.prod(shape) <= DRAWN else max(1, DRAWN // shape[-1])
    array = rng.standard_normal((drawn, shape[-1]), dtype=np.float32) / np.float32(np.sqrt(shape[-1]))
    raw = gguf.quants.quantize(array, gguf.GGMLQuantizationType[dtype.upper()])
    return Tensor.from_bytes(plan.device, np.resize(raw, (rows, raw.shape[1])), shape, dtype, name)


def filled_cache(plan: Plan, rng: Rng, rows: int, width: int, dtype: str) -> Tensor:
    if plan.dry:
        return Tensor.pending(plan.device, (rows, width), dtype, "cache")
    plan.memo["caches"] = number = plan.memo.get("caches", 0) + 1  # keys are not values
    return _once(plan, (number, rows, width, dtype), lambda: _filled(plan, rng, rows, width, dtype))


def filled_caches(plan: Plan, rng: Rng, rows: int, width: int, cache: str) -> list[Tensor]:
    """Keys and values; `cache` is the type of values."""
    keys = next(of_keys for of_keys, of_values in CACHES.items() if of_values == cache)
    return [filled_cache(plan, rng, rows, width, dtype) for dtype in (keys, cache)]


def _filled(plan: Plan, rng: Rng, rows: int, width: int, dtype: str) -> Tensor:
    array = rng.standard_normal((rows, width), dtype=np.float32)
    if dtype in CACHE_BITS:
        raw = to_cache_bytes(array, CACHE_BITS[dtype])
        return Tensor.from_bytes(plan.device, raw, (rows, width), dtype, "cache")
    return uploaded(plan, array.astype(np.float16) if dtype == "f16" else array, "cache")


def norm_of(plan: Plan, rng: Rng, d: int) -> tuple[Tensor, float]:
    return normal(plan, rng, d, name="norm"), 1e-3


def expert_ids(plan: Plan, rng: Rng, n: int, k: int, e: int) -> Tensor:
    """K different ones of E experts for each of N tokens."""
    return uploaded(plan, np.stack([rng.permutation(e)[:k] for _ in range(n)]).astype(np.uint32), "ids")


def set_state(plan: Plan, n_past: int, n_tokens: int) -> None:
    plan.state = uploaded(plan, np.array([n_past, n_tokens], np.uint32), "state")


def variant_of(variant: dict[str, Any] | None) -> Variant | None:
    return Variant(**variant) if variant else None
