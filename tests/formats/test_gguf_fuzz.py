"""Damaged GGUF files: each one either loads or raises OmniError, in bounded time and memory."""

import secrets
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from formats.fuzzing import CPU_SECONDS, NASTY, mutate, run_limited, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.models.config import text_config

MAX_BYTES = 8 << 20

Check = Callable[..., bool]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small but complete file: MoE, so that it has every kind of metadata and tensor."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    write_tiny(path, arch="qwen3vlmoe", n_layers=1, dim=32, head_dim=32, n_experts=4, expert_dim=32, type="q8_0")
    return path.read_bytes()


@pytest.fixture(scope="module")
def header(model: bytes, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Everything before the first tensor's data."""
    path = tmp_path_factory.mktemp("fuzz") / "model.gguf"
    path.write_bytes(model)
    return model[: min(info.offset for info in read_gguf(path).tensors.values())]


@pytest.fixture(scope="module")
def check(tmp_path_factory: pytest.TempPathFactory) -> Check:
    """Whether a file loads; fails when it takes long, takes memory, or raises anything but OmniError."""
    path = tmp_path_factory.mktemp("fuzz") / "damaged.gguf"

    def loads(content: bytes) -> bool:
        write(path, content)
        message, start = "", time.thread_time()
        tracemalloc.start()
        try:
            text_config(read_gguf(path))
        except OmniError as error:
            message = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.thread_time() - start < CPU_SECONDS
        assert peak < MAX_BYTES
        assert not message or message.startswith(f"{path}: ")
        assert "\n" not in message
        return not message

    return loads


def test_truncated_at_every_byte_of_the_header(tmp_path: Path) -> None:
    """A file without tokenizer, so that every byte can be tried."""
    whole = write_tiny(tmp_path / "a.gguf", arch="llama", n_layers=1, tokenizer=False)
    content, file = whole.read_bytes(), read_gguf(whole)
    start = min(info.offset for info in file.tensors.values())
    assert start < 4000
    cut = tmp_path / "cut.gguf"
    for length in range(start + 1):
        write(cut, content[:length])
        with pytest.raises(InvalidModelFile, match=r"truncated|is empty|not a GGUF file"):
            read_gguf(cut)


def test_truncated_with_tokenizer(header: bytes, model: bytes, check: Check) -> None:
    for length in range(0, len(header), 37):
        assert not check(model[:length])


def test_truncated_in_the_data(model: bytes, header: bytes, check: Check, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(model)
    end = max(info.offset + info.nbytes for info in read_gguf(path).tensors.values())
    for length in (len(header), len(header) + 1, (len(header) + end) // 2, end - 1):
        assert not check(model[:length])
    assert check(model[:end])  # the padding after the last tensor may be missing


def test_every_bit_of_the_first_bytes(header: bytes, model: bytes, check: Check) -> None:
    """Magic, version and counts: no flipped bit goes unnoticed, except that version 2 reads like 3."""
    good = []
    for bit in range(24 * 8):
        damaged = bytearray(model)
        damaged[bit // 8] ^= 1 << bit % 8
        if check(bytes(damaged)):
            good.append(bit)
    assert good == [32]


def test_bit_flips(header: bytes, model: bytes, check: Check) -> None:
    rng = np.random.default_rng()
    refused = 0
    for position in rng.choice(len(header), 600, replace=False):
        damaged = bytearray(model)
        damaged[position] ^= 1 << rng.integers(8)
        refused += not check(bytes(damaged))
    assert refused > 30  # most of this header is token text, where a flip often changes only a letter


MUTATIONS = st.lists(
    st.tuples(
        st.integers(0, 5),
        st.integers(0, 2**14),
        st.one_of(st.sampled_from(NASTY), st.integers(0, 2**64 - 1)),
        st.integers(1, 64),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(mutations=MUTATIONS)
def test_mutated_headers(header: bytes, model: bytes, check: Check, mutations: list[tuple[int, int, int, int]]) -> None:
    head = header
    for action, position, value, length in mutations:
        head = mutate(head, action, position % max(1, len(head)), value, length)
    check(head + model[len(header) :])


@pytest.mark.slow
def test_ten_thousand_mutations(model: bytes, tmp_path: Path) -> None:
    """In a process that may take 300 MB."""
    (tmp_path / "base").write_bytes(model)
    done = run_limited("gguf", secrets.randbits(32), 10_000, tmp_path / "base")
    assert 100 < done["loaded"] < 2000  # about 340: a letter of a name nobody asks for, a token


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + content


def test_the_worst_within_the_limits(tmp_path: Path) -> None:
    """As many short strings, entries and tensors as are read, and a long text that takes four bytes a character."""
    elements, entries, tensors, header = 5 << 18, 1 << 12, 1 << 15, 28 << 20
    parts = [b"GGUF" + struct.pack("<IQQ", 3, tensors, entries)]
    parts.append(text(b"strings") + array(8, elements, text("€".encode()) * elements))
    parts += [text(b"%05d" % i) + struct.pack("<IB", 7, 1) for i in range(entries - 2)]
    table = b"".join(text(b"%05d" % i) + struct.pack("<IQIQ", 1, 4, 0, 32 * i) for i in range(tensors))
    left = header - sum(map(len, parts)) - len(table) - 100
    parts.append(text(b"long") + struct.pack("<I", 8) + text(b"a" * left + "😀".encode()))
    content = b"".join(parts) + table
    path = tmp_path / "worst.gguf"
    path.write_bytes(content + bytes(-len(content) % 32 + 32 * tensors))
    assert run_limited("one", path)["message"] == ""


@pytest.mark.parametrize("kind", [2, 7, 10])  # uint16 (most memory for a byte of file), bool, uint64
def test_the_largest_array(tmp_path: Path, kind: int) -> None:
    """One more element than is read, in a file that holds them."""
    size = {2: 2, 7: 1, 10: 8}[kind]
    path = tmp_path / "array.gguf"
    for count, words in ((5 << 18, ""), ((5 << 18) + 1, "array elements at its start, more than any model has")):
        path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text(b"k") + array(kind, count, b"\1" * size * count))
        message = run_limited("one", path)["message"]
        assert words in message
        assert bool(words) == bool(message)
