"""Runs the compiling processes and makes rows of what they print."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from qwen3omni_wgpu.errors import OmniError
from qwen3omni_wgpu.gpu import Kernel

from .code import read_program
from .counts import figures
from .driver import Driver
from .kernels import Job
from .worker import MARK

ROOT = Path(__file__).resolve().parent.parent.parent
# More processes than this gain little: each opens a device and records all plans for itself.
MOST_PROCESSES = 8
_WORKGROUP = re.compile(r"workgroup[-_ ]size: (\d+), (\d+), (\d+)")


class CompileFailed(OmniError):
    """A process that compiles kernels ended early; the message holds what it said last."""


@dataclass(frozen=True)
class Report:
    """rows: one a kernel. device, mesa: what compiled them."""

    device: str
    mesa: str
    rows: list[dict[str, Any]]


def collect(driver: Driver, variants: str = "all", pattern: str = "", processes: int | None = None) -> Report:
    """Compile the kernels whose use or label the pattern finds. variants: see kernels.jobs."""
    count = min(MOST_PROCESSES, processes or os.cpu_count() or 1)
    environment = driver.environment()
    paths = [str(ROOT / "tools"), str(ROOT), environment.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = ":".join(filter(None, paths))
    with tempfile.TemporaryDirectory() as folder:
        started = []
        for share in range(count):
            files = [(Path(folder) / f"{share}.{kind}").open("w+") for kind in ("out", "err")]
            command = [sys.executable, "-m", "isa.worker", str(share), str(count), variants, pattern]
            process = subprocess.Popen(command, env=environment, cwd=ROOT, stdout=files[0], stderr=files[1])
            started.append((process, *files))
        try:
            shares = [_finish(*each) for each in started]
        finally:
            for process, *_ in started:
                process.kill()
    header = shares[0][0]
    rows = sorted((row for _, found in shares for row in found), key=lambda row: row.pop("number"))
    return Report(header["device"], header["driver"], rows)


def _finish(process: subprocess.Popen[bytes], out: IO[str], err: IO[str]) -> tuple[dict[str, str], list[dict]]:
    """A process's device, and its rows."""
    status = process.wait()
    texts = []
    for file in (out, err):
        with file:
            file.seek(0)
            texts.append(file.read())
    if status:
        last = texts[1].strip().split("\n")[-1]
        raise CompileFailed(f"compiling for RADV's null device failed ({status}): {last[:300]}")
    header, *described = [json.loads(line) for line in texts[0].split("\n") if line.startswith("{")]
    pieces = dict(piece.split("\n", 1) for piece in texts[1].split(f"\n{MARK}")[1:])
    return header, [_row(entry, pieces[str(entry["number"])]) for entry in described]


def _row(entry: dict[str, Any], text: str) -> dict[str, Any]:
    number = entry.pop("number")
    kernel = Kernel(entry["kernel"]["file"], tuple((name, value) for name, value in entry["kernel"]["params"]))
    job = Job(**{**entry, "kernel": kernel, "streamed": tuple(entry["streamed"]), "block": tuple(entry["block"])})
    sizes = _WORKGROUP.search(text)
    try:
        program = read_program(text)
    except ValueError as error:
        raise CompileFailed(f"{kernel.label}: {error}; this Mesa's output is not known here") from error
    if sizes is None:
        raise CompileFailed(
            f"{kernel.label}: the driver printed no workgroup size; this Mesa's output is not known here"
        )
    x, y, z = map(int, sizes.groups())
    names = {"number": number, "shader": kernel.name, "variant": job.variant, "use": job.use, "choice": job.choice}
    return names | {"packed": bool(dict(kernel.params).get("PACKED"))} | figures(job, program, x * y * z)
