"""How a matmul is run: kernel, threads and rows by rule, and what its results may differ by."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..gpu import Device, Plan, Tensor
from . import pairs, row_chunks, tiles
from .choice import Problem, candidates_for, choose
from .guard import QUANTISED

# Sums of D products in another order than NumPy's: the error grows like sqrt(D) * 2^-24 of the terms' size. Terms here
# are of order 1 and D up to 4096: 64 * 6e-8 = 4e-6 of sqrt(D), relative to the largest output. 2e-5 leaves room.
TOLERANCE = 2e-5
# An activation on the border between two integers may round the other way: one step (1/127 of its group's maximum, 3 at
# most) of one term out of D, times a weight of order 1/sqrt(D), D at least 64.
TOLERANCE_Q8 = 3e-3
# Weights of a matrix that is not worth the largest kernel on a software adapter.
SMALL = 1 << 17


@dataclass(frozen=True)
class Variant:
    """One way to run a matmul: shader, threads a row, rows and tokens a thread, threads a workgroup.

    In tiles ("matmul") `lanes` threads lie side by side along the rows, and the others along the tokens.
    """

    shader: str  # "matvec", "matmul", "fused_matvec" or "pair_matvec"
    lanes: int = 1
    rows: int = 4
    tokens: int = 1
    workgroup: int = 32
    wide: bool = False  # 64-bit loads of the weights, where the type and the device have them (not in matmul)

    @property
    def around(self) -> bool:
        """Whether its kernel does all that may stand around the product (pair_matvec.py)."""
        return self.shader in (pairs.SHADER, row_chunks.SHADER)


def _by_rule(device: Device, n: int, f: int, d: int, experts: bool = False) -> Variant:
    """The variant for N tokens, F outputs and D inputs."""
    if device.info.software:
        # One thread a row, several rows and tokens a thread: on a CPU loads cost most and reductions gain nothing.
        if experts or n == 1:
            return Variant("matvec", lanes=1, rows=8, tokens=1, workgroup=8, wide=True)
        # Where there is little to do, compiling 8 x 8 sums a thread (seconds) would take longer than they save.
        most = 4 if f * d <= SMALL else 8
        tokens = min(most, 1 << (n - 1).bit_length())
        return Variant("matvec", lanes=1, rows=most if n > 4 else 4, tokens=tokens, workgroup=8, wide=True)
    if pairs.in_pairs(d):
        return Variant(pairs.SHADER, *pairs.rule(1 if experts else n, f, d))
    blocks = -(-d // 32)
    lanes = next((size for size in (32, 16, 8) if blocks % size == 0), 16)
    tokens = 1 if experts else min(8, 1 << (n - 1).bit_length())
    return Variant("matvec", lanes=lanes, rows=2 if tokens <= 4 else 1, tokens=tokens, workgroup=64)


@candidates_for("matmul")
def _for_matmul(device: Device, problem: Problem) -> list[Variant]:
    n, f, d = problem["n"], problem["f"], problem["d"]
    if n > 8 and not device.info.software:
        return [Variant("matmul", *size) for size in tiles.dense(device, problem)]
    rule = _by_rule(device, n, f, d)
    if rule.shader == pairs.SHADER:
        return pair_variants(device, problem["packed"], n, f, d)
    return row_variants(device, problem) + _and_others(rule, device, d)


@candidates_for("moe_matmul")
def _for_moe_matmul(device: Device, problem: Problem) -> list[Variant]:
    f, d = problem["f"], problem["d"]
    rule = replace(_by_rule(device, problem["n"], f, d, experts=True), tokens=1)
    if rule.shader == pairs.SHADER:
        return pair_variants(device, problem["packed"], 1, f, d)
    return row_variants(device, problem) + _and_others(rule, device, d)


def _and_others(rule: Variant, device: Device, d: int) -> list[Variant]:
    """The rule's choice, then its like with other numbers of threads and rows."""
    if device.info.software:
        sizes = [(1, rows, threads) for rows in (4, 8) for threads in (8, 16)]
    else:
        sizes = [(lanes, rows, threads) for lanes in (8, 16, 32) for rows in (1, 2, 4) for threads in (64, 128)]
    others = [replace(rule, lanes=lanes, rows=rows, workgroup=threads) for lanes, rows, threads in sizes]
    return list(dict.fromkeys([rule, *others]))


def pair_variants(device: Device, packed: bool, n: int, f: int, d: int, staged: int = 0) -> list[Variant]:
    """Ways of the GPUs' matvec that have the memory: the rule's choice, then its like; `staged` rows of x."""
    limit = device.limits["max-compute-workgroup-storage-size"]
    threads = device.limits["max-compute-invocations-per-workgroup"]
    fit = [size for size in pairs.sizes(n, f, d) if pairs.workgroup_bytes(size, packed, d, staged) <= limit]
    return [Variant(pairs.SHADER, *size) for size in fit if size[3] <= threads]


def row_variants(device: Device, problem: Problem) -> list[Variant]:
    """Ways of the software adapters' matvec, where it is of use: the rule's choice, then its like."""
    return [Variant(row_chunks.SHADER, *size, wide=True) for size in row_chunks.sizes(device, problem)]


def variant_for(plan: Plan, op: str, w: Tensor, n: int, f: int, d: int, **more: int) -> Variant:
    """How to multiply N rows by F rows of D weights each; more: k, the experts of a token."""
    return choose(plan.device, Problem.of(op, type=w.dtype, packed=is_packed(plan, w), n=n, f=f, d=d, **more))


def weight_type(plan: Plan, w: Tensor, variant: Variant) -> str:
    """The weight type as the shader knows it."""
    wide = variant.wide and variant.shader != "matmul" and w.dtype == "q8_0"
    return "q8_0_wide" if wide and "shader-int64" in plan.device.features else w.dtype


def is_packed(plan: Plan, w: Tensor) -> bool:
    """Whether the matmul takes int8 activations and 4x8-bit dot products."""
    return plan.activations == "q8" and w.dtype in QUANTISED
