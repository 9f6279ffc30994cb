"""The fastest kernels for this device: every candidate of what was asked is timed on the shapes it was asked for.

Before it may win, a candidate's results are compared with the op's NumPy twin. The rule's choice stays unless another
is clearly faster, so that noise does not turn the choice over. What was found is kept (tuned_table.py) and holds for
the next process, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .errors import DeviceLost, OmniError, OutOfDeviceMemory
from .gpu import Device, Plan, Stopwatch
from .ops.cases.make import shared_inputs
from .ops.cases.problems import PROBLEMS, checked_case, timed_case
from .ops.choice import Problem, candidates, trying
from .tuned_table import Entry, Table, described, shown

_log = logging.getLogger(__name__)
# What the first load of a model on a GPU may spend.
LOAD_SECONDS = 5.0
# Seconds of the rule's choice by which another has to be faster: below it is within the measurements' spread.
CLEARLY = 0.03
# Measurements of every candidate; of the best ones, which are measured again side by side.
QUICK, CAREFUL, FINALISTS = 3, 9, 3
Report = Callable[[int, int], None]  # problems done, problems in all
_TABLE = "tuned table"


def settle(device: Device, mode: str, rehearse: Callable[[], Sequence[Problem]], report: Report | None = None) -> None:
    """Give a device its choices, before the first plan of a model is recorded.

    mode "off": the rules. "auto": what is stored, and on a GPU up to LOAD_SECONDS of tuning for what is not. "on":
    everything is tuned, on a software adapter, too. rehearse: what the model will ask. report: called after each
    problem. Raises DeviceLost when a kernel brought the driver down.
    """
    if mode == "off":
        return
    table = table_of(device)
    if mode == "auto" and device.info.software:
        return
    known = set(device.asked)  # answered already, and an answer holds until the device is closed
    asked = [problem for problem in rehearse() if problem.key not in known]
    tune(device, table, asked, LOAD_SECONDS if mode == "auto" else None, report)


def table_of(device: Device) -> Table:
    """The device's table. What it holds counts from now on, but for what was answered already."""
    if _TABLE not in device.cache:
        device.cache[_TABLE] = Table.of(device)
        stored = device.cache[_TABLE].choices
        device.tuned.update({key: choice for key, choice in stored.items() if key not in device.asked})
    return device.cache[_TABLE]


def tune(
    device: Device, table: Table, asked: Sequence[Problem], seconds: float | None, report: Report | None = None
) -> None:
    """Tune what the table does not know yet, the costliest first, and store it. seconds: None = to the end."""
    todo = ordered(device, [p for p in asked if p.key not in table.entries and p.op in PROBLEMS])
    if not todo:
        return
    deadline = None if seconds is None else time.monotonic() + seconds
    try:
        watch = Stopwatch(device)
    except OutOfDeviceMemory as error:
        _log.info("no memory is left to tune kernels: %s", error)
        return
    try:
        _tune(device, watch, table, todo, deadline, report)
    finally:
        watch.free()


def _tune(
    device: Device, watch: Stopwatch, table: Table, todo: list[Problem], deadline: float | None, report: Report | None
) -> None:
    for done, problem in enumerate(todo):
        if report:
            report(done, len(todo))
        if _over(deadline):
            _log.info("%d of %d problems are tuned; the next load goes on", done, len(todo))
            break
        try:
            entry = best(device, watch, problem, deadline)
        except OutOfDeviceMemory as error:
            _log.info("not tuned, no memory is left for it: %s: %s", problem.key, error)
            continue
        except DeviceLost as error:
            # Not to be tried again at the next load.
            table.entries[problem.key] = Entry(asdict(candidates(device, problem)[0]), 0.0, 0.0)
            table.save()
            raise DeviceLost(f"{error} (while tuning `{problem.key}`; start again, or with --no-tune)") from error
        table.entries[problem.key] = entry
        device.tuned[problem.key] = entry.choice
        table.save()  # each at once: a long tuning may be broken off
        _log.info("%s: %s", problem.key, described(entry))
    if report:
        report(len(todo), len(todo))


