"""`qwen3omni doctor`: can this machine run models, how fast is its memory, and do all ops compute the right numbers?"""

import os
import platform
import sys
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from qwen3omni_wgpu import __version__, env
from qwen3omni_wgpu.cli.measure import copy_rate
from qwen3omni_wgpu.cli.session import note, opened, print_json, set_up_logging
from qwen3omni_wgpu.cli.verbs import Common, verb
from qwen3omni_wgpu.errors import InvalidRequest, ModelNotFound, OmniError, UnsupportedDevice

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qwen3omni_wgpu.gpu import Device

Status = Literal["OK", "WARN", "FAIL"]


@dataclass(frozen=True)
class Check:
    """One line of the report. `fix` says what to do unless all is well."""

    status: Status
    name: str
    found: str
    fix: str = ""


@verb("doctor")
def doctor(
    common: Common,
    quick: Annotated[bool, typer.Option("--quick", help="leave out the self-test of the ops")] = False,
    tune: Annotated[
        bool, typer.Option("--tune", help="measure anew which kernels run the model (-m) fastest on this device")
    ] = False,
) -> int:
    """Adapter, driver, features, limits, memory speed and a self-test of every op: OK, WARN or FAIL with the fix.

    --tune instead of the self-test: every kernel of the model is chosen by measuring, which takes a minute or so.
    """
    if tune and common.no_tune:
        raise InvalidRequest("--tune and --no-tune contradict each other; give one of them")
    set_up_logging(common)
    checks: list[Check] = []
    facts: dict[str, Any] = {"versions": _versions()}
    for check in _all_checks(common, quick or tune, tune, facts):
        checks.append(check)
        if not common.json:
            fix = f"\n      fix: {check.fix}" if check.fix else ""
            print(f"{check.status:<5} {check.name}: {check.found}{fix}", flush=True)
    worst = max((check.status for check in checks), key=("OK", "WARN", "FAIL").index)
    if common.json:
        print_json({"status": worst, "checks": [asdict(check) for check in checks], **facts})
    return 1 if worst == "FAIL" else 0


def _all_checks(common: Common, quick: bool, tune: bool, facts: dict[str, Any]) -> "Iterator[Check]":
    yield _python()
    yield from environment()
    yield from strix_halo(Path("/"))
    yield _model()
    from qwen3omni_wgpu.gpu import Device, list_adapters

    try:
        facts["adapters"] = [str(info) for info in list_adapters()]
        device = Device.open(common.device, cpu=common.cpu)
    except UnsupportedDevice as error:
        yield Check("FAIL", "adapter", "no usable adapter", str(error))
        return
    with device:
        yield from _device(device, common, facts)
        if not quick:
            note("running every op against its NumPy twin; this takes a while on a software adapter", common)
            yield from _self_test(device, facts)
        yield _tuned(device, facts, anew=tune)
    if tune:
        note("measuring the kernels on the model's own shapes; this takes a while on a software adapter", common)
        yield from _tune(common, facts)


def _versions() -> dict[str, str]:
    names = ("wgpu", "numpy", "gguf", "tokenizers", "jinja2", "typer")
    found = {"qwen3omni_wgpu": __version__, "python": platform.python_version(), "system": platform.platform()}
    for name in names:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "missing"
    return found


def _python() -> Check:
    found = _versions()
    missing = [name for name, number in found.items() if number == "missing"]
    text = ", ".join(f"{name} {number}" for name, number in found.items())
    return Check("FAIL" if missing else "OK", "versions", text, f"pip install {' '.join(missing)}" if missing else "")


def environment() -> "Iterator[Check]":
    """Every variable that is set, and whether its value can be used."""
    for name in env.VARIABLES:
        if not os.environ.get(name):
            continue
        try:
            yield Check("OK", name, str(env.get(name)))  # type: ignore[call-overload]
        except OmniError as error:
            yield Check("FAIL", name, os.environ[name], str(error))


def _model() -> Check:
    from qwen3omni_wgpu.locate import locate

    try:
        return Check("OK", "default model", str(locate()))
    except OmniError as error:
        status: Status = "WARN" if isinstance(error, ModelNotFound) else "FAIL"
        return Check(status, "default model", "none", str(error))


# The GPU ---------------------------------------------------------------------------------------------------------

_FEATURES = {
    "shader-f16": "f16 KV cache and weights are unpacked with more instructions",
    "subgroup": "sums inside a workgroup take the slower way",
    "timestamp-query-inside-passes": "--trace cannot time single dispatches",
    "memory-decoration-coherent": "attention takes a second dispatch a layer and token",
    "mappable-primary-buffers": "weights are copied through a staging buffer while loading",
}


def _device(device: "Device", common: Common, facts: dict[str, Any]) -> "Iterator[Check]":
    from qwen3omni_wgpu.gpu import machine_loop

    info = device.info
    facts["device"] = {**asdict(info), "features": sorted(device.features), "limits": device.limits, "uma": device.uma}
    if info.software and not common.cpu:
        yield Check(
            "WARN",
            "adapter",
            str(info),
            "this is the CPU, not a GPU: install your GPU's Vulkan driver and check /dev/dri",
        )
    else:
        yield Check("OK", "adapter", str(info))
    for feature, without in _FEATURES.items():
        found = feature in device.features
        fix = "" if found else f"works without, but {without}; a newer driver may have it"
        yield Check("OK" if found else "WARN", f"feature {feature}", "yes" if found else "no", fix)
    yield from limits(device.limits)
    yield Check("OK", "calls of a token", "in one loop" if machine_loop.available() else "one by one from Python")
    rate = copy_rate(device)
    facts["copy_bytes_per_second"] = rate
    yield Check("OK", "memory speed", f"{rate / 1e9:.1f} GB/s (copy, read plus write)")


