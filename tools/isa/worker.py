"""A process that compiles its share of the kernels: `python -m isa.worker SHARE OF VARIANTS PATTERN`.

stdout: the device, then one JSON line a kernel. Started by collect.py with the environment of driver.py, for a Vulkan
loader is chosen when a process starts. What the driver prints on stderr is caught in a file and read.
"""

from __future__ import annotations

import json
import os
import re
import sys
import tempfile
from typing import IO, Any

from qwen3omni_wgpu.errors import OmniError
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.gpu.kernel import pipeline

from .code import read_program
from .counts import figures
from .kernels import Job, jobs

_WORKGROUP = re.compile(r"workgroup[-_ ]size: (\d+), (\d+), (\d+)")


def main() -> None:
    share, of, variants, pattern = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    shown = os.dup(2)
    with tempfile.TemporaryFile("w+") as printed:
        os.dup2(printed.fileno(), 2)
        try:
            _compile(share, of, variants, pattern, printed)
        except OmniError as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            os.write(shown, " ".join(lines[:5]).encode())
            sys.exit(1)
        finally:
            os.dup2(shown, 2)


def _compile(share: int, of: int, variants: str, pattern: str, printed: IO[str]) -> None:
    device = Device.open()
    print(json.dumps({"device": device.info.name, "driver": device.info.driver}), flush=True)
    wanted = [job for job in jobs(device, variants) if re.search(pattern, f"{job.use}: {job.kernel.label}")]
    for number in range(share, len(wanted), of):
        printed.seek(0)
        printed.truncate()
        job = wanted[number]
        pipeline(device, job.kernel, job.n_in, job.n_out, job.immediate_bytes)
        printed.seek(0)
        print(json.dumps({"number": number} | row(job, printed.read())), flush=True)


def row(job: Job, text: str) -> dict[str, Any]:
    """One row of the report. OmniError where the driver printed something else than is known here."""
    sizes = _WORKGROUP.search(text)
    if sizes is None:
        raise OmniError(f"{job.kernel.label}: the driver printed no workgroup size; this Mesa is not known here")
    try:
        program = read_program(text)
    except ValueError as error:
        raise OmniError(f"{job.kernel.label}: {error}; this Mesa is not known here") from error
    x, y, z = map(int, sizes.groups())
    names = {"shader": job.kernel.name, "variant": job.variant, "use": job.use, "choice": job.choice}
    return names | {"packed": bool(dict(job.kernel.params).get("PACKED"))} | figures(job, program, x * y * z)


if __name__ == "__main__":
    main()
