"""Every type's bytes against the `gguf` package, and against ggml's own C code where llama_cpp is installed."""

import ctypes
import warnings
from pathlib import Path

import numpy as np
import pytest
from gguf.quants import dequantize, quantize

from qwen3omni_wgpu.formats import quants
from qwen3omni_wgpu.formats.quants import BLOCKS, TYPES, NotFinite, TooLarge, check_finite, decode, encode

RAW_TYPES = ("f32", "f16", "bf16")
F32_MAX = float(np.finfo(np.float32).max)


def encoded(values: np.ndarray, type: str) -> np.ndarray:
    per_block, size = BLOCKS[type]
    out = np.full(values.size // per_block * size, 0xA5, np.uint8)
    before = values.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encode(values, type, out)
    assert (values.view(np.uint32) == before.view(np.uint32)).all(), "encode changed its input"
    return out


def expected(values: np.ndarray, type: str) -> np.ndarray:
    return quantize(values.reshape(-1, 32), TYPES[type]).reshape(-1).view(np.uint8)


def many_scales(rng: np.random.Generator, blocks: int = 4000) -> np.ndarray:
    """Blocks whose values span all scales from far below f16's smallest to its largest."""
    scale = np.exp2(rng.uniform(-60, 14, (blocks, 1)))
    return (rng.standard_normal((blocks, 32)) * scale).clip(-65000, 65000).astype(np.float32).reshape(-1)


def ties(rng: np.random.Generator, blocks: int = 4000) -> np.ndarray:
    """Blocks whose scale is a power of two, so that multiples of half of it fall exactly between two weights."""
    exponent = rng.integers(-12, 8, (blocks, 1))
    values = rng.integers(-253, 254, (blocks, 32)) / 2
    values[:, 0] = rng.choice([-127, 127], blocks)
    return (values * np.exp2(exponent)).astype(np.float32).reshape(-1)


def near_ties(rng: np.random.Generator, blocks: int = 4000) -> np.ndarray:
    values = ties(rng, blocks)
    towards = np.where(rng.random(values.size) < 0.5, np.inf, -np.inf).astype(np.float32)
    moved = np.where(rng.random(values.size) < 0.7, np.nextafter(values, towards), values)
    moved[::32] = values[::32]  # the largest stays, and with it the scale
    return moved.astype(np.float32)


def outliers(rng: np.random.Generator, blocks: int = 1000) -> np.ndarray:
    values = rng.standard_normal((blocks, 32)) * 0.02
    values[np.arange(blocks), rng.integers(0, 32, blocks)] = rng.choice([-1, 1], blocks) * rng.uniform(1, 60000, blocks)
    return values.astype(np.float32).reshape(-1)


def zeros_and_denormals(rng: np.random.Generator, blocks: int = 1000) -> np.ndarray:
    values = rng.integers(0, 1 << 24, (blocks, 32)).astype(np.uint32)  # the smallest floats there are
    values[: blocks // 4] = 0
    values[blocks // 4 : blocks // 2, 1:] = 0
    return (values | rng.integers(0, 2, values.shape).astype(np.uint32) << 31).reshape(-1).view(np.float32)


def ordinary(rng: np.random.Generator, blocks: int = 2 * quants.CHUNK // 32 + 77) -> np.ndarray:
    """More than two chunks, and a rest."""
    return (rng.standard_normal(blocks * 32) * 0.03).astype(np.float32)


SAMPLES = (many_scales, ties, near_ties, outliers, zeros_and_denormals, ordinary)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # gguf's, on denormals
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("type", ["q8_0", *RAW_TYPES])
def test_encode_gives_the_bytes_of_gguf(sample, type):
    seed = np.random.SeedSequence().entropy
    values = sample(np.random.default_rng(seed))
    wrong = np.flatnonzero(encoded(values, type) != expected(values, type))
    assert not wrong.size, f"seed {seed}: first wrong byte {wrong[0]}"


@pytest.mark.parametrize("type", ["q4_0", "q4_1"])
def test_encode_four_bits(type):
    values = ordinary(np.random.default_rng(), 1000)
    assert (encoded(values, type) == expected(values, type)).all()


@pytest.mark.parametrize("type", list(BLOCKS))
def test_decode_gives_the_values_of_gguf(type):
    rng = np.random.default_rng()
    raw = encoded(many_scales(rng, 500) if type in RAW_TYPES else ordinary(rng), type)
    ours, theirs = decode(raw, type), dequantize(raw, TYPES[type]).reshape(-1).astype(np.float32)
    assert ours.dtype == np.float32
    assert (ours.view(np.uint32) == theirs.view(np.uint32)).all()
    out = np.full_like(ours, 7)
    assert decode(raw, type, out) is out
    assert (out.view(np.uint32) == theirs.view(np.uint32)).all()


@pytest.mark.parametrize("type", list(BLOCKS))
def test_decode_into_part_of_a_larger_array(type):
    raw = encoded(ordinary(np.random.default_rng(), 70), type)
    out = np.full(96 + 70 * 32 + 64, 7, np.float32)
    decode(raw, type, out[96:-64])
    assert (out[:96] == 7).all()
    assert (out[-64:] == 7).all()
    assert (out[96:-64] == decode(raw, type)).all()


def test_rounding_is_that_of_roundf_up_to_127_5():
    """The quantiser's rounding, for every half and the 40 floats on either side of it, and a million others."""
    halves = (np.arange(256) / 2).astype(np.float32).view(np.int32)[:, None] + np.arange(-40, 41, dtype=np.int32)
    others = np.random.default_rng().uniform(0, 127.5, 1 << 20).astype(np.float32)
    values = np.concatenate([halves[halves >= 0].view(np.float32), others])
    values = values[values <= 127.5]
    values = np.concatenate([values, -values])
    signed_half = values.view(np.uint32) & quants._SIGN | quants._JUST_BELOW_HALF
    ours = np.trunc(values + signed_half.view(np.float32))
    exact = values.astype(np.float64)  # where adding a full half is exact, so floor rounds as roundf
    assert (ours == np.copysign(np.floor(np.abs(exact) + 0.5), exact)).all()


@pytest.mark.parametrize("bad", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("type", ["q8_0", *RAW_TYPES])
def test_nan_and_infinity_anywhere_are_refused(type, bad):
    rng = np.random.default_rng()
    values = ordinary(rng)
    values[rng.integers(values.size)] = bad
    with pytest.raises(NotFinite, match="holds NaN or infinity"):
        encoded(values, type)


@pytest.mark.parametrize(
    ("type", "fits", "too_large", "message"),
    [
        ("f16", 65519.996, 65520, "^holds 6.6e[+]04, too large for f16; use bf16$"),
        ("bf16", 3.3895313e38, 3.3961776e38, "^holds 3.4e[+]38, too large for bf16; use f32$"),
        ("q8_0", 8321039.5, 8321040, "^holds 8.3e[+]06, too large for q8_0; use bf16$"),
        ("q8_0", 8321039.5, F32_MAX, "^holds 3.4e[+]38, too large for q8_0; use bf16$"),
    ],
)
@pytest.mark.parametrize("sign", [1, -1])
def test_what_would_become_infinite_is_refused(type, fits, too_large, message, sign):
    """The limits are the numbers that gguf's conversion makes infinite, and not one float less."""
    values = np.zeros(64, np.float32)
    values[37] = sign * fits
    assert (encoded(values, type) == expected(values, type)).all()
    assert np.isfinite(decode(encoded(values, type), type)).all()
    values[37] = sign * too_large
    with pytest.raises(TooLarge, match=message):
        encoded(values, type)


def test_largest_floats_of_the_types_without_a_smaller_range():
    values = np.array([F32_MAX, -F32_MAX, np.nextafter(np.float32(3.3961776e38), np.float32(0))], np.float32)
    assert (decode(encoded(values, "f32"), "f32") == values).all()
    assert np.isfinite(decode(encoded(values[2:], "bf16"), "bf16")).all()


@pytest.mark.parametrize("type", RAW_TYPES)
def test_check_finite_of_stored_bytes(type):
    rng = np.random.default_rng()
    raw = encoded(many_scales(rng, 9000), type)
    check_finite(raw, type)
    size = BLOCKS[type][1]
    for bad in (np.nan, np.inf, -np.inf):
        broken = raw.copy()
        at = rng.integers(broken.size // size) * size
        value = np.array([bad], np.float32)
        broken[at : at + size] = quantize(value, TYPES[type]).reshape(-1).view(np.uint8)
        with pytest.raises(NotFinite, match="NaN or infinity"):
            check_finite(broken, type)


@pytest.mark.parametrize(("type", "numbers"), [("q8_0", 1), ("q4_0", 1), ("q4_1", 2)])
def test_check_finite_of_scales(type, numbers):
    rng = np.random.default_rng()
    size = BLOCKS[type][1]
    blocks = rng.integers(0, 256, (10000, size)).astype(np.uint8)
    blocks[:, : 2 * numbers] = rng.uniform(-60000, 60000, (10000, numbers)).astype(np.float16).view(np.uint8)
    check_finite(blocks.reshape(-1), type)
    for bad in (np.nan, np.inf, -np.inf):
        broken = blocks.copy()
        broken[rng.integers(10000)].view(np.float16)[rng.integers(numbers)] = bad
        with pytest.raises(NotFinite, match="NaN or infinity"):
            check_finite(broken.reshape(-1), type)


def test_nothing_to_do_for_no_values():
    nothing = np.empty(0, np.float32)
    for type in ("q8_0", *RAW_TYPES):
        assert encoded(nothing, type).size == 0
        assert decode(np.empty(0, np.uint8), type).size == 0
    for type in RAW_TYPES:
        check_finite(np.empty(0, np.uint8), type)


@pytest.mark.oracle
@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("type", ["q8_0", "f16", "bf16"])
def test_encode_gives_the_bytes_of_ggml(sample, type):
    """ggml_quantize_chunk of the library that llama_cpp carries: the reference quantiser in C."""
    llama_cpp = pytest.importorskip("llama_cpp")
    library = ctypes.CDLL(str(next((Path(llama_cpp.__file__).parent / "lib").glob("libggml-base.so*"))))
    library.ggml_quantize_chunk.restype = ctypes.c_size_t
    library.ggml_quantize_chunk.argtypes = [
        ctypes.c_int,
        ctypes.c_void_p,
        ctypes.c_void_p,
        *[ctypes.c_int64] * 3,
        ctypes.c_void_p,
    ]
    seed = np.random.SeedSequence().entropy
    values = sample(np.random.default_rng(seed))
    ours, theirs = encoded(values, type), np.zeros(values.size // BLOCKS[type][0] * BLOCKS[type][1], np.uint8)
    done = library.ggml_quantize_chunk(
        int(TYPES[type]), values.ctypes.data, theirs.ctypes.data, 0, values.size // 32, 32, None
    )
    assert done == theirs.size
    wrong = np.flatnonzero(ours != theirs)
    assert not wrong.size, f"seed {seed}: first wrong byte {wrong[0]}"
