"""How numbers are shown: byte counts, and one list of rows as markdown, JSON, JSON lines or CSV."""

import csv
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from qwen3omni_wgpu.errors import InvalidRequest

FORMATS = ("md", "json", "jsonl", "csv")
Row = dict[str, Any]


def size_of(nbytes: int) -> str:
    """Bytes as people read them."""
    return f"{nbytes / 2**30:.2f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def check_format(name: str) -> None:
    if name not in FORMATS:
        raise InvalidRequest(f"-o {name} is not one of {', '.join(FORMATS)}")


def write(rows: Iterable[Row], form: str, columns: Mapping[str, Callable[[Row], str]]) -> None:
    """Print rows to stdout. Markdown shows `columns` (title -> cell), a row as soon as it is there; others show all."""
    if form == "json":
        print(json.dumps(list(rows), indent=2))
        return
    writer: Any = None
    widths: list[int] = []
    for row in rows:
        if form == "jsonl":
            print(json.dumps(row), flush=True)
        elif form == "csv":
            if writer is None:
                writer = csv.DictWriter(sys.stdout, fieldnames=list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({key: json.dumps(cell) if isinstance(cell, list) else cell for key, cell in row.items()})
        else:
            cells = [cell(row) for cell in columns.values()]
            if not widths:  # those of the first row, as later ones are not known yet; markdown does not mind
                widths = [max(len(title), len(cell)) for title, cell in zip(columns, cells, strict=True)]
                print(_line(columns, widths))
                print(_line(["-" * width for width in widths], widths))
            print(_line(cells, widths), flush=True)


def _line(cells: Iterable[str], widths: Sequence[int]) -> str:
    """The first column on the left, numbers on the right."""
    padded = [
        cell.rjust(width) if index else cell.ljust(width)
        for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "| " + " | ".join(padded) + " |"


def numbers(text: str, what: str) -> list[int]:
    """`512`, `0,512`, `128-512`, `128-512+128` or `128-512*2` as llama-bench reads them."""
    out: list[int] = []
    try:
        for part in text.split(","):
            first, dash, rest = part.partition("-")
            if not dash:
                out.append(int(first))
                continue
            last, step = rest, "+1"
            for sign in "+*":
                if sign in rest:
                    last, _, by = rest.partition(sign)
                    step = sign + by
            out += _steps(int(first), int(last), step)
    except ValueError:
        out = [-1]
    if not out or min(out) < 0:
        raise InvalidRequest(f"{what} {text!r} is not a list of whole numbers such as 512 or 0,128,512 or 128-512*2")
    return out


def _steps(first: int, last: int, step: str) -> list[int]:
    by = int(step[1:])
    if by < (2 if step[0] == "*" else 1) or first < (1 if step[0] == "*" else 0):
        raise ValueError
    out = []
    while first <= last:
        out.append(first)
        first = first * by if step[0] == "*" else first + by
    return out
