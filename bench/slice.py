"""One decoder layer of the 30B thinker at its true dimensions, decoding, against the driver's best streaming kernel.

    python bench/slice.py [-r 7] [--device NAME] [--activations f32|q8] [--cached 32]

Random Q8_0 weights, one token after --cached others. Streaming kernels read as many bytes in words of several widths
and only combine them; the best of them is the limit. Everything is measured in turn, in the same run, by the clock and
by the processor time of this process (for software adapters on machines that are not quiet). The last line is JSON.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from full import random_model

from qwen3omni_wgpu.cost import Sketch
from qwen3omni_wgpu.gpu import Device, Kernel, Plan, Tensor
from qwen3omni_wgpu.models import text
from qwen3omni_wgpu.models.config import TextConfig
from qwen3omni_wgpu.models.text import KVCache, TextModel

STREAMED = 64 << 20
ROW = 4352  # bytes a thread reads one after another
# Type, bytes and how a value becomes a u32.
WORDS = {
    "u32": (4, "v"),
    "u64": (8, "u32(v & 0xFFFFFFFFlu) ^ u32(v >> 32u)"),
    "vec4<u32>": (16, "v.x ^ v.y ^ v.z ^ v.w"),
    "vec2<u64>": (16, "u32((v.x ^ v.y) & 0xFFFFFFFFlu) ^ u32((v.x ^ v.y) >> 32u)"),
    "vec4<u64>": (32, "u32((v.x ^ v.y ^ v.z ^ v.w) & 0xFFFFFFFFlu) ^ u32((v.x ^ v.y ^ v.z ^ v.w) >> 32u)"),
}


@dataclass(frozen=True)
class Streaming(Kernel):
    """Reads rows of words, `unrolled` loads a round; side by side: the threads of a workgroup read neighbours."""

    word: str = "u32"
    unrolled: int = 4
    threads: int = 8
    aside: bool = False

    def render(self) -> str:
        size, mixed = WORDS[self.word]
        count = ROW // size
        index = (
            f"(g.x * {count}u + k) * {self.threads}u + l"
            if self.aside
            else f"(g.x * {self.threads}u + l) * {count}u + k"
        )
        body = f"{{ let v = words[{index}]; sum ^= {mixed}; k += 1u; }}\n" * self.unrolled
        return f"""
@group(0) @binding(0) var<storage, read> words: array<{self.word}>;
@group(0) @binding(1) var<storage, read_write> sums: array<u32>;
@compute @workgroup_size({self.threads})
fn main(@builtin(workgroup_id) g: vec3<u32>, @builtin(local_invocation_index) l: u32) {{
    var sum = 0u;
    for (var k = 0u; k < {count}u;) {{
{body}    }}
    sums[g.x * {self.threads}u + l] = sum;
}}"""


def streams(device: Device) -> dict[str, Plan]:
    """Plans that read the same bytes in words of every width that the device has."""
    threads, unrolled = (8, (4, 8)) if device.info.software else (256, (4,))
    data = np.random.default_rng(0).integers(0, 2**32, STREAMED // 4, dtype=np.uint32)
    words = Tensor.from_numpy(device, data, "streamed")
    found = {}
    for word in WORDS:
        if "u64" in word and "shader-int64" not in device.features:
            continue
        for often in unrolled:
            for aside in (False, True):
                kernel = Streaming("streaming", (), word, often, threads, aside)
                plan = Plan(device, "streaming")
                sums = plan.empty((STREAMED // ROW,), "u32", "sums")
                groups = STREAMED // ROW // threads
                nbytes = groups * threads * ROW
                plan.add(
                    f"read {word} x{often}{' aside' * aside}", kernel, [words], [sums], (groups, 1, 1), nbytes=nbytes
                )
                found[plan.steps[0].op] = plan.finish(keep=[sums])
    return found


def layer(device: Device, model: TextModel, cached: int) -> Plan:
    """One token through the layer; its input and state are set."""
    c = model.config
    rng = np.random.default_rng(2)
    plan = Plan(device, "layer", activations=model.activations)
    plan.state = Tensor.from_numpy(device, np.array([cached, 1], np.uint32), "state")
    x = Tensor.from_numpy(device, rng.standard_normal((1, c.dim), dtype=np.float32), "x")
    positions = Tensor.from_numpy(device, np.full((1, 3 if c.mrope_sections else 1), cached, np.float32), "positions")
    cache = KVCache.empty(device, c, max(64, cached + 1), "f16")
    return plan.finish(keep=[text.stream(plan, model, x, positions, cache)])


def cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def timed(device: Device, run: Callable[[], None]) -> tuple[float, float]:
    """Seconds by the clock and of processor time."""
    device.wait()
    start, before = time.perf_counter(), cpu()
    run()
    device.wait()
    return time.perf_counter() - start, cpu() - before


def config() -> TextConfig:
    """Of one layer; the vocabulary is no part of it."""
    return replace(Sketch.shipped().config, n_layers=1, vocab_size=64)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-r", type=int, default=7)
    parser.add_argument("--cached", type=int, default=32)
    parser.add_argument("--activations", choices=("f32", "q8"))
    parser.add_argument("--device")
    options = parser.parse_args()
    with Device.open(options.device) as device:
        activations = options.activations or ("f32" if device.info.software else "q8")
        plan = layer(device, random_model(device, config(), activations), options.cached)
        plans = streams(device)
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in (*plans, "layer")}
        for i in range(options.r + 1):
            for name, each in (*plans.items(), ("layer", plan)):
                found = timed(device, each.run)
                if i:  # the first is a warm-up
                    times[name].append(found)
        every = {**plans, "layer": plan}
        rates = {
            name: [every[name].nbytes / statistics.median(pair[kind] for pair in pairs) for kind in (0, 1)]
            for name, pairs in times.items()
        }
        for name, (wall, work) in rates.items():
            print(f"{name:24} {wall / 1e9:7.2f} GB/s wall  {work / 1e9:7.2f} GB a second of processor time")
        best = [max(rates[name][kind] for name in plans) for kind in (0, 1)]
        for step in plan.steps:
            print(f"{step.op:24} {step.kernel.name:14} {step.nbytes / 1e6:8.2f} MB")
        result = {
            "device": str(device.info), "activations": activations, "dispatches": len(plan.steps),
            "bytes": plan.nbytes, "layer_ms": 1e3 * statistics.median(pair[0] for pair in times["layer"]),
            "layer_gbps": rates["layer"][0] / 1e9, "stream_gbps": best[0] / 1e9,
            "pct_of_stream": 100 * rates["layer"][0] / best[0], "pct_of_stream_cpu": 100 * rates["layer"][1] / best[1],
        }  # fmt: skip
        print(json.dumps(result))


if __name__ == "__main__":
    main()
