"""Streamed text: whole characters only, stop strings over any token border, nothing special shown."""

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabularies import plain, trained

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs.detokenize import TextStream
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.inputs.vocabulary import Kind, Vocabulary, byte_alphabet

_CHARACTER_OF = {byte: character for character, byte in byte_alphabet().items()}


class NoEncoder:
    """Streams only decode."""

    def encode(self, text: str, parse_special: bool) -> list[int]:
        raise NotImplementedError


def of_pieces(pieces: list[bytes]) -> Tokenizer:
    """Token i stands for piece i."""
    tokens = ["".join(_CHARACTER_OF[b] for b in piece) for piece in pieces]
    return Tokenizer(Vocabulary(tokens, [Kind.NORMAL] * len(tokens), "byte-level"), NoEncoder())


def cut(data: bytes, borders: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(b % (len(data) + 1) for b in borders)})
    return [data[a:b] for a, b in pairwise(edges)]


def expected_text(text: str, stops: list[str]) -> tuple[str, str | None]:
    """Character by character: the first moment at which the text ends with a stop string."""
    for end in range(1, len(text) + 1):
        ending = [stop for stop in stops if text[:end].endswith(stop)]
        if ending:
            stop = max(ending, key=len)
            return text[: end - len(stop)], stop
    return text, None


def stream(pieces: list[bytes], stops: list[str]) -> tuple[list[str], TextStream]:
    out = TextStream(of_pieces(pieces), stops)
    shown = [out.push(i) for i in range(len(pieces))]
    return [*shown, out.finish()], out


BYTES = st.one_of(st.binary(max_size=60), st.text(max_size=30).map(lambda text: text.encode("utf-8", "replace")))
BORDERS = st.lists(st.integers(0, 400), max_size=30)
LETTERS = st.text("ab🙂é", max_size=20)
STOPS = st.lists(st.text("ab🙂é", min_size=1, max_size=4), max_size=3)


@settings(max_examples=400, deadline=None)
@given(data=BYTES, borders=BORDERS)
def test_any_split_gives_the_whole_decode(data: bytes, borders: list[int]) -> None:
    pieces = cut(data, borders)
    shown, out = stream(pieces, [])
    assert "".join(shown) == data.decode("utf-8", "replace")
    assert "".join(shown) == of_pieces(pieces).decode(range(len(pieces)))
    assert out.stopped is None


@settings(max_examples=600, deadline=None)
@given(text=LETTERS, stops=STOPS, borders=BORDERS)
def test_stop_strings_over_any_split(text: str, stops: list[str], borders: list[int]) -> None:
    shown, out = stream(cut(text.encode(), borders), stops)
    wanted, stop = expected_text(text, stops)
    assert "".join(shown) == wanted
    assert out.stopped == stop


@settings(max_examples=200, deadline=None)
@given(text=LETTERS, stops=STOPS)
def test_no_more_is_held_back_than_needed(text: str, stops: list[str]) -> None:
    out = TextStream(of_pieces([c.encode() for c in text]), stops)
    shown = ""
    for i in range(len(text)):
        shown += out.push(i)
        if out.stopped is not None:
            break
        seen = text[: i + 1]
        open_ends = [size for stop in stops for size in range(1, len(stop)) if seen.endswith(stop[:size])]
        assert shown == seen[: len(seen) - max(open_ends, default=0)]


def test_every_border_of_a_stop_string() -> None:
    data = "fine. <|stöp🙂|> tail".encode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            shown, out = stream(cut(data, [first, second]), ["<|stöp🙂|>"])
            assert "".join(shown) == "fine. "
            assert out.stopped == "<|stöp🙂|>"


def test_half_characters_wait() -> None:
    smile = "🙂".encode()
    shown, _ = stream([bytes([b]) for b in smile] + [b"!"], [])
    assert shown == ["", "", "", "🙂", "!", ""]


@pytest.mark.parametrize(
    ("pieces", "shown"),
    [
        ([b"\xf0\x9f", b"x"], ["", "\ufffdx", ""]),  # certainly broken once the x is there
        ([b"\xf0\x9f"], ["", "\ufffd"]),  # broken only because nothing follows
        ([b"\xff", b"a"], ["\ufffd", "a", ""]),
        ([b"a\xe2\x82", b"\xac"], ["a", "€", ""]),
        ([b"\xed", b"\xa0", b"\x80"], ["", "", "\ufffd\ufffd\ufffd", ""]),  # a surrogate is never valid
    ],
)
def test_invalid_bytes_only_when_certain(pieces: list[bytes], shown: list[str]) -> None:
    assert stream(pieces, [])[0] == shown


def test_a_false_start_is_shown_later() -> None:
    shown, out = stream([b"a\n", b"\n", b"Us", b"er x", b"\nUser:"], ["\nUser:"])
    assert shown == ["a", "\n", "", "\nUser x", "", ""]
    assert out.stopped == "\nUser:"


def test_the_stop_that_is_complete_first_counts() -> None:
    assert "".join(stream([b"abcd"], ["bcd", "c"])[0]) == "ab"
    assert "".join(stream([b"a", b"b", b"c", b"d"], ["bcd", "c"])[0]) == "ab"
    shown, out = stream([b"abcd"], ["c", "abc"])
    assert ("".join(shown), out.stopped) == ("", "abc")


def test_what_was_held_back_comes_at_the_end() -> None:
    shown, out = stream([b"ends in st"], ["stop"])
    assert shown == ["ends in ", "st"]
    assert out.stopped is None


def test_after_a_stop_nothing_more_comes() -> None:
    out = TextStream(of_pieces([b"a", b"STOP", b"b"]), ["STOP"])
    assert [out.push(0), out.push(1), out.push(2), out.finish()] == ["a", "", "", ""]


def test_one_string_is_one_stop() -> None:
    out = TextStream(of_pieces([b"x end y"]), "end")
    assert out.push(0) == "x "
    assert out.stopped == "end"


def test_an_empty_stop_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="empty"):
        TextStream(of_pieces([b"a"]), ["", "x"])


def test_special_tokens_are_not_shown() -> None:
    tokenizer = Tokenizer.from_gguf(plain())
    ids = tokenizer.encode("€<|im_end|>x")
    broken = [ids[0], tokenizer.token_id("<|im_start|>"), *ids[1:]]
    out = TextStream(tokenizer)
    assert "".join(out.push(i) for i in broken) + out.finish() == "€x" == tokenizer.decode(broken)


def test_padding_ids_are_not_shown() -> None:
    out = TextStream(of_pieces([b"a"]))
    assert [out.push(0), out.push(77)] == ["a", ""]


@settings(max_examples=100, deadline=None)
@given(text=st.text("helo wrd🙂\n", max_size=20))
def test_sentencepiece_leading_space(text: str) -> None:
    tokenizer = Tokenizer.from_gguf(trained("llama"))
    ids = tokenizer.encode(text)
    out = TextStream(tokenizer)
    assert "".join(out.push(i) for i in ids) + out.finish() == text
    going_on = TextStream(tokenizer, continues=True)
    assert "".join(going_on.push(i) for i in ids) + going_on.finish() == (" " + text if text else "")
