"""Which candidate wins, which is left out, what is remembered. The op is made up; times are given, not measured."""

import logging
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import numpy as np
import pytest

from qwen3omni_wgpu import tuned_table, tuner
from qwen3omni_wgpu.errors import DeviceLost, OutOfDeviceMemory
from qwen3omni_wgpu.gpu import Device, Plan, ShaderError
from qwen3omni_wgpu.ops import add, choice
from qwen3omni_wgpu.ops.cases import BUILDERS, problems
from qwen3omni_wgpu.ops.cases.case import case
from qwen3omni_wgpu.ops.cases.make import normal, weight
from qwen3omni_wgpu.ops.choice import Problem, choose
from qwen3omni_wgpu.tuned_table import Entry, Table

pytestmark = pytest.mark.gpu


@dataclass(frozen=True)
class Way:
    """A way to add. seconds: what a measurement says; fails: what happens instead.

    right: whether its sums are; most: rows that there is memory for.
    """

    name: str
    seconds: float = 1.0
    right: bool = True
    most: int | None = None
    fails: type[Exception] | None = None


class Workshop:
    """The made-up op `pick`: its candidates, and what was recorded and measured of them."""

    def __init__(self) -> None:
        self.ways: list[Way] = []
        self.recorded: list[tuple[str, int]] = []
        self.measured: list[str] = []

    def build(self, plan: Plan, rng: np.random.Generator, rows: int):
        way = choose(plan.device, Problem.of("pick", rows=rows))
        if way.most and rows > way.most:
            raise OutOfDeviceMemory(f"{way.name} has no room")
        if way.fails:
            raise way.fails(f"{way.name} fails\non two lines")
        choose(plan.device, Problem.of("inner", rows=rows))
        plan.memo["way"] = way
        self.recorded.append((way.name, rows))
        weight(plan, rng, (64, 64), "f32")
        y = add(plan, normal(plan, rng, rows, 64), normal(plan, rng, rows, 64))
        if not way.right:
            plan.check(lambda *_: [np.full((rows, 64), 7, np.float32)], [], [y], 1e-5)
        return [y]

    def seconds(self, plan: Plan, repeat: int) -> list[float]:
        way = plan.memo["way"]
        self.measured.append(way.name)
        # Something else keeps the machine busy in most measurements.
        return [way.seconds, *(way.seconds * (3 + len(way.name)) for _ in range(repeat - 1))]

    def free(self) -> None:
        pass


