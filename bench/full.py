"""The whole 30B thinker at its true dimensions with random weights made on the device: no file, only a Vulkan driver.

    python bench/full.py [--layers 48] [-p 128,512] [-n 32] [-d 0,4096,32768] [--kv-type f16] [-r 3] [--device NAME]
                         [--check]

Prints tokens a second, the bytes that a token reads as GB/s and as per cent of the copy rate measured in the same run,
and the dispatches of a token; the last line is JSON. --check first runs one layer with every op against its NumPy twin
(a minute or two of host time). Fewer --layers fit smaller memory: speeds are then of that many layers and the head.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace

import numpy as np

from qwen3omni_wgpu import GenerationConfig
from qwen3omni_wgpu.cli.measure import copy_rate
from qwen3omni_wgpu.cost import Sketch, decode_plan, paper_model
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.gpu import Device, Tensor
from qwen3omni_wgpu.models.config import TextConfig, kv_bytes_per_token
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.reference.rope import rope_frequencies

SEED_BYTES = 1 << 25  # of random Q8_0 blocks a row length, which all matrices of it are filled from


class Filler:
    """Random weights of variance 1 / D, written by copies on the device."""

    def __init__(self, device: Device, seed: int = 0) -> None:
        self.device = device
        self.rng = np.random.default_rng(seed)
        self._seeds: dict[int, tuple] = {}

    def create(self, tensor: Tensor) -> None:
        for part in tensor.parts:
            part.storage.buffer = self.device.create_buffer(part.nbytes, part.storage.label)

    def matrix(self, tensor: Tensor) -> None:
        """Q8_0."""
        self.create(tensor)
        source, size = self._seed(tensor.shape[-1])
        for part in tensor.parts:
            encoder = self.device.handle.create_command_encoder()
            at = 0
            while at < part.nbytes:
                start = int(self.rng.integers(0, size // 136)) * 68  # pairs of blocks are whole words
                count = min(part.nbytes - at, size - start) // 4 * 4
                encoder.copy_buffer_to_buffer(source, start, part.storage.buffer, at, count)
                at += count
            self.device.submit([encoder.finish()])

    def _seed(self, d: int) -> tuple:
        if d not in self._seeds:
            blocks = SEED_BYTES // 68 * 2
            raw = self.rng.integers(0, 256, (blocks, 34), dtype=np.uint8)
            scale = np.float16(1 / (73.9 * np.sqrt(d)))  # 73.9: the deviation of the numbers -128 to 127
            raw[:, :2] = np.frombuffer(scale.tobytes(), np.uint8)
            buffer = self.device.create_buffer(raw.nbytes, "seed")
            self.device.write_buffer(buffer, raw.reshape(-1))
            self._seeds[d] = buffer, raw.nbytes
        return self._seeds[d]

    def floats(self, tensor: Tensor) -> None:
        self.create(tensor)
        values, shape = self.rng.standard_normal(tensor.shape, dtype=np.float32), tensor.shape
        tensor.write(1 + values / 10 if len(shape) == 1 else values / np.float32(np.sqrt(shape[-1])))


def random_model(device: Device, config: TextConfig, activations: str) -> TextModel:
    """Q8_0, vectors and routers float32; every tensor as loading has it."""
    shipped = Sketch.shipped()
    model = paper_model(Sketch(config, shipped.types, shipped.label), device, activations)
    fill = Filler(device)
    for tensor in model.weights.values():
        fill.matrix(tensor) if tensor.dtype == "q8_0" else fill.floats(tensor)
    for tensor in model.qk_norms:
        fill.floats(tensor)
    fill.create(model.freqs)
    model.freqs.write(rope_frequencies(config.rope_dim, config.rope_theta, config.rope_scale, None))
    device.wait()
    return model


def token_bytes(config: TextConfig, model: TextModel, cached: float, kv_type: str) -> float:
    """What one token reads: the experts it uses only, one row of the embedding, the cache."""
    total = kv_bytes_per_token(config, kv_type) * cached
    for name, tensor in model.weights.items():
        share = config.n_experts_used / config.n_experts if "_exps." in name else 1.0
        total += tensor.nbytes * (1 / tensor.shape[0] if name == "token_embd.weight" else share)
    return total


def measure(engine: Engine, depth: int, prompt: int, answer: int) -> tuple[float, float]:
    """Seconds of a prompt of so many tokens after `depth` others; seconds of an answer."""
    vocabulary = engine.model.config.vocab_size
    ids = np.random.default_rng(1).integers(0, vocabulary, depth + max(prompt, 1)).tolist()
    engine.reset()
    if depth:
        engine.prefill(ids[:depth])
    engine.device.wait()
    if prompt:
        start = time.perf_counter()
        engine.prefill(ids[depth:])
        engine.device.wait()
        return time.perf_counter() - start, 0.0
    config = GenerationConfig(max_tokens=answer + 1, temperature=0).resolved({})
    for _ in engine.generate(ids, config, frozenset()):
        pass
    return 0.0, engine.timings.predicted_s


def check(device: Device, config: TextConfig, activations: str, kv_type: str) -> None:
    """One layer, every op against its twin: NumericalError at the first that differs."""
    model = random_model(device, replace(config, n_layers=1), activations)
    os.environ["QWEN3OMNI_DEBUG"] = "1"
    engine = Engine(model, 64, kv_type)
    del os.environ["QWEN3OMNI_DEBUG"]
    engine.prefill(list(range(40)))
    for _ in engine.generate([1, 2, 3], GenerationConfig(max_tokens=2, temperature=0).resolved({}), frozenset()):
        pass
    engine.free()
    model.free()
    print("check: every op of a layer agrees with its twin")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=48)
    parser.add_argument("-p", default="128,512")
    parser.add_argument("-n", type=int, default=32)
    parser.add_argument("-d", default="0")
    parser.add_argument("-r", type=int, default=3)
    parser.add_argument("--kv-type", default="f16")
    parser.add_argument("--activations", choices=("auto", "f32", "q8"), default="auto")
    parser.add_argument("--device")
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    depths, prompts = ([int(item) for item in text.split(",")] for text in (options.d, options.p))
    config = replace(Sketch.shipped().config, n_layers=options.layers)
    with Device.open(options.device) as device:
        automatic = "f32" if device.info.software else "q8"
        activations = automatic if options.activations == "auto" else options.activations
        if options.check:
            check(device, config, activations, options.kv_type)
        peak = copy_rate(device)
        model = random_model(device, config, activations)
        engine = Engine(model, max(depths) + max([*prompts, options.n]) + 8, options.kv_type)
        rows = []
        for depth in depths:
            for prompt, answer in [*((prompt, 0) for prompt in prompts), (0, options.n)]:
                times = [max(measure(engine, depth, prompt, answer)) for _ in range(options.r + 1)][1:]
                rate = (prompt or answer) / statistics.median(times)
                row = {"n_prompt": prompt, "n_gen": answer, "n_depth": depth, "avg_ts": rate}
                if answer:
                    read = token_bytes(config, model, depth + answer / 2, options.kv_type)
                    row |= {"gbps": rate * read / 1e9, "pct_peak": 100 * rate * read / peak}
                rows.append(row)
                print(row, flush=True)
        result = {
            "model": f"thinker of {options.layers} layers, random Q8_0", "device": str(device.info),
            "activations": activations, "kv_type": options.kv_type, "peak_gbps": peak / 1e9,
            "dispatches_per_token": len(decode_plan(model, max(depths), engine.ctx_size, options.kv_type).steps),
            "results": rows,
        }  # fmt: skip
        print(json.dumps(result))
        engine.free()
        model.free()


if __name__ == "__main__":
    main()
