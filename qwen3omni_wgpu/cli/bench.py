"""`qwen3omni bench`: speed of a model in llama-bench's shape, and `bench ops`: speed and error of every op."""

import platform
import re
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import chain
from math import prod
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu import __version__
from qwen3omni_wgpu.cli import tables
from qwen3omni_wgpu.cli.bench_media import MediaTest, measured, media_tests
from qwen3omni_wgpu.cli.bench_speech import KINDS, SpeechTest, measured_speech, speech_tests
from qwen3omni_wgpu.cli.measure import bytes_per_token, copy_rate
from qwen3omni_wgpu.cli.predict import COLUMNS as PREDICTED
from qwen3omni_wgpu.cli.predict import predictions, refuse_others
from qwen3omni_wgpu.cli.session import note, opened, set_up_logging
from qwen3omni_wgpu.cli.tables import Row
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest, OmniError

if TYPE_CHECKING:
    from qwen3omni_wgpu.gpu import Device
    from qwen3omni_wgpu.omni import Omni

_COLUMNS = {
    "model": lambda row: row["model_type"],
    "size": lambda row: f"{row['model_size'] / 2**20:.2f} MiB",
    "params": lambda row: f"{row['model_n_params'] / 1e6:.2f} M",
    "backend": lambda row: row["backend"],
    "test": lambda row: row["test"],
    "t/s": lambda row: f"{row['avg_ts']:8.2f} ± {row['stddev_ts']:.2f}",
    "GB/s": lambda row: "" if row["gbps"] is None else f"{row['gbps']:.2f}",
    "% peak": lambda row: "" if row["pct_peak"] is None else f"{row['pct_peak']:.1f}",
}
_MEDIA_COLUMNS = {
    "ms": lambda row: f"{row['avg_ns'] / 1e6:.1f}",
    "speed": lambda row: _speed(row),
    "GFLOP/s": lambda row: "" if row["gflops"] is None else f"{row['gflops']:.1f}",
}
_SPEECH_COLUMNS = {
    "first ms": lambda row: "" if row["first_audio_ns"] is None else f"{row['first_audio_ns'] / 1e6:.1f}",
    "dispatches": lambda row: "" if row["dispatches"] is None else f"{row['dispatches']:.0f}",
}
_OP_COLUMNS = {
    "op": lambda row: f"{row['op']:<64}",
    "us": lambda row: f"{row['seconds'] * 1e6:10.1f}",
    "GB/s": lambda row: f"{row['gbps']:.2f}",
    "% peak": lambda row: f"{row['pct_peak']:.1f}",
    "GFLOP/s": lambda row: f"{row['gflops']:.2f}",
    "max error": lambda row: "FAIL" if row["error"] else "" if row["max_error"] is None else f"{row['max_error']:.1e}",
}


