"""tools/isa_report: what the rules choose and what packed decoding may choose, compiled for RDNA 3; the baseline.

QWEN3OMNI_REQUIRE_RADV   1 = a missing driver or compiler fails the tests that need them (tools/test sets it)
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from isa import baseline
from isa.code import Instruction, bindings, read_program
from isa.collect import Report, collect
from isa.counts import BUDGET, figures, passes, waves_per_simd
from isa.driver import NoDriver, find_driver
from isa.kernels import VARIANTS, Job, jobs

from qwen3omni_wgpu.cost import PaperDevice, load
from qwen3omni_wgpu.gpu import Kernel

HERE = Path(__file__).resolve().parent
TOOLS = HERE.parent / "tools"
# One program in the two spellings that drivers print.
PRINTED = (HERE / "data" / "isa_printed.txt").read_text()
DISASSEMBLED = (HERE / "data" / "isa_disassembled.txt").read_text()


@pytest.fixture(scope="session")
def driver():
    try:
        return find_driver()
    except NoDriver as error:
        if os.environ.get("QWEN3OMNI_REQUIRE_RADV") == "1":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def report(driver) -> Report:
    return collect(driver, "decode")


def failing(rows, test):
    return [f"{baseline.key_of(row)}: {row['variant']}" for row in rows if not test(row)]


# The kernels themselves ---------------------------------------------------------------------------------------------


def test_no_kernel_spills(report):
    assert not failing(report.rows, lambda row: row["spilled_vgprs"] + row["spilled_sgprs"] + row["scratch_bytes"] == 0)


def test_packed_kernels_use_the_dot_product_of_bytes(report):
    packed = [row for row in report.rows if row["packed"]]
    assert len(packed) > 20
    assert not failing(packed, lambda row: row["v_dot4"] or row["wmma"])


def test_arithmetic_of_decoding_leaves_the_memory_saturated(report):
    """Of every kernel over weights or cache that the rules choose; others have to win by the tuner's clock."""
    decode = [row for row in report.rows if row["use"].startswith("thinker decode") and row["choice"] == "rule"]
    decode = [row for row in decode if row["stored"] and row["alu_per_byte"]]
    assert {"q8", "f32"} == {row["use"].split()[2].rstrip(":") for row in decode}
    assert len({row["use"] for row in decode}) >= 8
    assert not failing(decode, lambda row: row["fast_enough"] and row["alu_per_byte"] <= BUDGET)


def test_nothing_is_worse_than_the_baseline(report):
    stored = baseline.load()
    assert stored is not None, "tools/isa_baseline.json is missing: tools/isa_report --write-baseline"
    verdict = baseline.judge(report.rows, report.device, report.mesa, stored)
    assert not verdict.broken, "tools/isa_report shows the whole; if this is wanted: tools/isa_report --write-baseline"


