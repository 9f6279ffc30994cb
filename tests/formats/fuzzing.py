"""Damages files at random, and reads very many of them in a process that may take only so much memory.

As a script: fuzzing.py gguf|safetensors|package|index SEED COUNT BASE, where BASE is the sound file to start from; the
file that is being read lies beside it, so that after a failure it is still there. Or fuzzing.py one FILE.
"""

import copy
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from qwen3omni_wgpu.errors import OmniError
from qwen3omni_wgpu.formats.checkpoint import read_checkpoint, read_json
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.formats.safetensors import read_safetensors
from qwen3omni_wgpu.formats.tensors import TensorInfo
from qwen3omni_wgpu.models.config import text_config

MEMORY = 300_000_000  # bytes beyond the size of the file
CPU_SECONDS = 2.0  # for one file that takes about a millisecond
NASTY = (0, 1, 2, 8, 9, 31, 32, 0x7F, 0xFF, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(content: bytes, action: int, position: int, value: int, length: int) -> bytes:
    """One change: overwrite 1, 4 or 8 bytes by a nasty number, or drop, repeat or insert a stretch of bytes."""
    if action < 3:
        raw = (value % 2**64).to_bytes(8, "little")[: (1, 4, 8)[action]]
        return content[:position] + raw + content[position + len(raw) :]
    rest = content[position + length :]
    middle = (b"", content[position : position + length] * 2, bytes([value % 256]) * length)[action - 3]
    return content[:position] + middle + rest


# --- GGUF


def damage_gguf(rng: np.random.Generator, model: bytes, header: int) -> bytes:
    """Where the structure is: mostly the hyper-parameters at the front and the tensor table at the end."""
    head = model[:header]
    for _ in range(rng.integers(1, 4)):
        position = int(rng.integers(1500) if rng.random() < 0.5 else header - rng.integers(1, 1500)) % len(head)
        value = NASTY[rng.integers(len(NASTY))]
        head = mutate(head, int(rng.integers(6)), position, value, int(rng.integers(1, 64)))
    return head + model[header:]


# --- JSON

_VALUES: tuple[Any, ...] = (
    *NASTY, -1, -(2**63), 2**70, 10**4000, 0.5, 8.0, 1e300, float("nan"), float("inf"), True, False, None,
    "", "F32", "F16", "BF16", "I64", "F8_E4M3", "f32", "8", "\x00", "\ud800", "ä€😀", "x" * 5000, [], {}, [[]], [0, 8],
    [1] * 9, [2] * 100, [2**40, 2**40], {"dtype": "F32"}, {"a": {}}, "../a.safetensors", "/etc/passwd", "a\nb",
)  # fmt: skip
_TOKENS = (
    b"NaN", b"Infinity", b"1e999", b"-0", b"01", b'\\ud800', b"\xff", b"\xed\xa0\x80", b"\0", b"[" * 200, b"[" * 50_000,
    b'{"":' * 50_000, b"]", b"}", b",", b'"', b"\\", b" " * 50, b"\xef\xbb\xbf", b"9" * 5000, b"//", b"null", b'"a":1,',
)  # fmt: skip


def damage_json(rng: np.random.Generator, sound: dict[str, Any]) -> bytes:
    """One to three changes of values, keys and structure; sometimes then of the text too."""
    value = copy.deepcopy(sound)
    for _ in range(rng.integers(1, 4)):
        _change_tree(rng, value)
    raw = json.dumps(value, ensure_ascii=bool(rng.integers(2)), separators=(",", ":")).encode("utf-8", "surrogatepass")
    if rng.random() < 0.3:
        position, cut = int(rng.integers(len(raw) + 1)), int(rng.choice([0, 1, 7]))
        raw = raw[:position] + _TOKENS[rng.integers(len(_TOKENS))] + raw[position + cut :]
    if rng.random() < 0.2:
        raw = mutate(raw, int(rng.integers(6)), int(rng.integers(len(raw) + 1)), int(rng.integers(2**16)), 3)
    return raw


def _change_tree(rng: np.random.Generator, tree: dict[str, Any]) -> None:
    if not (places := list(_places(tree))):
        return
    holder, key = places[rng.integers(len(places))]
    action = rng.integers(7)
    if action == 0:
        holder[key] = copy.deepcopy(_VALUES[rng.integers(len(_VALUES))])
    elif action == 1:
        del holder[key]
    elif action == 2:  # another part of the same tree in its place, or beside it
        other, name = places[rng.integers(len(places))]
        holder[key] = copy.deepcopy(other[name])
    elif action == 3 and isinstance(holder, dict):
        holder[str(rng.choice(["a", "", "shape", "dtype", "data_offsets", "__metadata__"]))] = holder.pop(key)
    elif action == 4 and isinstance(holder, list):
        holder.insert(key, int(rng.integers(4)))
    elif action == 5 and isinstance(holder, dict):
        holder[f"{key}2"] = copy.deepcopy(holder[key])
    elif isinstance(holder[key], int):
        holder[key] += int(rng.integers(-8, 9))


def _places(tree: Any) -> Any:
    """Every (dictionary or list, key or index) in it."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)):
        yield tree, key
        if isinstance(tree[key], (dict, list)):
            yield from _places(tree[key])


def damage_safetensors(rng: np.random.Generator, content: bytes) -> bytes:
    """JSON-aware changes of the header; sometimes lengths that lie, sometimes the file cut off or gone on with."""
    length = int.from_bytes(content[:8], "little")
    raw, data = damage_json(rng, json.loads(content[8 : 8 + length])), content[8 + length :]
    told = len(raw)
    if rng.random() < 0.1:
        told = int(rng.choice([told - 1, told + 1, told + 8, told + len(data), told + len(data) + 1, *NASTY[:-2]]))
    file = max(told, 0).to_bytes(8, "little") + raw + data
    if rng.random() < 0.1:
        file = file[: rng.integers(len(file))] if rng.integers(2) else file + bytes(rng.integers(1, 64))
    return file


# --- reading very many of them


class Gguf:
    name = "damaged.gguf"

    def __init__(self, base: Path):
        self.model = base.read_bytes()
        self.header = min(info.offset for info in read_gguf(base).tensors.values() if isinstance(info, TensorInfo))

    def damage(self, rng: np.random.Generator) -> bytes:
        return damage_gguf(rng, self.model, self.header)

    def read(self, path: Path) -> None:
        text_config(read_gguf(path))

    def refused(self, path: Path, message: str) -> None:
        pass


class Safetensors:
    name = "damaged.safetensors"

    def __init__(self, base: Path):
        self.base = base.read_bytes()

    def damage(self, rng: np.random.Generator) -> bytes:
        return damage_safetensors(rng, self.base)

    def read(self, path: Path) -> None:
        read_safetensors(path)

    def refused(self, path: Path, message: str) -> None:
        pass


class Package(Safetensors):
    """Compares with the package `safetensors`: what is accepted here it accepts too, with the same content; and the
    reverse. For fixed seeds: the two may differ in what neither uses (a number out of range in an unknown entry, say),
    and chance finds every such corner in the end.
    """

    # What the package accepts and we do not: other types, dimensions of 0, too many, spaces in front, a key twice.
    stricter = ("has type", "positive numbers", "is not a safetensors file", "twice", "thousands of digits")

    def read(self, path: Path) -> None:
        ours = read_safetensors(path)
        content = path.read_bytes()
        if b"-0" in content or b"\\ud800" in content:
            return  # minus nothing is whole for Python only; half a character in what nobody reads is left alone
        with safe_open(path, "numpy") as theirs:
            assert set(theirs.keys()) == set(ours)
            for name, info in ours.items():
                part = theirs.get_slice(name)
                assert (part.get_shape(), part.get_dtype().lower()) == (list(info.shape), info.type)
            ends = [info.offset + info.nbytes for info in ours.values()]
            assert not ends or max(ends) == path.stat().st_size

    def refused(self, path: Path, message: str) -> None:
        if any(reason in message for reason in self.stricter):
            return
        try:
            safe_open(path, "numpy")
        except SafetensorError:
            return
        raise AssertionError(f"the package accepts what is refused here: {message}")


class Index:
    """An index of the shards in `base`'s folder."""

    name = "model.safetensors.index.json"

    def __init__(self, base: Path):
        self.sound = json.loads(base.read_bytes())

    def damage(self, rng: np.random.Generator) -> bytes:
        return damage_json(rng, self.sound)

    def read(self, path: Path) -> None:
        checkpoint = read_checkpoint(path.parent)
        found = {name: info.path for name, info in checkpoint.tensors.items()}
        assert not found.keys() & checkpoint.absent.keys()
        placed = read_json(path)["weight_map"]
        assert {**found, **checkpoint.absent} == {name: path.parent / shard for name, shard in placed.items()}
        assert all(len(shard.name) < 256 for shard in checkpoint.absent.values())
        assert not any(os.path.exists(shard) for shard in checkpoint.absent.values())

    def refused(self, path: Path, message: str) -> None:
        pass


FORMATS = {"gguf": Gguf, "safetensors": Safetensors, "package": Package, "index": Index}


def run_limited(*arguments: object) -> dict[str, Any]:
    """This file as a script. What it was called with, so the seed too, is in the message of every failure."""
    command = [sys.executable, __file__, *map(str, arguments)]
    root = Path(__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=env)
    assert done.returncode == 0, f"fuzzing.py {' '.join(command[2:])}: {done.stderr[-3000:]}"
    return json.loads(done.stdout)


def limit_memory(file_size: int) -> None:
    """From here on this process may take a file's size and 300 MB; what asks for more gets a MemoryError."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * resource.getpagesize() + file_size + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def attempt(read: Callable[[Path], object], path: Path, seconds: float) -> str:
    """The message of the error, or "" when it loads; fails for any other error and when it takes long."""
    start, message = time.thread_time(), ""
    try:
        read(path)
    except OmniError as error:
        message = str(error)
        assert message.startswith(str(path.parent)), message
        assert message.isprintable(), message
        assert "allocate memory" not in message, message  # the limit, disguised by mmap as a fault of the file
    assert time.thread_time() - start < seconds, f"{time.thread_time() - start} s: {message}"
    return message


def write(path: Path, content: bytes) -> None:
    """Overwrite; a file that is first cut to nothing would be flushed to the disk by some file systems."""
    with path.open("r+b" if path.exists() else "wb") as file:
        file.write(content)
        file.truncate()


def fuzz(format: str, seed: int, count: int, base: Path) -> dict[str, Any]:
    fuzzer = FORMATS[format](base)
    path, rng, loaded = base.with_name(fuzzer.name), np.random.default_rng(seed), 0
    limit_memory(2 * base.stat().st_size)
    for number in range(count):
        write(path, fuzzer.damage(rng))
        try:
            message = attempt(fuzzer.read, path, CPU_SECONDS)
            if message:
                fuzzer.refused(path, message)
        except BaseException:
            print(f"file {number} of seed {seed}: {path}", file=sys.stderr)
            raise
        loaded += not message
    return {"loaded": loaded}


def read_one(path: Path) -> dict[str, Any]:
    """A file of the worst kind, at the limits of what is read."""
    limit_memory(path.stat().st_size)
    return {"message": attempt(read_gguf if path.suffix == ".gguf" else read_safetensors, path, 60)}


if __name__ == "__main__":
    if sys.argv[1] == "one":
        answer = read_one(Path(sys.argv[2]))
    else:
        answer = fuzz(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4]))
    print(json.dumps(answer))
