"""A process that compiles its share of the kernels: `python -m isa.worker SHARE OF VARIANTS PATTERN`.

stdout: the device, then one JSON line a kernel. stderr: what the driver prints, between marks. Started by collect.py
with the environment of driver.py, for the Vulkan loader is chosen when a process starts.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import asdict

from qwen3omni_wgpu.errors import OmniError
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.gpu.kernel import pipeline

from .kernels import jobs

MARK = "@@@ kernel "


def main() -> None:
    share, of, variants, pattern = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4]
    device = Device.open()
    print(json.dumps({"device": device.info.name, "driver": device.info.driver}), flush=True)
    wanted = [job for job in jobs(device, variants) if re.search(pattern, f"{job.use}: {job.kernel.label}")]
    for number in range(share, len(wanted), of):
        job = wanted[number]
        print(f"\n{MARK}{number}", file=sys.stderr, flush=True)
        try:
            pipeline(device, job.kernel, job.n_in, job.n_out, job.immediate_bytes)
        except OmniError as error:
            sys.exit(f"{job.kernel.label}: {str(error).splitlines()[0]}")
        print(json.dumps({"number": number} | asdict(job)), flush=True)
    print(f"\n{MARK}end", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
