"""Media through the whole program: a spoken sentence down to the numbers (tests/goldens/media.npz has transformers'),
towers that come with their first use, and what a trace shows of them."""

import json

import numpy as np
import pytest
from hub_server import HubServer, Repo
from media_prompts import SPOKEN, picture
from PIL import Image
from reference.goldens import FOLDER
from safetensors.numpy import save_file
from tiny_checkpoint import write_json, write_tiny_checkpoint

from qwen3omni_wgpu import GenerationConfig, Omni

pytestmark = [pytest.mark.gpu]

# Of the largest logit: other orders of summation; 8e-7 was measured on a software adapter.
TOLERANCE = 1e-4


@pytest.fixture
def hub_with_shards(tmp_path, monkeypatch):
    """A stand-in hub with a tiny checkpoint whose parts lie in shards of their own; its repository id."""
    folder = tmp_path / "Tiny-Omni"
    stored = write_tiny_checkpoint(folder, np.random.default_rng())
    for path in folder.glob("model*"):
        path.unlink()
    shards = {"text": {}, "towers": {}, "speech": {}}
    for name, tensor in stored.items():
        tower = name.startswith(("thinker.audio_tower.", "thinker.visual."))
        shards["towers" if tower else "text" if name.startswith("thinker.") else "speech"][name] = tensor
    for shard, tensors in shards.items():
        save_file(tensors, folder / f"model-{shard}.safetensors")
    where = {name: f"model-{shard}.safetensors" for shard, tensors in shards.items() for name in tensors}
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": where})
    with HubServer() as server:
        server.repos["Qwen/Tiny-Omni"] = Repo({path.name: path.read_bytes() for path in folder.iterdir()})
        server.use(monkeypatch, tmp_path / "home")
        yield server


def test_towers_are_downloaded_when_they_are_first_needed(hub_with_shards, adapter):
    with Omni.from_pretrained("Qwen/Tiny-Omni", device=adapter, ctx_size=64) as omni:
        omni.generate("hello", config=GenerationConfig(max_tokens=2))
        assert "model-text.safetensors" in hub_with_shards.bodies()
        assert "model-towers.safetensors" not in hub_with_shards.bodies()
        assert omni.generate("hello", audio=[SPOKEN], config=GenerationConfig(max_tokens=2)).prompt_token_ids
        assert "model-towers.safetensors" in hub_with_shards.bodies()
        assert "model-speech.safetensors" not in hub_with_shards.bodies()


def test_the_trace_shows_the_towers(process, tmp_path):
    write_tiny_checkpoint(tmp_path / "Tiny-Omni", np.random.default_rng())
    Image.fromarray(picture(1, 64, 64)).save(tmp_path / "p.png")
    media = ("--audio", SPOKEN, "--image", tmp_path / "p.png")
    done = process(
        "generate", "-m", tmp_path / "Tiny-Omni", *media, "-p", "hello", "-n", 2, "--trace", tmp_path / "t.json"
    )
    assert done.status == 0, done.err
    names = [event["name"] for event in json.loads((tmp_path / "t.json").read_text())["traceEvents"]]
    for part in ("audio layers", "vision", "a.blk.0.", "v.blk.0.", "conv_columns", "window_attention", "prefill"):
        assert any(part in name for name in names), part


def test_a_spoken_sentence(process, tmp_path):
    with np.load(FOLDER / "media.npz") as data:
        golden = {key: data[key] for key in data.files if key.startswith("spoken_") or key == "recipe"}
    recipe = json.loads(str(golden["recipe"]))
    write_tiny_checkpoint(tmp_path / "Tiny-Omni", np.random.default_rng(recipe.pop("seed")), **recipe)
    asked = ("--audio", SPOKEN, "-p", "what is this", "--temp", "0", "-n", "16", "--ignore-eos", "--logprobs", "20")
    done = process(
        "generate", "-m", tmp_path / "Tiny-Omni", "--type", "f32", "--kv-type", "f32", "-c", "512", "--json", *asked
    )
    assert done.status == 0, done.err
    answer = json.loads(done.out)
    assert answer["prompt_token_ids"] == golden["spoken_ids"].tolist()
    assert answer["token_ids"] == golden["spoken_greedy"].tolist()
    assert answer["timings"]["media_s"] > 0
    for row, chosen in zip(golden["spoken_decoded"].astype(np.float64), answer["logprobs"], strict=True):
        norm = row.max() + np.log(np.exp(row - row.max()).sum())
        assert len(chosen["top_logprobs"]) == 20
        for top in chosen["top_logprobs"]:
            assert abs(top["logprob"] - (row[top["id"]] - norm)) < TOLERANCE * np.abs(row).max()
