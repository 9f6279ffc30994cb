"""Runs the compiling processes and puts their rows together."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qwen3omni_wgpu.errors import OmniError

from .driver import Driver

ROOT = Path(__file__).resolve().parent.parent.parent
# More processes than this gain little: each opens a device and records all plans for itself.
MOST_PROCESSES = 8


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
    started = []
    for share in range(count):
        command = [sys.executable, "-m", "isa.worker", str(share), str(count), variants, pattern]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started.append(subprocess.Popen(command, env=environment, cwd=ROOT, **pipes))
    # All pipes are read at once: a process whose pipe is full waits.
    with ThreadPoolExecutor(count) as readers:
        said = list(readers.map(lambda each: _said(each, started), started))
    failed = [err for process, (_, err) in zip(started, said, strict=True) if process.returncode > 0]
    if failed or any(process.returncode for process in started):
        last = "".join(failed).strip().split("\n")[-1][:400]
        raise CompileFailed(f"compiling for RADV's null device failed: {last or 'a process was killed'}")
    lines = [json.loads(line) for out, _ in said for line in out.split("\n") if line.startswith("{")]
    header = next(line for line in lines if "driver" in line)
    rows = sorted((line for line in lines if "number" in line), key=lambda row: row.pop("number"))
    return Report(header["device"], header["driver"], rows)


def _said(process: subprocess.Popen[str], all_of_them: list[subprocess.Popen[str]]) -> tuple[str, str]:
    """A process's stdout and stderr; where it failed, the others need not go on."""
    out, err = process.communicate()
    if process.returncode:
        for other in all_of_them:
            other.kill()
    return out, err
