"""The command behind tools/isa_report."""

from __future__ import annotations

import argparse
import json
import re
import sys
from typing import Any

from qwen3omni_wgpu.errors import OmniError

from . import baseline
from .collect import collect
from .counts import BANDWIDTH, BUDGET
from .driver import find_driver
from .kernels import DECODE, VARIANTS

# Heading -> what a row has there.
COLUMNS = {
    "shader": "shader", "vgpr": "vgprs", "sgpr": "sgprs", "wave": "wave", "waves": "waves_per_simd",
    "LDS": "lds_bytes", "code": "code_bytes", "instr": "instructions", "VALU": "valu", "dot4": "v_dot4",
    "wmma": "wmma", "b128": "loads_b128", "w128": "weight_loads_b128", "w64": "weight_loads_b64",
    "w32": "weight_loads_b32", "wait": "waits", "latency": "latency", "inv.thr": "inverse_throughput",
    "math": "math_share", "ALU/B": "alu_per_byte", "GB/s": "reachable_gbps",
}  # fmt: skip
NOTES = f"""\
spills: spilled VGPRs + spilled SGPRs + bytes of scratch memory. waves: of the kernel's own size, a SIMD, by registers
and workgroup memory. w128, w64, w32: loads of what the dispatch mainly reads (weights; keys and values), by width.
latency, inv.thr: ACO's estimates. math: part of the busiest loop's issue slots that multiplies. ALU/B: lane-operations
that the loop over the weights spends on a byte of them (every instruction on 32 lanes, quarter-rate ones four times,
idle lanes counted); {BUDGET:.1f} are there for {BANDWIDTH:g} GB/s on 40 units at 1 GHz. GB/s: what they let through."""


def main() -> None:
    options = _options()
    try:
        re.compile(options.k)
        report = collect(find_driver(), options.variants, options.k, options.j)
    except re.error as error:
        _stop(f"-k {options.k!r} is no regular expression: {error}")
    except OmniError as error:
        _stop(str(error))
    rows = report.rows
    if not rows:
        _stop(f"no kernel matches -k {options.k!r}; leave it out to see all")
    if options.write_baseline:
        baseline.save(rows, report.device, report.mesa)
        print(f"{len(rows)} kernels written to {baseline.PATH}", file=sys.stderr)
    verdict = baseline.judge(rows, report.device, report.mesa, baseline.load())
    if options.json:
        print(json.dumps([row | {"device": report.device, "mesa": report.mesa} for row in rows], indent=1))
    else:
        print(table(rows))
        print(f"\n{len(rows)} kernels, {report.device}, {report.mesa}\n{NOTES}{_summary(rows)}")
    print(shown(verdict, options.variants, whole=not options.k and options.variants != "rule"), file=sys.stderr)
    sys.exit(bool(verdict.broken))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser("tools/isa_report", description="What RADV makes of every kernel for RDNA 3.")
    add = parser.add_argument
    add("-k", metavar="REGEX", default="", help="only kernels whose use, name or parameters it finds")
    add("--json", action="store_true", help="a JSON list of rows, with more columns")
    which = "rule: what the rules choose; decode: and some of what packed decoding may choose; all: the default"
    add("--variants", choices=VARIANTS, help=which)
    add("--write-baseline", action="store_true", help="what rule and decode find is what holds from now on")
    add("-j", type=int, metavar="N", help="processes (default: one for every core)")
    options = parser.parse_args()
    if options.write_baseline and (options.k or options.variants):
        parser.error("--write-baseline goes with neither -k nor --variants")
    options.variants = options.variants or ("decode" if options.write_baseline else "all")
    return options


def _stop(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


def table(rows: list[dict[str, Any]]) -> str:
    """Figures first, the long names last."""
    lines = [[*COLUMNS, "spills", "use", "choice", "variant"]]
    for row in rows:
        spills = row["spilled_vgprs"] + row["spilled_sgprs"] + row["scratch_bytes"]
        figures = ["-" if row[name] is None else str(row[name]) for name in COLUMNS.values()]
        lines.append([*figures, str(spills), row["use"], row["choice"], row["variant"]])
    widths = [max(len(line[i]) for line in lines) for i in range(len(COLUMNS) + 1)]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(line[1:], widths[1:], strict=False))])
        + "  " + " | ".join(line[len(widths):])
        for line in lines
    )  # fmt: skip


def _summary(rows: list[dict[str, Any]]) -> str:
    """Of the kernels that decoding runs by the rules: the one whose arithmetic lets least through."""
    lines = []
    for act in ("q8", "f32"):
        name = f"{DECODE} {act}"
        found = [row for row in rows if row["use"].startswith(name) and row["choice"] == "rule"]
        found = [row for row in found if row["stored"] and row["alu_per_byte"]]
        if found:
            least = min(found, key=lambda row: row["reachable_gbps"])
            lines.append(f"\n{name}: {len(found)} kernels read weights or keys and values; the least of them lets ")
            lines.append(f"{least['reachable_gbps']:.0f} GB/s through ({least['use'].removeprefix(name + ': ')}).")
    return "".join(lines)


def shown(verdict: baseline.Verdict, variants: str, whole: bool) -> str:
    """The verdict in lines. whole: everything was compiled, so that what is missing is gone."""
    lines = [f"FAIL  {line}" for line in verdict.broken] + [f"diff  {line}" for line in verdict.changed]
    if not verdict.compared:
        lines.append("The baseline is another Mesa's or another chip's: only spills and lost v_dot4 were looked for.")
    elif verdict.new or (whole and verdict.gone):
        expected = " (it has what --variants decode compiles)" if variants == "all" else ""
        gone = f", {len(verdict.gone)} of it are no more" if whole else ""
        lines.append(f"{len(verdict.new)} kernels are not in the baseline{expected}{gone}.")
    if verdict.broken:
        lines.append(f"{len(verdict.broken)} failures. If a change is wanted: tools/isa_report --write-baseline")
    return "\n".join(lines) or "As the baseline has it."


if __name__ == "__main__":
    main()
