"""From a compiled program to the figures of a row, and what its arithmetic lets the memory deliver."""

from __future__ import annotations

import math
from typing import Any

from .code import Instruction, Program, bindings
from .kernels import Job

# Radeon 8060S: 40 compute units of 2 SIMDs of 32 lanes, at the clock that is seen while memory is the limit.
SIMDS, LANES, CLOCK = 80, 32, 1e9
# What it is to take in (GB/s), and so how many lane-operations a byte may cost.
BANDWIDTH = 243.0
BUDGET = SIMDS * LANES * CLOCK / 1e9 / BANDWIDTH
# Dispatches that read less are over before the memory is busy.
WORTH_IT = 1 << 18
# Above so many tokens a kernel computes with every weight so often that arithmetic is the limit, not memory.
MOST_TOKENS = 8

# Passes of 32 lanes that one instruction takes on a SIMD, beside 1: the classes of ACO's own model (aco_statistics).
_QUARTER = ("v_mul_lo_u32", "v_mul_hi_u32", "v_mul_hi_i32", "v_mul_lo_i32", "v_mad_u64_u32", "v_mad_i64_i32")
_TRANSCENDENTAL = ("v_exp_", "v_log_", "v_rcp_", "v_rsq_", "v_sqrt_", "v_sin_", "v_cos_")
_DOUBLE = ("_f64", "_b64", "_u64", "_i64")
# What the products are made with.
_MATH = ("v_fma", "v_dot", "v_mac", "v_mad_f", "v_mul_f", "v_pk_fma", "v_wmma", "v_dual_fmac", "v_dual_mul", "v_add_f")


def passes(instruction: Instruction) -> int:
    """Issue slots of a SIMD for 32 lanes; 0 for what no SIMD computes."""
    op = instruction.op
    if not instruction.is_valu:
        return 0
    if op.startswith("v_wmma"):
        return 16 if "iu4" in op else 32
    if op in _QUARTER or op.startswith(_TRANSCENDENTAL):
        return 4
    if op.endswith("_f64"):
        return 16
    return 2 if op.endswith(_DOUBLE) and not op.startswith("v_cmp") else 1


def figures(job: Job, program: Program, threads: int) -> dict[str, Any]:
    """One row of the report, without the names. threads: of a workgroup."""
    wave = 32 if threads <= 32 else 64
    known = program.statistics
    ops = [i.op for i in program.instructions]
    row: dict[str, Any] = {
        "vgprs": known.get("VGPRs", 0),
        "sgprs": known.get("SGPRs", 0),
        "spilled_vgprs": known.get("Spilled VGPRs", 0),
        "spilled_sgprs": known.get("Spilled SGPRs", 0),
        "scratch_bytes": known.get("Scratch size", known.get("PrivMem VGPRs", 0)),
        "lds_bytes": known.get("LDS size", known.get("LDS Size", 0)),
        "waves_per_simd": waves_per_simd(known.get("VGPRs", 0), known.get("LDS size", 0), wave, threads),
        "wave": wave,
        "code_bytes": known.get("Code size", known.get("Code Size", 0)),
        "instructions": known.get("Instructions", len(ops)),
        "valu": sum(i.is_valu for i in program.instructions),
        "salu": sum(i.is_scalar and not i.load_bytes and not _waits(i) for i in program.instructions),
        "v_dot4": sum(op.startswith("v_dot4") for op in ops),
        "wmma": sum(op.startswith("v_wmma") for op in ops),
        "lds": sum(op.startswith("ds_") for op in ops),
        "waits": sum(map(_waits, program.instructions)),
        "latency": known.get("Latency", 0),
        "inverse_throughput": known.get("Inverse Throughput", 0),
        "stored": job.stored,
    }
    return row | _loads(job, program) | _arithmetic(job, program, wave, threads)


