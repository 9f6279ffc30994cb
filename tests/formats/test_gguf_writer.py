"""Written files against gguf.GGUFWriter's byte for byte, and everything that can stop a run. No GPU."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from gguf.quants import dequantize, quantize

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, ModelNotFound
from qwen3omni_wgpu.formats import gguf_writer, part_file
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.gguf_writer import write_gguf, written_size
from qwen3omni_wgpu.formats.quants import BLOCKS, CHUNK, TYPES, decode
from qwen3omni_wgpu.formats.tensors import Derived, TensorInfo

METADATA = {
    "general.architecture": "toy",
    "general.name": "",
    "toy.flag": True,
    "toy.count": 7,
    "toy.negative": -3,
    "toy.large": 1 << 40,
    "toy.very_negative": -(1 << 40),
    "toy.rate": 0.1,
    "toy.text": "čau 👋",
    "toy.sections": [24, -20, 20],
    "toy.flags": [True, False],
    "toy.rates": [0.5, 1, 2.25],
    "toy.words": ["a", "", "ü"],
}


class Sources:
    """A raw file of random weights; `add` appends a tensor, `file` is what is to be made of them."""

    def __init__(self, folder: Path, seed: int | None = None) -> None:
        self.path = folder / "source.bin"
        self.path.write_bytes(b"junk in front")
        self.rng = np.random.default_rng(seed)

    def add(self, shape: tuple[int, ...], type: str = "bf16", values: np.ndarray | None = None) -> TensorInfo:
        if values is None:
            values = (self.rng.standard_normal(shape) * self.rng.uniform(0.01, 30)).astype(np.float32)
        raw = quantize(np.asarray(values, np.float32), TYPES[type]).tobytes()
        offset = self.path.stat().st_size
        with self.path.open("ab") as file:
            file.write(raw)
        return TensorInfo(f"source.{offset}", tuple(shape), type, self.path, offset, len(raw))

    def values(self, info: TensorInfo) -> np.ndarray:
        raw = np.fromfile(self.path, np.uint8, info.nbytes, offset=info.offset)
        return dequantize(raw.reshape(-1, BLOCKS[info.type][1]), TYPES[info.type]).reshape(info.shape)

    def file(self, *tensors: Derived | TensorInfo, metadata: dict | None = None) -> GGUFFile:
        metadata = METADATA if metadata is None else metadata
        return GGUFFile(self.path.parent, metadata, {info.name: info for info in tensors})


@pytest.fixture
def sources(tmp_path):
    return Sources(tmp_path)


def small(sources: Sources, type: str = "q8_0") -> GGUFFile:
    return sources.file(Derived("w", (4, 64), type, (sources.add((4, 64)),)))


def several_pieces(sources: Sources) -> GGUFFile:
    """Tensors of six pieces, of two, and a small one that needs padding behind it."""
    shape = (3, gguf_writer._PIECE // 64 * 2, 64)
    one = Derived("one", shape, "q8_0", tuple(sources.add(shape[1:]) for _ in range(3)))
    odd = Derived("odd", (5,), "f32", (sources.add((5,), "f32"),))
    return sources.file(one, odd, Derived("two", shape[1:], "f16", one.sources[:1]))


def by_gguf(path: Path, metadata: dict, tensors: dict[str, tuple[np.ndarray, str]]) -> bytes:
    """The file that the `gguf` package writes."""
    writer = GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key != "general.architecture":
            one = value[0] if isinstance(value, list) else value
            if isinstance(one, bool):
                kind = GGUFValueType.BOOL
            elif isinstance(one, int):
                signed = one < 0 or isinstance(value, list)
                kind = GGUFValueType.INT32 if signed else GGUFValueType.UINT32
                if abs(one) >= 1 << 32:
                    kind = GGUFValueType.INT64 if signed else GGUFValueType.UINT64
            else:
                kind = GGUFValueType.FLOAT32 if isinstance(one, float) else GGUFValueType.STRING
            writer.add_key_value(key, value, *((GGUFValueType.ARRAY, kind) if isinstance(value, list) else (kind,)))
            if key == "general.alignment":
                writer.data_alignment = value
    for name, (values, type) in tensors.items():
        quantised = quantize(values, TYPES[type])
        writer.add_tensor(name, quantised, raw_dtype=TYPES[type])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if ".part" in path.name)


@pytest.mark.parametrize("alignment", [None, 32, 256])
@pytest.mark.parametrize("threads", [1, 5])
def test_bytes_are_those_of_gguf_writer(tmp_path, monkeypatch, threads, alignment):
    """Random tensors of all types from sources of all types, stacked or not, that begin and end anywhere in pieces."""
    seed = np.random.SeedSequence().entropy
    print(f"seed {seed}")
    sources = Sources(tmp_path, seed)
    rng = sources.rng
    monkeypatch.setattr(gguf_writer, "_PIECE", 1 << 12)
    tensors, wanted = [], {}
    for i in range(30):
        count = int(rng.choice([1, 1, 2, 5]))
        shape = (*rng.integers(1, 9, rng.integers(1, 3)).tolist(), int(rng.choice([32, 96, 1024])))
        parts = tuple(sources.add(shape, str(rng.choice(["bf16", "f16", "f32", "q8_0"]))) for _ in range(count))
        type = str(rng.choice(["q8_0", "f16", "bf16", "f32"]))
        whole = shape if count == 1 else (count, *shape)
        tensors.append(Derived(f"t.{i}", whole, type, parts))
        wanted[f"t.{i}"] = np.stack([sources.values(part) for part in parts]).reshape(whole), type
    metadata = METADATA | ({} if alignment is None else {"general.alignment": alignment})
    file = sources.file(*tensors, metadata=metadata)
    size = written_size(file)
    write_gguf(tmp_path / "ours.gguf", file, threads=threads)
    ours = (tmp_path / "ours.gguf").read_bytes()
    assert ours == by_gguf(tmp_path / "theirs.gguf", metadata, wanted)
    assert size == len(ours)
    assert not left_over(tmp_path)
    write_gguf(tmp_path / "again.gguf", file, threads=6 - threads)
    assert (tmp_path / "again.gguf").read_bytes() == ours


def test_large_tensors_in_pieces(sources, tmp_path):
    """More than one piece, and pieces of more than one chunk, at their real sizes."""
    assert gguf_writer._PIECE > CHUNK
    file = several_pieces(sources)
    write_gguf(tmp_path / "out.gguf", file, threads=3)
    values = [sources.values(source) for source in file.tensors["one"].sources]
    wanted = {"one": (np.stack(values), "q8_0"), "odd": (sources.values(file.tensors["odd"].sources[0]), "f32")}
    theirs = by_gguf(tmp_path / "theirs.gguf", METADATA, wanted | {"two": (values[0], "f16")})
    assert (tmp_path / "out.gguf").read_bytes() == theirs


def test_reads_back(sources, tmp_path):
    made = Derived("made", (2, 64), "f16", (sources.add((64, 2), "f32"),), lambda arrays: arrays[0].T)
    nothing = Derived("computed", (3,), "f32", (), lambda _: np.arange(3, dtype=np.float32))
    stored = replace(sources.add((8, 32), "q8_0"), name="stored")
    file = sources.file(made, nothing, stored)
    write_gguf(tmp_path / "out.gguf", file)
    read = read_gguf(tmp_path / "out.gguf")
    assert list(read.metadata) == list(METADATA)
    for key, value in METADATA.items():
        assert read.metadata[key] == (pytest.approx(value) if "rate" in key else value), key
    assert [(info.name, info.shape, info.type) for info in read.tensors.values()] == [
        (info.name, info.shape, info.type) for info in file.tensors.values()
    ]
    tensors = {tensor.name: tensor.data for tensor in GGUFReader(tmp_path / "out.gguf").tensors}
    assert (tensors["made"] == sources.values(made.sources[0]).T.astype(np.float16)).all()
    assert (tensors["computed"] == [0, 1, 2]).all()
    raw = np.fromfile(sources.path, np.uint8, stored.nbytes, offset=stored.offset)
    assert tensors["stored"].tobytes() == raw.tobytes()


def test_metadata_keep_the_types_they_had(sources, tmp_path):
    writer = GGUFWriter(tmp_path / "in.gguf", "toy")
    for kind in GGUFValueType:
        if kind not in (GGUFValueType.ARRAY, GGUFValueType.STRING, GGUFValueType.BOOL):
            writer.add_key_value(f"toy.{kind.name}", 1, kind)
            writer.add_key_value(f"toy.{kind.name}.list", [1, 2], GGUFValueType.ARRAY, kind)
    writer.add_array("toy.flags", [True, False])
    writer.add_array("toy.words", ["x", "y"])
    writer.add_custom_alignment(64)
    writer.add_tensor("w", np.ones((2, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = read_gguf(tmp_path / "in.gguf")
    write_gguf(tmp_path / "out.gguf", read)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "in.gguf").read_bytes()


def test_an_empty_list_is_left_out(sources, tmp_path):
    write_gguf(tmp_path / "out.gguf", sources.file(metadata={"general.architecture": "toy", "toy.none": []}))
    assert read_gguf(tmp_path / "out.gguf").metadata == {"general.architecture": "toy"}


@pytest.mark.parametrize("value", [None, {"a": 1}, [1, "a"], [[1]], "\ud800", [1 << 40], 1 << 70, 1e300])
def test_metadata_that_have_no_form_in_gguf(sources, tmp_path, value):
    file = sources.file(metadata={"general.architecture": "toy", "toy.strange": value})
    with pytest.raises(InvalidModelFile, match="GGUF"):
        write_gguf(tmp_path / "out.gguf", file)
    assert not list(tmp_path.glob("out*"))


def test_progress_goes_up_to_the_whole(sources, tmp_path):
    file = several_pieces(sources)
    calls = []
    write_gguf(tmp_path / "out.gguf", file, progress=lambda done, total: calls.append((done, total)))
    done = [done for done, _ in calls]
    assert len(done) > 6
    assert done == sorted(done)
    assert {total for _, total in calls} == {written_size(file)}
    assert done[-1] == calls[0][1]


class Stop(Exception):
    pass


def stopped(path: Path, file: GGUFFile, after: int, **options) -> None:
    """A run that ends, as by Ctrl-C, once `after` progress calls were made; the journal is written at each of them."""
    calls = iter(range(after))

    def progress(done: int, total: int) -> None:
        if next(calls, None) is None:
            raise Stop

    with pytest.raises(Stop):
        write_gguf(path, file, progress=progress, threads=1, **options)


@pytest.fixture
def eager(monkeypatch):
    """Flush and note after every piece, at once."""

    def reached(self, done):
        self._flush(done)

    monkeypatch.setattr(part_file.PartFile, "reached", reached)


def journal(path: Path) -> dict:
    return json.loads(path.with_name(path.name + ".part.json").read_text())


def test_resume_goes_on_where_it_stopped(sources, tmp_path, eager, monkeypatch):
    file = several_pieces(sources)
    write_gguf(tmp_path / "whole.gguf", file)
    path = tmp_path / "out.gguf"
    stopped(path, file, 3)
    assert not path.exists()
    assert left_over(tmp_path) == ["out.gguf.part", "out.gguf.part.json"]
    done = journal(path)["done"]
    assert 0 < done < written_size(file)
    with pytest.raises(InvalidModelFile, match="not a GGUF file"):
        read_gguf(tmp_path / "out.gguf.part")
    with pytest.raises(InvalidRequest, match="--resume continues it, --overwrite starts again"):
        write_gguf(path, file)
    written = []
    write = part_file.PartFile.write
    monkeypatch.setattr(part_file.PartFile, "write", lambda self, at, data: (written.append(at), write(self, at, data)))
    write_gguf(path, file, resume=True)
    assert min(written) >= done, "wrote again what was complete"
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()
    assert not left_over(tmp_path)
    write_gguf(path, file, resume=True)  # nothing to do any more
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_resume_of_nothing_starts(sources, tmp_path):
    file = small(sources)
    write_gguf(tmp_path / "out.gguf", file, resume=True)
    assert read_gguf(tmp_path / "out.gguf").tensors.keys() == {"w"}


@pytest.mark.parametrize("seconds", [0, 60])
def test_the_journal_is_never_ahead_of_the_data(sources, tmp_path, monkeypatch, seconds):
    """With the real, concurrent flushing: what the journal calls done is in the file already, and it moves on."""
    file = several_pieces(sources)
    write_gguf(tmp_path / "whole.gguf", file)
    whole = (tmp_path / "whole.gguf").read_bytes()
    path = tmp_path / "out.gguf"
    monkeypatch.setattr(part_file, "_FLUSH_SECONDS", seconds)
    monkeypatch.setattr(part_file, "_FLUSH_BYTES", 1 << 20)
    noted = []
    note = part_file.PartFile._note

    def checked(self, done):
        note(self, done)
        noted.append(done)
        start = part_file.MAGIC_SIZE
        assert self.part.read_bytes()[start:done] == whole[start:done]

    monkeypatch.setattr(part_file.PartFile, "_note", checked)
    write_gguf(path, file, threads=4)
    assert noted == sorted(noted)
    assert len(noted) > 2
    assert noted[-1] == len(whole)


def test_resume_with_other_inputs_is_refused(sources, tmp_path, eager):
    path = tmp_path / "out.gguf"
    file = several_pieces(sources)
    stopped(path, file, 3)
    other = sources.file(*file.tensors.values(), metadata=METADATA | {"toy.count": 8})
    with pytest.raises(InvalidRequest, match="other inputs or with other options; use --overwrite"):
        write_gguf(path, other, resume=True)
    os.utime(sources.path)
    with pytest.raises(InvalidRequest, match="other inputs or with other options; use --overwrite"):
        write_gguf(path, file, resume=True)
    write_gguf(path, file, overwrite=True)
    assert not left_over(tmp_path)
    write_gguf(tmp_path / "whole.gguf", file)
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


@pytest.mark.parametrize("damage", ["shorter", "header", "journal", "no journal", "journal of another kind"])
def test_resume_of_a_damaged_part_is_refused(sources, tmp_path, eager, damage):
    path = tmp_path / "out.gguf"
    file = several_pieces(sources)
    stopped(path, file, 3)
    part, notes = tmp_path / "out.gguf.part", tmp_path / "out.gguf.part.json"
    if damage == "shorter":
        os.truncate(part, journal(path)["done"] - 1)
    elif damage == "header":
        with part.open("r+b") as opened:
            opened.seek(40)
            opened.write(b"?")
    elif damage == "journal":
        notes.write_bytes(notes.read_bytes()[:20])
    elif damage == "journal of another kind":
        notes.write_text("[1]")
    else:
        notes.unlink()
    before = part.read_bytes()
    with pytest.raises(InvalidRequest, match="--overwrite"):
        write_gguf(path, file, resume=True)
    assert part.read_bytes() == before


def test_what_lies_behind_the_journals_mark_is_not_trusted(sources, tmp_path, eager):
    path = tmp_path / "out.gguf"
    file = several_pieces(sources)
    write_gguf(tmp_path / "whole.gguf", file)
    stopped(path, file, 3)
    with (tmp_path / "out.gguf.part").open("r+b") as opened:
        opened.seek(journal(path)["done"])
        opened.write(os.urandom(written_size(file) + 999))
    write_gguf(path, file, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_overwrite_replaces_only_at_the_end(sources, tmp_path, eager):
    path = tmp_path / "out.gguf"
    path.write_bytes(b"old")
    file = several_pieces(sources)
    with pytest.raises(InvalidRequest, match="exists already; choose another name, or replace it with --overwrite"):
        write_gguf(path, file)
    with pytest.raises(InvalidRequest, match="exists already"):
        write_gguf(path, file, resume=True)
    assert not left_over(tmp_path)
    stopped(path, file, 3, overwrite=True)
    assert path.read_bytes() == b"old"
    write_gguf(path, file, resume=True)  # continues a run that was allowed to replace
    assert read_gguf(path).tensors.keys() == file.tensors.keys()
    with pytest.raises(InvalidRequest, match="choose one"):
        write_gguf(path, file, resume=True, overwrite=True)


def test_resume_does_not_take_another_file_for_the_finished_one(sources, tmp_path):
    path = tmp_path / "out.gguf"
    file = small(sources)
    write_gguf(path, file)
    other = sources.file(*file.tensors.values(), metadata=METADATA | {"toy.count": 8})
    with pytest.raises(InvalidRequest, match="exists already"):
        write_gguf(path, other, resume=True)
    later = path.stat().st_mtime_ns + 10**9
    os.utime(sources.path, ns=(later, later))
    with pytest.raises(InvalidRequest, match="exists already"):
        write_gguf(path, file, resume=True)


def test_a_file_that_appears_meanwhile_is_not_replaced(sources, tmp_path):
    path = tmp_path / "out.gguf"
    with pytest.raises(InvalidRequest, match="meanwhile"):
        write_gguf(path, small(sources), progress=lambda *_: path.write_bytes(b"other"))
    assert path.read_bytes() == b"other"
    path.unlink()
    with pytest.raises(InvalidModelFile):
        read_gguf(tmp_path / "out.gguf.part")


def test_two_writers_of_one_file(sources, tmp_path):
    path, file = tmp_path / "out.gguf", small(sources)
    part = tmp_path / "out.gguf.part"
    with part.open("wb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        for options in ({}, {"resume": True}, {"overwrite": True}):
            with pytest.raises(InvalidRequest, match="another process is writing it"):
                write_gguf(path, file, **options)
    write_gguf(path, file)


def test_the_other_writer_finishes_between_opening_and_locking(sources, tmp_path, monkeypatch):
    path, file = tmp_path / "out.gguf", small(sources)

    def flock(fd, how):
        os.replace(tmp_path / "out.gguf.part", path)

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(InvalidRequest, match="another process"):
        write_gguf(path, file)


def test_targets_that_cannot_be(sources, tmp_path, monkeypatch):
    file = small(sources)
    (tmp_path / "fifo").parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / "fifo")
    for path, message in (
        (tmp_path / "no" / "out.gguf", "choose a folder that exists"),
        (sources.path / "out.gguf", "is not a folder|folder that exists"),
        (tmp_path, "is a folder; name the .gguf file"),
        (tmp_path / "fifo", "is not a regular file"),
        (tmp_path / ("x" * 300), "name too long|choose"),
        (sources.path, "is the same file as .*source.bin"),
    ):
        for options in ({}, {"overwrite": True}, {"resume": True}):
            with pytest.raises(InvalidRequest, match=message) as caught:
                write_gguf(path, file, **options)
            assert "\n" not in str(caught.value)
    os.link(sources.path, tmp_path / "link.gguf")
    with pytest.raises(InvalidRequest, match="is the same file"):
        write_gguf(tmp_path / "link.gguf", file, overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fifo", "link.gguf", "source.bin"]


def test_a_folder_that_is_not_writable(sources, tmp_path, monkeypatch):
    """By a stand-in, because for root every folder is."""
    real = os.open

    def denied(name, *arguments):
        if str(name).endswith(".part"):
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(name, *arguments)

    monkeypatch.setattr(os, "open", denied)
    with pytest.raises(InvalidRequest, match=r"Permission denied\); choose a folder that you may write to"):
        write_gguf(tmp_path / "out.gguf", small(sources))


def test_too_little_space(sources, tmp_path, monkeypatch):
    file = several_pieces(sources)
    size = written_size(file)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    with pytest.raises(InvalidRequest, match=r"needs 0\.\d\d GB, but only 0\.\d\d GB are free"):
        write_gguf(tmp_path / "out.gguf", file)
    assert not list(tmp_path.glob("out*"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size))
    stopped(tmp_path / "out.gguf", file, 5)
    with (tmp_path / "out.gguf.part").open("rb") as part:
        os.fsync(part.fileno())  # so that the file system has counted its blocks
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=size - 1))
    write_gguf(tmp_path / "out.gguf", file, resume=True)  # what the .part takes is not needed again


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.ENOSPC, r"free \d\.\d\d GB and run again with --resume"),
        (errno.EDQUOT, r"free \d\.\d\d GB and run again with --resume"),
        (errno.EFBIG, "raise the limit and run again with --resume"),
        (errno.EIO, "check the disk and run again with --resume"),
    ],
)
@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_the_disk_fails_while_writing(sources, tmp_path, eager, monkeypatch, number, hint, call):
    path, file = tmp_path / "out.gguf", several_pieces(sources)
    write_gguf(tmp_path / "whole.gguf", file)
    real, calls = getattr(os, call), iter(range(4))

    def failing(*arguments):
        if next(calls, None) is None:
            raise OSError(number, os.strerror(number))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, call, failing)
        with pytest.raises(InvalidRequest, match=hint) as caught:
            write_gguf(path, file, threads=2)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not path.exists()
    write_gguf(path, file, resume=True)
    assert path.read_bytes() == (tmp_path / "whole.gguf").read_bytes()


def test_short_writes_are_completed(sources, tmp_path, monkeypatch):
    file = several_pieces(sources)
    write_gguf(tmp_path / "whole.gguf", file)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[: max(1, len(data) // 3)], at))
    write_gguf(tmp_path / "out.gguf", file)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "whole.gguf").read_bytes()


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_gguf_writer import Sources, several_pieces
from qwen3omni_wgpu.errors import OmniError
from qwen3omni_wgpu.formats.gguf_writer import write_gguf, written_size
file = several_pieces(Sources(Path(sys.argv[2])))
resource.setrlimit(resource.RLIMIT_FSIZE, (written_size(file) // 2, resource.RLIM_INFINITY))
try:
    write_gguf(Path(sys.argv[2]) / "out.gguf", file)
except OmniError as error:
    print(error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
write_gguf(Path(sys.argv[2]) / "out.gguf", file, resume=True)
"""


