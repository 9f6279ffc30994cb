"""Which of several kernels runs an op: the rule's, or the one that the tuner found fastest on this device.

An op describes what it has to do as a Problem and asks `choose`. What may answer, the rule's choice first, comes from
the function that the op registered with `candidates_for`; the device remembers what was asked, for the tuner.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from ..gpu import Device


@dataclass(frozen=True)
class Problem:
    """What an op has to do, as far as it decides how: an op's name and sorted parameters."""

    op: str
    params: tuple[tuple[str, int | bool | str], ...]

    @classmethod
    def of(cls, op: str, **params: int | bool | str) -> Problem:
        return cls(op, tuple(sorted(params.items())))

    @property
    def key(self) -> str:
        """As the tuner's table has it: `matmul d=2048 f=4096 n=1 packed=True type=q8_0`."""
        return " ".join([self.op, *(f"{name}={value}" for name, value in self.params)])

    def __getitem__(self, name: str) -> Any:
        return dict(self.params)[name]

    def get(self, name: str, default: Any = None) -> Any:
        return dict(self.params).get(name, default)


# Dataclasses of plain values: ways to solve a problem on a device, all of them right, the rule's choice first.
Candidates = Callable[[Device, Problem], Sequence[Any]]
_CANDIDATES: dict[str, Candidates] = {}
_TRIAL = "choice on trial"  # where a device remembers what `trying` was given


def candidates_for(op: str) -> Callable[[Candidates], Candidates]:
    """Register the candidates of an op's problems."""

    def register(function: Candidates) -> Candidates:
        _CANDIDATES[op] = function
        return function

    return register


def candidates(device: Device, problem: Problem) -> list[Any]:
    """Every way to solve the problem on the device, the rule's choice first."""
    return list(_CANDIDATES[problem.op](device, problem))


def choose(device: Device, problem: Problem) -> Any:
    """The tuned choice where there is one and it still exists, else the rule's."""
    if on_trial := device.cache.get(_TRIAL):
        name, choice = on_trial
        if name in (problem.op, problem.key):
            return choice
    device.asked.setdefault(problem.key, problem)
    options = candidates(device, problem)
    tuned = device.tuned.get(problem.key)
    if tuned is None:
        return options[0]
    return next((option for option in options if asdict(option) == tuned), options[0])


@contextmanager
def trying(device: Device, name: str, choice: Any) -> Iterator[None]:
    """Within, this choice solves the problem with this key, or all of an op; what is asked is not remembered."""
    asked = dict(device.asked)
    device.cache[_TRIAL] = name, choice
    try:
        yield
    finally:
        del device.cache[_TRIAL]
        device.asked.clear()
        device.asked.update(asked)


def asked_by(device: Device, record: Callable[[], object]) -> list[Problem]:
    """The problems that `record` asks, each once. `device.asked` stays as it was."""
    before = dict(device.asked)
    device.asked.clear()
    try:
        record()
        return list(device.asked.values())
    finally:
        device.asked.clear()
        device.asked.update(before)


def tunable() -> tuple[str, ...]:
    """The ops whose problems have candidates."""
    return tuple(_CANDIDATES)