def waves_per_simd(vgprs: int, lds_bytes: int, wave: int, threads: int) -> int:
    """Waves that a SIMD holds at a time, by registers and workgroup memory.

    The driver's own figure ("Subgroups per SIMD") counts wave64 twice, and its null device has two thirds of the
    registers of these chips: 1536 of 32 lanes a SIMD (LLVM: Feature1_5xVGPRs), given out in steps of 24.
    """
    step, registers = (24, 1536) if wave == 32 else (12, 768)
    waves = min(16, registers // max(step, -(-vgprs // step) * step))
    if lds_bytes:
        # 128 KiB for the four SIMDs of two compute units.
        waves = min(waves, -(-(131072 // lds_bytes) * -(-threads // wave) // 4))
    return waves


def _waits(instruction: Instruction) -> bool:
    # Not s_wait_alu and s_waitcnt_depctr: those last a few cycles, and no memory is behind them.
    return instruction.op.startswith(("s_waitcnt", "s_wait_")) and not instruction.op.endswith(("depctr", "alu"))


def _streamed(job: Job, program: Program) -> list[Instruction]:
    return [i for i, at in zip(program.instructions, bindings(program), strict=True) if at in job.streamed]


def _loads(job: Job, program: Program) -> dict[str, Any]:
    """Vector loads by width: all of 128 bits, and those of the streamed bindings; scalar ones of these, too."""
    vector = [i for i in program.instructions if i.load_bytes and not i.is_scalar]
    streamed = _streamed(job, program)
    widths = [i.load_bytes for i in streamed if not i.is_scalar]
    return {
        "loads": len(vector),
        "loads_b128": sum(i.load_bytes == 16 for i in vector),
        "weight_loads_b128": widths.count(16),
        "weight_loads_b96": widths.count(12),
        "weight_loads_b64": widths.count(8),
        "weight_loads_b32": widths.count(4),
        "weight_loads_narrow": sum(width < 4 for width in widths),
        "weight_loads_scalar": sum(i.is_scalar for i in streamed),
    }


def _arithmetic(job: Job, program: Program, wave: int, threads: int) -> dict[str, Any]:
    """Of the loop that takes in the streamed bytes: what a wave loads and computes a round.

    Where the compiler has unrolled it: of all that is outside of loops.
    """
    row: dict[str, Any] = {"math_share": _math_share(program), "loop_valu": None, "loop_bytes": None}
    row |= {"lanes_used": None, "alu_per_byte": None, "reachable_gbps": None, "fast_enough": None}
    streamed = {id(i) for i in _streamed(job, program)}
    taken = {loop: _bytes(program.inside(loop), streamed, job, wave) for loop in [None, *program.loops]}
    loop = max(taken, key=lambda each: taken[each])
    if not taken[loop] or job.streamed_bytes < WORTH_IT:
        return row
    body = program.inside(loop)
    valu = [i for i in body if i.is_valu]
    clocks = sum(map(passes, valu)) * (wave // 32)
    row |= {"loop_valu": len(valu), "loop_bytes": taken[loop]}
    weights, size = job.block
    if job.flops > 2 * (MOST_TOKENS + 0.5) * job.streamed_bytes / size * weights:
        return row
    used = _lanes_used(job, taken[loop], -(-threads // wave))
    cost = clocks * LANES / taken[loop] / used
    reached = SIMDS * LANES * CLOCK / 1e9 / cost
    row |= {"lanes_used": round(used, 3), "alu_per_byte": round(cost, 3), "reachable_gbps": round(reached, 1)}
    return row | {"fast_enough": reached >= BANDWIDTH}


def _math_share(program: Program) -> float:
    """Of the vector issue slots in the loop that multiplies most: the part that multiplies or adds floats."""

    def slots(body: list[Instruction], only: tuple[str, ...] = ("v_",)) -> int:
        return sum(passes(i) for i in body if i.op.startswith(only))

    body = max((program.inside(loop) for loop in [None, *program.loops]), key=lambda each: slots(each, _MATH))
    return round(slots(body, _MATH) / max(1, slots(body)), 3)


def _bytes(body: list[Instruction], streamed: set[int], job: Job, wave: int) -> int:
    """Streamed bytes that a wave takes in: whole blocks, for a word that two blocks share is loaded twice."""
    lane = sum(i.load_bytes for i in body if id(i) in streamed and not i.is_scalar)
    size = job.block[1]
    if size > 16 and lane >= size:
        lane -= lane % size
    return lane * wave + sum(i.load_bytes for i in body if id(i) in streamed and i.is_scalar)


def _lanes_used(job: Job, a_round: int, waves: int) -> float:
    """Which part of the lanes has work on average: the last round over a row may be short."""
    rounds = job.streamed_bytes / (math.prod(job.grid) * waves) / a_round
    # Fewer bytes than one round takes in: several waves read the same ones. And some are no streamed ones.
    return 1.0 if rounds < 0.2 else min(1.0, rounds / math.ceil(rounds * 0.99))
