"""Checkpoint folders: all layouts give the same tensors; what is missing, double or elsewhere is named in one line."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats.checkpoints import INDEX, pack, some_tensors, sound, write_checkpoint

from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.checkpoint import is_checkpoint, missing_shard, read_checkpoint, read_json
from qwen3omni_wgpu.formats.tensors import dequantize

ONE, TWO, THREE = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture
def tensors() -> dict[str, np.ndarray]:
    return some_tensors(np.random.default_rng(), 9)


def refused(error: type[OmniError], path: Path, *words: str, read: Callable[[Path], object] = read_checkpoint) -> None:
    """Reading the folder of `path`, or `path` itself, fails in one line that begins with `path`."""
    folder = path if path.is_dir() or read is read_json else path.parent
    with pytest.raises(OmniError) as caught:
        read(folder)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{path}: "), message
    assert message.isprintable()
    assert len(message) < 300 + 2 * len(str(folder))
    for word in words:
        assert word in message, message


def change_index(folder: Path, **placed: object) -> None:
    """Change the place of tensors in the index; None removes one."""
    index = json.loads((folder / INDEX).read_text())
    index["weight_map"] = {name: at for name, at in (index["weight_map"] | placed).items() if at is not None}
    (folder / INDEX).write_text(json.dumps(index))


# --- sound folders


@pytest.mark.parametrize("layout", ["index", "numbered", "single"])
def test_layouts(tmp_path: Path, tensors: dict[str, np.ndarray], layout: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, layout, config={"model_type": "x", "sizes": [1, 2]})
    assert is_checkpoint(str(folder))
    checkpoint = read_checkpoint(str(folder))
    assert checkpoint.folder == folder
    assert checkpoint.config == {"model_type": "x", "sizes": [1, 2]}
    assert set(checkpoint.tensors) == set(tensors)
    for name, info in checkpoint.tensors.items():
        assert (info.name, info.path.parent) == (name, folder)
        np.testing.assert_array_equal(dequantize(info), tensors[name].astype(np.float32), strict=True)


def test_through_the_links_of_the_hubs_cache(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "blobs", tensors)
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    for number, path in enumerate(sorted(folder.iterdir())):
        blob = path.rename(folder / f"{number:040x}")
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    assert set(read_checkpoint(snapshot).tensors) == set(tensors)
    assert is_checkpoint(snapshot)


def test_another_config(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    (folder / "config.json").unlink()
    refused(ModelNotFound, folder, "has no config.json", "--config")
    (tmp_path / "other.json").write_text('{"a": 1}')
    assert read_checkpoint(folder, tmp_path / "other.json").config == {"a": 1}
    with pytest.raises(ModelNotFound, match=r"none\.json: No such file"):
        read_checkpoint(folder, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("name", "shards"),
    [
        ("model.fp16.safetensors", 1),
        ("consolidated.safetensors", 1),
        ("00001-of-00001.safetensors", 1),
        ("model_1-of-2.safetensors model_2-of-2.safetensors", 2),
        ("thinker-00002-of-00002.safetensors thinker-00001-of-00002.safetensors", 2),
    ],
)
def test_other_names(tmp_path: Path, tensors: dict[str, np.ndarray], name: str, shards: int) -> None:
    """One file of any name, or one sequence: there is nothing to mix up."""
    (tmp_path / "config.json").write_text("{}")
    for number, file in enumerate(name.split()):
        part = {name: tensors[name] for name in list(tensors)[number::shards]}
        (tmp_path / file).write_bytes(sound(part))
    assert set(read_checkpoint(tmp_path).tensors) == set(tensors)


def test_files_beside_the_model_are_left_alone(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    for layout in ("index", "numbered", "single"):
        folder = write_checkpoint(tmp_path / layout, tensors, layout)
        for name in ("consolidated.safetensors", "._model.safetensors", ".hidden.safetensors.index.json", "a.bin"):
            (folder / name).write_bytes(b"anything")
        os.mkfifo(folder / "fifo")
        assert set(read_checkpoint(folder).tensors) == set(tensors)
    with_index = tmp_path / "index"
    (with_index / "model-00001-of-00009.safetensors").write_bytes(b"of a former download")
    (with_index / "other.safetensors.index.json").write_bytes(b"{")
    assert set(read_checkpoint(with_index).tensors) == set(tensors)


def test_a_name_that_no_message_can_show_is_left_alone(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "one.safetensors").write_bytes(sound(tensors))
    (tmp_path / "a\nb.safetensors").write_bytes(sound(tensors))
    assert set(read_checkpoint(tmp_path).tensors) == set(tensors)


def test_tensors_beyond_the_index_are_left_alone(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    extra = next(iter(tensors))
    change_index(folder, **{extra: None})
    assert set(read_checkpoint(folder).tensors) == set(tensors) - {extra}


def test_the_index_may_name_the_single_file(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, "single")
    (folder / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "model.safetensors")}))
    assert set(read_checkpoint(folder).tensors) == set(tensors)


def test_an_index_of_another_name(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    (folder / INDEX).rename(folder / "model.fp16.safetensors.index.json")
    assert set(read_checkpoint(folder).tensors) == set(tensors)
    (folder / "a.safetensors.index.json").write_text("{}")
    refused(InvalidModelFile, folder, "several indexes (a.safetensors.index.json, model.fp16.safetensors.index.json)")


@pytest.mark.parametrize(
    ("files", "answer"),
    [
        ("", False),
        ("readme.md", False),
        ("a.gguf", False),
        ("a.gguf config.json", False),  # a GGUF with Hugging Face names, which needs the config.json beside it
        ("config.json", True),
        ("model.safetensors", True),
        ("a.gguf model.safetensors", True),
        (INDEX, True),
        ("pytorch_model.bin", True),
        (".hidden.safetensors", False),
    ],
)
def test_is_checkpoint(tmp_path: Path, files: str, answer: bool) -> None:
    for name in files.split():
        (tmp_path / name).touch()
    assert is_checkpoint(tmp_path) is answer


def test_what_is_no_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    for path in (tmp_path / "model.safetensors", tmp_path / "none", "a\0b", "x" * 5000):
        assert is_checkpoint(path) is False


# --- folders without a model


def test_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "none", tmp_path / "file"):
        with pytest.raises(ModelNotFound, match=f"^{path}: (No such file|Not a directory).*; name the folder"):
            read_checkpoint(path)
    with pytest.raises(ModelNotFound):
        read_checkpoint("a\0b")


def test_empty_folder(tmp_path: Path) -> None:
    refused(ModelNotFound, tmp_path, "holds no .safetensors files; run `hf download")


def test_pickles_only(tmp_path: Path) -> None:
    for name in ("pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin", "training_args.bin"):
        (tmp_path / name).touch()
    files = "(pytorch_model-00001-of-00002.bin, pytorch_model-00002-of-00002.bin)"
    refused(UnsupportedModel, tmp_path, "only PyTorch files", files, "get the model as safetensors")


def test_no_tensors(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(pack({}))
    refused(InvalidModelFile, tmp_path, "hold no tensors")


# --- what is missing


def test_a_shard_of_the_index_is_missing(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    """Its tensors are absent and may not be needed; without any shard there is nothing to read."""
    folder = write_checkpoint(tmp_path / "model", tensors)
    placed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    (folder / TWO).unlink()
    found = read_checkpoint(folder)
    assert found.absent == {name: folder / TWO for name, shard in placed.items() if shard == TWO} != {}
    assert sorted([*found.tensors, *found.absent]) == sorted(placed)
    error = str(missing_shard(folder / TWO, next(iter(found.absent))))
    assert error.startswith(f"{folder / TWO}: is missing, and holds tensor ")
    assert "`hf download REPO --local-dir" in error
    (folder / ONE).unlink()
    (folder / THREE).unlink()
    refused(ModelNotFound, folder / ONE, "is missing, with all 3 shards", "`hf download REPO --local-dir")


@pytest.mark.parametrize("layout", ["index", "numbered"])
def test_a_shard_whose_link_leads_nowhere(tmp_path: Path, tensors: dict[str, np.ndarray], layout: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, layout)
    (folder / TWO).unlink()
    (folder / TWO).symlink_to("../blobs/0123")
    refused(ModelNotFound, folder / TWO, "is a link to a file that is missing; download")


@pytest.mark.parametrize("missing", [[ONE], [TWO], [THREE], [ONE, THREE]])
def test_a_number_is_missing(tmp_path: Path, tensors: dict[str, np.ndarray], missing: list[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, "numbered")
    for name in missing:
        (folder / name).unlink()
    refused(ModelNotFound, folder / missing[0], f"is missing ({len(missing)} of 3 shards are)", "`hf download")


def test_a_tensor_is_not_where_the_index_says(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    change_index(folder, extra=THREE)
    refused(InvalidModelFile, folder / THREE, f"{INDEX} says that it holds tensor 'extra';")
    name = next(iter(tensors))  # in the first shard
    change_index(folder, extra=None, **{name: THREE})
    refused(InvalidModelFile, folder / THREE, f"says that it holds tensor '{name}', it is in {ONE}")


# --- what is double


@pytest.mark.parametrize("layout", ["index", "numbered"])
def test_a_tensor_in_two_shards(tmp_path: Path, tensors: dict[str, np.ndarray], layout: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, layout)
    name = next(iter(tensors))
    third = {name: tensors[name] for name in list(tensors)[2::3]}
    (folder / THREE).write_bytes(sound({**third, name: tensors[name]}))
    refused(InvalidModelFile, folder / THREE, f"tensor '{name}' is also in {ONE}")


def test_single_file_beside_an_index_for_others(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    """transformers would take the single file: which one is meant cannot be known."""
    folder = write_checkpoint(tmp_path / "model", tensors)
    (folder / "model.safetensors").write_bytes(sound(tensors))
    refused(InvalidModelFile, folder, f"has both model.safetensors and {INDEX}", "remove one")


@pytest.mark.parametrize(
    "others",
    [
        ["model.safetensors"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["talker-00001-of-00003.safetensors"],
        ["model-1-of-3.safetensors"],
    ],
)
def test_two_sets_without_an_index(tmp_path: Path, tensors: dict[str, np.ndarray], others: list[str]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, "numbered")
    for other in others:
        (folder / other).write_bytes(sound(tensors))
    refused(InvalidModelFile, folder, "holds several models (", others[0], ONE, "move all but one")


def test_two_files_of_other_names(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    for name in "abcdef":
        (tmp_path / f"{name}.safetensors").write_bytes(sound(tensors))
    refused(InvalidModelFile, tmp_path, "several models (a.safetensors, b", "d.safetensors and 2 more)", INDEX)


@pytest.mark.parametrize(
    ("names", "blamed"),
    [
        (["model-00004-of-00003.safetensors"], 0),
        (["model-00000-of-00003.safetensors"], 0),
        (["model-00001-of-00000.safetensors"], 0),
        (["model-1-of-2.safetensors", "model-01-of-2.safetensors", "model-2-of-2.safetensors"], 0),
    ],
)
def test_numbers_out_of_sequence(tmp_path: Path, tensors: dict[str, np.ndarray], names: list[str], blamed: int) -> None:
    for name in names:
        (tmp_path / name).write_bytes(sound(tensors))
    refused(InvalidModelFile, tmp_path / names[blamed], "is no part of a sequence")


def test_a_huge_total_is_counted_quickly(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    (tmp_path / "model-000000001-of-999999999.safetensors").write_bytes(sound(tensors))
    refused(ModelNotFound, tmp_path / "model-000000002-of-999999999.safetensors", "(999999998 of 999999999 shards")


# --- damaged files in the folder


@pytest.mark.parametrize("layout", ["index", "numbered", "single"])
def test_a_damaged_shard(tmp_path: Path, tensors: dict[str, np.ndarray], layout: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors, layout)
    shard = folder / ("model.safetensors" if layout == "single" else TWO)
    os.truncate(shard, shard.stat().st_size - 1)
    refused(InvalidModelFile, shard, "truncated: tensor 'model.layers.")
    shard.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    refused(InvalidModelFile, shard, "Git LFS pointer")


def test_an_unreadable_shard(tmp_path: Path, tensors: dict[str, np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    real = Path.open

    def deny(path: Path, *rest: str) -> object:
        if path.name == TWO:
            raise PermissionError(13, "Permission denied")
        return real(path, *rest)

    monkeypatch.setattr(Path, "open", deny)  # not chmod: tests may run as root
    refused(InvalidModelFile, folder / TWO, "cannot be read (Permission denied); check its permissions")


def test_an_unreadable_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "listdir", deny)
    assert is_checkpoint(tmp_path) is False
    refused(ModelNotFound, tmp_path, "Permission denied")


@pytest.mark.parametrize(
    ("shard", "words"),
    [
        ("../x.safetensors", "shall be in '../x.safetensors', which is not a file of this folder"),
        ("/etc/x.safetensors", "not a file of this folder"),
        ("sub/x.safetensors", "not a file of this folder"),
        ("..\\x.safetensors", "not a file of this folder"),
        (".safetensors", "not a file of this folder"),
        ("", "not a file of this folder"),
        ("a\nb.safetensors", r"'a\nb.safetensors', which is not"),
        ("a\0.safetensors", "not a file of this folder"),
        ("x" * 9999 + ".safetensors", "xxx...', which is not a file of this folder"),
        ("\ud800.safetensors", r"'\ud800.safetensors', which is not"),
        (1, "a JSON int, which is no file name"),
        (["a.safetensors"], "a JSON list"),
        ({}, "a JSON dict"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else None,
)
def test_an_index_that_leads_elsewhere(
    tmp_path: Path, tensors: dict[str, np.ndarray], shard: object, words: str
) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    (tmp_path / "x.safetensors").write_bytes(sound({"extra": np.zeros(1, np.float32)}))
    (folder / "sub").mkdir()
    (folder / "sub" / "x.safetensors").write_bytes(sound({"extra": np.zeros(1, np.float32)}))
    change_index(folder, extra=shard)
    refused(InvalidModelFile, folder / INDEX, "tensor 'extra' shall be in", words)


def test_an_index_of_other_files(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    change_index(folder, extra="pytorch_model.bin")
    refused(UnsupportedModel, folder / INDEX, "'pytorch_model.bin', only safetensors are read")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"{", "not valid JSON"),
        (b"[]", "is a JSON list, it must be an object"),
        (b"{}", "has no table weight_map"),
        (b'{"weight_map": {}}', "has no table weight_map"),
        (b'{"weight_map": ["a"]}', "has no table weight_map"),
        (b'{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "has the key 'a' twice"),
        (b'{"weight_map": ' + b" " * (8 << 20) + b"{}}", "is larger than 8 MiB"),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_a_damaged_index(tmp_path: Path, tensors: dict[str, np.ndarray], content: bytes, words: str) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    (folder / INDEX).write_bytes(content)
    refused(InvalidModelFile, folder / INDEX, words)


def test_damaged_config(tmp_path: Path, tensors: dict[str, np.ndarray]) -> None:
    folder = write_checkpoint(tmp_path / "model", tensors)
    (folder / "config.json").write_text("{]")
    refused(InvalidModelFile, folder / "config.json", "not valid JSON (Expecting property name")
    (folder / "config.json").write_text("{}" + " " * (8 << 20))
    refused(InvalidModelFile, folder / "config.json", "is larger than 8 MiB")


# --- read_json


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'"text"', "is a JSON str"),
        (b"null", "is a JSON NoneType"),
        (b"version https://git-lfs.github.com/spec/v1\n", "is not a JSON file: it is a Git LFS pointer"),
        (b"<html>", "is not a JSON file: it looks like a web page"),
        (b'{"a": 1,}', "line 1, column 9"),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7"),
        (b'\xef\xbb\xbf{"a": 1}', "not valid JSON"),
        (b'{"a":' * 10**5, "nested too deeply"),
        (b'{"a":' + b"1" * 5000 + b"}", "thousands of digits"),
        (b'{"a": 1, "b": {"c": 1, "d": 2, "c": 3}}', "has the key 'c' twice"),
        (b"{" + b",".join(b'"%d":0' % i for i in range(10**5)) + b',"99999":0}', "has the key '99999' twice"),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_json_that_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.json"
    path.write_bytes(content)
    refused(InvalidModelFile, path, words, read=read_json)


def test_json_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(' \n{"a": [1, 0.5, true, null, "ä"], "b": {"c": Infinity}}\n', "utf-8")
    assert read_json(str(path)) == {"a": [1, 0.5, True, None, "ä"], "b": {"c": float("inf")}}
    with pytest.raises(InvalidModelFile, match="is larger than 0 MiB"):
        read_json(path, 10)


def test_json_that_cannot_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "a.json"
    path.write_text("{}")
    monkeypatch.setattr(Path, "open", deny)
    refused(InvalidModelFile, path, "cannot be read (Permission denied); check its permissions", read=read_json)


def test_json_files_that_are_none(tmp_path: Path) -> None:
    refused(ModelNotFound, tmp_path / "none.json", "No such file", read=read_json)
    refused(InvalidModelFile, tmp_path, "is a folder, not a JSON file", read=read_json)
    os.mkfifo(tmp_path / "fifo")
    refused(InvalidModelFile, tmp_path / "fifo", "not a regular file", read=read_json)
    path = tmp_path / "big.json"
    path.write_text("{")
    os.truncate(path, (32 << 20) + 1)
    refused(InvalidModelFile, path, "is larger than 32 MiB", read=read_json)