@verb("bench")
def bench(
    common: Common,
    what: Annotated[
        str | None,
        typer.Argument(metavar="[ops|tts|code2wav]", help="ops = the shaders one by one; others = that test alone"),
    ] = None,
    prompt: Annotated[str, typer.Option("-p", "--n-prompt", metavar="LIST", help="prompt lengths; 0 = none")] = "512",
    gen: Annotated[str, typer.Option("-n", "--n-gen", metavar="LIST", help="answer lengths; 0 = none")] = "128",
    depth: Annotated[str, typer.Option("-d", "--n-depth", metavar="LIST", help="tokens in the KV cache before")] = "0",
    media: Annotated[
        str, typer.Option("--media", metavar="LIST", help="towers, such as aud30,img1024: seconds of sound, pixels")
    ] = "",
    speech: Annotated[
        str, typer.Option("--speech", metavar="LIST", help="speaking, such as tts8,code2wav8: seconds of speech")
    ] = "",
    repeat: Annotated[int, typer.Option("-r", "--repetitions", metavar="N", help="measurements of each")] = 5,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FORMAT", help="md, json, jsonl or csv")] = "md",
    match: Annotated[str, typer.Option("-k", metavar="REGEX", help="bench ops: only cases that match")] = "",
    large: Annotated[
        bool, typer.Option("--large", help="bench ops: real sizes, too; their error is not checked")
    ] = False,
    predict: Annotated[
        str,
        typer.Option(
            "--predict", metavar="PROFILE", help="run nothing: predict a device (strix-halo, h200, ..., lavapipe, here)"
        ),
    ] = "",
) -> int:
    """Tokens a second in llama-bench's table, with GB/s and per cent of the copy rate measured in the same run.

    t/s count embeddings for --media and frames of 80 ms for --speech. --predict computes the table from the cost model
    instead, without -m for the 30B thinker: docs/PERFORMANCE.md.
    """
    form = "json" if common.json else output
    tables.check_format(form)
    if repeat < 1:
        raise InvalidRequest(f"-r {repeat} measurements are none; give 1 or more")
    if predict:
        refuse_others(what, media, speech, form)
        set_up_logging(common)
        tests = tables.numbers(prompt, "-p"), tables.numbers(gen, "-n"), tables.numbers(depth, "-d")
        tables.write(predictions(common, predict, *tests), form, PREDICTED)
        return 0
    if what == "ops":
        return _bench_ops(common, _pattern(match), repeat, form, large)
    if what in KINDS:
        prompt = gen = "0"
        speech = ",".join(filter(None, (what, speech)))
    elif what is not None:
        raise InvalidRequest(f"bench measures a model (-m), or `ops`, `tts` or `code2wav` alone, not {what!r}")
    prompts, gens, depths = tables.numbers(prompt, "-p"), tables.numbers(gen, "-n"), tables.numbers(depth, "-d")
    towers, voices = media_tests(media), speech_tests(speech)
    columns = _COLUMNS | (_MEDIA_COLUMNS if towers or voices else {}) | (_SPEECH_COLUMNS if voices else {})
    with opened(_with_context(common, prompts, gens, depths)) as omni:
        rows = chain(
            _rows(omni, prompts, gens, depths, repeat),
            _media_rows(omni, towers, repeat),
            _speech_rows(omni, voices, repeat),
        )
        tables.write(rows, form, columns)
    return 0


# A model ---------------------------------------------------------------------------------------------------------


def _with_context(common: Common, prompts: list[int], gens: list[int], depths: list[int]) -> Common:
    """The options with a context that the longest test fits. Reading a text aloud needs none."""
    from dataclasses import replace

    needed = max(depths) + max(max(prompts), max(gens) + 2)
    return replace(common, ctx_size=common.ctx_size or max(needed, 16))


def _rows(omni: "Omni", prompts: list[int], gens: list[int], depths: list[int], repeat: int) -> Iterator[Row]:
    about = _about(omni)
    peak = copy_rate(omni.device) / 1e9
    for depth in depths:
        for n in filter(None, prompts):
            yield _row(about, omni, peak, depth, n, 0, [_prompt_seconds(omni, depth, n) for _ in range(repeat + 1)][1:])
        for n in filter(None, gens):
            # The first run of each kind compiles shaders and records plans.
            _answer_seconds(omni, depth, min(n, 4))
            yield _row(about, omni, peak, depth, 0, n, [_answer_seconds(omni, depth, n) for _ in range(repeat)])


def _row(about: Row, omni: "Omni", peak: float, depth: int, n_prompt: int, n_gen: int, seconds: list[float]) -> Row:
    times = _times(n_prompt or n_gen, seconds)
    gbps = None
    if n_gen:  # a prompt reads the weights once for many tokens: GB/s would say nothing
        read = bytes_per_token(omni.file, omni.engine.model.config, depth + n_gen / 2, omni.engine.kv_type)
        gbps = times["avg_ts"] * read / 1e9
    test = (f"pp{n_prompt}" if n_prompt else f"tg{n_gen}") + (f" @ d{depth}" if depth else "")
    asked = {"test": test, "n_prompt": n_prompt, "n_gen": n_gen, "n_depth": depth}
    rates = {"gbps": gbps, "peak_gbps": peak, "pct_peak": None if gbps is None else 100 * gbps / peak}
    return about | asked | times | rates | _NO_MEDIA | _NO_SPEECH


