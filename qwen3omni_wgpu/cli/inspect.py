"""`qwen3omni inspect`: what is in a model, part by part, and does it fit this device."""

import sys
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.footprint import components, kinds, stages
from qwen3omni_wgpu.cli.session import Bar, print_json, set_up_logging
from qwen3omni_wgpu.cli.tables import size_of
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest, UnsupportedDevice
from qwen3omni_wgpu.events import Progress

if TYPE_CHECKING:
    from qwen3omni_wgpu.convert.parts import ModelParts
    from qwen3omni_wgpu.formats.gguf import GGUFFile
    from qwen3omni_wgpu.models.config import TextConfig


@verb("inspect")
def inspect(
    common: Common,
    path: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="the same as -m")] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="list every tensor, too")] = False,
) -> int:
    """Metadata, tensors, bytes a part, memory, and whether it fits this device with --ctx-size N. Loads nothing."""
    from qwen3omni_wgpu.convert.parts import open_parts
    from qwen3omni_wgpu.locate import locate, type_in_name
    from qwen3omni_wgpu.models.config import text_config

    set_up_logging(common)
    if path is not None and common.model is not None:
        raise InvalidRequest("name the model once: as MODEL or with -m")
    name = path if path is not None else common.model
    with Bar(common) as bar:
        at = locate(
            name,
            offline=common.offline,
            progress=lambda done, total: bar.show(Progress("pull", done, total)),
        )
    model = open_parts(
        at,
        type=common.type or type_in_name(name, at),
        config=Path(common.config) if common.config else None,
        mmproj=Path(common.mmproj) if common.mmproj else None,
        talker=Path(common.talker) if common.talker else None,
    )
    report = describe(model, text_config(model["thinker"]), common)
    if common.json:
        print_json(report | {"tensors": _tensor_rows(model)})
        return 0
    _print(report, _tensor_rows(model) if tensors else [])
    return 0


def describe(model: "ModelParts", config: "TextConfig", common: Common) -> dict[str, Any]:
    """Everything about a model but its list of tensors, as plain values for JSON."""
    from qwen3omni_wgpu.loading import context_size
    from qwen3omni_wgpu.models.config import kv_bytes_per_token

    context = context_size(common.ctx_size, config.context_length)
    rows = components(model)
    memory = stages(model, config, context)
    return {
        "path": str(model.path),
        "architecture": config.architecture,
        "parameters": sum(row["parameters"] for row in rows.values()),
        "config": asdict(config),
        "parts": {part: _part(file) for part, file in model.items()},
        "absent_parts": {part: str(error) for part, error in model.absent.items()},
        "components": rows,
        "thinker_bytes": kinds(model["thinker"]),
        "weight_bytes": sum(row["bytes"] for row in rows.values()),
        "kv_bytes_per_token": kv_bytes_per_token(config, "f16"),
        "ctx_size": context,
        "kv_cache_bytes": kv_bytes_per_token(config, "f16") * context,
        "memory": memory,
        "device": _fit(model["thinker"], memory, common),
        "metadata": {key: _short(value) for key, value in model["thinker"].metadata.items()},
    }


def _part(file: "GGUFFile") -> dict[str, Any]:
    made = not file.path.is_file()
    return {
        "path": str(file.path),
        "file_bytes": None if made else file.path.stat().st_size,
        "weight_bytes": sum(info.nbytes for info in file.tensors.values()),
        "tensors": len(file.tensors),
    }


def _fit(thinker: "GGUFFile", memory: Mapping[str, int], common: Common) -> dict[str, Any]:
    """What the device says about the memory of every stage; an unusable device is reported, not raised."""
    from qwen3omni_wgpu.gpu import Device

    try:
        device = Device.open(common.device, cpu=common.cpu)
    except UnsupportedDevice as error:
        return {"name": None, "fits": None, "reason": str(error)}
    with device:
        largest = max(thinker.tensors.values(), key=lambda info: info.nbytes)
        free = free_bytes(device.info.software or device.uma)
        needed = memory["text"]
        row = largest.nbytes // largest.shape[0]
        reason = ""
        if row > device.max_binding:
            reason = f"one row of {largest.name} is larger than a binding of this device"
        elif free is not None and needed > free:
            reason = f"text needs {size_of(needed)}, and {size_of(free)} of memory are available"
        return {
            "name": device.info.name,
            "fits": None if free is None and not reason else not reason,
            "stages": {stage: None if free is None else nbytes <= free for stage, nbytes in memory.items()},
            "reason": reason or ("" if free is not None else "the driver does not say how much memory is free"),
            "needed_bytes": needed,
            "free_bytes": free,
            "max_buffer_bytes": device.limits["max-buffer-size"],
            "max_binding_bytes": device.max_binding,
            "largest_tensor": largest.name,
            "largest_tensor_bytes": largest.nbytes,
        }


def free_bytes(shares_host_memory: bool) -> int | None:
    """Memory the system can still give, for devices that live in it; None where that is not known."""
    if not shares_host_memory or sys.platform != "linux":
        return None
    with open("/proc/meminfo", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _tensor_rows(model: "ModelParts") -> list[dict[str, Any]]:
    return [
        {"part": part, "name": name, "shape": list(info.shape), "type": info.type, "bytes": info.nbytes}
        for part, file in model.items()
        for name, info in file.tensors.items()
    ]


def _short(value: Any) -> Any:
    """Vocabularies by their length: a list of 150000 words helps nobody."""
    if isinstance(value, list) and len(value) > 16:
        return f"list of {len(value)}"
    return value


def _print(report: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    print(f"{report['path']}")
    print(f"architecture {report['architecture']}, {report['parameters'] / 1e6:.1f} M parameters")
    print("\nmetadata")
    for key, value in report["metadata"].items():
        text = str(value).replace("\n", "\\n")
        print(f"  {key} = {text if len(text) <= 90 else text[:87] + '...'}")
    print("\nweights")
    for name, row in report["components"].items():
        types = ", ".join(f"{type} {size_of(nbytes)}" for type, nbytes in row["types"].most_common())
        print(f"  {name:<16}{size_of(row['bytes']):>12}  {row['tensors']} tensors ({types}), part {row['part']}")
    for part, reason in report["absent_parts"].items():
        print(f"  {part} is not all here: {reason}")
    print("  of the text model: " + ", ".join(f"{k} {size_of(v)}" for k, v in report["thinker_bytes"].items()))
    each, context = report["kv_bytes_per_token"], report["ctx_size"]
    print(f"\nKV cache {each / 1024:.1f} KiB a token (f16): {size_of(report['kv_cache_bytes'])} for {context} tokens")
    device = report["device"]
    print("\nmemory with it, and the engine's own")
    for stage, nbytes in report["memory"].items():
        verdict = {True: "fits", False: "does not fit", None: ""}[(device.get("stages") or {}).get(stage)]
        print(f"  {stage:<26}{size_of(nbytes):>12}  {verdict}".rstrip())
    verdict = {True: "fits", False: "does not fit", None: "unknown"}[device["fits"]]
    print(f"{device['name'] or 'no device'}: {verdict}{'; ' if device['reason'] else ''}{device['reason']}")
    for row in tensors:
        print(f"  {row['name']:<44}{row['type']:<6}{'x'.join(map(str, row['shape'])):<20}{size_of(row['bytes']):>12}")
