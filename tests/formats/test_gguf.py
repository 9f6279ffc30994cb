"""Reading GGUF: sound files exactly, anything else with one helpful line, quickly and without much memory."""

import os
import socket
import struct
import time
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType
from tiny_gguf import TYPES, write_tiny

from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, OmniError, UnsupportedModel
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.quants import BLOCKS
from qwen3omni_wgpu.formats.tensors import TensorInfo, dequantize

F32, F16, Q8_0 = GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.Q8_0
U8, U32, U64, TEXT, ARRAY, BOOL = (
    GGUFValueType.UINT8,
    GGUFValueType.UINT32,
    GGUFValueType.UINT64,
    GGUFValueType.STRING,
    GGUFValueType.ARRAY,
    GGUFValueType.BOOL,
)


# A writer that can lie, which gguf.GGUFWriter cannot.
def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def entry(key: str | bytes, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(
    name: str | bytes, dims: tuple[int, ...], kind: int = F32, offset: int = 0, n_dims: int | None = None
) -> bytes:
    count = len(dims) if n_dims is None else n_dims
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def header(
    *entries: bytes,
    tensors: tuple[bytes, ...] = (),
    version: int = 3,
    n_entries: int | None = None,
    n_tensors: int | None = None,
) -> bytes:
    counts = (len(tensors) if n_tensors is None else n_tensors, len(entries) if n_entries is None else n_entries)
    return b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(entries) + b"".join(tensors)


def aligned(head: bytes, data: bytes = b"", alignment: int = 32) -> bytes:
    return head + bytes(-len(head) % alignment) + data


def one_tensor(*dims: int, kind: int = F32, offset: int = 0, data: int = 64) -> bytes:
    return aligned(header(tensors=(tensor("a.weight", dims, kind, offset),)), bytes(data))


ARCH = entry("general.architecture", TEXT, text("llama"))
HUGE = 2**63


def refused(path: Path, error: type[OmniError], *words: str) -> None:
    """The file is refused in one line that names it, says what is wrong and, after the semicolon, what to do."""
    with pytest.raises(OmniError) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert type(caught.value) is error, message
    assert message.startswith(f"{path}: ")
    assert ";" in message or ":" in message.removeprefix(f"{path}: ")
    assert "\n" not in message
    assert len(message) < 300 + len(str(path))
    for word in words:
        assert word in message, message


def write(folder: Path, content: bytes) -> Path:
    path = folder / "bad.gguf"
    path.write_bytes(content)
    return path


# --- sound files


@pytest.mark.model
def test_real_file_equals_the_librarys_reading(smollm2_path: Path) -> None:
    file, reader = read_gguf(smollm2_path), GGUFReader(smollm2_path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    assert file.metadata == fields
    assert list(file.tensors) == [t.name for t in reader.tensors]
    for theirs in reader.tensors:
        ours = file.tensors[theirs.name]
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.offset, ours.nbytes, ours.type) == (
            theirs.data_offset,
            theirs.n_bytes,
            theirs.tensor_type.name.lower(),
        )


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_reads_back(tmp_path: Path, kind: str) -> None:
    values = np.random.default_rng(0).standard_normal((3, 5, 64), dtype=np.float32)
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    writer.add_tensor("a", gguf.quants.quantize(values, TYPES[kind]), raw_dtype=TYPES[kind])
    write_all(writer)
    info = read_gguf(tmp_path / "a.gguf").tensors["a"]
    assert (info.shape, info.type) == (values.shape, kind)
    per_block, block_bytes = BLOCKS[kind]
    assert info.nbytes == values.size // per_block * block_bytes
    back = dequantize(info)
    assert back.dtype == np.float32
    # Half a quantisation step of a block whose largest magnitude is about 3; bf16 keeps 8 bits of the mantissa.
    step = {"f32": 0, "f16": 2e-3, "bf16": 1e-2, "q8_0": 2e-2, "q4_0": 0.5, "q4_1": 0.3}[kind]
    np.testing.assert_allclose(back, values, atol=step, rtol=0)


def write_all(writer: gguf.GGUFWriter) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_every_value_type_becomes_plain_python(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "llama")
    wanted = {
        "x.u8": 255, "x.i8": -128, "x.u16": 65535, "x.i16": -32768, "x.u32": 2**32 - 1, "x.i32": -(2**31),
        "x.u64": 2**64 - 1, "x.i64": -(2**63), "x.f32": 0.5, "x.f64": 0.1, "x.bool": True, "x.text": "añ\n€",
    }  # fmt: skip
    adders = (
        writer.add_uint8, writer.add_int8, writer.add_uint16, writer.add_int16, writer.add_uint32, writer.add_int32,
        writer.add_uint64, writer.add_int64, writer.add_float32, writer.add_float64, writer.add_bool, writer.add_string,
    )  # fmt: skip
    for (key, value), add in zip(wanted.items(), adders, strict=True):
        add(key, value)
    lists = {"x.texts": ["", "b", "añ"], "x.ints": [1, -2], "x.floats": [0.5, -1.5], "x.bools": [True, False]}
    for key, value in lists.items():
        writer.add_array(key, value)
    write_all(writer)
    metadata = read_gguf(tmp_path / "a.gguf").metadata
    assert metadata == {"general.architecture": "llama", **wanted, **lists}
    assert type(metadata["x.bool"]) is bool
    assert type(metadata["x.u8"]) is int


def test_version_2_empty_arrays_and_own_alignment(tmp_path: Path) -> None:
    align = entry("general.alignment", U32, struct.pack("<I", 256))
    head = header(ARCH, align, entry("x", ARRAY, array(TEXT, 0)), tensors=(tensor("a", (4,), F32, 256),), version=2)
    path = write(tmp_path, aligned(head, bytes(256) + np.arange(4, dtype="<f4").tobytes(), 256))
    file = read_gguf(str(path))
    assert file == GGUFFile(
        path,
        {"general.architecture": "llama", "general.alignment": 256, "x": []},
        {"a": TensorInfo("a", (4,), "f32", path, 512, 16)},
        {
            "general.architecture": (GGUFValueType.STRING,),
            "general.alignment": (GGUFValueType.UINT32,),
            "x": (GGUFValueType.ARRAY, GGUFValueType.STRING),
        },
    )
    assert dequantize(file.tensors["a"]).tolist() == [0, 1, 2, 3]


def test_vocabulary_only_file(tmp_path: Path) -> None:
    assert read_gguf(write(tmp_path, header(ARCH))).tensors == {}


def test_a_large_vocabulary_is_quick_and_slim(tmp_path: Path) -> None:
    """152,064 tokens and 151,387 merges, as Qwen3 has; the library alone takes seconds and hundreds of MB."""
    writer = gguf.GGUFWriter(tmp_path / "a.gguf", "qwen3")
    writer.add_token_list([f"token{i}" for i in range(152064)])
    writer.add_token_merges([f"left{i} right{i}" for i in range(151387)])
    writer.add_token_types([1] * 152064)
    write_all(writer)
    times = []
    for _ in range(3):  # the best of three: the machine may be busy
        start = time.perf_counter()
        metadata = read_gguf(tmp_path / "a.gguf").metadata
        times.append(time.perf_counter() - start)
    assert metadata["tokenizer.ggml.merges"][-1] == "left151386 right151386"
    assert min(times) < 0.7
    del metadata
    tracemalloc.start()
    kept = read_gguf(tmp_path / "a.gguf")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(kept.metadata) == 4
    assert peak < 40 << 20


def test_offsets_beyond_4_gb(tmp_path: Path) -> None:
    """A sparse file: 6 GB of length, a few KB on disk."""
    tensors = (tensor("a", (2**20, 1500), F32), tensor("b", (4,), F32, 2**22 * 1500))
    path = write(tmp_path, aligned(header(tensors=tensors)))
    start = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(start + 2**22 * 1500)
        file.write(np.arange(4, dtype="<f4").tobytes())
    info = read_gguf(path).tensors["b"]
    assert info.offset == start + 2**22 * 1500
    assert dequantize(info).tolist() == [0, 1, 2, 3]
    os.truncate(path, path.stat().st_size - 1)
    refused(path, InvalidModelFile, "truncated: tensor 'b' ends at byte")


# --- what is not a readable file


def test_missing_file_and_odd_paths(tmp_path: Path) -> None:
    refused(tmp_path / "none.gguf", ModelNotFound, "No such file", "check the path")
    (tmp_path / "file").write_bytes(b"x")
    refused(tmp_path / "file" / "below.gguf", ModelNotFound)
    refused(tmp_path / ("x" * 300), ModelNotFound)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    refused(tmp_path / "loop", ModelNotFound)
    with pytest.raises(ModelNotFound):
        read_gguf("a\0b")


def test_folder_fifo_socket_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refused(tmp_path, InvalidModelFile, "is a folder")
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

    path = write(tmp_path, header(ARCH))
    monkeypatch.setattr(Path, "open", deny)  # not chmod: tests may run as root
    refused(path, InvalidModelFile, "cannot be read (Permission denied)", "check its permissions")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"G", "download or convert it again"),
        (b"GGU", "it has 3 bytes"),
        (b"GGUF", "only 4 bytes"),
        (b"GGUF" + bytes(19), "only 23 bytes"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (b"<!DOCTYPE html>", "web page"),
        (b"PK\3\4" + bytes(60), "zip archive"),
        (b"tjgg" + bytes(60), "before GGUF"),
        (b"FUGG" + bytes(60), "is not a GGUF file"),
        (b"\0" * 100, "is not a GGUF file"),
    ],
)
def test_not_gguf(tmp_path: Path, content: bytes, words: str) -> None:
    refused(write(tmp_path, content), InvalidModelFile, words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(ARCH, version=1), "GGUF version 1, supported are 2 and 3"),
        (header(ARCH, version=4), "GGUF version 4"),
        (header(ARCH, version=0), "GGUF version 0"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + ARCH, "big-endian"),
        (header(ARCH, entry("split.count", U8, b"\3")), "split into 3 files"),
        (
            header(ARCH, entry("x", ARRAY, array(ARRAY, 1, array(U8, 1, b"\1")))),
            "array of arrays after key 'general.arch",
        ),
        (
            one_tensor(256, kind=GGMLQuantizationType.Q4_K, data=144),
            "type Q4_K; supported are F32 F16 BF16 Q8_0 Q4_0 Q4_1",
        ),
        (one_tensor(4, kind=GGMLQuantizationType.I32), "type I32"),
    ],
)
def test_sound_but_unsupported(tmp_path: Path, content: bytes, words: str) -> None:
    refused(write(tmp_path, content), UnsupportedModel, words)


