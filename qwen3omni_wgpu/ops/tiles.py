"""Which tiles a matmul of many tokens is cut into: the rule's first, then the others that the device has room for."""

from __future__ import annotations

from ..gpu import Device
from .choice import Problem
from .guard import QUANTISED

# (threads side by side along the rows of the weight, rows a thread, tokens a thread, threads in all)
Size = tuple[int, int, int, int]

# From the largest down: large tiles load each value less often, small ones keep a whole GPU busy with little work.
# Packed products need few registers for what they multiply, so more sums fit a thread.
PACKED: tuple[Size, ...] = ((16, 4, 8, 256), (16, 4, 4, 256), (16, 4, 4, 128), (16, 4, 2, 128))
FLOAT: tuple[Size, ...] = ((16, 4, 4, 256), (16, 4, 4, 128), (16, 4, 2, 128))
# Not the rule's choice anywhere, but worth a try.
OTHERS: tuple[Size, ...] = ((16, 8, 4, 256), (32, 4, 8, 256), (16, 4, 8, 128))
# Workgroups that leave no unit of the largest APU (40 of them) idle.
ENOUGH = 80
# An expert has few tokens: what a tile is too wide is computed for nothing. From 16 slots an expert on, 32 wide.
FEW: tuple[Size, ...] = ((16, 4, 2, 128), (16, 4, 4, 128), (16, 4, 2, 64))
SOME: tuple[Size, ...] = ((16, 4, 4, 128), (16, 4, 2, 128), (16, 4, 4, 256), (16, 4, 8, 128))


def extent(size: Size) -> tuple[int, int]:
    """Rows and tokens of a tile."""
    lanes, rows, tokens, threads = size
    return lanes * rows, threads // lanes * tokens


def in_pairs(kind: str, d: int) -> bool:
    """Whether blocks are loaded two by two: then they start on a word, whatever the type."""
    return kind in QUANTISED and d % 64 == 0


def depth(packed: bool, kind: str, d: int) -> int:
    """Blocks of 32 that a tile is deep."""
    return 2 if packed or in_pairs(kind, d) else 1


def workgroup_bytes(size: Size, packed: bool, kind: str, d: int) -> int:
    """Workgroup memory of shaders/matmul.wgsl: quants, scale and offset of a block, or its floats; and the slots."""
    f, t = extent(size)
    block = (32 + 8) * f + (32 + 16 + 4) * t if packed else 128 * (f + t)
    return depth(packed, kind, d) * block + 4 * t


def dense(device: Device, problem: Problem) -> list[Size]:
    """Tiles of a matrix product: the largest of which there are enough, else the smallest; then the others."""
    found = _fitting(device, problem, PACKED if problem["packed"] else FLOAT)
    rule = next((size for size in found if _count(size, problem["f"], problem["n"]) >= ENOUGH), found[-1])
    return list(dict.fromkeys([rule, *found, *_fitting(device, problem, OTHERS)]))


def _count(size: Size, f: int, n: int) -> int:
    of_f, of_n = extent(size)
    return -(-f // of_f) * -(-n // of_n)


def grouped(device: Device, problem: Problem) -> list[Size]:
    """Tiles of a product with experts: `n` slots of `e` experts."""
    return _fitting(device, problem, SOME if problem["n"] >= 16 * problem["e"] else FEW)


def _fitting(device: Device, problem: Problem, sizes: tuple[Size, ...]) -> list[Size]:
    limit = device.limits["max-compute-workgroup-storage-size"]
    packed, kind, d = problem["packed"], problem["type"], problem["d"]
    return [size for size in sizes if workgroup_bytes(size, packed, kind, d) <= limit]
