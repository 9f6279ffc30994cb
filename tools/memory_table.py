"""Write the memory table of docs/MEMORY.md: what every stage of the 30B takes, as `qwen3omni inspect` computes it.

    python tools/memory_table.py            prints the table
    python tools/memory_table.py --write    puts it into docs/MEMORY.md, between the two marks

The numbers come from the headers of the release (tests/sparse_30b.py): no weights are needed.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "MEMORY.md"
BEGIN, END = "<!-- table: tools/memory_table.py -->", "<!-- end of table -->"
CONTEXTS = (4096, 32768)
TYPES = ("q8_0", "bf16")
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from sparse_30b import write_sparse_30b  # noqa: E402


def inspected(folder: Path, type: str, context: int) -> dict[str, Any]:
    command = [sys.executable, "-m", "qwen3omni_wgpu", "inspect", str(folder), "--json", "--type", type]
    done = subprocess.run([*command, "-c", str(context)], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def table() -> str:
    """Markdown, in GB of 10^9 bytes."""
    with tempfile.TemporaryDirectory() as temp:
        folder = write_sparse_30b(Path(temp) / "Qwen3-Omni-30B-A3B-Instruct")
        reports = {(t, c): inspected(folder, t, c) for t in TYPES for c in CONTEXTS}
    titles = [f"{t.upper()}, {c // 1024}k" for t in TYPES for c in CONTEXTS]
    lines = ["| GB | " + " | ".join(titles) + " |", "| --- |" + " ---: |" * len(titles)]

    def line(what: str, value: Any) -> None:
        lines.append(f"| {what} | " + " | ".join(f"{value(report) / 1e9:.2f}" for report in reports.values()) + " |")

    first = next(iter(reports.values()))
    for name in first["components"]:
        line(f"weights: {name}", lambda report, name=name: report["components"][name]["bytes"])
    line("weights in all", lambda report: report["weight_bytes"])
    line("KV cache of the thinker (f16)", lambda report: report["kv_cache_bytes"])
    for stage in first["memory"]:
        line(f"**running: {stage}**", lambda report, stage=stage: report["memory"][stage])
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="change docs/MEMORY.md")
    made = table()
    if not parser.parse_args().write:
        print(made)
        return
    text = PAGE.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n{made}\n{END}{rest.split(END)[1]}", encoding="utf-8")


if __name__ == "__main__":
    main()