def ordered(device: Device, asked: Sequence[Problem]) -> list[Problem]:
    """Those of one token first, which all of an answer waits for, then by their tokens; the costliest first."""

    def weight(problem: Problem) -> tuple[int, int]:
        tokens = problem.get("n", 1) // problem.get("k", 1)
        with trying(device, problem.op, candidates(device, problem)[0]):
            return sum(tokens > few for few in (2, 8)), -timed_case(problem).dry(device).nbytes

    return sorted(asked, key=weight)


@dataclass
class _Runner:
    """A candidate and its measurements. Seconds."""

    choice: Any
    times: list[float]

    @property
    def seconds(self) -> float:
        return min(self.times)  # whatever else the machine does only adds


def best(device: Device, watch: Stopwatch, problem: Problem, deadline: float | None = None) -> Entry:
    """The fastest right candidate; the rule's unless another is clearly faster.

    After the deadline no further candidate is tried; the first two always are. Raises DeviceLost, OutOfDeviceMemory.
    """
    options = candidates(device, problem)
    runners: list[_Runner] = []
    tried = 0
    with shared_inputs(device):
        for choice in options:
            if tried > 1 and _over(deadline):
                break
            tried += 1
            runners += _measured(device, watch, problem, choice, QUICK)
        if not runners or runners[0].choice != options[0]:  # the rule's does not even run: nothing to compare with
            _log.warning("%s: the kernel chosen by rule does not run; see `qwen3omni doctor`", problem.key)
            return Entry(asdict(options[0]), 0.0, 0.0, tried, len(options))
        rule = runners[0]
        finalists = sorted(runners[1:], key=lambda runner: runner.seconds)[:FINALISTS]
        finalists = [runner for runner in finalists if runner.seconds < rule.seconds]
        if finalists:
            _side_by_side(device, watch, problem, [rule, *finalists])
    for runner in sorted(finalists, key=lambda runner: runner.seconds):
        if runner.seconds < (1 - CLEARLY) * rule.seconds and is_right(device, problem, runner.choice):
            return Entry(asdict(runner.choice), runner.seconds, rule.seconds, tried, len(options))
    return Entry(asdict(rule.choice), rule.seconds, rule.seconds, tried, len(options))


def _measured(device: Device, watch: Stopwatch, problem: Problem, choice: Any, repeat: int) -> list[_Runner]:
    """One runner; none where it cannot be compiled or recorded."""
    try:
        plan = _plan(device, problem, choice)
    except (DeviceLost, OutOfDeviceMemory):
        raise
    except OmniError as error:
        _log.info("%s: %s is left out: %s", problem.key, shown(asdict(choice)), str(error).split("\n")[0])
        return []
    try:
        watch.seconds(plan, 1)  # the first run may wait for the driver to finish compiling
        return [_Runner(choice, watch.seconds(plan, repeat))]
    finally:
        plan.free()


def _side_by_side(device: Device, watch: Stopwatch, problem: Problem, runners: list[_Runner]) -> None:
    """Measure in turns, so that a change of the clock or another program's work meets all of them alike."""
    plans = [_plan(device, problem, runner.choice) for runner in runners]
    try:
        for runner in runners:
            runner.times.clear()
        for _ in range(CAREFUL // QUICK):
            for runner, plan in zip(runners, plans, strict=True):
                runner.times += watch.seconds(plan, QUICK)
    finally:
        for plan in plans:
            plan.free()


def _plan(device: Device, problem: Problem, choice: Any) -> Plan:
    with trying(device, problem.op, choice):
        return timed_case(problem).plan(device, seed=0)


def is_right(device: Device, problem: Problem, choice: Any) -> bool:
    """Whether the candidate computes what the op's twin does, on a small case of the problem's inner shapes."""
    try:
        with shared_inputs(device), trying(device, problem.op, choice):
            return checked_case(problem).run(device).ok
    except (DeviceLost, OutOfDeviceMemory):
        raise
    except OmniError as error:
        _log.warning("%s: %s is wrong on this driver and left out: %s", problem.key, shown(asdict(choice)), error)
        return False


def _over(deadline: float | None) -> bool:
    return deadline is not None and time.monotonic() > deadline
