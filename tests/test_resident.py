"""Parts of a model come to the device with their first use, and go when they are released."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_json, write_tiny_checkpoint

from qwen3omni_wgpu import GenerationConfig, InvalidRequest, ModelNotFound, Omni, UnsupportedModel
from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.formats.gguf_writer import write_gguf

pytestmark = pytest.mark.gpu
SHORT = GenerationConfig(max_tokens=4, temperature=0, ignore_eos=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("resident") / "Tiny-Omni"
    write_tiny_checkpoint(path, np.random.default_rng(), "single")
    return path


@pytest.fixture
def omni(folder, adapter):
    with Omni.from_pretrained(folder, device=adapter, ctx_size=64) as opened:
        yield opened


def test_text_loads_the_thinker_only(omni, folder):
    assert omni.parts == ("thinker", "mmproj", "talker")
    omni.generate("hello", config=SHORT)
    assert omni.loaded == ("thinker",)
    others = sum(info.nbytes for part in ("mmproj", "talker") for info in open_parts(folder)[part].tensors.values())
    before = omni.device.allocated
    omni.load("talker")
    omni.load("mmproj")
    assert omni.loaded == ("thinker", "mmproj", "talker")
    assert omni.device.allocated - before > 0.9 * others  # and buffers to run them with
    omni.load("talker")  # it is there already
    omni.release("talker")
    omni.release("mmproj")
    assert (omni.loaded, omni.device.allocated) == (("thinker",), before)


def test_a_released_thinker_comes_back_with_its_next_use(omni):
    before = omni.generate("hello", config=SHORT)
    full = omni.device.allocated
    omni.release("thinker")
    omni.release("thinker")
    assert omni.loaded == ()
    assert omni.device.allocated < full / 10  # what the device keeps for itself, such as the state of plans without one
    again = omni.generate("hello", config=SHORT)
    assert (again.token_ids, omni.loaded) == (before.token_ids, ("thinker",))
    assert again.timings["cached_n"] == 0
    assert omni.device.allocated == pytest.approx(full, rel=0.01)


def test_a_part_in_use_stays(omni):
    stream = omni.stream("hello", config=SHORT)
    next(stream)
    with pytest.raises(InvalidRequest, match="still being written"):
        omni.release("thinker")
    stream.close()
    omni.release("thinker")


def test_parts_that_are_not_there(omni, folder, tmp_path, adapter):
    with pytest.raises(ModelNotFound, match=r"no voice part \(it has: thinker, mmproj, talker\)"):
        omni.load("voice")
    write_gguf(tmp_path / "alone.gguf", open_parts(folder)["thinker"])
    with Omni.from_pretrained(tmp_path / "alone.gguf", device=adapter, ctx_size=64) as alone:
        assert alone.parts == ("thinker",)
        with pytest.raises(
            ModelNotFound, match=r"no talker part \(it has: thinker\); put talker-NAME-TYPE.gguf beside"
        ):
            alone.load("talker")
    omni.close()
    with pytest.raises(InvalidRequest, match="closed"):
        omni.load("talker")


def test_text_runs_without_the_other_parts_shards(folder, tmp_path, adapter):
    """As `pull --text-only` leaves a checkpoint."""
    stored = load_file(folder / "model.safetensors")
    text = [name for name in stored if name.startswith(("thinker.model.", "thinker.lm_head."))]
    for path in folder.iterdir():
        if path.suffix == ".json" or path.name == "merges.txt":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    save_file({name: stored[name] for name in text}, tmp_path / "model-00001-of-00002.safetensors")
    where = {name: f"model-0000{1 if name in text else 2}-of-00002.safetensors" for name in stored}
    write_json(tmp_path / "model.safetensors.index.json", {"weight_map": where})
    with Omni.from_pretrained(tmp_path, device=adapter, ctx_size=64) as omni:
        assert omni.parts == ("thinker",)
        assert omni.generate("hello", config=SHORT).token_ids
        for part in ("mmproj", "talker"):
            with pytest.raises(ModelNotFound, match=r"model-00002-of-00002\.safetensors: is missing, and holds tensor"):
                omni.load(part)


def test_a_tokenizer_of_another_kind_may_be_given_as_a_file(tmp_path, adapter):
    """GGUF metadata cannot describe every pre-tokenizer; the model's own tokenizer.json can."""
    write_tiny_checkpoint(tmp_path, np.random.default_rng(), "single", tokenizer_json=True)
    path = tmp_path / "tokenizer.json"
    description = json.loads(path.read_text())
    description["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": r"\p{L}+|\p{N}{4}|\s+|."}
    write_json(path, description)
    with pytest.raises(UnsupportedModel, match="--tokenizer-file"):
        Omni.from_pretrained(tmp_path, device=adapter, ctx_size=64)
    with Omni.from_pretrained(tmp_path, device=adapter, ctx_size=64, tokenizer_file=path) as omni:
        assert omni.generate("hello", config=SHORT).token_ids  # through the folder's chat template


def test_broken_parts_that_nobody_uses_do_no_harm(folder, tmp_path, adapter):
    for part, file in open_parts(folder).items():
        prefix = "" if part == "thinker" else f"{part}-"
        write_gguf(tmp_path / f"{prefix}tiny-Q8_0.gguf", file)
    (tmp_path / "talker-tiny-Q8_0.gguf").write_bytes(b"GGUF, but not really")
    with Omni.from_pretrained(tmp_path, device=adapter, ctx_size=64) as omni:
        assert omni.generate("hello", config=SHORT).token_ids
        omni.load("mmproj")
        with pytest.raises(Exception, match=r"talker-tiny-Q8_0\.gguf") as caught:
            omni.load("talker")
        assert type(caught.value).__name__ == "InvalidModelFile"
        assert omni.loaded == ("thinker", "mmproj")
