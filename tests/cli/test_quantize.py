"""`qwen3omni quantize`: what it writes, how files are called, and what it refuses without leaving anything behind."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_checkpoint import write_tensors, write_tiny_checkpoint
from tiny_gguf import write_tiny

from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.formats.tensors import dequantize


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("quantize") / "Tiny-Omni"
    write_tiny_checkpoint(path, np.random.default_rng(), "index")
    return path


def data(path: Path) -> dict[str, tuple[str, bytes]]:
    """Type and bytes of every tensor."""
    raw = path.read_bytes()
    return {
        name: (info.type, raw[info.offset : info.offset + info.nbytes])
        for name, info in read_gguf(path).tensors.items()
    }


def test_the_three_files(command, folder, tmp_path):
    result = command("quantize", str(folder), str(tmp_path / "out"), "--type", "q8_0", "--json")
    document = json.loads(result.out)
    names = ["Tiny-Omni-Q8_0.gguf", "mmproj-Tiny-Omni-Q8_0.gguf", "talker-Tiny-Omni-Q8_0.gguf"]
    assert [Path(file["path"]).name for file in document["files"]] == names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == sorted(names)
    for file in document["files"]:
        assert file["bytes"] == Path(file["path"]).stat().st_size
        assert sum(file["types"].values()) == sum(i.nbytes for i in read_gguf(file["path"]).tensors.values())
    architectures = [read_gguf(file["path"]).metadata["general.architecture"] for file in document["files"]]
    assert architectures == ["qwen3vlmoe", "clip", "qwen3omni-talker"]
    assert read_gguf(document["files"][0]["path"]).metadata["general.file_type"] == 7
    assert "MB/s" in result.err


def test_dry_run_tells_sizes_and_reasons_and_writes_nothing(command, folder, tmp_path):
    out = tmp_path / "out"
    result = command("quantize", str(folder), str(out), "--dry-run")
    assert result.status == 0
    assert not out.exists()
    for words in ("routers: ", "degrade long speech", "talker-Tiny-Omni-Q8_0.gguf", "nothing was written"):
        assert words in result.out
    planned = json.loads(command("quantize", str(folder), str(out), "--dry-run", "--json").out)
    command("quantize", str(folder), str(out))
    for file in planned["files"]:
        assert Path(file["path"]).stat().st_size == file["bytes"]


def test_the_code_predictor_is_quantised_only_on_request(command, folder, tmp_path):
    for flags, kinds in (([], {"f16", "f32"}), (["--quantize-code-predictor"], {"q8_0", "f32"})):
        command("quantize", str(folder), str(tmp_path / "x.gguf"), "--parts", "talker", "--overwrite", *flags)
        tensors = read_gguf(tmp_path / "talker-x.gguf").tensors
        assert {info.type for name, info in tensors.items() if name.startswith("a.gen.code.")} == kinds


@pytest.mark.parametrize("between", ["f32", "bf16"])
def test_from_gguf_it_gives_the_same_tensors(command, folder, tmp_path, between):
    """Checkpoint -> Q8_0, and checkpoint -> float GGUF -> Q8_0: the stored weights are bfloat16, so nothing is lost."""
    command("quantize", str(folder), str(tmp_path / "direct"))
    command("quantize", str(folder), str(tmp_path / "between"), "--type", between)
    result = command("quantize", str(tmp_path / "between"), str(tmp_path / "twice"), "--json")
    assert len(json.loads(result.out)["files"]) == 3
    for path in (tmp_path / "direct").iterdir():
        twice = data(tmp_path / "twice" / path.name)
        for name, (type, raw) in data(path).items():
            # Where the float file had bfloat16 and this one keeps what it finds, values are equal but bytes are not.
            assert twice[name] == (type, raw), (path.name, name)
        assert read_gguf(tmp_path / "twice" / path.name).metadata == read_gguf(path).metadata


def test_a_plain_gguf(command, tmp_path):
    source = write_tiny(tmp_path / "plain-F32.gguf", arch="qwen3", type="f32")
    result = command("quantize", str(source), str(tmp_path / "out"))
    assert result.status == 0, result.err
    written = read_gguf(tmp_path / "out" / "plain-Q8_0.gguf")
    before = read_gguf(source)
    assert written.metadata == before.metadata | {"general.file_type": 7}
    assert {name: info.shape for name, info in written.tensors.items()} == {
        name: info.shape for name, info in before.tensors.items()
    }
    for name, info in written.tensors.items():
        largest = np.abs(dequantize(before.tensors[name])).max()
        assert np.abs(dequantize(info) - dequantize(before.tensors[name])).max() <= largest / 127


def test_quantised_weights_are_quantised_again_only_on_request(command, tmp_path):
    source = write_tiny(tmp_path / "plain.gguf", arch="qwen3", type="q8_0")
    arguments = ("quantize", str(source), str(tmp_path / "out"), "--type", "f16")
    command(*arguments).failed_with("is q8_0 already", "--allow-requantize")
    assert command(*arguments, "--allow-requantize").status == 0
    command("quantize", str(source), str(tmp_path / "same"))
    assert data(tmp_path / "same/plain-Q8_0.gguf") == data(source)


def test_existing_files_are_kept(command, folder, tmp_path):
    target = tmp_path / "x.gguf"
    target.write_bytes(b"mine")
    arguments = ("quantize", str(folder), str(target), "--parts", "thinker")
    command(*arguments).failed_with("x.gguf", "--overwrite")
    assert target.read_bytes() == b"mine"
    command(*arguments, "--overwrite", "--resume").failed_with("--resume", "--overwrite")
    assert command(*arguments, "--overwrite").status == 0
    assert read_gguf(target).tensors
    done = target.stat()
    assert command(*arguments, "--resume").status == 0  # complete already
    assert target.stat().st_mtime_ns == done.st_mtime_ns


def test_a_complete_file_of_something_else_is_not_taken_for_this(command, folder, tmp_path):
    """--resume skips what is complete, but only if it is what this command would write."""
    command("quantize", str(folder), str(tmp_path / "x.gguf"), "--parts", "thinker", "--type", "f16")
    arguments = ("quantize", str(folder), str(tmp_path / "x.gguf"), "--parts", "thinker")
    command(*arguments, "--type", "bf16", "--resume").failed_with("x.gguf", "--overwrite")


def broken(folder: Path, tmp_path: Path, change) -> Path:
    """A copy with changed tensors."""
    tensors = {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}
    change(tensors)
    copy = tmp_path / "Broken"
    copy.mkdir()
    for path in folder.iterdir():
        if "safetensors" not in path.name:
            (copy / path.name).write_bytes(path.read_bytes())
    write_tensors(copy, tensors, "index")
    return copy


ROUTER = "thinker.model.layers.1.mlp.gate.weight"
UP = "thinker.model.layers.1.mlp.experts.3.up_proj.weight"


def poison(tensors, value):
    tensors[UP] = tensors[UP].astype(np.float32)
    tensors[UP].flat[-1] = value


@pytest.mark.parametrize(("change", "words"), [
    (lambda t: t.pop(UP), (UP, "is missing")),
    (lambda t: t.update({ROUTER: t[ROUTER][:, :-1].copy()}), (ROUTER, "[4, 63]", "[4, 64]", "config.json")),
    (lambda t: t.update({"thinker.model.extra.weight": t[ROUTER]}), ("thinker.model.extra.weight", "does not know")),
    (lambda t: poison(t, np.nan), (UP, "NaN")),
    (lambda t: poison(t, np.inf), (UP, "infinity")),
])  # fmt: skip
def test_damaged_checkpoints(command, folder, tmp_path, change, words):
    copy = broken(folder, tmp_path, change)
    out = tmp_path / "out"
    command("quantize", str(copy), str(out)).failed_with("Broken", *words)
    assert not list(out.glob("*.gguf"))


def test_a_tensor_twice(command, folder, tmp_path):
    copy = broken(folder, tmp_path, lambda tensors: None)
    shards = sorted(copy.glob("*.safetensors"))
    first = load_file(shards[0])
    name = next(iter(first))
    save_file({name: first[name], **load_file(shards[1])}, shards[1])
    (copy / "model.safetensors.index.json").unlink()
    command("quantize", str(copy), str(tmp_path / "out")).failed_with(name, shards[0].name, shards[1].name)


def test_a_checkpoint_whose_talker_was_not_downloaded(command, folder, tmp_path):
    """All means all; what is here can be asked for by name."""
    tensors = {name: array for path in folder.glob("*.safetensors") for name, array in load_file(path).items()}
    copy = broken(folder, tmp_path, lambda changed: [changed.pop(name) for name in tensors if name[:2] in ("ta", "co")])
    index = json.loads((copy / "model.safetensors.index.json").read_text())
    index["weight_map"] |= {name: "model-00004-of-00004.safetensors" for name in tensors if name[:2] in ("ta", "co")}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    command("quantize", str(copy), str(tmp_path / "out")).failed_with("model-00004-of-00004", "is missing, and")
    assert command("quantize", str(copy), str(tmp_path / "out"), "--parts", "thinker,mmproj").status == 0
    report = json.loads(command("inspect", str(copy), "--json").out)
    assert list(report["parts"]) == ["thinker", "mmproj"]
    assert "model-00004-of-00004" in report["absent_parts"]["talker"]
    assert "speech out" not in report["memory"]


def test_usage(command, folder, tmp_path):
    out = str(tmp_path / "out")
    command("quantize", str(folder), out, "--type", "q3_k").failed_with("q3_k", "q8_0")
    command("quantize", str(folder), out, "--parts", "voice").failed_with("voice", "talker")
    command("quantize", str(tmp_path / "none"), out).failed_with("none")
    command("quantize", str(folder)).failed_with("OUT")
    (tmp_path / "file").write_bytes(b"")
    command("quantize", str(folder), str(tmp_path / "file" / "out")).failed_with("file")