@pytest.fixture
def shop(monkeypatch, device: Device, tmp_path):
    made = Workshop()
    monkeypatch.setitem(choice._CANDIDATES, "pick", lambda _device, _problem: made.ways)
    monkeypatch.setitem(choice._CANDIDATES, "inner", lambda _device, _problem: [Way("rule")])
    monkeypatch.setitem(BUILDERS, "pick", made.build)
    monkeypatch.setitem(
        problems.PROBLEMS, "pick", lambda problem, limits: case("pick", rows=3 if limits.small else problem["rows"])
    )
    monkeypatch.setattr(tuner, "Stopwatch", lambda _: made)
    monkeypatch.setattr(device, "tuned", {})
    monkeypatch.setattr(device, "asked", {})
    monkeypatch.setattr(device, "cache", {k: v for k, v in device.cache.items() if k != tuner._TABLE})
    monkeypatch.setattr(tuned_table.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return made


PROBLEM = Problem.of("pick", rows=8)


def best(device: Device, shop: Workshop, *ways: Way, deadline: float | None = None) -> Entry:
    shop.ways = list(ways)
    return tuner.best(device, shop, PROBLEM, deadline)  # type: ignore[arg-type] - a stopwatch that is told the times


def test_the_fastest_wins(device, shop):
    found = best(device, shop, Way("rule", 1.0), Way("slow", 2.0), Way("fast", 0.5), Way("good", 0.7))
    assert (found.choice["name"], found.seconds, found.rule_seconds) == ("fast", 0.5, 1.0)
    assert (found.tried, found.of) == (4, 4)


def test_the_rule_stays_where_another_is_hardly_faster(device, shop):
    assert best(device, shop, Way("rule", 1.0), Way("other", 0.98)).choice["name"] == "rule"
    assert best(device, shop, Way("rule", 1.0), Way("other", 0.96)).choice["name"] == "other"


def test_what_computes_nonsense_never_wins(device, shop, caplog):
    found = best(device, shop, Way("rule", 1.0), Way("wrong", 0.1, right=False), Way("right", 0.6))
    assert found.choice["name"] == "right"
    assert "name=wrong" in caplog.text or "wrong seconds=0.1" in caplog.text
    assert best(device, shop, Way("rule", 1.0), Way("wrong", 0.1, right=False)).choice["name"] == "rule"


def test_only_what_may_win_is_checked_and_on_a_small_case(device, shop):
    best(device, shop, Way("rule", 1.0), Way("slow", 2.0), Way("fast", 0.5))
    assert [name for name, rows in shop.recorded if rows == 3] == ["fast"]
    assert {name for name, rows in shop.recorded if rows == 8} == {"rule", "slow", "fast"}


def test_what_does_not_compile_is_left_out(device, shop):
    found = best(device, shop, Way("rule", 1.0), Way("broken", 0.1, fails=ShaderError), Way("fast", 0.5))
    assert found.choice["name"] == "fast"


def test_a_rule_that_does_not_run_stays_and_is_reported(device, shop, caplog):
    found = best(device, shop, Way("rule", fails=ShaderError), Way("fast", 0.5))
    assert (found.choice["name"], found.seconds) == ("rule", 0.0)
    assert "doctor" in caplog.text


def test_the_best_are_measured_again_in_turns(device, shop):
    best(device, shop, Way("rule", 1.0), *(Way(f"w{i}", 0.9 - i / 10) for i in range(5)))
    again = shop.measured[12:]
    assert again == ["rule", "w4", "w3", "w2"] * 3


def test_after_the_deadline_no_more_are_tried(device, shop):
    ways = [Way("rule", 1.0), Way("fast", 0.5), Way("fastest", 0.1)]
    found = best(device, shop, *ways, deadline=0.0)
    assert (found.choice["name"], found.tried, found.of) == ("fast", 2, 3)


def test_nothing_is_left_behind(device, shop):
    device.asked["other n=1"] = Problem.of("other", n=1)
    before = device.allocated
    best(device, shop, Way("rule", 1.0), Way("fast", 0.5))
    assert list(device.asked) == ["other n=1"]
    assert "choice on trial" not in device.cache
    assert not any(key == "inputs of cases" for key in device.cache)
    # Weights are given back; small inputs go with their plans.
    assert device.allocated - before < 64 * 64 * 4 * 2


def table(device: Device, shop: Workshop, *ways: Way, asked=(PROBLEM,), seconds=None, report=None) -> Table:
    shop.ways = list(ways)
    found = Table.of(device)
    tuner.tune(device, found, list(asked), seconds, report)
    return found


def test_the_choice_counts_at_once_and_is_kept(device, shop):
    ways = [Way("rule", 1.0), Way("fast", 0.5)]
    table(device, shop, *ways)
    assert choose(device, PROBLEM) == ways[1]
    assert Table.of(device).entries[PROBLEM.key].choice == asdict(ways[1])


def test_what_was_found_is_kept_when_tuning_is_broken_off(device, shop):
    def press_ctrl_c(done: int, _total: int) -> None:
        if done == 1:
            raise KeyboardInterrupt

    asked = [Problem.of("pick", rows=rows) for rows in (4, 8)]
    with pytest.raises(KeyboardInterrupt):
        table(device, shop, Way("rule", 1.0), Way("fast", 0.5), asked=asked, report=press_ctrl_c)
    assert list(Table.of(device).entries) == ["pick rows=8"]


def test_what_is_known_is_not_measured_again(device, shop):
    ways = [Way("rule", 1.0), Way("fast", 0.5)]
    table(device, shop, *ways)
    shop.measured.clear()
    table(device, shop, *ways)
    assert shop.measured == []


def test_a_budget_that_is_spent_leaves_the_rest_for_the_next_load(device, shop):
    asked = [Problem.of("pick", rows=rows) for rows in (4, 16, 8)]
    seen = []
    ways = [Way("rule", 1.0), Way("fast", 0.5)]
    first = table(device, shop, *ways, asked=asked, seconds=1e-9, report=lambda *at: seen.append(at))
    assert first.entries == {}
    assert seen == [(0, 3), (3, 3)]
    second = table(device, shop, *ways, asked=asked, seconds=100)
    assert list(second.entries) == ["pick rows=16", "pick rows=8", "pick rows=4"]  # what moves most bytes first


def test_what_every_token_waits_for_comes_first(device, shop):
    shop.ways = [Way("rule", 1.0), Way("fast", 0.5)]
    sizes = ((512, 256), (1, 4), (8, 128), (1, 16), (32, 512))
    asked = [Problem.of("pick", n=n, rows=rows) for n, rows in sizes]
    found = [(problem["n"], problem["rows"]) for problem in tuner.ordered(device, asked)]
    assert found == [(1, 16), (1, 4), (8, 128), (32, 512), (512, 256)]
    assert device.asked == {}


def test_ops_without_a_case_keep_their_rule(device, shop, monkeypatch):
    monkeypatch.delitem(problems.PROBLEMS, "pick")
    assert table(device, shop, Way("rule", 1.0), Way("fast", 0.5)).entries == {}


def test_no_memory_for_a_problem_leaves_the_others(device, shop, caplog):
    with caplog.at_level(logging.INFO):
        asked = [Problem.of("pick", rows=rows) for rows in (64, 8)]
        found = table(device, shop, Way("rule", 1.0), Way("large", 0.5, most=8), asked=asked)
    assert {key: entry.choice["name"] for key, entry in found.entries.items()} == {"pick rows=8": "large"}
    assert "no memory" in caplog.text


def test_a_lost_device_is_told_of_and_its_problem_not_tried_again(device, shop):
    ways = [Way("rule", 1.0), Way("deadly", fails=DeviceLost)]
    with pytest.raises(DeviceLost, match=r"while tuning `pick rows=8`.*--no-tune"):
        table(device, shop, *ways)
    assert Table.of(device).choices == {PROBLEM.key: asdict(ways[0])}


# When it happens -------------------------------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(device, monkeypatch):
    monkeypatch.setattr(device, "info", SimpleNamespace(**asdict(device.info) | {"software": False}))


def settle(device: Device, mode: str, *asked: Problem) -> dict:
    tuner.settle(device, mode, lambda: list(asked))
    return device.tuned


def test_off_means_the_rules_whatever_is_stored(device, shop):
    table(device, shop, Way("rule", 1.0), Way("fast", 0.5))
    device.tuned.clear()
    assert settle(device, "off", PROBLEM) == {}
    assert choose(device, PROBLEM).name == "rule"


def test_a_gpu_is_tuned_at_the_first_load(device, shop, on_a_gpu):
    shop.ways = [Way("rule", 1.0), Way("fast", 0.5)]
    assert settle(device, "auto", PROBLEM)[PROBLEM.key]["name"] == "fast"


def test_a_load_has_a_budget_unless_all_is_wanted(device, shop, on_a_gpu, monkeypatch):
    shop.ways = [Way("rule", 1.0), Way("fast", 0.5)]
    monkeypatch.setattr(tuner, "LOAD_SECONDS", -1.0)
    assert settle(device, "auto", PROBLEM) == {}
    assert settle(device, "on", PROBLEM)[PROBLEM.key]["name"] == "fast"


def test_a_software_adapter_is_tuned_only_when_asked(device, shop):
    shop.ways = [Way("rule", 1.0), Way("fast", 0.5)]
    assert device.info.software
    assert settle(device, "auto", PROBLEM) == {}
    assert settle(device, "on", PROBLEM)[PROBLEM.key]["name"] == "fast"
    device.tuned.clear()
    device.cache.pop(tuner._TABLE)
    shop.measured.clear()
    assert settle(device, "auto", PROBLEM)[PROBLEM.key]["name"] == "fast"  # what is stored counts
    assert shop.measured == []


def test_an_answer_given_holds(device, shop, on_a_gpu):
    shop.ways = [Way("rule", 1.0), Way("fast", 0.5)]
    assert choose(device, PROBLEM).name == "rule"  # a plan was recorded with it
    settle(device, "auto", PROBLEM)
    assert choose(device, PROBLEM).name == "rule"
    device.tuned.clear()
    table(device, shop, *shop.ways)
    assert choose(device, PROBLEM).name == "fast"
    device.tuned.clear()
    device.cache.pop(tuner._TABLE)
    settle(device, "auto", PROBLEM)  # stored, but the device was asked before it was looked up
    assert choose(device, PROBLEM).name == "rule"


def test_a_stored_choice_that_is_gone_is_the_rule(device, shop):
    shop.ways = [Way("rule", 1.0)]
    device.tuned[PROBLEM.key] = asdict(Way("gone", 0.1))
    assert choose(device, PROBLEM).name == "rule"