def test_the_command_prints_one_json_list(driver):
    command = [sys.executable, "-m", "isa", "--json", "--variants", "rule", "-k", "thinker decode q8: moe_down"]
    environment = os.environ | {"PYTHONPATH": f"{TOOLS}:{TOOLS.parent}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    rows = json.loads(result.stdout)
    wanted = {"shader", "variant", "vgprs", "sgprs", "spilled_vgprs", "spilled_sgprs", "waves_per_simd", "code_bytes",
              "instructions", "v_dot4", "loads_b128", "weight_loads_b64", "weight_loads_b32", "waits", "latency",
              "inverse_throughput", "wmma", "alu_per_byte"}  # fmt: skip
    assert rows
    assert all(wanted <= set(row) for row in rows)
    assert rows[0]["vgprs"] > 0
    assert rows[0]["code_bytes"] > 4 * rows[0]["valu"] > 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["-k", "("], "no regular expression"), (["--write-baseline", "-k", "x"], "neither -k nor --variants")],
)
def test_wrong_use_is_told_in_a_line(arguments, message):
    command = [sys.executable, "-m", "isa", *arguments]
    environment = os.environ | {"PYTHONPATH": f"{TOOLS}:{TOOLS.parent}"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 2
    assert message in result.stderr.strip().split("\n")[-1]
    assert not result.stdout


def test_every_candidate_can_be_recorded():
    """On a device on paper: what `--variants all` would compile, and what the smaller lists leave out."""
    device = PaperDevice.described(load("strix-halo").device)
    rule, decode, every = (jobs(device, variants) for variants in VARIANTS)
    assert {job.choice for job in rule} == {"rule"}
    assert {job.identity for job in rule} < {job.identity for job in decode} < {job.identity for job in every}
    tuned = {job.kernel.name for job in every if job.choice != "rule"}
    assert {"pair_matvec", "matmul", "flash_decode", "flash_prefill"} <= tuned
    assert not device.tuned


# Reading what the driver prints -------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [PRINTED, DISASSEMBLED], ids=["printed", "disassembled"])
def test_both_spellings_of_a_program(text):
    program = read_program(text)
    ops = [instruction.op for instruction in program.instructions]
    assert program.loops == [(1, 1)]
    assert len(ops) == 16
    assert ops.count("v_dot4_i32_iu8") == 1
    assert ops.count("v_dual_mov_b32") == 1
    found = [
        (at, i.load_bytes) for i, at in zip(program.instructions, bindings(program), strict=True) if at is not None
    ]
    assert found == [(1, 4), (0, 16), (0, 4), (2, 8)]
    assert [i.op for i in program.inside(None)][-1] == "s_endpgm"
    assert sum(i.is_valu for i in program.inside((1, 1))) == 3
    assert program.statistics["VGPRs"] == 48


def test_no_program_or_no_figures_are_told_apart():
    with pytest.raises(ValueError, match="no statistics"):
        read_program("disasm:\n")
    with pytest.raises(ValueError, match="no program"):
        read_program("*** SHADER STATS ***\nVGPRs: 48\n")


def test_a_loop_within_a_loop_counts_for_itself():
    text = "After lowering to hw instructions:\nBB0\n\ts_nop\nBB1\n\t v1: %1:v[1] = v_add_u32 1, %0:v[1]\nBB2\n"
    text += "\t v1: %1:v[1] = v_add_u32 1, %0:v[1]\n\ts_cbranch_scc1 block:BB2\nBB3\n\ts_cbranch_scc1 block:BB1\n"
    program = read_program(text + "BB4\n\ts_endpgm\n*** SHADER STATS ***\nVGPRs: 12\n")
    assert program.loops == [(1, 3), (2, 2)]
    assert [i.op for i in program.inside((1, 3))] == ["v_add_u32", "s_cbranch_scc1"]
    assert [i.op for i in program.inside(None)] == ["s_nop", "s_endpgm"]


# Figures ------------------------------------------------------------------------------------------------------------


def job(**changes) -> Job:
    plain = {
        "kernel": Kernel.of("matvec.wgsl", PACKED=True), "n_in": 3, "n_out": 1, "immediate_bytes": 0, "use": "test",
        "choice": "rule", "grid": (64, 1, 1), "streamed": (0,), "streamed_bytes": 64 * 10 * 20 * 64, "stored": True,
        "block": (1, 4),        "flops": 2 * 64 * 10 * 5 * 64,
    }  # fmt: skip
    return Job(**plain | changes)


def test_arithmetic_a_byte():
    """A round loads 16 + 4 bytes a lane and computes with one instruction, one of quarter rate, one double."""
    row = figures(job(), read_program(PRINTED), 64)
    assert (row["wave"], row["loop_bytes"], row["loop_valu"]) == (64, 20 * 64, 3)
    assert row["alu_per_byte"] == round((1 + 4 + 1) * 64 / (20 * 64), 3)
    assert row["reachable_gbps"] == round(2560 / 0.3, 1)
    assert row["fast_enough"]
    assert row["lanes_used"] == 1.0
    assert (row["spilled_vgprs"], row["scratch_bytes"], row["waits"]) == (3, 16, 2)
    assert (row["weight_loads_b128"], row["weight_loads_b64"], row["weight_loads_b32"]) == (1, 0, 1)


def test_half_a_round_costs_a_whole_one():
    row = figures(job(streamed_bytes=64 * 10 * 20 * 64 + 64 * 10 * 64), read_program(PRINTED), 64)
    assert 0.9 < row["lanes_used"] < 1
    assert row["alu_per_byte"] > 0.3


def test_many_tokens_are_not_judged_by_bytes():
    row = figures(job(flops=2 * 64 * 10 * 5 * 64 * 9), read_program(PRINTED), 64)
    assert row["alu_per_byte"] is None
    assert row["fast_enough"] is None
    assert row["math_share"] == round(1 / 6, 3)


def test_slow_instructions_count_for_what_they_take():
    slow = {"v_exp_f32": 4, "v_mul_lo_u32": 4, "v_fma_f64": 16, "v_wmma_f32_16x16x16_f16": 32, "v_fmac_f32": 1,
            "v_lshlrev_b64": 2, "s_add_u32": 0, "buffer_load_b128": 0}  # fmt: skip
    assert {op: passes(Instruction(op, 0, op)) for op in slow} == slow


def test_waves_by_registers_and_memory():
    assert [waves_per_simd(v, 0, 64, 64) for v in (24, 48, 49, 96, 252)] == [16, 16, 12, 8, 3]
    assert [waves_per_simd(v, 0, 32, 32) for v in (96, 120, 252)] == [16, 12, 5]
    # 128 KiB for four SIMDs: 4 workgroups of 32 KiB with 4 waves each.
    assert waves_per_simd(24, 32768, 64, 256) == 4


# The baseline -------------------------------------------------------------------------------------------------------


def row(**changes):
    numbers = random.Random()
    plain = {
        "shader": "matvec", "variant": "D=64", "use": "decode", "choice": "rule", "packed": True, "vgprs": 48,
        "wave": 64, "waves_per_simd": 16, "v_dot4": 16, "wmma": 0, "code_bytes": numbers.randrange(400, 9000),
        "inverse_throughput": numbers.randrange(100, 9000), "alu_per_byte": 1.25, "spilled_vgprs": 0,
        "spilled_sgprs": 0, "scratch_bytes": 0, "weight_loads_b128": 4, "weight_loads_b96": 0, "weight_loads_b64": 0,
        "weight_loads_b32": 1, "weight_loads_narrow": 0,
    }  # fmt: skip
    return plain | changes


@pytest.fixture
def judged(tmp_path):
    """What a change of one row does to the verdict."""
    before = row()
    baseline.save([before, row(use="other")], "GFX", "Mesa 25.0.7-2", tmp_path / "b.json")
    stored = baseline.load(tmp_path / "b.json")

    def judge(mesa="Mesa 25.0.7-9", **changes):
        return baseline.judge([before | changes], "GFX", mesa, stored)

    return judge


def test_the_same_rows_pass(judged):
    verdict = judged()
    assert verdict.compared
    assert (verdict.broken, verdict.changed, verdict.gone) == ([], [], ["other"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spilled_vgprs": 1}, "spilled_vgprs is 1"),
        ({"spilled_sgprs": 2}, "spilled_sgprs is 2"),
        ({"scratch_bytes": 64}, "scratch_bytes is 64"),
        ({"v_dot4": 0}, "without v_dot4"),
        ({"v_dot4": 0, "packed": False}, "lost its 16 v_dot4"),
        ({"weight_loads_b128": 0, "weight_loads_b64": 8}, "128-bit loads bring in 0%"),
        ({"weight_loads_b32": 17}, "128-bit loads bring in 48%"),
        ({"vgprs": 60}, "60 VGPRs allow 12 waves"),
    ],
)
def test_what_fails(judged, changes, message):
    assert any(message in line for line in judged(**changes).broken)


@pytest.mark.parametrize("changes", [{"vgprs": 36}, {"v_dot4": 32}, {"code_bytes": 1 << 20}, {"alu_per_byte": None}])
def test_what_is_only_shown(judged, changes):
    verdict = judged(**changes)
    assert not verdict.broken
    assert len(verdict.changed) == 1


def test_wmma_may_take_the_place_of_dot4(judged):
    assert not judged(v_dot4=0, wmma=4).broken


def test_another_mesa_is_not_compared(judged):
    verdict = judged(mesa="Mesa 25.1.0", vgprs=252)
    assert not verdict.compared
    assert not verdict.broken
    assert judged(mesa="Mesa 25.1.0", spilled_vgprs=4).broken
