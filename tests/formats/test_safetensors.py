"""Reading safetensors headers: sound files exactly, anything else with one helpful line."""

import json
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from formats.checkpoints import entry, pack, some_tensors, sound
from safetensors import safe_open
from safetensors.numpy import save_file

from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.safetensors import read_safetensors
from qwen3omni_wgpu.formats.tensors import TensorInfo, dequantize

A = entry([2], 0, 8)
EIGHT = bytes(8)


def refused(path: Path, error: type[OmniError], *words: str) -> None:
    """Refused in one line that names the file, says what is wrong and, after the semicolon, what to do."""
    with pytest.raises(OmniError) as caught:
        read_safetensors(path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{path}: ")
    assert ";" in message or ":" in message.removeprefix(f"{path}: ")
    assert message.isprintable()
    assert len(message) < 300 + len(str(path))
    for word in words:
        assert word in message, message


def write(folder: Path, content: bytes) -> Path:
    path = folder / "bad.safetensors"
    path.write_bytes(content)
    return path


# --- sound files


def test_equals_the_librarys_reading(tmp_path: Path) -> None:
    tensors = some_tensors(np.random.default_rng(), 12)
    path = tmp_path / "a.safetensors"
    path.write_bytes(sound(tensors, {"format": "pt"}, padding=5))
    ours = read_safetensors(str(path))
    assert list(ours) == list(tensors)
    with safe_open(path, "numpy") as theirs:
        assert set(ours) == set(theirs.keys())
        for name, info in ours.items():
            part = theirs.get_slice(name)
            assert (list(info.shape), info.type.upper()) == (part.get_shape(), part.get_dtype())
    for name, values in tensors.items():
        info = ours[name]
        assert info == TensorInfo(name, values.shape, info.type, path, info.offset, values.nbytes)
        assert path.read_bytes()[info.offset : info.offset + info.nbytes] == values.tobytes()
        np.testing.assert_array_equal(dequantize(info), values.astype(np.float32), strict=True)


def test_a_file_of_the_librarys_writer(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    tensors = {
        name: rng.standard_normal((3, 7)).astype(dtype) for name, dtype in (("z", "f4"), ("b", "f2"), ("m", "f4"))
    }
    save_file(tensors, tmp_path / "a.safetensors", {"format": "np"})
    ours = read_safetensors(tmp_path / "a.safetensors")
    assert {name: dequantize(info).tolist() for name, info in ours.items()} == {
        name: values.astype("f4").tolist() for name, values in tensors.items()
    }


@pytest.mark.parametrize(
    ("content", "shapes"),
    [
        (pack({}), {}),
        (pack({"__metadata__": {"a": "b"}}), {}),
        (pack({"__metadata__": None}), {}),
        (pack(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}} \n \t', EIGHT), {"a": (2,)}),
        (pack({"a": {**A, "more": [1, {}]}}, EIGHT), {"a": (2,)}),  # fields of a later version of the format
        (pack({"ä €\n": A}, EIGHT), {"ä €\n": (2,)}),
        (pack({"": A}, EIGHT), {"": (2,)}),
        (pack({"a": entry([], 0, 4)}, bytes(4)), {"a": ()}),  # a scalar
        (pack({"a": entry([1] * 8, 0, 4)}, bytes(4)), {"a": (1,) * 8}),
        (pack({"b": entry([2], 4, 8, "F16"), "a": entry([1], 0, 4)}, EIGHT), {"b": (2,), "a": (1,)}),
    ],
)
def test_unusual_but_sound(tmp_path: Path, content: bytes, shapes: dict[str, tuple[int, ...]]) -> None:
    infos = read_safetensors(write(tmp_path, content))
    assert {name: info.shape for name, info in infos.items()} == shapes
    for info in infos.values():
        assert dequantize(info).shape == info.shape


def test_only_the_header_is_read(tmp_path: Path) -> None:
    """6 GB of data that are not on the disk."""
    content = pack({"a": entry([2**20, 1536], 0, 2**20 * 6144), "b": entry([4], 2**20 * 6144, 2**20 * 6144 + 16)})
    path = write(tmp_path, content)
    os.truncate(path, len(content) + 2**20 * 6144)
    with path.open("ab") as file:
        file.write(np.arange(4, dtype="<f4").tobytes())
    assert dequantize(read_safetensors(path)["b"]).tolist() == [0, 1, 2, 3]


def test_a_link_is_followed(tmp_path: Path) -> None:
    """The hub's cache keeps files under their hashes and links to them."""
    path = write(tmp_path, pack({"a": A}, EIGHT))
    (tmp_path / "link.safetensors").symlink_to(path)
    assert read_safetensors(tmp_path / "link.safetensors")["a"].path == tmp_path / "link.safetensors"


# --- what is not a readable file


def test_missing_file_and_odd_paths(tmp_path: Path) -> None:
    refused(tmp_path / "none.safetensors", ModelNotFound, "No such file", "check the path")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "below", ModelNotFound)
    refused(tmp_path / ("x" * 300), ModelNotFound)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", ModelNotFound, "symbolic links")
    (tmp_path / "nowhere").symlink_to(tmp_path / "blobs" / "abc")
    refused(tmp_path / "nowhere", ModelNotFound, "is a link to a file that is missing; download")
    with pytest.raises(ModelNotFound):
        read_safetensors("a\0b")


def test_folder_fifo_socket_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, InvalidModelFile, "is a folder, not a safetensors file; name the .safetensors file in it")
    os.mkfifo(tmp_path / "fifo")
    refused(tmp_path / "fifo", InvalidModelFile, "not a regular file")
    refused(Path("/dev/zero"), InvalidModelFile, "not a regular file")
    monkeypatch.chdir(tmp_path)  # a socket's path must be short
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        refused(Path("socket"), InvalidModelFile, "not a regular file")


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = write(tmp_path, pack({"a": A}, EIGHT))
    monkeypatch.setattr(Path, "open", deny)  # not chmod: tests may run as root
    refused(path, InvalidModelFile, "cannot be read (Permission denied)", "check its permissions")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"\2", "truncated: the file has only 1 bytes"),
        (pack(b""), "truncated: the file has only 8 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"GGUF\3\0\0\0" + bytes(60), "it is a GGUF file"),
        (b"PK\3\4" + bytes(60), "zip archive"),
        (b"\x80\2\x8a\nl\xfc\x9cF\xf9 j", "Python pickle"),
        (bytes(100), "is not a safetensors file (it starts with b'\\x00"),
        (pack(b' {"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}', EIGHT), "is not a safetensors file"),
        (pack(b"[]"), "is not a safetensors file"),
        (pack(b'\xef\xbb\xbf{"a":1}'), "is not a safetensors file"),
    ],
)
def test_not_safetensors(tmp_path: Path, content: bytes, words: str) -> None:
    refused(write(tmp_path, content), InvalidModelFile, words)