def test_a_limit_on_the_file_size(tmp_path):
    """The kernel's own EFBIG, from a limit that the shell's `ulimit -f` sets."""
    command = [sys.executable, "-c", LIMITED, str(Path(__file__).parent), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "out.gguf.part: cannot be written (File too large)" in done.stdout
    assert "run again with --resume" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert read_gguf(tmp_path / "out.gguf").tensors.keys() == {"one", "odd", "two"}


@pytest.mark.parametrize("type", ["q8_0", "bf16", "f32"])
@pytest.mark.parametrize("stored", [False, True])
def test_nan_in_a_source_is_named(sources, tmp_path, type, stored):
    """Also where bytes are only copied (bf16 to bf16, or a tensor of another GGUF)."""
    values = np.ones((gguf_writer._PIECE // 64 + 5, 64), np.float32)
    values[-1, -2] = np.nan
    bad = sources.add(values.shape, "bf16", values)
    info = bad if stored else Derived("blk.0.w", values.shape, type, (bad,))
    with pytest.raises(InvalidModelFile, match=rf"source.bin: tensor '{bad.name}' holds NaN or infinity; download"):
        write_gguf(tmp_path / "out.gguf", sources.file(info))
    assert not (tmp_path / "out.gguf").exists()


def test_too_large_for_the_type(sources, tmp_path):
    bad = sources.add((2, 32), "bf16", np.full((2, 32), 70000.0))
    with pytest.raises(InvalidModelFile, match=r"holds 7e\+04, too large for f16; use bf16$"):
        write_gguf(tmp_path / "out.gguf", sources.file(Derived("w", (2, 32), "f16", (bad,))))
    write_gguf(tmp_path / "out.gguf", sources.file(Derived("w", (2, 32), "bf16", (bad,))), overwrite=True)
    info = read_gguf(tmp_path / "out.gguf").tensors["w"]
    raw = np.fromfile(tmp_path / "out.gguf", np.uint8, info.nbytes, offset=info.offset)
    assert (decode(raw, "bf16") == np.float32(70144)).all()


def test_a_source_that_vanishes_or_shrinks(sources, tmp_path):
    file = several_pieces(sources)
    size = sources.path.stat().st_size
    os.truncate(sources.path, size - 1)
    with pytest.raises(InvalidModelFile, match="ends inside tensor"):
        write_gguf(tmp_path / "out.gguf", file)
    sources.path.unlink()
    with pytest.raises(ModelNotFound, match=r"source\.bin: cannot be read any more"):
        write_gguf(tmp_path / "other.gguf", file)
    assert not (tmp_path / "out.gguf").exists()
    assert not list(tmp_path.glob("other*"))