_NO_MEDIA: Row = {"n_media": 0, "real_time": None, "patches_ts": None, "gflops": None}
_NO_SPEECH: Row = {"n_frames": 0, "first_audio_ns": None, "dispatches": None}
_NO_TEXT: Row = {"n_prompt": 0, "n_gen": 0, "n_depth": 0}
_NO_RATES: Row = {"gbps": None, "peak_gbps": None, "pct_peak": None}


def _media_rows(omni: "Omni", tests: list[MediaTest], repeat: int) -> Iterator[Row]:
    """t/s are embeddings a second. real_time: seconds of sound in a second; patches_ts: patches of a picture."""
    for found in measured(omni, tests, repeat):
        rate = mean(1 / s for s in found.seconds)
        yield (
            _about(omni)
            | {"test": found.test.name}
            | _NO_TEXT
            | _times(found.tokens, found.seconds)
            | _NO_RATES
            | {
                "n_media": found.tokens,
                "real_time": found.test.size * rate if found.patches is None else None,
                "patches_ts": None if found.patches is None else found.patches * rate,
                "gflops": found.flops * rate / 1e9,
            }
            | _NO_SPEECH
        )


def _speech_rows(omni: "Omni", tests: list[SpeechTest], repeat: int) -> Iterator[Row]:
    """t/s are frames a second. real_time: seconds of speech in a second; dispatches: a frame, without the vocoder."""
    for found in measured_speech(omni, tests, repeat):
        first = [run.first for run in found.runs if run.first is not None]
        yield (
            _about(omni)
            | {"test": found.test.name}
            | _NO_TEXT
            | _times([run.frames for run in found.runs], [run.seconds for run in found.runs])
            | _NO_RATES
            | _NO_MEDIA
            | {
                "real_time": mean(run.speech / run.seconds for run in found.runs),
                "n_frames": round(mean(run.frames for run in found.runs)),
                "first_audio_ns": int(mean(first) * 1e9) if first else None,
                "dispatches": found.dispatches,
            }
        )


def _speed(row: Row) -> str:
    if row["real_time"] is not None:
        return f"{row['real_time']:.2f} x real time"
    return "" if row["patches_ts"] is None else f"{row['patches_ts']:.0f} patches/s"


def _times(tokens: int | list[int], seconds: list[float]) -> Row:
    """How long each measurement took, and tokens a second; `tokens` of all measurements, or of each."""
    counts = [tokens] * len(seconds) if isinstance(tokens, int) else tokens
    rates = [count / s for count, s in zip(counts, seconds, strict=True)]
    return {
        "test_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "avg_ns": int(mean(seconds) * 1e9),
        "stddev_ns": int(_spread(seconds) * 1e9),
        "avg_ts": mean(rates),
        "stddev_ts": _spread(rates),
        "samples_ns": [int(s * 1e9) for s in seconds],
        "samples_ts": rates,
    }


def _spread(values: list[float]) -> float:
    return stdev(values) if len(values) > 1 else 0.0


def _about(omni: "Omni") -> Row:
    """What the model and the machine are, under llama-bench's names."""
    metadata, info = omni.file.metadata, omni.device.info
    types = [tensor.type for tensor in omni.file.tensors.values() if len(tensor.shape) > 1]
    label = metadata.get("general.size_label", "")
    return {
        "build_version": __version__,
        "cpu_info": _cpu_name(),
        "gpu_info": info.name,
        "driver": info.driver,
        "backend": info.backend,
        "model_filename": str(omni.path),
        "model_type": " ".join(filter(None, [metadata["general.architecture"], label, max(types, key=types.count)])),
        "model_size": sum(tensor.nbytes for tensor in omni.file.tensors.values()),
        "type_k": omni.engine.kv_type,
        "type_v": omni.engine.kv_type,
        "activations": omni.engine.model.activations,
        "model_n_params": sum(prod(tensor.shape) for tensor in omni.file.tensors.values()),
    }


