"""Curves of speed over depth, and a roofline, from JSON files. Needs matplotlib: pip install 'qwen3omni-wgpu[plot]'.

    python bench/plot.py depth OUT.png FILE.json [...]     tokens a second over the tokens in the cache
    python bench/plot.py roofline OUT.svg FILE.json        FLOP/s over FLOPs a byte, of `qwen3omni bench ops -o json`

FILE: what bench/compare.py reads; for the roofline `bench ops`, whose copy rate is the slanted roof, and --flops the
flat one (FLOP/s; left out: the largest that was measured). OUT: .png or .svg.
"""

import argparse
import json
import sys
from pathlib import Path

from compare import Speeds, read

KINDS = {"answers (decode)": 1, "prompts (prefill)": 0}  # the part of a test that is not zero


def pyplot():
    try:
        import matplotlib
    except ImportError:
        sys.exit("matplotlib is missing: pip install 'qwen3omni-wgpu[plot]'")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def depth_curves(speeds: Speeds, part: int) -> dict[int, list[tuple[int, float]]]:
    """Tokens of the test -> (depth, tokens a second), rising."""
    curves: dict[int, list[tuple[int, float]]] = {}
    for test, rate in speeds.rates.items():
        if test[part] and not test[1 - part]:
            curves.setdefault(test[part], []).append((test[2], rate))
    return {tokens: sorted(points) for tokens, points in sorted(curves.items())}


def plot_depth(files: list[Path], out: Path) -> None:
    columns = [speeds for path in files for speeds in read(path)]
    plt = pyplot()
    figure, axes = plt.subplots(1, len(KINDS), figsize=(11, 4.5), layout="constrained")
    for ax, (title, part) in zip(axes, KINDS.items(), strict=True):
        for speeds in columns:
            for tokens, points in depth_curves(speeds, part).items():
                label = f"{speeds.name}: {'tg' if part else 'pp'}{tokens}"
                style = "--" if speeds.name.startswith("predicted") else "-"
                ax.plot(*zip(*points, strict=True), style, marker="o", markersize=4, label=label)
        ax.set(title=title, xlabel="tokens in the cache before", ylabel="tokens a second")
        ax.set_ylim(bottom=0)
        ax.grid(alpha=0.3)
        if ax.lines:
            ax.legend(fontsize=8)
    figure.savefig(out, dpi=150)


def plot_roofline(path: Path, out: Path, flops: float | None) -> None:
    try:
        text = path.read_text(encoding="utf-8")
        rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
        rows = [row for row in rows if row["flops"] and row["bytes"]]
        peak = max(row["peak_gbps"] for row in rows) * 1e9
    except OSError as error:
        sys.exit(f"{path}: {error.strerror}")
    except (ValueError, KeyError, TypeError):
        sys.exit(f"{path}: not what `qwen3omni bench ops -o json` writes")
    roof = flops or max(row["flops"] / row["seconds"] for row in rows)
    plt = pyplot()
    figure, ax = plt.subplots(figsize=(8, 5.5), layout="constrained")
    families: dict[str, list[tuple[float, float]]] = {}
    for row in rows:
        point = row["flops"] / row["bytes"], row["flops"] / row["seconds"]
        families.setdefault(row["op"].partition("(")[0], []).append(point)
    for family, points in sorted(families.items()):
        ax.scatter(*zip(*points, strict=True), s=18, label=family)
    at = [row["flops"] / row["bytes"] for row in rows]
    ends = min(*at, roof / peak / 4), max(*at, roof / peak * 4)
    ax.plot([ends[0], roof / peak, ends[1]], [ends[0] * peak, roof, roof], color="black", linewidth=1)
    ax.set(xscale="log", yscale="log", xlabel="FLOPs a byte", ylabel="FLOP/s", title=rows[0].get("gpu_info", ""))
    ax.grid(alpha=0.3, which="both")
    ax.legend(fontsize=7, ncols=2)
    figure.savefig(out, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("depth", "roofline"))
    parser.add_argument("out", type=Path)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--flops", type=float, help="the device's FLOP/s, for the roofline's flat part")
    options = parser.parse_args()
    if options.out.suffix not in (".png", ".svg"):
        sys.exit(f"{options.out}: the picture's name must end in .png or .svg")
    if options.kind == "depth":
        plot_depth(options.files, options.out)
    elif len(options.files) != 1:
        sys.exit("a roofline is of one file")
    else:
        plot_roofline(options.files[0], options.out, options.flops)
    print(options.out)


if __name__ == "__main__":
    main()
