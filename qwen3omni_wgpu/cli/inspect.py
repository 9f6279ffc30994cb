"""`qwen3omni inspect`: what is in a model file, and does it fit this device."""

import sys
from collections import Counter
from dataclasses import asdict
from math import prod
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.session import print_json, set_up_logging
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest, UnsupportedDevice

if TYPE_CHECKING:
    from qwen3omni_wgpu.formats.gguf import GGUFFile
    from qwen3omni_wgpu.models.config import TextConfig


@verb("inspect")
def inspect(
    common: Common,
    path: Annotated[str | None, typer.Argument(metavar="[MODEL]", help="the same as -m")] = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="list every tensor, too")] = False,
) -> int:
    """Metadata, tensors, bytes a part, and whether the model fits this device with --ctx-size N."""
    from qwen3omni_wgpu.formats.gguf import read_gguf
    from qwen3omni_wgpu.locate import locate
    from qwen3omni_wgpu.models.config import text_config

    set_up_logging(common)
    if path is not None and common.model is not None:
        raise InvalidRequest("name the model once: as MODEL or with -m")
    file = read_gguf(locate(path if path is not None else common.model))
    report = describe(file, text_config(file), common)
    if common.json:
        print_json(report | {"tensors": _tensor_rows(file)})
        return 0
    _print(report, _tensor_rows(file) if tensors else [])
    return 0


def describe(file: "GGUFFile", config: "TextConfig", common: Common) -> dict[str, Any]:
    """Everything about a model file but its list of tensors, as plain values for JSON."""
    from qwen3omni_wgpu.models.config import kv_bytes_per_token, weight_bytes
    from qwen3omni_wgpu.omni import context_size

    context = context_size(common.ctx_size, config.context_length)
    kv = kv_bytes_per_token(config, "f16") * context
    weights = weight_bytes(file)
    return {
        "path": str(file.path),
        "file_bytes": file.path.stat().st_size,
        "architecture": config.architecture,
        "parameters": sum(prod(info.shape) for info in file.tensors.values()),
        "types": dict(Counter(info.type for info in file.tensors.values())),
        "config": asdict(config),
        "parts": _parts(file),
        "weight_bytes": weights,
        "ctx_size": context,
        "kv_cache_bytes": kv,
        "device": _fit(file, weights + kv, common),
        "metadata": {key: _short(value) for key, value in file.metadata.items()},
    }


def _parts(file: "GGUFFile") -> dict[str, int]:
    """Bytes by part of the network."""
    parts: Counter[str] = Counter()
    for name, info in file.tensors.items():
        kind = name.split(".")[2] if name.startswith("blk.") else name.split(".")[0]
        part = (
            "experts"
            if "_exps" in kind
            else "attention"
            if "attn" in kind
            else "feed-forward"
            if "ffn" in kind
            else kind
        )
        parts[part] += info.nbytes
    return dict(sorted(parts.items(), key=lambda item: -item[1]))


def _fit(file: "GGUFFile", needed: int, common: Common) -> dict[str, Any]:
    """What the device says about a model of `needed` bytes; an unusable device is reported, not raised."""
    from qwen3omni_wgpu.gpu import Device

    try:
        device = Device.open(common.device, cpu=common.cpu)
    except UnsupportedDevice as error:
        return {"name": None, "fits": None, "reason": str(error)}
    with device:
        largest = max(file.tensors.values(), key=lambda info: info.nbytes)
        free = free_bytes(device.info.software or device.uma)
        limit = device.limits["max-buffer-size"]
        row = largest.nbytes // largest.shape[0]
        reason = ""
        if row > device.max_binding:
            reason = f"one row of {largest.name} is larger than a binding of this device"
        elif free is not None and needed > free:
            reason = f"needs {_size(needed)}, and {_size(free)} of memory are available"
        return {
            "name": device.info.name,
            "fits": None if free is None and not reason else not reason,
            "reason": reason or ("" if free is not None else "the driver does not say how much memory is free"),
            "needed_bytes": needed,
            "free_bytes": free,
            "max_buffer_bytes": limit,
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


def _tensor_rows(file: "GGUFFile") -> list[dict[str, Any]]:
    return [
        {"name": name, "shape": list(info.shape), "type": info.type, "bytes": info.nbytes}
        for name, info in file.tensors.items()
    ]


def _short(value: Any) -> Any:
    """Vocabularies by their length: a list of 150000 words helps nobody."""
    if isinstance(value, list) and len(value) > 16:
        return f"list of {len(value)}"
    return value


def _size(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _print(report: dict[str, Any], tensors: list[dict[str, Any]]) -> None:
    print(f"{report['path']}  ({_size(report['file_bytes'])})")
    print(
        f"architecture {report['architecture']}, {report['parameters'] / 1e6:.1f} M parameters, types {report['types']}"
    )
    print("\nmetadata")
    for key, value in report["metadata"].items():
        text = str(value).replace("\n", "\\n")
        print(f"  {key} = {text if len(text) <= 90 else text[:87] + '...'}")
    print("\nbytes by part")
    for part, nbytes in report["parts"].items():
        print(f"  {part:<16}{_size(nbytes):>12}")
    print(f"\nweights {_size(report['weight_bytes'])} + KV cache {_size(report['kv_cache_bytes'])} for", end=" ")
    print(f"{report['ctx_size']} tokens (f16)")
    device = report["device"]
    verdict = {True: "fits", False: "does not fit", None: "unknown"}[device["fits"]]
    print(f"{device['name'] or 'no device'}: {verdict}{'; ' if device['reason'] else ''}{device['reason']}")
    for row in tensors:
        print(f"  {row['name']:<40}{row['type']:<6}{'x'.join(map(str, row['shape'])):<20}{_size(row['bytes']):>12}")