def _cpu_name() -> str:
    path = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", path.read_text()) if path.exists() else None
    return found[1].strip() if found else platform.processor()


def _ids(omni: "Omni", count: int, seed: int) -> list[int]:
    """Tokens that mean nothing: the speed does not depend on them."""
    import numpy as np

    return np.random.default_rng(seed).integers(0, omni.tokenizer.vocab_size, count).tolist()


def _fill(omni: "Omni", depth: int) -> list[int]:
    """Bring the KV cache to exactly `depth` tokens, reusing what is there."""
    ids = _ids(omni, depth, 1)
    if omni.engine.tokens[:depth] != ids:
        omni.engine.reset()
        omni.engine.prefill(ids)
    omni.engine.reset(keep=depth)
    omni.device.wait()
    return ids


def _prompt_seconds(omni: "Omni", depth: int, n: int) -> float:
    _fill(omni, depth)
    ids = _ids(omni, n, 2)
    start = time.perf_counter()
    omni.engine.prefill(ids)
    omni.device.wait()
    return time.perf_counter() - start


def _answer_seconds(omni: "Omni", depth: int, n: int) -> float:
    """Seconds for n tokens after the one that the prompt itself gives."""
    from qwen3omni_wgpu.sampler import GenerationConfig

    ids = [*_fill(omni, depth), *_ids(omni, 1, 3)]
    config = GenerationConfig(temperature=0, max_tokens=n + 1).resolved({})
    start = time.perf_counter()
    for index, _ in enumerate(omni.engine.generate(ids, config, frozenset())):
        if index == 0:
            start = time.perf_counter()
    return time.perf_counter() - start


# Ops -------------------------------------------------------------------------------------------------------------


def _pattern(text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise InvalidRequest(f"-k {text!r} is not a regular expression: {error}") from None


def _bench_ops(common: Common, pattern: re.Pattern[str], repeat: int, form: str, large: bool) -> int:
    from qwen3omni_wgpu.gpu import Device
    from qwen3omni_wgpu.ops.cases import CASES

    set_up_logging(common)
    cases = [case for case in CASES if pattern.search(case.name) and (large or not case.large)]
    if not cases:
        raise InvalidRequest(f"no op case matches -k {pattern.pattern!r}; without -k all are run")
    failed: list[str] = []
    with Device.open(common.device, cpu=common.cpu) as device:
        peak = copy_rate(device) / 1e9
        note(f"{device.info}; copy rate {peak:.1f} GB/s = 100 % peak", common)
        tables.write(_op_rows(device, cases, peak, repeat, failed), form, _OP_COLUMNS)
    for line in failed:
        note(line, common)
    return 1 if failed else 0


def _op_rows(device: "Device", cases: list[Any], peak: float, repeat: int, failed: list[str]) -> Iterator[Row]:
    for case in cases:
        error = ""
        try:
            result = case.run(device, repeat=repeat, check=not case.large)
        except OmniError as problem:
            error = str(problem)
            failed.append(f"{case.name}: {error}")
            result = case.run(device, repeat=repeat, check=False)
        yield {
            "op": case.name,
            "gpu_info": device.info.name,
            "seconds": result.seconds,
            "bytes": result.bytes,
            "flops": result.flops,
            "gbps": result.bytes / result.seconds / 1e9,
            "peak_gbps": peak,
            "pct_peak": result.bytes / result.seconds / 1e7 / peak,
            "gflops": result.flops / result.seconds / 1e9,
            "max_error": None if case.large or error else result.max_error,
            "tolerance": result.tolerance,
            "error": error,
        }
