"""Our speeds beside another engine's: one table of ratios from JSON files.

    python bench/compare.py OURS.json THEIRS.json [...]

OURS: `qwen3omni bench -o json` or jsonl (also of --predict). THEIRS: `llama-bench -o json` or jsonl, `bench/peer.py`'s
output, or again one of ours. Tests are matched by tokens of prompt and answer and by depth; what only one file has is
listed below the table. The last line is JSON.
"""

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from pathlib import Path

# Tokens of a prompt, of an answer, and in the cache before.
Test = tuple[int, int, int]


@dataclass(frozen=True)
class Speeds:
    """What one file says: a name for its column, and tokens a second of each test."""

    name: str
    rates: dict[Test, float]


def name_of(test: Test) -> str:
    prompt, answer, depth = test
    # llama-bench's -pg: a prompt and an answer in one test.
    kind = f"pp{prompt}+tg{answer}" if prompt and answer else f"pp{prompt}" if prompt else f"tg{answer}"
    return kind + (f" @ d{depth}" if depth else "")


def read(path: Path) -> list[Speeds]:
    """One or, of bench/peer.py's output, both engines of a file. Exits with one line where it is something else."""
    try:
        rows = documents(path.read_text(encoding="utf-8"))
        if len(rows) == 1 and "prefill" in rows[0] and "decode" in rows[0]:
            return peers(rows[0])
        return [Speeds(label(rows[0]), {key_of(row): rate_of(row) for row in rows})]
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        sys.exit(f"{path}: neither bench's nor llama-bench's nor bench/peer.py's JSON; write it with -o json or jsonl")


def documents(text: str) -> list[dict]:
    """A JSON list, JSON lines, or the last line of something that ends in JSON."""
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except ValueError:
        lines = [line for line in text.splitlines() if line.lstrip().startswith(("{", "["))]
        if not lines:
            raise
        last = json.loads(lines[-1])
        return last if isinstance(last, list) else [json.loads(line) for line in lines]


def key_of(row: dict) -> Test:
    return int(row["n_prompt"]), int(row["n_gen"]), int(row.get("n_depth", 0))


def rate_of(row: dict) -> float:
    """The median of the samples where they are there: one slow run says nothing."""
    return statistics.median(row["samples_ts"]) if row.get("samples_ts") else float(row["avg_ts"])


def label(row: dict) -> str:
    """Of a column: the engine and the device it ran on."""
    if row.get("predicted"):
        return f"predicted for {row['profile']}"
    if "build_version" in row:
        return f"qwen3omni {row['build_version']}, {row['gpu_info']}"
    return f"llama.cpp {row.get('build_commit', '')}, {row.get('gpu_info') or row.get('cpu_info', '')}"


def peers(document: dict) -> list[Speeds]:
    """bench/peer.py's last line; it does not say how many tokens it ran, so they count as one."""
    tests = {"prefill": (1, 0, 0), "decode": (0, 1, 0)}
    return [
        Speeds(name, {test: statistics.median(document[phase][name]) for phase, test in tests.items()})
        for name in ("ours", "llama.cpp")
    ]


def table(columns: list[Speeds]) -> list[str]:
    """Markdown: a row a test that the first column shares with another; ratios are the first over the others."""
    ours, *others = columns
    titles = ["test", ours.name, *(title for other in others for title in (other.name, "ratio"))]
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * (len(titles) - 1)]
    for test, rate in ours.rates.items():
        cells = [name_of(test), f"{rate:.2f}"]
        for other in others:
            theirs = other.rates.get(test)
            cells += ["", ""] if theirs is None else [f"{theirs:.2f}", f"{rate / theirs:.2f}x"]
        if any(test in other.rates for other in others):
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    columns = [speeds for path in parser.parse_args().files for speeds in read(path)]
    if len(columns) < 2:
        sys.exit("one file says nothing of a ratio: give ours and another engine's")
    ours, *others = columns
    shared = [test for test in ours.rates if any(test in other.rates for other in others)]
    if not shared:
        sys.exit("the files share no test: run both with the same -p, -n and -d")
    print("\n".join(table(columns)))
    alone = {speeds.name: [name_of(test) for test in speeds.rates if test not in shared] for speeds in columns}
    for name, tests in alone.items():
        if tests:
            print(f"only in {name}: {', '.join(tests)}")
    ratios = {
        other.name: {name_of(t): ours.rates[t] / other.rates[t] for t in shared if t in other.rates} for other in others
    }
    print(json.dumps({"ours": ours.name, "ratios": ratios}))


if __name__ == "__main__":
    main()