@pytest.mark.parametrize(
    "dtype", ["I64", "F64", "F8_E4M3", "BOOL", "U8", "F4", "f32", "", "Q" * 500, 1, None, ["F32"], {}]
)
def test_unsupported_type(tmp_path: Path, dtype: object) -> None:
    path = write(tmp_path, pack({"good": A, "bad": entry([2], 8, 16, dtype)}, bytes(16)))
    told = "a dict" if dtype == {} else repr(dtype)[:70]
    refused(path, UnsupportedModel, "tensor 'bad' has type " + told, "supported are F32 F16 BF16; get the model")


# --- headers that lie


@pytest.mark.parametrize("length", [10**6, 2**32, 2**63 - 8, 2**63, 2**64 - 8, 2**64 - 1])
def test_header_longer_than_the_file(tmp_path: Path, length: int) -> None:
    path = write(tmp_path, pack({"a": A}, EIGHT, length))
    refused(path, InvalidModelFile, f"the header goes on to byte {8 + length}, the file has 70")


def test_header_may_not_grow_without_bound(tmp_path: Path) -> None:
    path = write(tmp_path, pack({"a": A}, EIGHT, (8 << 20) + 1))
    os.truncate(path, 20 << 30)
    refused(path, InvalidModelFile, "the header has 8388609 bytes, at most 8 MiB are read")
    content = pack(b'{"__metadata__":{}' + b" " * ((8 << 20) - 19) + b"}")
    assert read_safetensors(write(tmp_path, content)) == {}


def nested(depth: int) -> bytes:
    return b'{"a":{"dtype":"F32","shape":' + b"[" * depth + b"]" * depth + b',"data_offsets":[0,8]}}'


@pytest.mark.parametrize(
    ("header", "words"),
    [
        (b'{"a":', "the header is not valid JSON (Expecting value, line 1, column 6)"),
        (b'{"a":1}x', "not valid JSON (Extra data"),
        (b'{"a":1}\0', "not valid JSON (Extra data"),
        (b"{'a':1}", "not valid JSON"),
        (b'{"\n":1}', "not valid JSON (Invalid control character"),
        (b'{"\xff":1}', "not valid UTF-8 at byte 2"),
        ('{"a":1}'.encode("utf-16"), "is not a safetensors file"),
        (nested(200_000), "nested too deeply"),
        (nested(300), "tensor 'a' has shape a list"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', "thousands of digits"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 4000 + b'],"data_offsets":[0,8]}}', "has shape [999"),
        (b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', "has shape [nan]"),
        (b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,Infinity]}}', "has data_offsets [0, inf]"),
        (
            b'{"\\ud800":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
            r"name of tensor '\ud800' is not valid Unicode",
        ),
        (b'{"a":{"shape":[2],"shape":[2],"dtype":"F32","data_offsets":[0,8]}}', "has the key 'shape' twice"),
        ({"a": 1}, "tensor 'a' has no dtype or shape or data_offsets"),
        ({"a": {}}, "tensor 'a' has no dtype"),
        ({"a\nb": {**A, "shape": None}}, r"tensor 'a\nb' has shape None"),
        ({"a": {"dtype": "F32", "shape": [2]}}, "tensor 'a' has no dtype or shape or data_offsets"),
        ({"n" * 10**6: 1}, "nnn...' has no dtype"),
        ({"__metadata__": 1, "a": A}, "__metadata__ in the header is not a table of texts"),
        ({"__metadata__": {"a": 1}, "a": A}, "__metadata__"),
        ({"__metadata__": ["a"], "a": A}, "__metadata__"),
    ],
    ids=lambda value: None if isinstance(value, str) else "header",
)
def test_damaged_json(tmp_path: Path, header: bytes | dict[str, object], words: str) -> None:
    refused(write(tmp_path, pack(header, EIGHT)), InvalidModelFile, words)


