"""Ways to run causal attention, and the rule that chooses one."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from ..gpu import Device
from .choice import Problem, candidates_for

# Types of a KV cache's keys -> of its values, after which kernels and problems are named. "kv_q10" and "kv_q8" are
# blocks of 32 integers of 10 and 8 bits with a half as scale (lib/cell.wgsl), --kv-type q8_0.
CACHES = {"f32": "f32", "f16": "f16", "kv_q10": "kv_q8"}
# Its scales are words of two, so that no two heads write the same one.
Q8_HEADS = (64, 128)
# Threads of the direct kernel, and the keys it takes at a time.
DIRECT = 64
# Tokens that the kernels of split attention take.
FEW = 2
# Query heads that one workgroup computes: eight dimensions of each are 64 registers of sums.
MOST_HEADS = 8
# Buffers of the widest kernel of split attention whose last workgroup adds the parts up.
LAST_BINDINGS = 9
# Tiled attention: rows of a tile, each a token with a head, and keys at a time, which fill 16 KiB of workgroup memory.
QUERIES = 64
KEYS = 32
LONGEST_TILE = 128


@dataclass(frozen=True)
class Way:
    """How attention is run.

    "direct": one workgroup walks through all keys for a token (attention.wgsl), any shape and windows.
    "split": `splits` workgroups share the keys of one or two tokens (flash_decode.wgsl, without `last` also
    flash_combine.wgsl).
    "tiled": a workgroup takes a tile of queries through all keys (flash_prefill.wgsl).
    """

    kernel: str
    workgroup: int = 64
    keys: int = 64  # split: of a tile
    splits: int = 1
    lanes: int = 1  # split: threads that share a key's scores
    last: bool = False  # split: the workgroup that comes last adds the parts up
    rows: int = 4  # tiled: queries of a thread
    staged: bool = True  # tiled: keys and values go through workgroup memory

    def heads(self, group: int) -> int:
        """Query heads that a workgroup takes together, of those that share a key/value head."""
        return next(count for count in range(min(group, MOST_HEADS), 0, -1) if group % count == 0)

    def at_once(self, hd: int) -> int:
        """Split: values that a thread loads before it uses them."""
        return min(4, self.keys // (self.workgroup // (hd // 8)))

    def memory(self, group: int, hd: int) -> int:
        """Bytes of workgroup memory, with all that turning the queries takes."""
        heads = self.heads(group)
        if self.kernel == "split":
            tile = self.keys * (self.lanes + 2) * heads + 9 * self.workgroup
            return 4 * (heads * hd + tile + 4 * hd + 9 * (heads + 1))
        if self.kernel == "tiled":
            return 4 * (QUERIES * (KEYS + 1) + (KEYS * (hd + 4) if self.staged else 0))
        return 4 * (group * (hd + DIRECT + 2) + DIRECT)

    def rounds(self, group: int, hd: int) -> int:
        """Rounds of all loops that one thread makes over a tile of keys; whatever a compiler unrolls would be less."""
        heads, eights = self.heads(group), hd // 8
        if self.kernel == "tiled":
            staging = 2 * -(-KEYS * eights // (8 * QUERIES // self.rows)) if self.staged else 0
            return eights + 8 + staging + self.rows + 4
        if self.kernel == "direct":
            # The dot products, the search for the maximum, the sums; and some (measured: 1 to 3) around them.
            return hd // 4 + DIRECT + group + DIRECT // group + 4
        share, per = self.workgroup // heads, self.keys // (self.workgroup // self.lanes)
        scores = eights // self.lanes * (1 + per + heads * per) + per * (1 + heads)
        search = -(-self.keys // share) * (2 + self.lanes) + share
        return 1 + scores + search + heads + self.keys // (self.workgroup // eights) * (2 + heads)

    def rounds_after(self, group: int, hd: int) -> int:
        """Rounds that a thread makes once: adding up the parts (lib/combine.wgsl)."""
        if self.kernel != "split":
            return 0
        heads = self.heads(group)
        share, fours, blocks = self.workgroup // heads, heads * hd // 4, heads * hd // 32
        sums = -(-fours // self.workgroup) * (1 + share + 3 * self.splits + 16)
        return share + 2 * -(-self.splits // share) + sums + -(-blocks // self.workgroup) * (1 + 5 * 16 + 3 * 32 + 8)

    def most_keys(self, device: Device, group: int, hd: int) -> int:
        """How many cached keys it can walk through before a driver that counts loops would stop it."""
        tile = {"split": self.keys, "tiled": KEYS, "direct": DIRECT}[self.kernel]
        return self.splits * ((device.max_rounds - self.rounds_after(group, hd)) // self.rounds(group, hd) * tile)


def problem_of(n: int, heads: int, kv_heads: int, hd: int, cached: str, rows: int, window: int) -> Problem:
    """What decides how attention of N tokens over a cache of so many rows is run."""
    shape = {"heads": heads, "kv": kv_heads, "hd": hd, "type": cached, "rows": rows, "window": window}
    return Problem.of("attention", n=n, **shape)


@candidates_for("attention")
def _ways(device: Device, problem: Problem) -> list[Way]:
    group, hd, window = problem["heads"] // problem["kv"], problem["hd"], problem["window"]
    found = [Way("direct")] if problem["type"] != "kv_q8" else []
    if not window and hd % 8 == 0:
        few = _splits(device, problem) if problem["n"] <= FEW else []
        if few and adds_up_last(device):
            few = [*(replace(way, last=True) for way in few), few[0]]
        found = [*few, *_tiles(device, hd, problem["type"]), *found]
    limit, seen = device.limits["max-compute-workgroup-storage-size"], min(window or problem["rows"], problem["rows"])
    fitting = [way for way in found if way.memory(group, hd) <= limit]
    able = [way for way in fitting if way.most_keys(device, group, hd) >= seen]
    # Where nothing can walk through so many keys, the op says how many can be.
    return able or [max(fitting, key=lambda way: way.most_keys(device, group, hd))]


def _tiles(device: Device, hd: int, cached: str) -> list[Way]:
    """Queries of a thread: 4 take fewer registers, 8 load less. A CPU's caches are its workgroup memory."""
    if hd > LONGEST_TILE:
        return []
    if device.info.software:
        return [Way("tiled", rows=rows, staged=False) for rows in (8, 4)]
    sizes = (4, 8) if hd % 64 == 0 else (4,)  # 8 queries of odd heads do not fit the registers of RDNA 3
    found = [Way("tiled", rows=rows, staged=staged) for staged in (True, False) for rows in sizes]
    # Eight queries a thread that unpacks keys of 10 bits itself spill, too.
    return [way for way in found if cached != "kv_q8" or way.staged or way.rows < 8]


