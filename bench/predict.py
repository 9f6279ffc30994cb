"""The cost model against the clock: predicted and measured tokens a second on this device, and the error.

    python bench/predict.py [MODEL.gguf ...] [-n 16] [-p 128] [-d 0,512] [-r 3] [--rounds 3] [--device NAME]
                            [--clock pace|wall|cpu]

Without MODEL: SmolLM2 (QWEN3OMNI_MODEL, or the installed package) and two tiny random models, a dense one and a mixture
of experts, of widths that are drawn anew. A round measures a profile by micro-benchmarks (cost/calibrate.py), predicts
from it and then runs the model; the error is the median of the rounds'.

The pace of a shared machine drifts by a third within seconds. --clock pace, the default, runs a fixed kernel before
and after everything that is timed and counts seconds of the pace that the machine had at first; wall does not, and cpu
counts the processor time of the process. The rate that is printed is that of the clock, and the prediction lies beside
it by the error. The last line is JSON.
"""

import argparse
import json
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from qwen3omni_wgpu import GenerationConfig, Omni, ops
from qwen3omni_wgpu.cost import PaperDevice, Sketch, calibrate, paper_model, predict_decode, predict_prefill, steps_of
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.gpu import Device, Plan, Tensor
from qwen3omni_wgpu.locate import locate

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"pace": time.perf_counter, "wall": time.perf_counter, "cpu": time.process_time}


class Pace:
    """How fast the machine is just now, by a kernel whose weights a cache holds; 1 as it was when this was made."""

    def __init__(self, device: Device):
        self.device = device
        rng = np.random.default_rng(0)
        weights = rng.standard_normal((512, 1024), dtype=np.float32).astype(np.float16)
        x = Tensor.from_numpy(device, rng.standard_normal((1, 1024), dtype=np.float32), "x")
        self.plan = Plan(device, "pace")
        w = Tensor.from_numpy(device, weights, "w")
        self.plan.finish(keep=[ops.matmul(self.plan, x, w) for _ in range(8)])
        self._once()
        self.first = statistics.median(self._once() for _ in range(20))
        self.last, self.at, self.seconds = 1.0, time.perf_counter(), 0.0

    def _once(self) -> float:
        self.device.wait()
        start = time.perf_counter()
        self.plan.run()
        self.device.wait()
        return time.perf_counter() - start

    def now(self) -> float:
        return self.first / statistics.median(self._once() for _ in range(3))

    def clock(self) -> float:
        """Seconds at the first pace: those since the last call count by the mean of the paces then and now."""
        since, now = time.perf_counter() - self.at, self.now()
        self.seconds += since * (self.last + now) / 2
        self.last, self.at = now, time.perf_counter()
        return self.seconds


def tiny_models(folder: Path) -> Iterator[Path]:
    """Models whose time is mostly that of dispatches."""
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
    from tiny_gguf import write_tiny

    draw = random.Random()
    sizes = {"dim": 64 * draw.randint(2, 6), "n_layers": draw.randint(3, 6), "head_dim": 64, "vocab": 4096}
    common = sizes | {"type": "q8_0", "context_length": 2048, "n_heads": 8, "n_kv_heads": 2}
    yield write_tiny(folder / "dense.gguf", arch="qwen3", ffn_dim=64 * draw.randint(4, 12), **common)
    yield write_tiny(folder / "experts.gguf", arch="qwen3moe", expert_dim=32 * draw.randint(2, 6), **common)


def measured(
    omni: Omni, depth: int, n: int, answer: bool, clock: Clock, pace: Pace | None = None
) -> tuple[float, float]:
    """Tokens a second of n tokens after `depth` others, one by one or as a prompt; and at the first pace."""
    engine = omni.engine
    before = [11 + i % 97 for i in range(depth)]
    if engine.tokens[:depth] != before:
        engine.reset()
        engine.prefill(before)
    engine.reset(keep=depth)
    omni.device.wait()
    at_start = pace.now() if pace else 1.0
    start = clock()
    if answer:
        config = GenerationConfig(temperature=0, max_tokens=n + 1).resolved({})
        for index, _ in enumerate(engine.generate([*before, 7], config, frozenset())):
            if index == 0:  # the first token is the prompt's work
                start = clock()
    else:
        engine.prefill([13 + i % 89 for i in range(n)])
        omni.device.wait()
    seconds = clock() - start
    omni.device.wait()
    at_end = pace.now() if pace else 1.0
    return n / seconds, n / (seconds * (at_start + at_end) / 2)


def compared(path: Path, options: argparse.Namespace) -> Iterator[dict]:
    """Rounds of a calibration, its predictions and the measurements: a pair stands close together in time."""
    clock = CLOCKS[options.clock]
    sketch = Sketch.of_file(read_gguf(path))
    tests = [(depth, n, answer) for depth in options.d for n, answer in ((options.p, False), (options.n, True))]
    context = max(options.d) + max(options.p, options.n) + 2
    errors: dict[tuple[int, int, bool], list[float]] = {test: [] for test in tests}
    rates: dict[tuple[int, int, bool], list[float]] = {test: [] for test in tests}
    with Omni.from_pretrained(path, ctx_size=context, device=options.device) as omni:
        device, kv_type = omni.device, omni.engine.kv_type
        model = paper_model(sketch, PaperDevice.like(device), omni.engine.model.activations)
        buckets = {1, *(bucket for bucket, _ in steps_of(device, options.p))}
        for depth, n, answer in tests:
            measured(omni, depth, n, answer, clock)  # compiles
        pace = Pace(device) if options.clock == "pace" else None
        steady = pace.clock if pace else clock
        for _ in range(options.rounds):
            costs = calibrate(
                device, sketch, model.activations, kv_type, buckets, options.r, clock=steady, context=context
            )
            for depth, n, answer in tests:
                predict = predict_decode if answer else predict_prefill
                expected = predict(costs, model, n, depth, context, kv_type).rate
                found = [measured(omni, depth, n, answer, clock, pace) for _ in range(options.r)]
                rates[depth, n, answer] += [rate for rate, _ in found]
                errors[depth, n, answer].append(expected / statistics.median(paced for _, paced in found) - 1)
        for depth, n, answer in tests:
            error, rate = (statistics.median(some[depth, n, answer]) for some in (errors, rates))
            yield {
                "model": path.name,
                "device": str(device.info),
                "clock": options.clock,
                "test": f"{'tg' if answer else 'pp'}{n}" + (f" @ d{depth}" if depth else ""),
                "predicted": rate * (1 + error),
                "measured": rate,
                "error": error,
                "rounds": errors[depth, n, answer],
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("-n", type=int, default=16, help="tokens to decode")
    parser.add_argument("-p", type=int, default=128, help="tokens of the prompt")
    parser.add_argument("-d", type=lambda text: [int(part) for part in text.split(",")], default=[0, 512])
    parser.add_argument("-r", type=int, default=3, help="runs of each in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device")
    parser.add_argument("--clock", choices=CLOCKS, default="pace")
    options = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for path in options.models or [locate(None), *tiny_models(Path(folder))]:
            for row in compared(path, options):
                results.append(row)
                rates = f"predicted {row['predicted']:9.2f}   measured {row['measured']:9.2f} t/s"
                print(f"{row['model']:40} {row['test']:14} {rates}   error {100 * row['error']:+6.1f} %", flush=True)
    print(f"largest error {100 * max(abs(row['error']) for row in results):.1f} % ({options.clock} clock)")
    print(json.dumps(results))


if __name__ == "__main__":
    main()