def limits(values: dict[str, int]) -> "Iterator[Check]":
    """Limits that decide what can be loaded. Weights are bound in slices, so small ones cost speed, not ability."""
    for name, enough in (("max-buffer-size", 1 << 30), ("max-storage-buffer-binding-size", 1 << 30)):
        value = values[name]
        text = f"{value / 2**20:,.0f} MiB"
        fix = "" if value >= enough else "large tensors are bound in slices, which costs some speed"
        yield Check("OK" if value >= enough else "WARN", f"limit {name}", text, fix)


def _self_test(device: "Device", facts: dict[str, Any]) -> "Iterator[Check]":
    from qwen3omni_wgpu.ops.cases import CASES

    families: dict[str, list[Any]] = {}
    for case in CASES:
        if not case.large:
            families.setdefault(case.op, []).append(case)
    facts["self_test"] = {}
    for op, cases in families.items():
        worst, failures = 0.0, []
        for case in cases:
            try:
                result = case.run(device, seed=0)
                worst = max(worst, result.max_error)
                if not result.ok:
                    failures.append(f"{case.name}: error {result.max_error:.1e}, allowed {result.tolerance:.1e}")
            except OmniError as error:
                failures.append(f"{case.name}: {error}")
        facts["self_test"][op] = {"cases": len(cases), "max_error": worst, "failures": failures}
        text = f"{len(cases)} cases, largest error {worst:.1e}"
        if failures:
            fix = (
                f"the driver computes {failures[0]}; try another driver version, or QWEN3OMNI_CHECKED=1, and report it"
            )
            yield Check("FAIL", f"op {op}", f"{len(failures)} of {len(cases)} cases are wrong", fix)
        else:
            yield Check("OK", f"op {op}", text)


# Kernels ---------------------------------------------------------------------------------------------------------


def _tuned(device: "Device", facts: dict[str, Any], anew: bool) -> Check:
    """What is known of this device; with `anew` it is forgotten."""
    from qwen3omni_wgpu.tuned_table import Table

    table = Table.of(device)
    facts["tuned"] = {"file": str(table.path)}
    known = len(table.entries)
    if anew:
        table.forget()
        return Check("OK", "tuned kernels", f"{known} choices are forgotten")
    unused = ", not used: QWEN3OMNI_TUNE=off" if env.get("QWEN3OMNI_TUNE") == "off" else ""
    found = f"{known} choices in {table.path}{unused}" if known else "none yet, fixed rules"
    return Check("OK", "tuned kernels", found)


def _tune(common: Common, facts: dict[str, Any]) -> "Iterator[Check]":
    """Loads the model, tuning to the end; one line for each problem."""
    from qwen3omni_wgpu.tuned_table import described
    from qwen3omni_wgpu.tuner import table_of

    try:
        with opened(common, tune="on") as omni:
            if "talker" in omni.parts:
                omni.load("talker")
            table = table_of(omni.device)
    except OmniError as error:
        yield Check("FAIL", "tuning", "the model could not be tuned", str(error))
        return
    facts["tuned"] |= {"choices": {key: asdict(entry) for key, entry in table.entries.items()}}
    for key, entry in table.entries.items():
        yield Check("OK", key, described(entry))
    yield Check("OK", "tuning", f"{len(table.entries)} choices are kept in {table.path}")


# The machine -----------------------------------------------------------------------------------------------------


def strix_halo(root: Path) -> "Iterator[Check]":
    """What a Linux machine with an AMD GPU needs: access to /dev/dri, and memory that the GPU may use.

    On a Strix Halo the GPU works on system memory (GTT); how much of it is a kernel parameter. `root` is / except in
    tests.
    """
    if sys.platform != "linux":
        return
    nodes = sorted((root / "dev/dri").glob("renderD*")) if (root / "dev/dri").is_dir() else []
    if not nodes:
        fix = "no GPU is visible; in a container pass --device /dev/dri (software adapters work without it)"
        yield Check("WARN", "/dev/dri", "no render node", fix)
        return
    usable = [node for node in nodes if os.access(node, os.R_OK | os.W_OK)]
    fix = "" if usable else "sudo usermod -aG render,video $USER, then log in again"
    yield Check("OK" if usable else "FAIL", "/dev/dri", ", ".join(node.name for node in nodes), fix)
    yield from _amd_memory(root)


def _amd_memory(root: Path) -> "Iterator[Check]":
    if not (root / "sys/module/amdgpu").is_dir():
        return
    memory = _memory_bytes(root)
    size = _number(root / "sys/module/amdgpu/parameters/gttsize")
    pages = _number(root / "sys/module/ttm/parameters/pages_limit")
    if memory is None:
        return
    # Both unset means half of the memory. The smaller one of them rules.
    default = memory // 2
    amounts = {
        "amdgpu.gttsize": default if size is None or size < 0 else size << 20,
        "ttm.pages_limit": default if not pages else pages * 4096,
    }
    for name, amount in amounts.items():
        enough = amount >= memory * 0.7
        wanted = int(memory * 0.85)
        value = wanted >> 20 if name == "amdgpu.gttsize" else wanted // 4096
        fix = f"for large models add the kernel parameter {name}={value} (85 % of the memory) and restart"
        found = f"{amount / 2**30:.0f} GiB of {memory / 2**30:.0f} GiB memory"
        yield Check("OK" if enough else "WARN", name, found, "" if enough else fix)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None


def _memory_bytes(root: Path) -> int | None:
    try:
        line = next(line for line in (root / "proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:"))
        return int(line.split()[1]) * 1024
    except (OSError, StopIteration):
        return None
