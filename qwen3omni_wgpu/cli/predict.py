"""`qwen3omni bench --predict PROFILE`: tokens a second from the cost model, for a device that is not at hand."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qwen3omni_wgpu.cli.measure import copy_rate
from qwen3omni_wgpu.cli.session import note
from qwen3omni_wgpu.cli.tables import Row
from qwen3omni_wgpu.cli.verbs import Common
from qwen3omni_wgpu.errors import InvalidRequest

if TYPE_CHECKING:
    from qwen3omni_wgpu.cost import Costs, Prediction, Sketch
    from qwen3omni_wgpu.models.text import TextModel

# Profiles that are measured on the spot: a software adapter, and the device that the options choose.
MEASURED = ("lavapipe", "here")

COLUMNS = {
    "model": lambda row: row["model_type"],
    "size": lambda row: f"{row['model_size'] / 2**20:.2f} MiB",
    "predicted for": lambda row: row["profile"],
    "test": lambda row: row["test"],
    "t/s": lambda row: f"{row['avg_ts']:8.2f}",
    "ms": lambda row: f"{row['avg_ns'] / 1e6:.1f}",
    "GB/s": lambda row: "" if row["gbps"] is None else f"{row['gbps']:.2f}",
    "% peak": lambda row: "" if row["pct_peak"] is None else f"{row['pct_peak']:.1f}",
    "GFLOP/s": lambda row: f"{row['gflops']:.1f}",
    "dispatches": lambda row: f"{row['dispatches']:.0f}",
    "time in": lambda row: _shares(row["seconds_by_family"]),
}


@dataclass(frozen=True)
class Target:
    """What is predicted: a model on paper for a device, and what the device does in a second."""

    costs: "Costs"
    model: "TextModel"
    sketch: "Sketch"
    device: str


def predictions(
    common: Common, profile: str, prompts: list[int], gens: list[int], depths: list[int]
) -> Iterator[Row]:  # fmt: skip
    """Rows of bench, with "predicted": true. `dispatches` are those of a token, or of a whole prompt."""
    from qwen3omni_wgpu.cost import predict_decode, predict_prefill

    kv_type = common.kv_type or "f16"
    context = common.ctx_size or max(depths) + max(*prompts, *gens, 0) + 2
    target = _target(common, profile, kv_type, prompts, context)
    for depth in depths:
        for n in filter(None, prompts):
            found = predict_prefill(target.costs, target.model, n, depth, context, kv_type)
            yield _row(target, found, kv_type, depth, n, 0)
        for n in filter(None, gens):
            found = predict_decode(target.costs, target.model, n, depth, context, kv_type)
            yield _row(target, found, kv_type, depth, 0, n)


def _target(common: Common, name: str, kv_type: str, prompts: list[int], context: int) -> Target:
    from qwen3omni_wgpu.cost import PaperDevice, load, paper_model

    sketch = _sketch(common)
    if name in MEASURED:
        return _measured(common, name, sketch, kv_type, prompts, context)
    profile = load(name)
    device = PaperDevice.described(profile.device)
    note(f"{profile.about}: predicted, not measured", common)
    return Target(profile, paper_model(sketch, device), sketch, device.info.name)


def _measured(
    common: Common, name: str, sketch: "Sketch", kv_type: str, prompts: list[int], context: int
) -> Target:  # fmt: skip
    from qwen3omni_wgpu.cost import PaperDevice, calibrate, paper_model, steps_of
    from qwen3omni_wgpu.gpu import Device

    with Device.open(common.device, cpu=common.cpu or name == "lavapipe") as device:
        model = paper_model(sketch, PaperDevice.like(device))
        wanted = {1, *(size for n in prompts for size, _ in steps_of(device, n))}
        measured = calibrate(
            device, sketch, model.activations, kv_type, wanted, note=lambda text: note(text, common), context=context
        )
        costs = replace(measured, name=name, peak=copy_rate(device))
        return Target(costs, model, sketch, device.info.name)


def _sketch(common: Common) -> "Sketch":
    """The model of -m by its header, or without one the dimensions of the 30B thinker."""
    from qwen3omni_wgpu.cost import Sketch

    if common.model is None:
        return Sketch.shipped(type=common.type or "q8_0")
    from qwen3omni_wgpu.convert.parts import open_parts
    from qwen3omni_wgpu.locate import locate, type_in_name

    at = locate(common.model, offline=common.offline)
    kind = common.type or type_in_name(common.model, at)
    parts = open_parts(at, type=kind, config=Path(common.config) if common.config else None)
    return Sketch.of_file(parts["thinker"])


def _row(target: Target, found: "Prediction", kv_type: str, depth: int, n_prompt: int, n_gen: int) -> Row:
    from qwen3omni_wgpu import __version__

    gbps = found.nbytes / found.seconds / 1e9 if n_gen else None  # a prompt reads weights once for many tokens
    peak = target.costs.peak / 1e9
    return {
        "build_version": __version__,
        "predicted": True,
        "profile": target.costs.name,
        "about": target.costs.about,
        "gpu_info": target.device,
        "backend": "predicted",
        "model_type": target.sketch.label,
        "model_size": target.sketch.nbytes,
        "model_n_params": target.sketch.parameters,
        "type_k": kv_type,
        "type_v": kv_type,
        "activations": target.model.activations,
        "test": (f"pp{n_prompt}" if n_prompt else f"tg{n_gen}") + (f" @ d{depth}" if depth else ""),
        "n_prompt": n_prompt,
        "n_gen": n_gen,
        "n_depth": depth,
        "avg_ns": int(found.seconds * 1e9),
        "avg_ts": found.rate,
        "gbps": gbps,
        "peak_gbps": peak,
        "pct_peak": None if gbps is None else 100 * gbps / peak,
        "gflops": found.flops / found.seconds / 1e9,
        "dispatches": found.dispatches / (n_gen or 1),
        "bytes": found.nbytes,
        "flops": found.flops,
        "host_ns": int(found.host_s * 1e9),
        "seconds_by_family": found.shares,
    }


def _shares(seconds: dict[str, Any]) -> str:
    """The two families that take most, in per cent of the device's time."""
    total = sum(seconds.values()) or 1.0
    most = sorted(seconds.items(), key=lambda item: -item[1])[:2]
    return ", ".join(f"{family} {100 * value / total:.0f} %" for family, value in most)


def refuse_others(what: str | None, media: str, speech: str, output: str) -> None:
    """InvalidRequest for what the model does not predict."""
    if what is not None or media or speech:
        raise InvalidRequest("--predict knows prompts and answers of a text model: give -p, -n and -d alone")
    if output == "csv":
        raise InvalidRequest("-o csv has no room for a prediction's parts; use md, json or jsonl")
