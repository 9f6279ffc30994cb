"""`qwen3omni quantize` on a checkpoint with the 30B's true tensor shapes: peak memory and speed against their limits.

    python bench/quantize.py [--layers 1 4] [--type q8_0] [-r 3] [--folder DISK]
    python bench/quantize.py --chunks            only the conversions, on one core, for several chunk sizes

The checkpoints have embedding, head, both towers and the first LAYERS layers of the thinker with all experts as single
tensors (4.9 GB for one layer, 1.25 GB for each more), random bf16 weights, real bytes on the disk. Every measurement is
a process of its own and starts with the checkpoint out of the page cache.

The limit: reading the checkpoint and writing as many bytes as the result has, both at once, because both are needed
and share the disk; or `gguf.quantize` of the same weights on all cores, when that is slower. Nothing that converts
with that function can take less time than the larger of the two; conversion that is faster than it can, so the share
of the disk's limit alone is printed, too. The last line is JSON.
"""

import argparse
import json
import os
import re
import shutil
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from itertools import groupby
from math import prod
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from sparse_30b import DATA, tensors  # noqa: E402
from tiny_checkpoint import write_json, write_tokenizer  # noqa: E402

SHARD_BYTES = 3 << 30

# The highest resident size since the program began; ru_maxrss would count the process that started it.
QUANTIZE = """
import json, os, re, sys
from pathlib import Path
from qwen3omni_wgpu.cli import main
try:
    code = main()
except SystemExit as exit:
    code = exit.code
if code:
    sys.exit(code)
peak = re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())
print(json.dumps({"peak": int(peak[1]) * 1024, "cpu": os.times().user + os.times().system}))
"""

# Read files and write so many bytes, at the same time, without anything in between.
DISK = """
import json, os, sys, threading, time
sources, out, size = sys.argv[3:], sys.argv[1], int(sys.argv[2])
def read():
    block = bytearray(4 << 20)
    for source in sources:
        with open(source, "rb", buffering=0) as file:
            while file.readinto(block):
                pass
def write():
    block = os.urandom(4 << 20)
    with open(out, "wb", buffering=0) as file:
        left = size
        while left:
            left -= file.write(block[:left])
        os.fsync(file.fileno())
threads = ([threading.Thread(target=read)] if sources else []) + ([threading.Thread(target=write)] if size else [])
start = time.perf_counter()
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps({"seconds": time.perf_counter() - start}))
"""

# gguf.quantize of bf16 weights that are in memory already, for two seconds: values a second.
GGUF = """
import json, sys, time
import numpy as np
from gguf.constants import GGMLQuantizationType
from gguf.quants import quantize
type = GGMLQuantizationType[sys.argv[1].upper()]
values = np.random.default_rng(0).standard_normal((2048, 2048), np.float32) * np.float32(0.02)
quantize(values, type)
count, start = 0, time.perf_counter()
while (seconds := time.perf_counter() - start) < 2:
    quantize(values, type)
    count += values.size
print(json.dumps({"values_per_second": count / seconds}))
"""


def run(code: str, *arguments: str) -> list[dict]:
    """The JSON lines that the program prints."""
    return finished(start(code, *arguments))


