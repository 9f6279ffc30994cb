"""The few largest of a row of logits, and a token drawn from them as the host's sampler would."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ..gpu import Device, Kernel, NumericalError, Plan, Tensor
from ..reference import sample as reference
from .guard import expect, require, workgroup_for

MOST_CANDIDATES = 128
# Numbers in `settings` of `pick`.
SETTINGS = 9
# Sums of at most 128 exponentials in float32, each good to some units in the last place. A draw so close to a border
# may fall to the neighbour.
TOLERANCE = 1e-5
# Chunks of a row that are searched side by side, and candidates that one workgroup merges.
MOST_PARTS = 64
MOST_MERGED = 4096
# With more a thread, ACO keeps so many masks of loops written out that it runs out of scalar registers.
MOST_A_THREAD = 16


@dataclass(frozen=True)
class _Search:
    """How many logits a thread holds in registers, of how many threads, and how many workgroups that makes."""

    wg: int
    each: int
    parts: int

    @classmethod
    def of(cls, device: Device, count: int, k: int, parts: int) -> _Search:
        size = math.ceil(count / parts)
        threads = min(256 << max(0, math.ceil(math.log2(size / (256 * MOST_A_THREAD)))), _most_threads(device))
        wg = workgroup_for(device, size, threads)
        each = max(math.ceil(count / (parts * wg)), math.ceil(k / wg))
        return cls(wg, each, math.ceil(count / (wg * each)))


def _most_threads(device: Device) -> int:
    return 1 << (device.limits["max-compute-invocations-per-workgroup"].bit_length() - 1)


def _parts(device: Device, v: int, k: int) -> int:
    if device.info.software:  # workgroups run on a core each: more of them would only leave more candidates to merge
        return math.ceil(v / 4096)
    return max(1, min(MOST_PARTS, MOST_MERGED // k, v // 1024))


def _largest(
    plan: Plan, logits: Tensor, k: int, seen: Tensor | None, settings: Tensor | None
) -> tuple[list[Tensor], int]:
    """The k largest of every chunk: ids [P * K], values [P * K] and sums [P, 2] on the device, and P."""
    v = logits.shape[1]
    search = _Search.of(plan.device, v, k, _parts(plan.device, v, k))
    ids = plan.empty((search.parts * k,), "u32", f"{logits.name}.chunks.ids")
    values = plan.empty((search.parts * k,), "f32", f"{logits.name}.chunks.values")
    sums = plan.empty((search.parts, 2), "f32", f"{logits.name}.chunks.sums")
    kernel = Kernel.of("largest.wgsl", V=v, K=k, WG=search.wg, EACH=search.each, SEEN=seen is not None)
    more = [seen, settings] if seen is not None and settings is not None else []
    size = 4 * v * (1 if seen is None else 2) + 8 * search.parts * k
    grid = (search.parts, 1, 1)
    plan.add("largest", kernel, [logits, *more], [ids, values, sums], grid, nbytes=size, flops=70 * v)
    return [ids, values, sums], search.parts


def _merge(device: Device, file: str, v: int, k: int, parts: int, **more: bool) -> Kernel:
    search = _Search.of(device, parts * k, k, 1)
    return Kernel.of(file, V=v, K=k, COUNT=parts * k, PARTS=parts, WG=search.wg, EACH=search.each, **more)


def top_k(plan: Plan, logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The K largest of logits [1, V] -> (ids uint32 [K], values [K + 1]), in the order of the ids.

    values[K] is the log of the sum of exp over all V, so that the host can turn candidates into probabilities.
    """
    expect("top_k", logits, (1, None))
    v = logits.shape[1]
    require("top_k", 0 < k <= v, f"the {k} largest of {v} logits")
    require("top_k", k <= MOST_CANDIDATES, f"the {k} largest are wanted, at most {MOST_CANDIDATES}")
    chunks, parts = _largest(plan, logits, k, None, None)
    ids = plan.empty((k,), "u32", f"{logits.name}.ids")
    values = plan.empty((k + 1,), "f32", f"{logits.name}.values")
    kernel = _merge(plan.device, "top_k.wgsl", v, k, parts)
    plan.add("top_k", kernel, chunks, [ids, values], (1, 1, 1), nbytes=8 * parts * k)

    def twin(_p: int, _n: int, logits: np.ndarray) -> list[np.ndarray]:
        want, _, logsumexp = reference.top_k(logits[0], k)
        order = np.sort(want)
        return [order, np.append(logits[0][order], np.float32(logsumexp))]

    plan.check(twin, [logits], [ids, values], 1e-5, steps=2)
    return ids, values


