"""Host time of a decoded token: encoding and submitting the 30B thinker's true plans, without its weights.

    python bench/host.py [--device NAME] [-r 50] [--activations q8]

The plans have the true dimensions, layers and grids. The weights are small buffers, one for each tensor, as the driver
and wgpu follow buffers, not bytes. The token count in the plans' state is 0: kernels that look at it leave at once, the
others read those buffers again and again, for seconds on a software adapter. Kernels are chosen as for a GPU. A token
is timed when the one before it is done.

Times are CPU times of the submitting thread, medians and the best: a software adapter executes dispatches in threads of
its own, so they are not in it, and neither is what other programs do. "encode" is recording and finishing the command
buffer; writing a token's inputs, and submitting a last plan with the read-back of a token, are given beside it.
The last line is JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable

import numpy as np

from qwen3omni_wgpu.cost.paper import Sketch, paper_model
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.gpu import Device, Plan, ReadBack
from qwen3omni_wgpu.gpu.plan import encode_plans
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.sampler import GenerationConfig, Sampler

HOLLOW = 4096  # bytes of a weight's buffer
BINDING = (1 << 31) - 4  # as GPUs have it: no weight is bound in parts
CTX = 512


def thinker(device: Device, activations: str) -> TextModel:
    """The 30B's text model: weights of the true shapes with next to no memory behind them."""
    model = paper_model(Sketch.shipped(), device, activations)
    for tensor in (*model.weights.values(), *model.qk_norms, model.freqs):
        for part in tensor.parts:
            part.storage.buffer = device.create_buffer(min(part.nbytes, HOLLOW), tensor.name)
    return model


def timed(once: Callable[[], object]) -> float:
    """CPU milliseconds of this thread."""
    start = time.thread_time()
    once()
    return 1e3 * (time.thread_time() - start)


def token(device: Device, plans: list[Plan]) -> dict[str, float]:
    """Milliseconds for one token's dispatches."""
    device.wait()
    commands = []
    encode = timed(lambda: commands.extend(encode_plans(device, plans, ())))
    assert len(commands) == 1
    return {"encode_ms": encode, "submit_ms": timed(lambda: device.submit(commands))}


def around(engine: Engine, plan: Plan, read: ReadBack) -> dict[str, float]:
    """Milliseconds to write what changes from token to token, and to submit the last plan and take its token."""
    engine.device.wait()
    write = timed(lambda: engine._in.write_next(0, np.zeros(3, np.float32)))
    engine.device.wait()
    return {"inputs_ms": write, "read_ms": timed(lambda: read.submit([plan]).result())}


def runs(repeat: int, once: Callable[[], dict[str, float]]) -> list[dict[str, float]]:
    """The first three, which fill caches, are left out."""
    return [once() for _ in range(repeat + 3)][3:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", help="part of an adapter's name; default: the best GPU")
    parser.add_argument("-r", "--repeat", type=int, default=50)
    parser.add_argument("--activations", choices=("f32", "q8"), default="q8")
    arguments = parser.parse_args()
    with Device.open(arguments.device) as device:
        info = device.info
        device.info = dataclasses.replace(info, kind="integrated" if info.software else info.kind)
        device.limits["max-storage-buffer-binding-size"] = device.limits["max-buffer-size"] = BINDING
        engine = Engine(thinker(device, arguments.activations), CTX)
        start = time.perf_counter()
        last, read = engine._draws.chosen(Sampler(GenerationConfig(temperature=0).resolved({}), []))
        plans = [engine._forward_plan(1, "last"), last]
        recorded = time.perf_counter() - start
        device.info = info
        engine._in.state.write(np.zeros(2, np.uint32))
        found = runs(arguments.repeat, lambda: token(device, plans))
        beside = runs(10, lambda: around(engine, last, read))
        dispatches = sum(len(plan.steps) for plan in plans)
        host = [sum(run.values()) for run in found]
        print(f"{info}: {dispatches} dispatches a token, recorded once in {recorded:.1f} s")
        row = {"device": str(info), "activations": arguments.activations, "dispatches": dispatches}
        times = {"host_ms": host} | {key: [run[key] for run in some] for some in (found, beside) for key in some[0]}
        for key, values in times.items():
            row |= {key: round(statistics.median(values), 4), f"best_{key}": round(min(values), 4)}
            print(f"  {key:10} {row[key]:.3f} (best {row[f'best_{key}']:.3f})")
        print(f"  {1e3 * statistics.median(host) / dispatches:.2f} us a dispatch")
        print(json.dumps(row))


if __name__ == "__main__":
    main()