def start(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finished(process: subprocess.Popen) -> list[dict]:
    out, problems = process.communicate()
    if process.returncode:
        sys.exit(problems[-2000:])
    decoder, found = json.JSONDecoder(), []
    while out := out.strip():
        value, end = decoder.raw_decode(out)
        found.append(value)
        out = out[end:]
    return found


def write_checkpoint(folder: Path, layers: int) -> list[Path]:
    """The thinker, `layers` deep, and its towers as a Hugging Face folder with an index; returns the shards."""
    folder.mkdir()
    write_tokenizer(folder, tokenizer_json=False)
    config = json.loads((DATA / "config_30b.json").read_text())
    config["enable_audio_output"] = False
    config["thinker_config"]["text_config"]["num_hidden_layers"] = layers
    write_json(folder / "config.json", config)
    listed, offset = [], 0
    for name, shape in tensors():
        layer = re.match(r"thinker\.model\.layers\.(\d+)\.", name)
        if name.startswith("thinker.") and not (layer and int(layer[1]) >= layers):
            listed.append((offset // SHARD_BYTES, name, shape))
            offset += 2 * prod(shape)
    rng = np.random.default_rng()
    block = (rng.standard_normal(1 << 24, np.float32) * np.float32(0.02)).view(np.uint16)[1::2].copy()
    where: dict[str, str] = {}
    shards = []
    for number, group in groupby(listed, lambda entry: entry[0]):
        shards.append(folder / f"model-{number + 1:05}.safetensors")
        members = [(name, shape) for _, name, shape in group]
        where |= {name: shards[-1].name for name, _ in members}
        write_shard(shards[-1], members, block, rng)
    write_json(folder / "model.safetensors.index.json", {"weight_map": where})
    return shards


def write_shard(path: Path, members: list[tuple[str, list[int]]], block: np.ndarray, rng: np.random.Generator) -> None:
    """Weights are pieces of one random block, from another place of it each time."""
    header, end = {}, 0
    for name, shape in members:
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end := end + 2 * prod(shape)]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        left = end // 2
        while left:
            piece = block[rng.integers(block.size // 2) :][:left]
            piece.tofile(file)
            left -= piece.size
        file.flush()
        os.fsync(file.fileno())


def forget(paths: list[Path]) -> None:
    """Out of the page cache (they are on the disk already)."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def measure(folder: Path, layers: int, type: str, repeats: int) -> dict:
    source, out = folder / f"checkpoint-{layers}", folder / "out"
    shards = write_checkpoint(source, layers)
    read_bytes = sum(path.stat().st_size for path in shards)
    command = ("quantize", str(source), str(out), "--type", type, "--json", "-q")
    rows = []
    for _ in range(repeats):
        forget(shards)
        began = time.perf_counter()
        report, memory = run(QUANTIZE, *command)
        wall = time.perf_counter() - began
        size = sum(path.stat().st_size for path in out.iterdir())
        shutil.rmtree(out)
        row = {"quantize": sum(file["seconds"] for file in report["files"]), "command": wall, **memory, "written": size}
        names = [str(path) for path in shards]
        for key, arguments in (("read", ("0", *names)), ("write", (str(size),)), ("disk", (str(size), *names))):
            forget(shards)
            row[key] = run(DISK, str(folder / "out.bin"), *arguments)[0]["seconds"]
            (folder / "out.bin").unlink(missing_ok=True)
        row["gguf_one"] = run(GGUF, type)[0]["values_per_second"]
        several = [start(GGUF, type) for _ in range(cores())]
        row["gguf_all"] = sum(finished(process)[0]["values_per_second"] for process in several)
        rows.append(row)
        print(f"  {layers} layers: " + ", ".join(f"{key} {value:.4g}" for key, value in row.items()), file=sys.stderr)
    result = {key: statistics.median(row[key] for row in rows) for key in rows[0]}
    # Each repeat has its own limit: on a shared machine it moves.
    count = read_bytes / 2
    shares = {
        "of_limit": [max(row["disk"], count / row["gguf_all"]) / row["quantize"] for row in rows],
        "of_disk": [row["disk"] / row["quantize"] for row in rows],
        "of_gguf": [count / row["gguf_all"] / row["quantize"] for row in rows],
    }
    largest = max(prod(shape) for name, shape in tensors() if name.startswith("thinker.model.embed"))
    return (
        {"layers": layers, "type": type, "read_bytes": read_bytes, "peak_limit": 2 * 4 * largest + 300_000_000}
        | result
        | {key: statistics.median(values) for key, values in shares.items()}
    )


def cores() -> int:
    return len(os.sched_getaffinity(0))


def table(results: list[dict]) -> None:
    print(
        "| layers | checkpoint | result | peak | bound | quantize | CPU | disk alone | gguf.quantize | of the limit |"
    )
    print("| --- " * 10 + "|")
    for row in results:
        gguf = row["read_bytes"] / 2 / row["gguf_all"]
        print(
            f"| {row['layers']} | {row['read_bytes'] / 1e9:.2f} GB | {row['written'] / 1e9:.2f} GB | "
            f"{row['peak'] / 1e6:.0f} MB | {row['peak_limit'] / 1e6:.0f} MB | "
            f"{row['quantize']:.1f} s, {row['read_bytes'] / row['quantize'] / 1e6:.0f} MB/s | {row['cpu']:.1f} s | "
            f"{row['disk']:.1f} s (read {row['read']:.1f}, write {row['write']:.1f}) | "
            f"{gguf:.1f} s on {cores()} cores | {row['of_limit']:.0%} ({row['of_disk']:.0%} of the disk alone) |"
        )


def conversions(sizes: list[int]) -> list[dict]:
    """float32 GB/s of one core from bf16 to each type, and gguf.quantize from float32 in chunks it likes."""
    from gguf.quants import quantize

    from qwen3omni_wgpu.formats import quants

    values = np.random.default_rng(0).standard_normal(1 << 22, np.float32) * np.float32(0.02)
    raw = values.view(np.uint16)[1::2].copy().view(np.uint8)
    results = []
    for type in ("q8_0", "f16", "bf16", "f32"):
        per_block, size = quants.BLOCKS[type]
        row = {"type": type, "gguf": speed(values.nbytes, lambda t=type: quantize(values, quants.TYPES[t]))}
        if type == "f32":
            row["gguf"] = "nothing to do"
        for chunk in sizes:
            quants.CHUNK, decoded = chunk, np.empty(chunk, np.float32)
            quants._buffers = quants._Buffers()
            out = np.empty(chunk // per_block * size, np.uint8)

            def convert(chunk: int = chunk, decoded=decoded, out=out, type: str = type) -> None:
                for at in range(0, values.size, chunk):
                    quants.decode(raw[2 * at : 2 * (at + chunk)], "bf16", decoded)
                    quants.encode(decoded, type, out)

            row[str(chunk)] = speed(values.nbytes, convert)
        results.append(row)
    print("| to | gguf.quantize | " + " | ".join(f"chunks of {size}" for size in sizes) + " |")
    print("| --- " * (2 + len(sizes)) + "|")
    for row in results:
        print("| " + " | ".join(f"{v:.2f} GB/s" if isinstance(v, float) else v for v in row.values()) + " |")
    return results


def speed(nbytes: int, call) -> float:
    best = 0.0
    for _ in range(7):
        began = time.perf_counter()
        call()
        best = max(best, nbytes / (time.perf_counter() - began) / 1e9)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4], help="layers of the checkpoints")
    parser.add_argument("--type", default="q8_0", choices=["q8_0", "f16", "bf16", "f32"])
    parser.add_argument("-r", type=int, default=3, help="runs of each; medians are printed")
    parser.add_argument("--folder", type=Path, help="where to put the files: a disk with room for the largest, twice")
    parser.add_argument("--chunks", action="store_true", help="measure the conversions alone")
    options = parser.parse_args()
    if options.chunks:
        print(json.dumps({"conversions": conversions([1 << n for n in range(14, 20)])}))
        return
    results = []
    for layers in options.layers:
        with tempfile.TemporaryDirectory(dir=options.folder, prefix="quantize-") as folder:
            results.append(measure(Path(folder), layers, options.type, options.r))
    table(results)
    print(json.dumps({"cores": cores(), "results": results}))


if __name__ == "__main__":
    main()
