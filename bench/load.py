"""Loading weights against numpy.fromfile on the same warm files: seconds, GB/s, bytes on the device, memory above them.

    python bench/load.py MODEL.gguf [-r 5] [--device NAME]
    python bench/load.py HF_FOLDER [--type q8_0]          the text model of a checkpoint, quantised while loading

Each measurement is a process of its own, in turn, with the file read through just before it, so that both see the
machine in the same state and a warm page cache; use a file of 2 GB or more. Memory is the process's peak resident size;
on a software adapter the device's memory is the process's own, and what remains after taking it off is what loading
costs. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

OURS = """
import json, os, resource, sys, time
from pathlib import Path
from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.weights import load_weights
with Device.open(sys.argv[2] or None, cpu=not sys.argv[2]) as device:
    start = time.perf_counter()
    file = open_parts(Path(sys.argv[1]), type=sys.argv[3] or None)["thinker"]
    tensors = load_weights(device, file, file.tensors)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "device_bytes": sum(t.nbytes for t in tensors.values()), "peak": peak,
                      "allocated": device.allocated, "device": str(device.info), "uma": device.uma,
                      "file_bytes": sum(info.nbytes for info in file.tensors.values())}))
"""

FROMFILE = """
import json, sys, time
import numpy
start = time.perf_counter()
for path in sys.argv[2:]:
    data = numpy.fromfile(path, numpy.uint8)
print(json.dumps({"seconds": time.perf_counter() - start}))
"""


def measure(code: str, model: str, files: list[str], *arguments: str) -> dict:
    for name in files:
        with open(name, "rb", buffering=0) as file:
            while file.read(16 << 20):
                pass
    done = subprocess.run([sys.executable, "-c", code, model, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-r", type=int, default=5, help="runs of each")
    parser.add_argument("--device", default="", help="adapter; default: a software one")
    parser.add_argument("--type", default="", help="of the weights that a checkpoint folder becomes; default q8_0")
    options = parser.parse_args()
    folder = Path(options.model)
    files = sorted(map(str, folder.glob("*.safetensors"))) if folder.is_dir() else [options.model]
    loads, reads = [], []
    for _ in range(options.r):
        reads.append(measure(FROMFILE, options.model, files, *files)["seconds"])
        loads.append(measure(OURS, options.model, files, options.device, options.type))
    ours, theirs = statistics.median(load["seconds"] for load in loads), statistics.median(reads)
    size = loads[0]["device_bytes"]
    above = max(load["peak"] - (size if load["uma"] else 0) for load in loads)
    print(f"{loads[0]['device']}: {size / 1e9:.2f} GB on the device, {loads[0]['file_bytes'] / 1e9:.2f} GB as a GGUF")
    print(f"load {ours:.2f} s = {size / ours / 1e9:.2f} GB/s, numpy.fromfile {theirs:.2f} s: {ours / theirs:.2f}x")
    print(f"peak memory above the weights: {above / 2**20:.0f} MiB")
    print(json.dumps({"load_s": [load["seconds"] for load in loads], "fromfile_s": reads, "ratio": ours / theirs,
                      "above_mib": above / 2**20}))


if __name__ == "__main__":
    main()
