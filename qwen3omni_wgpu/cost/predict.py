"""Tokens a second from recorded plans and what a device does in a second."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from ..gpu import Device
from ..models.text import TextModel
from .paper import buckets, decode_plan, prefill_plan
from .profile import Costs
from .work import Work, works


@dataclass(frozen=True)
class Prediction:
    """Of one test: seconds for its tokens, and what they are made of.

    nbytes and flops count every dispatch; device and host seconds are those of all steps. shares: family -> seconds.
    """

    tokens: int
    seconds: float
    device_s: float
    host_s: float
    dispatches: int
    nbytes: float
    flops: float
    shares: dict[str, float]

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def step_seconds(costs: Costs, steps: Iterable[Work], dispatches: int) -> tuple[float, float, dict[str, float]]:
    """Device seconds, host seconds and device seconds by family of one submitted step."""
    shares: dict[str, float] = defaultdict(float)
    for work in steps:
        shares[work.family] += costs.seconds(work)
    return sum(shares.values()), costs.host_seconds(dispatches), dict(shares)


def predict_decode(costs: Costs, model: TextModel, n: int, depth: int, context: int, kv_type: str) -> Prediction:
    """n tokens one by one after `depth` others: n times the one in the middle, as the cost of keys is linear."""
    plan = decode_plan(model, depth + n // 2, context, kv_type)
    return _sum(costs, [works(plan, model, 1)], n, repeat=n)


def predict_prefill(costs: Costs, model: TextModel, n: int, depth: int, context: int, kv_type: str) -> Prediction:
    """A prompt of n tokens after `depth` others, in chunks as the engine cuts it, without logits at its end."""
    chunks, at = [], depth
    for bucket, used in steps_of(model.device, n):
        chunks.append(works(prefill_plan(model, at, used, context, kv_type), model, bucket, used))
        at += used
    return _sum(costs, chunks, n)


def steps_of(device: Device, n: int) -> list[tuple[int, int]]:
    """How the engine cuts a prompt of n tokens: (tokens that the plan is recorded for, tokens that it is used for)."""
    sizes = buckets(device)
    used = [min(sizes[-1], n - start) for start in range(0, n, sizes[-1])]
    return [(next(size for size in sizes if size >= count), count) for count in used]


def _sum(costs: Costs, steps: list[list[Work]], tokens: int, repeat: int = 1) -> Prediction:
    seconds = device = host = 0.0
    shares: dict[str, float] = defaultdict(float)
    for step in steps:
        on_device, on_host, parts = step_seconds(costs, step, len(step))
        # With overlap the host encodes a step while the device runs the one before: the slower of both decides.
        seconds += max(on_device, on_host) if costs.overlap else on_device + on_host
        device, host = device + on_device, host + on_host
        for family, value in parts.items():
            shares[family] += value
    return Prediction(
        tokens,
        seconds * repeat,
        device * repeat,
        host * repeat,
        sum(map(len, steps)) * repeat,
        float(sum(work.nbytes for step in steps for work in step)) * repeat,
        float(sum(work.flops for step in steps for work in step)) * repeat,
        {family: value * repeat for family, value in shares.items()},
    )
