"""From logits to a token."""

from __future__ import annotations

import numpy as np

from ..gpu import Kernel, NumericalError, Plan, Tensor
from ..reference import sample as reference
from .guard import expect, require, workgroup_for

# Logits that `sample` can hold: 16 a thread, in registers.
MOST_LOGITS = 4096
# Sums of at most 4096 probabilities in integers of 2^-31, each good to some units in the last place (exp, a division).
# A draw so close to a border may fall to the neighbour.
TOLERANCE = 1e-5


def argmax(plan: Plan, logits: Tensor, out: Tensor | None = None, parts: int | None = None) -> Tensor:
    """Index of the largest logit of every row (ties to the lower): [N, V] -> uint32 [N], or into out[:N].

    parts: workgroups a row; with more than one, another compares what they found.
    """
    expect("argmax", logits, (None, None))
    n, v = logits.shape
    ids = out or plan.empty((n,), "u32", f"{logits.name}.argmax")
    expect("argmax", ids, (None,), ("u32",))
    require("argmax", ids.shape[0] >= n, f"{ids.name} has {ids.shape[0]} rows for {n} of {logits.name}")
    # On a GPU one workgroup waits for memory again and again: a long row is searched by several, side by side.
    parts = parts or (1 if plan.device.info.software else max(1, min(64, v // 1024)))

    def add(listed: bool, inputs: list[Tensor], found: Tensor, groups: int) -> None:
        kernel = Kernel.of("argmax.wgsl", V=v, WG=256, PARTS=parts, LISTED=listed)
        size = 8 * parts * n if listed else 4 * n * v
        plan.add("argmax", kernel, inputs, [found], (groups, n, 1), nbytes=size)

    if parts == 1:
        add(False, [logits], ids, 1)
    else:
        each = plan.empty((n * parts,), "u32", f"{logits.name}.parts")
        add(False, [logits], each, parts)
        add(True, [logits, each], ids, 1)
    steps = 1 if parts == 1 else 2
    plan.check(lambda _p, _n, logits: [reference.argmax(logits)], [logits], [ids], 0.0, steps)
    return ids


def penalize(plan: Plan, logits: Tensor, recent: Tensor, options: Tensor) -> None:
    """Apply repeat, presence and frequency penalties to logits [1, V] in place.

    recent uint32 [M, 2] = (id, count) pairs; options [4] = (pairs in use, repeat, presence, frequency).
    Source: llama.cpp llama_sampler_penalties.
    """
    expect("penalize", logits, (1, None))
    expect("penalize", recent, (None, 2), ("u32",))
    expect("penalize", options, (4,))
    kernel = Kernel.of("penalize.wgsl", WG=64)
    plan.add("penalize", kernel, [recent, options], [logits], (-(-recent.shape[0] // 64), 1, 1))

    def twin(_p: int, _n: int, logits: np.ndarray, recent: np.ndarray, options: np.ndarray) -> list[np.ndarray]:
        used = recent[: int(options[0])]
        return [reference.penalize(logits[0], used[:, 0], used[:, 1], *map(float, options[1:]))[None]]

    plan.check(twin, [logits, recent, options], [logits], 1e-6)


def sample(
    plan: Plan,
    logits: Tensor,
    random: Tensor,
    settings: Tensor,
    *,
    draw: int = 0,
    seen: Tensor | None = None,
    left_out: tuple[int, int] = (0, 0),
    spared: int | None = None,
    codes: Tensor | None = None,
    at: int = 0,
) -> Tensor:
    """Draw a token from logits [1, V], or take the best one -> id uint32 [1]; V where no allowed logit is a number.

    random [M]: numbers in [0, 1), of which this is `draw`. settings [4] = (temperature, top_k, top_p, repeat penalty):
    temperature 0 takes the best (ties to the lower id), top_k 0 and top_p 1 keep all. seen uint32 [V] counts the tokens
    drawn so far, this one is added; those above 0 get the penalty. Ids from left_out[0] to left_out[1] - 1 never come,
    but for `spared`. The id is also written to codes[at], uint32 [M].
    Source: transformers RepetitionPenaltyLogitsProcessor, SuppressTokensLogitsProcessor, TemperatureLogitsWarper,
    TopKLogitsWarper, TopPLogitsWarper, in this order.
    """
    expect("sample", logits, (1, None))
    v = logits.shape[1]
    require("sample", v <= MOST_LOGITS, f"{logits.name} has {v} logits, at most {MOST_LOGITS}")
    expect("sample", random, (None,))
    require("sample", 0 <= draw < random.shape[0], f"{random.name} has {random.shape[0]} numbers, not number {draw}")
    expect("sample", settings, (4,))
    if seen is not None:
        expect("sample", seen, (v,), ("u32",))
    if codes is not None:
        expect("sample", codes, (None,), ("u32",))
        require("sample", 0 <= at < codes.shape[0], f"{codes.name} has {codes.shape[0]} places, not place {at}")
    first, stop = left_out
    require("sample", 0 <= first <= stop <= v, f"cannot leave out {first} to {stop} of {v} logits")
    id = plan.empty((1,), "u32", f"{logits.name}.id")
    kernel = Kernel.of(
        "sample.wgsl", V=v, WG=workgroup_for(plan.device, v), SEEN=seen is not None, CODES=codes is not None
    )
    written = [tensor for tensor in (codes, seen) if tensor is not None]
    numbers = (draw, at, first, stop, v if spared is None else spared)
    inputs = [logits, random, settings]
    plan.add("sample", kernel, inputs, [id, *written], (1, 1, 1), immediates=numbers, nbytes=4 * v, flops=64 * v)

    def twin(_p: int, _n: int, logits: np.ndarray, random: np.ndarray, settings: np.ndarray, *before: np.ndarray):
        counts = before[-1] if seen is not None else None
        x = reference.allowed(logits[0], counts, float(settings[3]), left_out, spared)
        found = int(id.numpy()[0])
        if not _may_be(x, settings, float(random[draw]), found):
            raise NumericalError(f"sample: drew {found}, which the random number {random[draw]} does not give")
        after = [array.copy() for array in before]
        if codes is not None:
            after[0][at] = found
        if seen is not None and found < v:
            after[-1][found] += 1
        return [np.array([found], np.uint32), *after]

    plan.check(twin, [*inputs, *written], [id, *written], 0.0)
    return id


def _may_be(x: np.ndarray, settings: np.ndarray, uniform: float, found: int) -> bool:
    """Whether the twin draws `found`, or does for numbers that differ by rounding only."""
    temperature, k, p = float(settings[0]), int(settings[1]), float(settings[2])
    if temperature <= 0 or not np.isfinite(x).any():
        return found == (int(np.argmax(x)) if np.isfinite(x).any() else len(x))
    for limit in (p, p - TOLERANCE, p + TOLERANCE) if p < 1 else (p,):
        probabilities = reference.distribution(x, temperature, k, max(0.0, min(1.0, limit)))
        lowest, highest = (reference.draw(probabilities, uniform + step) for step in (-TOLERANCE, TOLERANCE))
        if lowest <= found <= highest and probabilities[found] > 0:
            return True
    return False
