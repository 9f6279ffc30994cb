"""Number lists and the output formats of `bench`."""

import contextlib
import csv
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qwen3omni_wgpu.cli.tables import numbers, write
from qwen3omni_wgpu.errors import InvalidRequest

ROWS = [{"name": "a", "rate": 1.5, "samples": [1, 2]}, {"name": "b", "rate": 2.5, "samples": [3]}]
COLUMNS = {"name": lambda row: row["name"], "t/s": lambda row: f"{row['rate']:.2f}"}


@pytest.mark.parametrize(("text", "expected"), [
    ("512", [512]), ("0", [0]), ("0,128,512", [0, 128, 512]), ("1-3", [1, 2, 3]), ("0-8+4", [0, 4, 8]),
    ("128-512*2", [128, 256, 512]), ("1-100*10,7", [1, 10, 100, 7]),
])  # fmt: skip
def test_lists_and_ranges(text, expected):
    assert numbers(text, "-p") == expected


@pytest.mark.parametrize("text", ["", "x", "1,", "-5", "5-", "5-1", "0-8*2", "1-8*1", "1-8+0", "1-8+-1", "1.5", "1--3"])
def test_what_is_no_list(text):
    with pytest.raises(InvalidRequest, match="-p"):
        numbers(text, "-p")


@given(st.text(alphabet="0123456789,-+* x", max_size=8))
def test_no_text_makes_it_hang_or_crash(text):
    with contextlib.suppress(InvalidRequest):
        assert all(number >= 0 for number in numbers(text, "-p"))


def test_json(capsys):
    write(iter(ROWS), "json", COLUMNS)
    assert json.loads(capsys.readouterr().out) == ROWS


def test_json_lines(capsys):
    write(iter(ROWS), "jsonl", COLUMNS)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == ROWS


def test_csv(capsys):
    write(iter(ROWS), "csv", COLUMNS)
    read = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [(row["name"], float(row["rate"]), json.loads(row["samples"])) for row in read] == [
        ("a", 1.5, [1, 2]), ("b", 2.5, [3]),
    ]  # fmt: skip


def test_markdown(capsys):
    write(iter(ROWS), "md", COLUMNS)
    lines = capsys.readouterr().out.splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["name", "t/s"], ["-" * 4, "-" * 4], ["a", "1.50"], ["b", "2.50"],
    ]  # fmt: skip
    assert len({len(line) for line in lines}) == 1
