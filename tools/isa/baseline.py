"""What the figures must hold to: rules for every kernel, and a committed baseline that a change is held against."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .counts import waves_per_simd

PATH = Path(__file__).resolve().parent.parent / "isa_baseline.json"
# What the baseline keeps of a row.
KEPT = ("vgprs", "wave", "waves_per_simd", "v_dot4", "wmma", "b128", "code_bytes", "inverse_throughput", "alu_per_byte")
# Change of these is worth a line beyond so much of the old value.
SHOWN = {"vgprs": 0.0, "waves_per_simd": 0.0, "v_dot4": 0.0, "wmma": 0.0, "b128": 0.01, "code_bytes": 0.1,
         "inverse_throughput": 0.05, "alu_per_byte": 0.02}  # fmt: skip
# Below this, fewer of the streamed bytes coming in by 128-bit loads is rounding.
B128_STEP = 0.02
_WORDS = {"weight_loads_b128": 4, "weight_loads_b96": 3, "weight_loads_b64": 2, "weight_loads_b32": 1}


@dataclass(frozen=True)
class Verdict:
    """broken: what fails, one line each. changed: what else is different. new, gone: keys that one side lacks.

    compared: whether the baseline is of the same Mesa and chip.
    """

    broken: list[str]
    changed: list[str]
    new: list[str]
    gone: list[str]
    compared: bool


def key_of(row: dict[str, Any]) -> str:
    return row["use"] if row["choice"] == "rule" else f"{row['use']} | {row['choice']}"


def b128_share(row: dict[str, Any]) -> float:
    """Part of the streamed bytes that vector loads of 128 bits bring in; scalar loads do not count."""
    words = {name: row[name] * width for name, width in _WORDS.items()}
    return round(words["weight_loads_b128"] / max(1, sum(words.values()) + row["weight_loads_narrow"]), 3)


def version_of(mesa: str) -> str:
    """`25.0.7` of `Mesa 25.0.7-2~bpo12+1`: Debian's number of the package does not change the code."""
    match = re.search(r"\d+\.\d+\.\d+", mesa)
    return match[0] if match else mesa


def kept(row: dict[str, Any]) -> dict[str, Any]:
    values = row | {"b128": b128_share(row)}
    return {name: values[name] for name in KEPT}


def broken_rules(row: dict[str, Any]) -> list[str]:
    """What no kernel may do, on any Mesa."""
    name, found = f"{key_of(row)} ({row['shader']})", []
    for what in ("spilled_vgprs", "spilled_sgprs", "scratch_bytes"):
        if row[what]:
            found.append(f"{name}: {what} is {row[what]}, expected 0")
    if row["packed"] and not row["v_dot4"] and not row["wmma"]:
        found.append(f"{name}: packed, but without v_dot4")
    return found


def judge(rows: list[dict[str, Any]], device: str, mesa: str, baseline: dict[str, Any] | None) -> Verdict:
    """The rules for all rows; the baseline where the same Mesa compiled for the same chip."""
    broken = [line for row in rows for line in broken_rules(row)]
    if not baseline or (baseline["device"], baseline["mesa"]) != (device, version_of(mesa)):
        return Verdict(broken, [], [], [], False)
    old, new = baseline["rows"], {key_of(row): kept(row) for row in rows}
    changed = []
    for key in new.keys() & old.keys():
        broken += [f"{key}: {line}" for line in _worse(old[key], new[key])]
        if line := _difference(old[key], new[key]):
            changed.append(f"{key}: {line}")
    return Verdict(
        sorted(broken), sorted(changed), sorted(new.keys() - old.keys()), sorted(old.keys() - new.keys()), True
    )


def _worse(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What a change must not do to a kernel without a new baseline."""
    found = []
    if old["v_dot4"] and not new["v_dot4"] + new["wmma"]:
        found.append(f"lost its {old['v_dot4']} v_dot4")
    if new["b128"] < old["b128"] - B128_STEP:
        found.append(f"128-bit loads bring in {new['b128']:.0%} of the weights, before {old['b128']:.0%}")
    before, after = (waves_per_simd(each["vgprs"], 0, each["wave"], each["wave"]) for each in (old, new))
    if after < before:
        found.append(f"{new['vgprs']} VGPRs allow {after} waves a SIMD, before {old['vgprs']} and {before}")
    return found


def _difference(old: dict[str, Any], new: dict[str, Any]) -> str:
    parts = []
    for name, part in SHOWN.items():
        a, b = old[name], new[name]
        if a != b and (a is None or b is None or abs(b - a) > part * abs(a)):
            parts.append(f"{name} {a} -> {b}")
    return ", ".join(parts)


def load(path: Path = PATH) -> dict[str, Any] | None:
    return json.loads(path.read_text()) if path.exists() else None


def save(rows: list[dict[str, Any]], device: str, mesa: str, path: Path = PATH) -> None:
    """One line a kernel, so that a diff of the file reads as one of kernels."""
    lines = [f"    {json.dumps(key_of(row))}: {json.dumps(kept(row))}" for row in sorted(rows, key=key_of)]
    head = f'{{\n  "device": {json.dumps(device)},\n  "mesa": {json.dumps(version_of(mesa))},\n  "rows": {{\n'
    path.write_text(head + ",\n".join(lines) + "\n  }\n}\n")
