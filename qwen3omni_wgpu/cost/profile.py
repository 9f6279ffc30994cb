"""What a device does in a second: figures with their sources, and the time of a dispatch that follows from them.

    seconds = a dispatch's own cost + max(bytes / bytes a second, FLOPs / FLOPs a second)

Bytes a second are the family's, or less where so few threads are in flight that latency decides (Little's law); FLOPs a
second are the family's, or less where the groups do not fill the device's units (a roofline: Williams et al. 2009).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..errors import InvalidRequest
from .work import Work

FOLDER = Path(__file__).resolve().parent.parent / "profiles"
# What a figure rests on: read in a public source; computed from such; our own guess; what we want to reach; measured.
STATUS = ("published", "derived", "estimated", "goal", "measured")


class Costs(Protocol):
    """What predictions need to know of a device."""

    @property
    def name(self) -> str: ...

    @property
    def about(self) -> str:
        """One line for people."""
        ...

    @property
    def overlap(self) -> bool:
        """Whether the host prepares the next step while the device runs this one."""
        ...

    def seconds(self, work: Work) -> float:
        """Of one dispatch on the device."""
        ...

    def host_seconds(self, dispatches: int) -> float:
        """Of the host, to encode and submit a step."""
        ...

    @property
    def peak(self) -> float:
        """Bytes a second that `% peak` is measured by."""
        ...


@dataclass(frozen=True)
class Figure:
    """One number with the unit it is in (B/s, FLOP/s, s or groups), what it rests on, and where that can be read."""

    value: float
    unit: str
    status: str
    source: str


@dataclass(frozen=True)
class Profile:
    """A device on paper. figures: by name, such as "bytes matvec" or "flops matmul packed"; see `figure`."""

    name: str
    about: str
    device: Mapping[str, Any]  # name, driver, kind, features and limits
    overlap: bool
    figures: Mapping[str, Figure]

    def figure(self, *names: str) -> float:
        """The first of the figures that the profile has. InvalidRequest when it has none."""
        found = next((self.figures[name] for name in names if name in self.figures), None)
        if found is None:
            raise InvalidRequest(f"profile {self.name} has no figure {names[0]!r}; add it to {self.name}.json")
        return found.value

    def seconds(self, work: Work) -> float:
        rate = self.figure(f"bytes {work.family}", "bytes")
        rate = min(rate, work.threads * self.figure("bytes a thread"))
        flops = self.figure(f"flops {work.family} {work.arithmetic}", f"flops {work.arithmetic}")
        flops *= min(1.0, work.groups / self.figure("units"))
        return self.figure("dispatch") + max(work.nbytes / rate, work.flops / flops)

    def host_seconds(self, dispatches: int) -> float:
        return self.figure("host step") + dispatches * self.figure("host dispatch")

    @property
    def peak(self) -> float:
        return self.figure("peak bytes")


def names() -> list[str]:
    """The profiles that come with the package."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def load(name: str) -> Profile:
    """A profile by its name, or a JSON file of one's own. InvalidRequest when there is none, or it is damaged."""
    path = Path(name) if name.endswith(".json") else FOLDER / f"{name}.json"
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        figures = {key: Figure(**figure) for key, figure in facts["figures"].items()}
        profile = Profile(facts["name"], facts["about"], facts["device"], facts["overlap"], figures)
    except OSError as error:
        known = ", ".join([*names(), "lavapipe", "here"])
        raise InvalidRequest(f"there is no profile {name!r}; known are {known}, or give a .json file") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidRequest(f"{path} is no profile of a device: {error}; see docs/PERFORMANCE.md") from error
    wrong = [key for key, figure in figures.items() if figure.status not in STATUS or figure.value <= 0]
    if wrong:
        raise InvalidRequest(
            f"{path}: figure {wrong[0]!r} must be positive and {', '.join(STATUS[:-1])} or {STATUS[-1]}"
        )
    return profile
