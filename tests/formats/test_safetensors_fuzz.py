"""Damaged safetensors headers and indexes: each loads or raises OmniError, in bounded time and memory."""

import secrets
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from formats.checkpoints import INDEX, entry, pack, some_tensors, sound, write_checkpoint
from formats.fuzzing import run_limited, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError
from qwen3omni_wgpu.formats.safetensors import read_safetensors
from qwen3omni_wgpu.formats.tensors import dequantize

LIMIT = 8 << 20  # of a header


@pytest.fixture(scope="module")
def model() -> bytes:
    return sound(some_tensors(np.random.default_rng(), 6), {"format": "pt"}, padding=7)


def test_truncated_at_every_byte(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for length in range(len(model)):
        write(path, model[:length])
        with pytest.raises(InvalidModelFile, match=r"truncated|is empty"):
            read_safetensors(path)


def test_every_bit_of_the_length(model: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bit.safetensors"
    for bit in range(64):
        damaged = bytearray(model)
        damaged[bit // 8] ^= 1 << bit % 8
        write(path, bytes(damaged))
        with pytest.raises(InvalidModelFile):
            read_safetensors(path)


def test_every_digit_of_the_header(model: bytes, tmp_path: Path) -> None:
    """A number that changed never goes unnoticed: it contradicts another one, the file's size or a neighbour."""
    path = tmp_path / "digit.safetensors"
    size = int.from_bytes(model[:8], "little")
    # Within lists; the eight bytes of the length before may look like brackets.
    inside = np.cumsum([(byte == ord("[")) - (byte == ord("]")) for byte in model[8 : 8 + size]])
    places = [at for at in range(8, 8 + size) if inside[at - 8] and chr(model[at]).isdigit()]
    assert len(places) > 10
    for at in places:
        damaged = bytearray(model)
        damaged[at] = ord("1") + (damaged[at] - ord("0")) % 9  # another digit, no leading zero
        write(path, bytes(damaged))
        with pytest.raises(InvalidModelFile):
            read_safetensors(path)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**65), 2**65) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
COUNTS = st.lists(st.integers(0, 4), max_size=4)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "F16", "BF16", "I8"]) | JSON,
        "shape": COUNTS | JSON,
        "data_offsets": COUNTS | JSON,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    header=st.dictionaries(st.text(max_size=3) | st.just("__metadata__"), ENTRY | JSON, max_size=4), data=st.binary()
)
def test_any_json(header: dict[str, object], data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.safetensors"
    write(path, pack(header, data))
    message, infos = "", []
    try:
        infos = sorted(read_safetensors(path).values(), key=lambda info: info.offset)
    except OmniError as error:
        message = str(error)
    assert not message or message.startswith(f"{path}: ")
    assert message.isprintable()
    for info in infos:
        assert dequantize(info).shape == info.shape
    assert all(first.offset + first.nbytes == second.offset for first, second in pairwise(infos))


@pytest.mark.slow
def test_ten_thousand_headers(model: bytes, tmp_path: Path) -> None:
    """In a process that may take 300 MB."""
    (tmp_path / "base").write_bytes(model)
    done = run_limited("safetensors", secrets.randbits(32), 10_000, tmp_path / "base")
    assert 100 < done["loaded"] < 3000  # about 600: changes that cancel out or touch only free text


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_verdicts_are_those_of_the_package(seed: int, tmp_path: Path) -> None:
    tensors = some_tensors(np.random.default_rng(seed), 6)
    (tmp_path / "base").write_bytes(sound(tensors, {"format": "pt"}, padding=7))
    assert run_limited("package", seed, 2000, tmp_path / "base")["loaded"] > 20


def test_indexes(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "model", some_tensors(np.random.default_rng(), 6))
    (folder / "base").write_bytes((folder / INDEX).read_bytes())
    done = run_limited("index", secrets.randbits(32), 2000, folder / "base")
    assert 100 < done["loaded"] < 1500  # about 400: the metadata of an index are not read, tensors may be left out


def list_of(unit: bytes) -> bytes:
    return b'{"a":[' + unit * ((LIMIT - 20) // len(unit)) + b"0]}"


def entries() -> bytes:
    count = LIMIT // 75
    header = {f"{i:x}": entry([1], 2 * i, 2 * i + 2, "F16") for i in range(count)}
    return pack(header, bytes(2 * count))


WORST: dict[str, tuple[Callable[[], bytes], str]] = {
    "lists": (lambda: pack(list_of(b"[],")), "has no dtype"),
    "lists of lists": (lambda: pack(list_of(b"[[]],")), "has no dtype"),
    "objects": (lambda: pack(list_of(b"{},")), "has no dtype"),
    "objects of one": (lambda: pack(list_of(b'{"":0},')), "has no dtype"),
    "numbers": (lambda: pack(list_of(b"0.5,")), "has no dtype"),
    "names": (lambda: pack(b"{" + b",".join(b'"%x":1' % i for i in range(LIMIT // 12)) + b"}"), "has no dtype"),
    "wide text": (lambda: pack(b'{"a":"' + b"a" * (LIMIT - 30) + "😀".encode() + b'"}'), "has no dtype"),
    "dimensions": (lambda: pack({"a": entry([1] * (LIMIT // 2 - 60), 0, 4)}, bytes(4)), "has shape a list"),
    "tensors": (entries, ""),
    "too large": (lambda: pack(b"{" * (LIMIT + 1)), "at most 8 MiB are read"),
}


@pytest.mark.parametrize("kind", WORST)
def test_the_worst_within_the_limits(tmp_path: Path, kind: str) -> None:
    """Headers of the largest size that is read, made to take as much memory as JSON can."""
    make, words = WORST[kind]
    path = tmp_path / "worst.safetensors"
    path.write_bytes(make())
    message = run_limited("one", path)["message"]
    assert words in message
    assert bool(words) == bool(message)