def pick(
    plan: Plan, logits: Tensor, settings: Tensor, k: int, *, seen: Tensor | None = None, out: Tensor | None = None
) -> Tensor:
    """Draw a token from the k best of logits [1, V] -> id uint32 [1], or into out[0].

    settings [9] = (temperature, top_k, top_p, log(min_p), number in [0, 1), leaving id, repeat, presence and frequency
    penalty). The penalties go first, to tokens that `seen` counts; then come top_k (0: all), top_p, min_p, temperature.
    seen uint32 [V]: how often each token is in the penalties' window; the leaving id (V: none) is taken off before, and
    the drawn one added after. V is drawn where the best logit is not finite, V + 1 where it is -inf, and V + 2 where
    the k best do not tell what all of them would give. Source: qwen3omni_wgpu.sampler.Sampler, whose draws these are.
    """
    expect("pick", logits, (1, None))
    expect("pick", settings, (SETTINGS,))
    v = logits.shape[1]
    require("pick", 0 < k <= min(v, MOST_CANDIDATES), f"the best {k} of {v} logits, at most {MOST_CANDIDATES}")
    require("pick", v < 1 << 24, f"{logits.name} has {v} logits, and settings hold ids below 2**24 only")
    if seen is not None:
        expect("pick", seen, (v,), ("u32",))
    id = out or plan.empty((1,), "u32", f"{logits.name}.id")
    expect("pick", id, (None,), ("u32",))
    chunks, parts = _largest(plan, logits, k, seen, settings)
    kernel = _merge(plan.device, "pick.wgsl", v, k, parts, SEEN=seen is not None)
    counts = [] if seen is None else [seen]
    plan.add("pick", kernel, [*chunks, settings], [id, *counts], (1, 1, 1), nbytes=8 * parts * k)

    def twin(_p: int, _n: int, logits: np.ndarray, settings: np.ndarray, *before: np.ndarray) -> list[np.ndarray]:
        found = int(id.numpy()[0])
        after = [array.astype(np.int64) for array in before]
        leaving = int(settings[5])
        x = logits[0]
        for counts in after:
            counts[leaving : leaving + 1] -= 1
            used = np.flatnonzero(counts)
            x = reference.penalize(x, used, counts[used], *settings[6:9])
            counts[found : found + 1] += 1
        if not _may_be(x, settings, k, found):
            raise NumericalError(f"pick: drew {found}, which the number {settings[4]} does not give")
        return [np.append(np.array([found], np.uint32), id.numpy()[1:]), *(a.astype(np.uint32) for a in after)]

    plan.check(twin, [logits, settings, *counts], [id, *counts], 0.0, steps=2)
    return id


def _may_be(x: np.ndarray, settings: np.ndarray, k: int, found: int) -> bool:
    """Whether the chain over all logits draws `found`, or does for numbers that differ by rounding only."""
    v, best = len(x), float(x.max()) if not np.isnan(x).any() else math.nan
    if not math.isfinite(best):
        return found == (v + 1 if best == -math.inf else v)
    temperature, top_k, p, floor, uniform = (float(value) for value in settings[:5])
    for share in (p, p - TOLERANCE, p + TOLERANCE) if p < 1 else (p,):
        ids, sums = reference.chain(x, temperature, int(top_k), share, floor)
        at = np.flatnonzero(ids == found)
        if len(at):
            before = sums[at[0] - 1] if at[0] else 0.0
            if before - TOLERANCE <= uniform <= sums[at[0]] + TOLERANCE:
                return True
        elif found == v + 2 and (len(ids) >= k or (top_k > k and p < 1)):
            return True
    return False
