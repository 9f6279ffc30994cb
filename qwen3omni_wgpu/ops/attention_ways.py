"""Ways to run causal attention, and the rule that chooses one."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..gpu import Device
from .choice import Problem, candidates_for

# Tokens that the kernels for few of them take.
FEW = 2
# Query heads that one workgroup computes: eight dimensions of each are 64 registers of sums.
MOST_HEADS = 8
# Types of a KV cache: "kv_q8" are blocks of 32 bytes with a half as scale (lib/cell.wgsl), --kv-type q8_0.
CACHES = ("f32", "f16", "kv_q8")


@dataclass(frozen=True)
class Way:
    """How attention is run.

    "direct": one workgroup walks through all keys for a token (attention.wgsl), any shape and windows.
    "split": `splits` workgroups share the keys of one or two tokens (flash_decode.wgsl, flash_combine.wgsl).
    "tiled": a workgroup takes a tile of queries through all keys (flash_prefill.wgsl).
    """

    kernel: str
    workgroup: int = 64
    keys: int = 64  # of a tile
    splits: int = 1
    lanes: int = 1  # split: threads that share a key's scores
    rows: int = 4  # tiled: queries of a thread
    staged: bool = True  # tiled: keys and values go through workgroup memory

    def heads(self, group: int) -> int:
        """Query heads that a workgroup takes together, of those that share a key/value head."""
        return next(count for count in range(min(group, MOST_HEADS), 0, -1) if group % count == 0)

    def at_once(self, hd: int) -> int:
        """Split: values that a thread loads before it uses them."""
        return min(4, self.keys // (self.workgroup // (hd // 8)))

    def split_memory(self, heads: int, hd: int) -> int:
        """Split: bytes of workgroup memory, with all that turning the queries takes."""
        floats = heads * hd + self.keys * (self.lanes + 2) * heads + 2 * self.workgroup + self.workgroup * 8
        return 4 * (floats + 4 * hd + 8 * (heads + 1) + heads)


def problem_of(n: int, heads: int, kv_heads: int, hd: int, cached: str, rows: int, window: int) -> Problem:
    """What decides how attention of N tokens over a cache of so many rows is run."""
    shape = {"heads": heads, "kv": kv_heads, "hd": hd, "type": cached, "rows": rows, "window": window}
    return Problem.of("attention", n=n, **shape)


@candidates_for("attention")
def _ways(device: Device, problem: Problem) -> list[Way]:
    n, hd, window = problem["n"], problem["hd"], problem["window"]
    direct = [Way("direct")] if problem["type"] != "kv_q8" else []
    if window or hd % 8:
        return direct
    if n <= FEW:
        return [*_splits(device, problem), *direct]
    return direct


def _splits(device: Device, problem: Problem) -> list[Way]:
    """Parts of at least 64 keys of the whole cache; more of them than any device has places for gain nothing."""
    hd, heads = problem["hd"], Way("split").heads(problem["heads"] // problem["kv"])
    most = 1 << max(0, math.ceil(math.log2(problem["rows"] / 64)))
    found = []
    for splits, threads, lanes in _split_sizes(device):
        eights = hd // 8
        odd = eights // (eights & -eights)
        workgroup = eights * max(1, 1 << int(math.log2(threads / eights))) if threads >= eights else eights
        way = Way("split", workgroup, 64, min(splits, most), odd * min(lanes, eights // odd))
        if way.keys % (workgroup // way.lanes) == 0 and way.keys % (workgroup // eights) == 0:
            found.append(way)
    limit = device.limits["max-compute-workgroup-storage-size"]
    return [way for way in dict.fromkeys(found) if way.split_memory(heads, hd) <= limit]


def _split_sizes(device: Device) -> list[tuple[int, int, int]]:
    """(parts, threads, lanes a key), the best first."""
    if device.info.software:
        return [(8, 16, 1), (8, 8, 1), (16, 32, 1), (8, 16, 2)]
    return [(splits, threads, lanes) for splits in (32, 64, 16) for threads in (128, 64, 256) for lanes in (4, 8)]