@pytest.mark.parametrize(
    ("shape", "told"),
    [
        ([0], "[0]"), ([2, 0], "[2, 0]"), ([-2], "[-2]"), ([-1, -2], "[-1, -2]"), ([2.0], "[2.0]"), ([True], "[True]"),
        (["2"], "['2']"), ([None], "[None]"), ([[2]], "a list"), ([{}], "a list"), ([1] * 9, "[1, 1, 1"),
        ([2] * 10**5, "a list"), ([2**63], f"[{2**63}]"), (2, "2"), ("2", "'2'"), ({"0": 2}, "a dict"), (None, "None"),
    ],
)  # fmt: skip
def test_bad_shapes(tmp_path: Path, shape: object, told: str) -> None:
    path = write(tmp_path, pack({"a": entry(shape, 0, 8)}, EIGHT))
    refused(path, InvalidModelFile, f"tensor 'a' has shape {told}", "must be up to 8 positive numbers")


@pytest.mark.parametrize(
    "offsets", [[8, 0], [-8, 0], [0], [], [0, 4, 8], [0, 8.0], [False, 8], [0, "8"], 8, None, {"0": 8}, [0, 2**63]]
)
def test_bad_offsets(tmp_path: Path, offsets: object) -> None:
    path = write(tmp_path, pack({"a": {**A, "data_offsets": offsets}}, EIGHT))
    refused(path, InvalidModelFile, "tensor 'a' has data_offsets ", "must be its start and end")


@pytest.mark.parametrize(
    ("header", "data", "words"),
    [
        ({"a": A}, 7, "truncated: tensor 'a' ends at byte 70 but the file has 69; download"),
        ({"a": A}, 0, "truncated: tensor 'a' ends at byte 70 but the file has 62; download"),
        ({"a": entry([2], 2**62, 2**62 + 8)}, 8, "truncated: tensor 'a' ends at byte"),
        ({"a": A}, 9, "the tensors end at byte 70 but the file has 71"),
        ({}, 8, "the tensors end at byte 10 but the file has 18"),
        ({"a": entry([3], 0, 8)}, 8, "tensor 'a' has 8 bytes, its shape [3] in F32 takes 12"),
        ({"a": entry([3], 0, 12, "F16")}, 12, "tensor 'a' has 12 bytes, its shape [3] in F16 takes 6"),
        ({"a": entry([], 0, 8)}, 8, "tensor 'a' has 8 bytes, its shape [] in F32 takes 4"),
        ({"a": entry([2**62, 4], 0, 0)}, 0, "tensor 'a' has 0 bytes"),  # 2**64 elements are 0 in 64 bits
        ({"a": entry([2**63 - 1] * 8, 0, 8)}, 8, "tensor 'a' has 8 bytes"),
        ({"a": A, "b": entry([2], 4, 12)}, 12, "tensors 'a' and 'b' overlap"),
        ({"b": entry([2], 4, 12), "a": A}, 12, "tensors 'a' and 'b' overlap"),
        ({"a": A, "b": A}, 8, "tensors 'a' and 'b' overlap"),
        ({"a": entry([4], 0, 16), "b": entry([1], 4, 8)}, 16, "tensors 'a' and 'b' overlap"),
        ({"a": A, "b": entry([2], 12, 20)}, 20, "before tensor 'b', belong to no tensor"),
        ({"a": entry([1], 4, 8)}, 8, "before tensor 'a', belong to no tensor"),
    ],
)
def test_data_and_header_disagree(tmp_path: Path, header: dict[str, object], data: int, words: str) -> None:
    refused(write(tmp_path, pack(header, bytes(data))), InvalidModelFile, words)


def test_a_name_twice(tmp_path: Path) -> None:
    """Also when both describe the same bytes; the package takes the last one."""
    for second in (A, entry([2], 8, 16)):
        entries = [("first", entry([1], 16, 20)), ("a", A), ("a", second)]
        text = "{" + ",".join(f'"{name}":{json.dumps(value)}' for name, value in entries) + "}"
        path = write(tmp_path, pack(text.encode(), bytes(20)))
        refused(path, InvalidModelFile, "the header has the key 'a' twice")


def test_file_that_shrinks_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, pack({"a": A}, EIGHT))
    real = os.fstat

    def before(descriptor: int) -> os.stat_result:
        status = real(descriptor)
        os.truncate(path, 40)
        return status

    monkeypatch.setattr(os, "fstat", before)
    refused(path, InvalidModelFile, "truncated: the header ends after 32 of 54 bytes")
