"""Live: converted checkpoints against transformers. Run with `pytest -m oracle`; needs torch and an adapter.

QWEN3OMNI_TINY_REFERENCE: path of the script that makes tiny checkpoints with reference tensors; without it those tests
are skipped, and only checkpoints of our own making are compared.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_checkpoint import ADDED, CHAT_TEMPLATE, SPECIAL, write_tiny_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("wgpu")
import torch
import transformers
from reference.gpu_engine import decode, open_engine, relative, same_until_a_tie
from safetensors.torch import load_file, save_file

from oracle.hf_models import oracle
from qwen3omni_wgpu import Omni
from qwen3omni_wgpu.cli import run
from qwen3omni_wgpu.convert.dims import dims
from qwen3omni_wgpu.convert.names import targets
from qwen3omni_wgpu.convert.parts import PARTS, open_parts
from qwen3omni_wgpu.formats.checkpoint import read_json
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.tensors import dequantize
from qwen3omni_wgpu.inputs.template import ChatTemplate
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

FLOAT32 = 1e-3  # of the largest logit, as in tests/models/test_text.py
LAYOUTS = ["index", "single", "numbered"]
SCRIPT = os.environ.get("QWEN3OMNI_TINY_REFERENCE")
MADE_BY_SCRIPT = {
    "defaults": "--seed 11",
    "wide": "--seed 12 --config-style v5 --thinker-layers 2 --thinker-hidden 192 --head-dim 64 --thinker-kv-heads 1 "
    "--experts 32 --top-k 6 --thinker-moe 96",
    "float32": "--seed 13 --weights-dtype float32 --thinker-layers 3 --thinker-heads 6 --thinker-kv-heads 3 "
    "--thinker-hidden 96 --thinker-moe 32 --experts 4 --top-k 1",
    "float16": "--seed 14 --weights-dtype float16 --thinker-hidden 160 --head-dim 128 --thinker-layers 2",
}


@pytest.fixture(scope="module", params=MADE_BY_SCRIPT)
def scripted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint by the reference script, with its `reference` folder."""
    if SCRIPT is None:
        pytest.skip("QWEN3OMNI_TINY_REFERENCE is not set")
    folder = tmp_path_factory.mktemp("scripted") / f"Tiny-{request.param}"
    command = [sys.executable, SCRIPT, "--out", str(folder), "--codec-frames", "3"]
    done = subprocess.run([*command, *MADE_BY_SCRIPT[request.param].split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of our own making, with the release's tokenizer files."""
    folder = tmp_path_factory.mktemp("own") / "Tiny-own"
    write_tiny_checkpoint(folder, np.random.default_rng(21), thinker_layers=3, experts=8, top_k=3)
    return folder


def laid_out(source: Path, layout: str, target: Path) -> Path:
    """The same checkpoint with its weights in another layout."""
    target.mkdir(parents=True)
    tensors: dict[str, Any] = {}
    for path in sorted(source.iterdir()):
        if path.suffix == ".safetensors":
            tensors |= load_file(path)
        elif path.is_file() and not path.name.endswith(".index.json"):
            shutil.copy(path, target)
    if layout == "single":
        save_file(tensors, target / "model.safetensors")
    elif layout == "numbered":
        names = sorted(tensors)
        for i in range(4):
            save_file({name: tensors[name] for name in names[i::4]}, target / f"model-{i + 1:05}-of-00004.safetensors")
    else:
        for path in source.glob("model*"):
            shutil.copy(path, target)
    return target


def quantized(source: Path, folder: Path, type: str) -> dict[str, GGUFFile]:
    """What `qwen3omni quantize` makes of it."""
    assert run(["quantize", str(source), str(folder), "--type", type, "-q"]) == 0
    name = f"{source.name}-{type.upper()}.gguf"
    return {part: read_gguf(folder / (name if part == "thinker" else f"{part}-{name}")) for part in PARTS}


def load(folder: Path) -> Any:
    model = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    )
    return model.eval()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_f32_gives_the_reference_logits(scripted, layout, tmp_path, device):
    golden = np.load(scripted / "reference" / "thinker_text.npz")
    ids = golden["input_ids"].reshape(-1)
    source = laid_out(scripted, layout, tmp_path / scripted.name)
    file = quantized(source, tmp_path / "out", "f32")["thinker"]
    engine = open_engine(file, device)
    error = relative(engine.logits(ids.tolist()), golden["logits"])
    print(f"{scripted.name} {layout}: {error:.2e} of the largest logit")
    assert error < FLOAT32
    greedy, margins = oracle(file).greedy(ids, 32)
    assert greedy.tolist() == golden["greedy_ids"].tolist()
    near = 2 * FLOAT32 * np.abs(golden["logits"]).max()
    assert same_until_a_tie(decode(engine, ids, 32), greedy, margins, near=near) >= 8


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_folder_itself_gives_them_too(scripted, layout, tmp_path):
    golden = np.load(scripted / "reference" / "thinker_text.npz")
    source = laid_out(scripted, layout, tmp_path / "folder")
    with Omni.from_pretrained(source, type="f32", cpu=True, activations="f32") as omni:
        logits = omni.logits(golden["input_ids"].reshape(-1).tolist())
    assert relative(logits, golden["logits"]) < 2 * FLOAT32  # f16 keys and values by default


@pytest.mark.parametrize("type", ["q8_0", "bf16", "f16"])
def test_quantised_equals_transformers_on_the_same_weights(scripted, type, tmp_path, device):
    ids = np.load(scripted / "reference" / "thinker_text.npz")["input_ids"].reshape(-1).tolist()
    _compare_with_own_weights(scripted, type, ids, tmp_path, device)


@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_own_checkpoints(own, type, tmp_path, device):
    ids = np.random.default_rng(5).integers(0, 300, 40).tolist()
    _compare_with_own_weights(own, type, ids, tmp_path, device)


def _compare_with_own_weights(source, type, ids, tmp_path, device):
    """transformers with the weights of the GGUF files, under the names of the checkpoint, against the engine."""
    files = quantized(source, tmp_path / "out", type)
    model = load(_back(source, files, tmp_path / "back"))
    with torch.inference_mode():
        expected = model.thinker(input_ids=torch.tensor([ids])).logits[0].numpy()
    error = relative(open_engine(files["thinker"], device).logits(ids), expected)
    print(f"{source.name} {type}: {error:.2e} of the largest logit")
    assert error < FLOAT32
    assert relative(oracle(files["thinker"]).logits(ids), expected) < 1e-5  # the same model, without our name table
    direct = open_parts(source, type=type)["thinker"]
    assert relative(open_engine(direct, device).logits(ids), expected) < FLOAT32


def _back(source: Path, files: dict[str, GGUFFile], folder: Path) -> Path:
    """The GGUF files' weights, dequantised, as a checkpoint in float32."""
    folder.mkdir()
    for path in source.glob("*.json"):
        if not path.name.endswith(".index.json"):
            shutil.copy(path, folder)
    tensors: dict[str, Any] = {}
    for part, file in files.items():
        for target in targets(dims(read_json(source / "config.json")), part):
            values = torch.from_numpy(dequantize(file.tensors[target.name]).copy())
            for i, (name, shape) in enumerate(target.sources):
                if target.name.startswith("v.patch_embd.weight"):  # one file's tensor a frame
                    whole = tensors.setdefault(name, torch.empty(shape))
                    whole[:, :, int(target.name.endswith(".1"))] = values
                else:
                    piece = values[i] if len(target.sources) > 1 else values
                    tensors[name] = piece.reshape(shape).clone()
    save_file(tensors, folder / "model.safetensors")
    return folder


def test_every_weight_comes_back(own, tmp_path):
    """f32: the very same values in all three files."""
    back = load_file(_back(own, quantized(own, tmp_path / "out", "f32"), tmp_path / "back") / "model.safetensors")
    original = {name: value for path in own.glob("*.safetensors") for name, value in load_file(path).items()}
    assert set(back) == set(original)
    for name, value in original.items():
        assert torch.equal(back[name], value.float()), name


# Tokenizer ---------------------------------------------------------------------------------------------------------

PIECES = [*SPECIAL, *ADDED, "hello world", "It's", " 42", "\n\n\t ", "e\u0301", "日本語", "👩‍👩‍👧", "\r\n  x", "<|im_"]
TEXTS = st.one_of(st.text(max_size=50), st.lists(st.sampled_from(PIECES) | st.text(max_size=5)).map("".join))


@pytest.fixture(scope="module", params=["as released", "tokenizer.json"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Tokenizer, Any]:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tiny_checkpoint(folder, np.random.default_rng(3), tokenizer_json=request.param == "tokenizer.json")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    return Tokenizer.from_gguf(open_parts(folder)["thinker"].metadata), theirs


@settings(max_examples=500, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(text=TEXTS)
def test_any_text_gives_the_same_tokens(both, text):
    ours, theirs = both
    ids = theirs.encode(text, add_special_tokens=False)
    assert ours.encode(text) == ids
    for skip in (False, True):
        spelled = theirs.decode(ids, skip_special_tokens=skip, clean_up_tokenization_spaces=False)
        assert ours.decode(ids, skip_special=skip) == spelled


def test_prompts_are_the_same(both):
    ours, theirs = both
    messages = [{"role": "user", "content": "say hello"}, {"role": "assistant", "content": "hello"}]
    # The template is the processor's; the tokenizer alone does not look for it.
    text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, chat_template=CHAT_TEMPLATE)
    assert ChatTemplate(CHAT_TEMPLATE, ours).render(messages) == text
    assert ours.encode(text, add_special=True) == theirs.encode(text)
    assert ours.token_text(ours.eos_id) == theirs.eos_token


def test_prompts_of_the_script(scripted):
    golden = np.load(scripted / "reference" / "thinker_text.npz")
    tokenizer = Tokenizer.from_gguf(open_parts(scripted)["thinker"].metadata)
    assert tokenizer.encode(str(golden["prompt"]), add_special=True) == golden["input_ids"].reshape(-1).tolist()
