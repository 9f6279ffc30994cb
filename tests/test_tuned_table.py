"""What was measured on a device, kept in the user's cache: whose it is, what damage does, who writes at once."""

import json
import logging
import os
from dataclasses import dataclass, replace

import numpy as np
import pytest

from qwen3omni_wgpu import tuned_table
from qwen3omni_wgpu.gpu import AdapterInfo
from qwen3omni_wgpu.tuned_table import Entry, Table, described, shown

INFO = AdapterInfo(0, "Radeon 8060S (RADV GFX1151)", "radv, Mesa 25.3", "Vulkan", "integrated", 0x1002, 0x1586)


@dataclass
class Machine:
    """A device as far as its table knows it."""

    info: AdapterInfo = INFO
    features: frozenset[str] = frozenset({"subgroup"})
    checked: bool = False

    @property
    def table(self) -> Table:
        return Table.of(self)  # type: ignore[arg-type] - the rest of a device is not asked


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(tuned_table.platformdirs, "user_cache_dir", lambda name: str(tmp_path / name))
    return tmp_path


def entry(rng: np.random.Generator) -> Entry:
    seconds, rule = rng.random(2).tolist()
    return Entry({"shader": "matvec", "lanes": int(rng.integers(64)), "wide": True}, seconds, rule, 3, 7)


def filled(table: Table, count: int = 5) -> dict[str, Entry]:
    rng = np.random.default_rng()
    found = {f"matmul d={int(rng.integers(1e6))} n={i}": entry(rng) for i in range(count)}
    table.entries |= found
    return found


def test_what_is_saved_is_there_next_time():
    table = Machine().table
    assert table.entries == {}
    found = filled(table)
    table.save()
    again = Machine().table
    assert again.entries == found
    assert again.choices == {key: value.choice for key, value in found.items()}
    assert table.path.name.startswith("Radeon-8060S-RADV-GFX1151-")
    assert [path.name for path in table.path.parent.iterdir()] == [table.path.name]  # nothing else is left behind


@pytest.mark.parametrize("other", [
    Machine(replace(INFO, name="Radeon 890M")),
    Machine(replace(INFO, driver="radv, Mesa 25.4")),
    Machine(replace(INFO, device_id=1)),
    Machine(features=frozenset({"subgroup", "shader-f16"})),
    Machine(checked=True),
])  # fmt: skip
def test_another_device_or_driver_knows_nothing_of_it(other):
    table = Machine().table
    filled(table)
    table.save()
    assert other.table.entries == {}
    assert other.table.path != table.path


def test_another_version_or_other_shaders_know_nothing_of_it(tmp_path, monkeypatch):
    table = Machine().table
    filled(table)
    table.save()
    with monkeypatch.context() as patch:
        patch.setattr(tuned_table, "version", lambda _: "99.0")
        assert Machine().table.entries == {}
    (tmp_path / "add.wgsl").write_text("// changed")
    monkeypatch.setattr(tuned_table, "shader_root", lambda: tmp_path)
    assert Machine().table.entries == {}


@pytest.mark.parametrize("damage", [
    lambda text: "",
    lambda text: text[: len(text) // 2],
    lambda text: "[1, 2]",
    lambda text: "[" * 100_000,
    lambda text: text.replace('"format": 1', '"format": 7'),
    lambda text: text.replace('"choice": {', '"choice": 5, "x": {'),
    lambda text: text.replace('"tried": 3', '"tried": "three"'),
    lambda text: text.replace('"tried": 3', '"tried": NaN'),
    lambda text: text.replace('"tried": 3', '"tried": -3'),
    lambda text: text.replace('"driver": "', '"driver": "another '),
    lambda text: text.replace('"choices": {', '"choices": 1, "x": {'),
])  # fmt: skip
def test_a_damaged_file_is_ignored_with_a_note_and_written_anew(damage, caplog):
    table = Machine().table
    filled(table)
    table.save()
    text = table.path.read_text()
    assert damage(text) != text
    table.path.write_text(damage(text))
    with caplog.at_level(logging.WARNING):
        again = Machine().table
    assert again.entries == {}
    (line,) = caplog.messages
    assert "\n" not in line
    assert str(table.path) in line
    assert "tuned anew" in line
    found = filled(again)
    again.save()
    assert Machine().table.entries == found


def test_bytes_that_are_no_text_are_damage(caplog):
    table = Machine().table
    table.path.parent.mkdir(parents=True)
    table.path.write_bytes(b"\xff\xfe\x00")
    assert Machine().table.entries == {}
    assert "tuned anew" in caplog.text


def test_two_processes_keep_what_both_found():
    first, second = Machine().table, Machine().table
    found = filled(first) | filled(second)
    first.save()
    second.save()
    assert Machine().table.entries == found


def test_a_folder_that_cannot_be_written_is_a_note(cache, caplog):
    (cache / "qwen3omni").write_text("a file is in the way")
    table = Machine().table
    found = filled(table)
    table.save()
    assert table.entries == found
    assert "cannot be kept" in caplog.text


def test_a_write_that_fails_leaves_the_old_table(monkeypatch, caplog):
    table = Machine().table
    found = filled(table)
    table.save()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    filled(table)
    table.save()
    assert "No space left" in caplog.text
    assert Machine().table.entries == found
    assert len(list(table.path.parent.iterdir())) == 1


def test_what_is_forgotten_is_gone():
    table = Machine().table
    filled(table)
    table.save()
    table.forget()
    table.forget()
    assert table.entries == Machine().table.entries == {}


def test_tuples_come_back_as_tuples():
    table = Machine().table
    table.entries["op n=1"] = Entry({"tile": (4, 8)}, 1.0, 1.0)
    table.save()
    assert Machine().table.choices["op n=1"] == {"tile": (4, 8)}


def test_the_file_says_what_it_is_of():
    table = Machine().table
    filled(table, 1)
    table.save()
    document = json.loads(table.path.read_text())
    assert (document["adapter"], document["driver"]) == (INFO.name, INFO.driver)


def test_in_words():
    one = Entry({"shader": "matvec", "lanes": 16, "wide": True, "staged": False}, 2e-6, 3e-6, 4, 9)
    assert shown(one.choice) == "matvec lanes=16 wide=True"
    assert described(one) == "matvec lanes=16 wide=True: 2.0 us, 1.50x the rule's speed, 4 of 9 tried"
    assert described(Entry({"shader": "x"}, 0.0, 0.0)) == "x: not measured"
