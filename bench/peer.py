"""Decode and prefill against llama.cpp on the same machine, driver and file: ratios from interleaved runs.

    python bench/peer.py MODEL.gguf [-n 16] [-p 128] [-r 3] [--peer-python PYTHON]

PYTHON is an interpreter with llama-cpp-python built for Vulkan (CMAKE_ARGS=-DGGML_VULKAN=ON pip install
llama-cpp-python); each measurement is a process of its own, ours and theirs in turn. The last line is JSON.
"""

import argparse
import json
import statistics
import subprocess
import sys

OURS = """
import sys, time, json
from qwen3omni_wgpu import GenerationConfig, Omni
path, n, p = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with Omni.from_pretrained(path, ctx_size=p + n + 8, cpu=True) as omni:
    engine = omni.engine
    def run(ids, count):
        engine.reset()
        config = GenerationConfig(max_tokens=count, temperature=0).resolved({})
        for _ in engine.generate(ids, config, frozenset()): pass
        return engine.timings
    ids = [100 + i for i in range(p)]
    run(ids, 2); run(ids[:4], 4)
    prefill = run(ids, 1); prefill = prefill.prompt_n / prefill.prompt_s
    decode = run(ids[:4], n + 1); decode = decode.predicted_n / decode.predicted_s
    print(json.dumps({"prefill": prefill, "decode": decode, "device": str(omni.device.info)}))
"""

THEIRS = """
import sys, time, json
from llama_cpp import Llama
path, n, p = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
llm = Llama(path, n_gpu_layers=-1, n_ctx=p + n + 8, n_batch=512, flash_attn=True, verbose=True)
ids = [100 + i for i in range(p)]
def evaluate(tokens):
    start = time.perf_counter()
    llm.eval(tokens)
    return time.perf_counter() - start
llm.reset(); evaluate(ids[:4]); evaluate([7])
llm.reset(); evaluate(ids)
llm.reset(); prefill = p / evaluate(ids)
llm.reset(); evaluate(ids[:4])
decode = n / sum(evaluate([7 + i]) for i in range(n))
print(json.dumps({"prefill": prefill, "decode": decode}))
"""


def measure(python: str, code: str, arguments: list[str]) -> dict:
    done = subprocess.run([python, "-c", code, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{python} failed:\n{done.stderr[-2000:]}")
    devices = [line for line in done.stderr.splitlines() if "ggml_vulkan: 0" in line or "offloaded" in line]
    return {"log": devices, **json.loads(done.stdout.splitlines()[-1])}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("-n", type=int, default=16, help="tokens to decode")
    parser.add_argument("-p", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("-r", type=int, default=3, help="runs of each")
    parser.add_argument("--peer-python", default=sys.executable)
    options = parser.parse_args()
    arguments = [options.model, str(options.n), str(options.p)]
    runs: dict[str, list[dict]] = {"ours": [], "llama.cpp": []}
    for _ in range(options.r):
        runs["ours"].append(measure(sys.executable, OURS, arguments))
        runs["llama.cpp"].append(measure(options.peer_python, THEIRS, arguments))
    print("ours:", runs["ours"][0]["device"], "| llama.cpp:", *runs["llama.cpp"][0]["log"])
    summary = {}
    for phase in ("prefill", "decode"):
        ours, theirs = ([run[phase] for run in runs[name]] for name in ("ours", "llama.cpp"))
        ratio = statistics.median(ours) / statistics.median(theirs)
        summary[phase] = {"ours": ours, "llama.cpp": theirs, "ratio": ratio}
        print(f"{phase}: {statistics.median(ours):.2f} against {statistics.median(theirs):.2f} tokens/s = {ratio:.2f}x")
    print(json.dumps(summary))


if __name__ == "__main__":
    main()
