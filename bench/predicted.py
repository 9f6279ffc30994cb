"""The predicted table of docs/PERFORMANCE.md: prints it, or writes it into the page.

    python bench/predicted.py [--write]

It follows from the plans that the ops record today and the profiles in qwen3omni_wgpu/profiles: run it again when
kernels or figures have changed. Needs no GPU and no weights; takes some seconds.
"""

import argparse
from pathlib import Path

from qwen3omni_wgpu import cost

PAGE = Path(__file__).resolve().parent.parent / "docs" / "PERFORMANCE.md"
BEGIN, END = "<!-- predicted: begin -->", "<!-- predicted: end -->"
DEPTHS = (0, 4096, 16384, 32768, 65024)
CONTEXT = 65536
ANSWER, PROMPT = 128, 512
# llama.cpp's Vulkan backend on this chip; sources in the page. Depth curves are published for smaller weights only.
THEIRS_Q8 = {("tg", 0): "58.0 to 58.5", ("pp", 0): "910 ± 299"}
THEIRS_Q6 = {
    ("tg", 0): "67.4", ("tg", 4096): "59.1", ("tg", 16384): "44.6", ("tg", 32768): "33.7", ("tg", 65024): "22.7",
    ("pp", 0): "1065", ("pp", 32768): "152",
}  # fmt: skip
THEIRS_Q6_Q8KV = {0: "67.7", 4096: "59.3", 16384: "50.8", 32768: "41.6", 65024: "31.0"}


def rates() -> dict[tuple[str, str, str, int], float]:
    """(profile, kind, type of the cache, depth) -> tokens a second."""
    found = {}
    for name in ("strix-halo", "strix-halo-reached"):
        profile = cost.load(name)
        model = cost.paper_model(cost.Sketch.shipped(), cost.PaperDevice.described(profile.device))
        for depth in DEPTHS:
            for kv in ("f16", "q8_0"):
                found[name, "tg", kv, depth] = cost.predict_decode(profile, model, ANSWER, depth, CONTEXT, kv).rate
            prompt = cost.predict_prefill(profile, model, PROMPT, depth, CONTEXT, "f16")
            found[name, "pp", "f16", depth] = prompt.rate
    return found


def table() -> str:
    titles = [
        "test", "predicted, goal", "predicted, rates reached by others", "llama.cpp, Q8_0 (published)",
        "llama.cpp, Q6_K Coder-30B (published)",
    ]  # fmt: skip
    lines = ["| " + " | ".join(titles) + " |", "| --- |" + " ---: |" * 4]
    known = rates()
    for kind, kv in (("tg", "f16"), ("tg", "q8_0"), ("pp", "f16")):
        for depth in DEPTHS:
            what = f"decode, {kv} cache" if kind == "tg" else f"prefill of {PROMPT}"
            cells = [f"{what}, {depth} tokens before"]
            cells += [f"{known[name, kind, kv, depth]:.1f}" for name in ("strix-halo", "strix-halo-reached")]
            if kv == "q8_0":
                cells += ["", THEIRS_Q6_Q8KV[depth]]
            else:
                cells += [THEIRS_Q8.get((kind, depth), ""), THEIRS_Q6.get((kind, depth), "")]
            lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put it into the page")
    if not parser.parse_args().write:
        print(table())
        return
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
