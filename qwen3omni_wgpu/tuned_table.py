"""The choices of kernels that were measured on a device, kept in a file of the user's cache.

One file for each adapter, driver, version of this package and state of its shaders: after any of them changes the old
numbers say nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs

from .gpu import Device
from .gpu.kernel import shader_root

_log = logging.getLogger(__name__)
FORMAT = 1


@dataclass(frozen=True)
class Entry:
    """What was found for one problem: the choice, its seconds and the rule's; `tried` of `of` candidates."""

    choice: dict[str, Any]
    seconds: float
    rule_seconds: float
    tried: int = 1
    of: int = 1


@dataclass
class Table:
    """Problem keys (ops/choice.py) -> what was found for them on one device."""

    path: Path
    identity: dict[str, Any]
    entries: dict[str, Entry] = field(default_factory=dict)

    @classmethod
    def of(cls, device: Device) -> Table:
        """The device's table as it was stored; empty where there is none, or none that can be read."""
        identity = identity_of(device)
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        name = re.sub(r"[^A-Za-z0-9]+", "-", device.info.name).strip("-")[:40]
        table = cls(folder() / f"{name}-{digest}.json", identity)
        table.entries = table._stored()
        return table

    @property
    def choices(self) -> dict[str, dict[str, Any]]:
        """As `Device.tuned` wants them."""
        return {key: entry.choice for key, entry in self.entries.items()}

    def _stored(self, level: int = logging.WARNING) -> dict[str, Entry]:
        try:
            text = self.path.read_text(encoding="utf-8")
        except FileNotFoundError:
            return {}
        except (OSError, UnicodeDecodeError) as error:
            _log.log(level, "the tuned kernels in %s cannot be read (%s); kernels are tuned anew", self.path, error)
            return {}
        try:
            return _entries(json.loads(text), self.identity)
        except (ValueError, RecursionError) as error:
            _log.log(level, "the tuned kernels in %s are damaged (%s); kernels are tuned anew", self.path, error)
            return {}

    def save(self) -> None:
        """Write the table at once or not at all; what another process stored meanwhile is kept.

        A folder that cannot be written is a warning: the choices hold for this process then.
        """
        entries = {**self._stored(logging.DEBUG), **self.entries}  # damage was reported when it was read
        document = {"format": FORMAT, **self.identity, "choices": {k: asdict(v) for k, v in sorted(entries.items())}}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=self.path.parent, prefix=".tuned-")
        except OSError as error:
            _log.warning("the tuned kernels cannot be kept in %s (%s)", self.path.parent, error.strerror)
            return
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document, file, indent=1)
            os.replace(name, self.path)
        except OSError as error:
            _log.warning("the tuned kernels cannot be kept in %s (%s)", self.path, error.strerror)
            with contextlib.suppress(OSError):
                os.unlink(name)

    def forget(self) -> None:
        """Start anew: nothing is stored, nothing is known."""
        self.entries.clear()
        try:
            self.path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("the tuned kernels in %s cannot be deleted (%s)", self.path, error.strerror)


def folder() -> Path:
    """Where the tables lie."""
    return Path(platformdirs.user_cache_dir("qwen3omni")) / "tuned"


def identity_of(device: Device) -> dict[str, Any]:
    """All that the numbers depend on."""
    info = device.info
    return {
        "adapter": info.name,
        "driver": info.driver,
        "backend": info.backend,
        "vendor_id": info.vendor_id,
        "device_id": info.device_id,
        "features": sorted(device.features),
        "checked": device.checked,
        "version": _version(),
        "shaders": _digest(shader_root()),
    }


def _version() -> str:
    try:
        return version("qwen3omni-wgpu")
    except PackageNotFoundError:  # run from its sources; the shaders still tell one state from another
        return ""


def _digest(root: Path) -> str:
    found = hashlib.sha256()
    for path in sorted(root.rglob("*.wgsl")):
        found.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return found.hexdigest()[:16]


def _entries(document: Any, identity: dict[str, Any]) -> dict[str, Entry]:
    """ValueError where it is not what `save` writes."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ValueError("it is not a table of this format")
    if any(document.get(key) != value for key, value in identity.items()):
        raise ValueError("it belongs to another device or version")
    stored = document.get("choices")
    if not isinstance(stored, dict):
        raise ValueError("it has no choices")
    return {key: _entry(value) for key, value in stored.items()}


def _entry(value: Any) -> Entry:
    if not isinstance(value, dict) or not isinstance(value.get("choice"), dict):
        raise ValueError("an entry without a choice")
    # Choices are frozen dataclasses, so what JSON made a list was a tuple.
    choice = {name: tuple(item) if isinstance(item, list) else item for name, item in value["choice"].items()}
    seconds, rule, tried, of = (_number(value.get(name)) for name in ("seconds", "rule_seconds", "tried", "of"))
    return Entry(choice, seconds, rule, int(tried), int(of))


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError("an entry with numbers that are none")
    return value


def shown(choice: dict[str, Any]) -> str:
    """In one line: `matvec lanes=16 rows=2`; what is switched off is left out."""
    texts = [value for value in choice.values() if isinstance(value, str)]
    return " ".join([*texts, *(f"{k}={v}" for k, v in choice.items() if v is not False and not isinstance(v, str))])


def described(entry: Entry) -> str:
    """The choice, its time, and what it gained."""
    if not entry.seconds:
        return f"{shown(entry.choice)}: not measured"
    gained = f"{entry.rule_seconds / entry.seconds:.2f}x the rule's speed"
    part = "" if entry.tried == entry.of else f", {entry.tried} of {entry.of} tried"
    return f"{shown(entry.choice)}: {entry.seconds * 1e6:.1f} us, {gained}{part}"
