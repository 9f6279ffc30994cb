"""Damaged GGUF files: each one either loads or raises OmniError, in bounded time and memory."""

import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_gguf import write_tiny

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.models.config import text_config

MAX_SECONDS = 2.0  # one file takes about a millisecond
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

    def loads(content: bytes, watch_memory: bool = True) -> bool:
        path.write_bytes(content)
        message, start = "", time.perf_counter()
        if watch_memory:  # which makes it three times slower
            tracemalloc.start()
        try:
            text_config(read_gguf(path))
        except OmniError as error:
            message = str(error)
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert time.perf_counter() - start < MAX_SECONDS
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
        cut.write_bytes(content[:length])
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
    rng = np.random.default_rng(1)
    refused = 0
    for position in rng.choice(len(header), 600, replace=False):
        damaged = bytearray(model)
        damaged[position] ^= 1 << rng.integers(8)
        refused += not check(bytes(damaged))
    assert refused > 30  # most of this header is token text, where a flip often changes only a letter


NASTY = (0, 1, 2, 8, 9, 31, 32, 0x7F, 0xFF, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63, 2**64 - 1)


def mutate(content: bytes, action: int, position: int, value: int, length: int) -> bytes:
    """One change: overwrite 1, 4 or 8 bytes by a nasty number, or drop, repeat or insert a stretch of bytes."""
    if action < 3:
        raw = struct.pack("<Q", value % 2**64)[: (1, 4, 8)[action]]
        return content[:position] + raw + content[position + len(raw) :]
    rest = content[position + length :]
    middle = (b"", content[position : position + length] * 2, bytes([value % 256]) * length)[action - 3]
    return content[:position] + middle + rest


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


@settings(max_examples=400, deadline=None)
@given(mutations=MUTATIONS)
def test_mutated_headers(header: bytes, model: bytes, check: Check, mutations: list[tuple[int, int, int, int]]) -> None:
    head = header
    for action, position, value, length in mutations:
        head = mutate(head, action, position % max(1, len(head)), value, length)
    check(head + model[len(header) :])


@pytest.mark.slow
def test_ten_thousand_mutations(header: bytes, model: bytes, check: Check) -> None:
    """Where the structure is: mostly the hyper-parameters at the front and the tensor table at the end."""
    rng = np.random.default_rng(2)
    edges = np.concatenate([np.arange(1500), np.arange(len(header) - 1500, len(header))])
    loaded = 0
    for _ in range(10_000):
        head = header
        for _ in range(rng.integers(1, 4)):
            position = int(rng.choice(edges)) % len(head)
            head = mutate(
                head, int(rng.integers(6)), position, NASTY[rng.integers(len(NASTY))], int(rng.integers(1, 64))
            )
        loaded += check(head + model[len(header) :], watch_memory=False)
    assert loaded < 3000