def adds_up_last(device: Device) -> bool:
    """Whether a workgroup may read what others of its dispatch wrote, and enough buffers can be bound for that."""
    bindings = device.limits["max-storage-buffers-per-shader-stage"]
    return "memory-decoration-coherent" in device.features and bindings >= LAST_BINDINGS


def _splits(device: Device, problem: Problem) -> list[Way]:
    """Parts of at least 64 keys; as many as keep a large GPU busy, and no more than the cache has."""
    eights = problem["hd"] // 8
    odd = eights // (eights & -eights)
    most = 1 << max(0, math.ceil(math.log2(problem["rows"] / 64)))
    found = []
    for splits, threads, lanes in _split_sizes(device):
        # Threads and lanes are whole multiples of what a key is divided into.
        workgroup = eights << max(0, int(math.log2(max(1, threads / eights))))
        way = Way("split", workgroup, 64, min(splits, most), odd * min(lanes, eights // odd))
        if way.keys % (workgroup // way.lanes) == 0 and way.keys % (workgroup // eights) == 0:
            found.append(way)
    return list(dict.fromkeys(found))


def _split_sizes(device: Device) -> list[tuple[int, int, int]]:
    """(parts, threads, lanes a key), the best first: by CPU time on llvmpipe, by ACO's inverse throughput on RDNA."""
    if device.info.software:
        return [(8, 8, 1), (8, 16, 1), (8, 16, 2), (16, 32, 1)]
    return [(splits, threads, lanes) for splits in (32, 64, 16) for threads in (128, 64, 256) for lanes in (4, 8)]
