"""Whatever the rule or the tuner chooses, the op passes the same cases: the candidates of the table's problems.

By default a few of them, drawn anew in each run; all of them with `pytest -m variants` (five to ten minutes on a CPU).
"""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from qwen3omni_wgpu.gpu import Device, Plan
from qwen3omni_wgpu.ops.cases import CASES, Case
from qwen3omni_wgpu.ops.cases.problems import PROBLEMS, checked_case, timed_case
from qwen3omni_wgpu.ops.choice import Problem, asked_by, candidates, choose, trying, tunable

pytestmark = pytest.mark.gpu

# A case that names its variant asks nothing.
ASKING = [case for case in CASES if "variant" not in case.params]
SMALL = [case for case in ASKING if not case.large]
DRAWN = 1  # candidates an op and kind of adapter in a default run


def asked(device: Device, case: Case) -> list[Problem]:
    return asked_by(device, lambda: case.dry(device))


def quick(case: Case) -> bool:
    """Compiled and checked at once, also where a driver compiles slowly."""
    p = case.params
    return max(p.get("d", 0), p.get("f", 0)) <= 300 and p.get("n", 1) <= 40 and p.get("past", 0) <= 300


def passes(device: Device, case: Case, problem: Problem, choice: Any) -> None:
    with trying(device, problem.key, choice):
        assert case.run(device).ok, f"{case.name}: {choice}"


@pytest.mark.parametrize("op", tunable())
def test_some_candidates(op: str, device: Device, adapter_kind: str) -> None:
    pairs = [(case, problem) for case in SMALL if quick(case) for problem in asked(device, case) if problem.op == op]
    assert pairs, f"no quick case asks for {op}"
    draw = random.Random()
    for case, problem in draw.sample(pairs, min(DRAWN, len(pairs))):
        passes(device, case, problem, draw.choice(candidates(device, problem)))


@pytest.mark.variants
@pytest.mark.parametrize("case", SMALL, ids=lambda case: case.name)
def test_every_candidate(case: Case, device: Device, adapter_kind: str) -> None:
    for problem in asked(device, case):
        for choice in candidates(device, problem):
            passes(device, case, problem, choice)


def problems(device: Device) -> Iterator[Problem]:
    """All that the table asks, each once."""
    yield from {p.key: p for case in ASKING for p in asked(device, case)}.values()


def test_every_choice_can_be_tuned() -> None:
    assert set(tunable()) == set(PROBLEMS), "an op without a case in ops/cases/problems.py keeps its rule for ever"


def test_candidates_are_different_values_and_the_rule_is_first(device: Device, adapter_kind: str) -> None:
    for problem in problems(device):
        found = candidates(device, problem)
        assert len(found) == len(set(found)) > 0, problem.key
        assert choose(device, problem) == found[0], problem.key


@pytest.mark.parametrize("make", [timed_case, checked_case])
def test_a_problem_s_case_asks_for_the_same(make, device: Device, adapter_kind: str) -> None:
    """The case that the tuner measures or checks runs what the problem's op would run."""
    kept = {"d", "type", "packed", "hd", "heads", "kv", "window", "k"}
    for problem in problems(device):
        again = [p for p in asked(device, make(problem)) if p.op == problem.op]
        wanted = {name: value for name, value in problem.params if name in kept}
        assert any(wanted.items() <= dict(p.params).items() for p in again), f"{problem.key} became {again}"


def test_a_case_that_is_measured_is_no_larger_than_it_must_be(device: Device) -> None:
    for problem in problems(device):
        plan: Plan = timed_case(problem).dry(device)
        weights = [tensor for step in plan.steps for tensor, _ in step.inputs if tensor.name == "w"]
        assert all(w.nbytes < 80 << 20 for w in weights), problem.key