# --- files that lie

TWO = (tensor("a", (16,), F32, 0), tensor("b", (16,), F32, 32))  # 64 bytes each, so they overlap


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(ARCH, n_entries=HUGE), f"{HUGE} metadata entries"),
        (header(ARCH, n_entries=5), "5 metadata entries"),
        (header(ARCH, entry("k", U8, b"\1"), n_entries=3), "after key 'k'"),
        (header(ARCH, n_tensors=HUGE), f"{HUGE} tensors"),
        (header(ARCH, n_tensors=1) + bytes(20), "1 tensors"),
        (header(struct.pack("<Q", HUGE) + bytes(9)), "goes on to byte 9223372036854775840"),
        (header(struct.pack("<Q", 2**64 - 8) + bytes(9)), "goes on to byte 18446744073709551640"),
        (header(entry("k", TEXT, struct.pack("<Q", 100))), "goes on to byte"),
        (header(entry("k", ARRAY, array(TEXT, HUGE))), f"{HUGE} array elements"),
        (header(entry("k", ARRAY, array(U64, 2, bytes(15)))), "2 array elements"),
        (header(entry("k", ARRAY, array(TEXT, 1, struct.pack("<Q", 9)))), "goes on to byte"),
        (header(entry("k", ARRAY, array(99, 1, bytes(8)))), "unknown value type 99"),
        (header(entry("k", 13, bytes(8))), "unknown value type 13"),
        (header(entry("k", BOOL, b"\2")), "neither 0 nor 1"),
        (header(entry("k", ARRAY, array(BOOL, 2, b"\1\xff"))), "neither 0 nor 1"),
        (header(entry(b"\xff", U8, b"\1")), "not valid UTF-8"),
        (header(entry("k", TEXT, text(b"a\xc3"))), "not valid UTF-8"),
        (header(ARCH, entry("k", ARRAY, array(TEXT, 1, text(b"\xed\xa0\x80")))), "after key 'general.architecture'"),
        (header(ARCH, ARCH), "'general.architecture' occurs twice"),
        (header(entry("general.alignment", U64, struct.pack("<Q", 32))), "alignment is 32"),
        (header(entry("general.alignment", U32, struct.pack("<I", 0))), "alignment is 0"),
        (header(entry("general.alignment", U32, struct.pack("<I", 48))), "alignment is 48"),
        (header(entry("general.alignment", TEXT, text("32"))), "alignment is '32'"),
        (header(entry("general.alignment", U32, struct.pack("<I", 2**31)), tensors=TWO), "tensor 'a' ends at byte"),
        (aligned(header(tensors=(tensor(b"\xff", (4,)),)), bytes(16)), "not valid UTF-8"),
        (aligned(header(tensors=(tensor("a\nb", (4,)),)), bytes(15)), r"'a\nb'"),
        (aligned(header(tensors=(tensor("a", (), n_dims=0),)), bytes(64)), "0 dimensions at tensor 'a'"),
        (aligned(header(tensors=(tensor("a", (1, 1, 1, 1, 1)),)), bytes(64)), "5 dimensions at tensor 'a'"),
        (aligned(header(tensors=(tensor("a", (4,), n_dims=2**32 - 1),)), bytes(64)), "4294967295 dimensions"),
        (header(tensors=(tensor("a", (4,)),)) + b"\1" + bytes(100), "padding after the tensor table is not zero"),
        (one_tensor(4, 0), "shape [0, 4], every dimension must be positive"),
        (one_tensor(2**32, 2**32), "ends at byte"),
        (one_tensor(2**64 - 1, 2**64 - 1, 2**64 - 1, 2**64 - 1), "ends at byte"),
        (one_tensor(4, kind=5), "unknown type id 5"),
        (one_tensor(4, kind=2**32 - 1), "unknown type id 4294967295"),
        (one_tensor(33, kind=Q8_0, data=99), "rows of 33 weights, not whole blocks of 32"),
        (one_tensor(16, 2, kind=Q8_0), "rows of 16 weights"),
        (one_tensor(4, offset=8), "starts at 8, no multiple of the alignment 32"),
        (one_tensor(16, offset=32), "ends at byte 160 but the file has 128"),
        (one_tensor(16, offset=2**64 - 32), "ends at byte"),
        (one_tensor(16, data=63), "truncated: tensor 'a.weight' ends at byte 128 but the file has 127; download"),
        (aligned(header(tensors=TWO), bytes(128)), "tensors 'a' and 'b' overlap"),
        (aligned(header(tensors=TWO[::-1]), bytes(128)), "tensors 'a' and 'b' overlap"),
        (aligned(header(tensors=(TWO[0], tensor("a", (16,), F32, 64))), bytes(128)), "tensor 'a' occurs twice"),
        (header(entry("long" * 1000, BOOL, b"\1"), entry("k", BOOL, b"\2")), "neither 0 nor 1"),
    ],
)
def test_damaged(tmp_path: Path, content: bytes, words: str) -> None:
    tracemalloc.start()
    start = time.perf_counter()
    try:
        refused(write(tmp_path, content), InvalidModelFile, words)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(entry("k", TEXT, struct.pack("<Q", 2**34))), "header is larger than 28 MiB"),
        (header(n_entries=2**12 + 1), "4097 metadata entries at its start, more than any model has"),
        (header(n_tensors=2**15 + 1), "32769 tensors in the tensor table, more than any model has"),
        (header(entry("k", ARRAY, array(U8, 2**33))), "8589934592 array elements"),
        (header(entry("k", ARRAY, array(U8, 2**21))), "2097152 array elements at its start, more than any model has"),
        (
            header(entry("k", ARRAY, array(U8, 5 << 18, bytes(5 << 18))), entry("l", ARRAY, array(U8, 1, b"0"))),
            "1 array elements after key 'k', more than any model has",
        ),
    ],
    ids=lambda value: "file" if isinstance(value, bytes) else None,
)
def test_header_may_not_grow_without_bound(tmp_path: Path, content: bytes, words: str) -> None:
    """In a file of 20 GB (sparse) every count is believable, so the header has limits of its own."""
    path = write(tmp_path, content)
    os.truncate(path, 20 << 30)
    refused(path, InvalidModelFile, words)


def test_as_much_as_the_largest_model_has(tmp_path: Path) -> None:
    """The tensor count of the 30B with its experts stored one by one, and twice Qwen3's vocabulary."""
    names = tuple(tensor(f"{i}", (4,), F32, 32 * i) for i in range(28010))
    tokens = entry("tokens", ARRAY, array(TEXT, 304128, text("") * 304128))
    merges = entry("merges", ARRAY, array(TEXT, 302774, text("") * 302774))
    path = write(tmp_path, aligned(header(tokens, merges, tensors=names), bytes(32 * 28010)))
    assert len(read_gguf(path).tensors) == 28010


def test_dequantize_of_a_file_that_has_shrunk(tmp_path: Path) -> None:
    path = write_tiny(tmp_path / "a.gguf", arch="llama")
    info = read_gguf(path).tensors["output.weight"]
    os.truncate(path, info.offset + info.nbytes - 1)
    with pytest.raises(InvalidModelFile, match=r"ends inside tensor 'output\.weight'"):
        dequantize(info)
