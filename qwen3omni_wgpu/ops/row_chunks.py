"""Where shaders/row_matvec.wgsl runs, and how much of a row it takes at once."""

from __future__ import annotations

import math
import re

from ..gpu import Device
from ..gpu.tensor import BLOCK
from .choice import Problem

SHADER = "row_matvec"
LANES = 8
# lanes, rows, tokens, threads of a workgroup, in the order of a Variant
Size = tuple[int, int, int, int]
# Fewer weights than this are not worth compiling this kernel, about a second of LLVM's time.
SMALL = 1 << 18
# Of a chunk: its x fill half of the first level of a CPU's cache. More bytes than this gain nothing.
MOST_BYTES, MOST_BLOCKS = 640, 18
LEAST_BYTES = 128
# Workgroups that share the work evenly enough between a few cores.
ENOUGH = 8
# Formats with an offset need the sum of every block's x.
OFFSET = ("q4_0", "q4_1")


def sizes(device: Device, problem: Problem) -> list[Size]:
    """For one token's problem on a software adapter; the first is the rule's. Empty where the kernel is of no use."""
    f, d = problem["f"], problem["d"]
    if not runs_on(device) or problem["packed"] or f * d < SMALL:
        return []
    if problem["n"] != 1 and problem.op != "moe_matmul":
        return []
    row = d // problem["k"] if problem.op == "moe_down" else d
    if row % 32 or chunks(problem["type"], row)["CHUNK"] * _block(problem["type"]) < LEAST_BYTES:
        return []
    first = next((rows for rows in (16, 8) if f >= ENOUGH * LANES * rows), 4)
    return [(1, rows, 1, LANES) for rows in dict.fromkeys((first, 4, 8, 16))]


def runs_on(device: Device) -> bool:
    """Whether there are wide loads and subgroups of 8: llvmpipe says in its name how wide its vectors are."""
    features = {"subgroup", "shader-int64"}
    return features <= device.features and re.search(r"llvmpipe.*\b256 bits", device.info.name) is not None


def chunks(dtype: str, d: int) -> dict[str, int | bool]:
    """What of a row of D weights the kernel takes at once: parameters of the shader."""
    block, blocks = _block(dtype), d // 32
    fitting = [n for n in range(1, min(blocks, MOST_BLOCKS) + 1) if blocks % n == 0 and n * block <= MOST_BYTES]
    # The most that needs no moving of bytes, unless that is less than half of the most.
    chunk = max(fitting, key=lambda n: (n * (2 if _unit(block, blocks, n) == 32 else 1), n))
    unit = _unit(block, blocks, chunk)
    loads = math.ceil((chunk * block + 32 - unit) / 32)
    found = {"D": d, "BLOCK_BYTES": block, "ROW_BYTES": blocks * block, "CHUNK": chunk, "UNIT": unit}
    return found | {"LOADS": loads, "X_LOADS": math.ceil(chunk / 2), "HAS_OFFSET": dtype in OFFSET}


def _block(dtype: str) -> int:
    """Bytes of 32 weights."""
    weights, size = BLOCK[dtype]
    return size * 32 // weights


def _unit(block: int, blocks: int, chunk: int) -> int:
    """What the place of a chunk is a multiple of, in bytes."""
    return math.gcd(blocks * block, chunk * block, 32)
