"""Names and shapes of all tensors, from the table (`table.py`) and the sizes of a checkpoint (`dims.py`).

Forwards: which tensors a GGUF file gets, and what each is made from. Backwards: which of the names that a checkpoint
holds the table does not know, and which it lacks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby

import numpy as np
import numpy.typing as npt

from .dims import PARTS, Dims, Symbols
from .table import DENSE, TABLE

Array = npt.NDArray[np.float32]
Make = Callable[[Sequence[Array]], Array]

_COUNTS = {"i": "L", "e": "E", "g": "G", "t": "TAPS", "u": "U", "b": "B", "r": "R"}
_STACKED = "eg"
_NUMBERED = "itubr"
_PLACE = re.compile(r"\{(\w+)(?:\+(\d))?\}")

# Tensors that some checkpoints hold beside the weights, and why nothing is lost without them.
LEFTOVERS = {
    r"(.+\.)?rotary_(pos_)?emb\.(original_)?inv_freq": "rotary frequencies follow from rope_theta",
    r"thinker\.audio_tower\.positional_embedding\.positional_embedding": "the sinusoids are computed",
    r"code2wav\.code_offset": "the offset of each code group follows from codebook_size",
}


@dataclass(frozen=True)
class Row:
    """One line of the table. Shapes are in symbols; hf is "" for what is computed from no tensor at all."""

    hf: str
    gguf: str
    shape: tuple[str, ...]
    gguf_shape: tuple[str, ...]
    make: str
    component: str

    @property
    def loops(self) -> str:
        """The counts that number this row's GGUF tensors, outermost first."""
        return "".join(place[1] for place in _PLACE.finditer(self.hf) if place[1] in _NUMBERED)

    @property
    def stacked(self) -> str:
        """The count whose tensors become one in GGUF, or ""."""
        return next((letter for letter in _STACKED if f"{{{letter}}}" in self.hf), "")


@dataclass(frozen=True)
class Target:
    """One GGUF tensor to be made: `sources` are (Hugging Face name, shape), all shapes row-major.

    Its values are those of the sources one behind the other, unless `make` computes them from the sources' float32
    arrays.
    """

    name: str
    shape: tuple[int, ...]
    sources: tuple[tuple[str, tuple[int, ...]], ...]
    make: Make | None
    component: str


def rows(dims: Dims) -> list[Row]:
    """The rows that a checkpoint of these sizes has, in file order."""
    if dims.family == "qwen3omni":
        wanted = [row for component in dims.components for row in _parse(TABLE[component], component)]
    else:
        wanted = _plain_rows(dims)
    tied = dims.tied
    return [row for row in wanted if not (tied and row.gguf == "output.weight" and row.component == "thinker_text")]


def _plain_rows(dims: Dims) -> list[Row]:
    """The thinker's rows, changed to what a text model of this family has."""
    wanted: list[Row] = []
    for row in _parse(TABLE["thinker_text"].replace("thinker.", ""), "thinker_text"):
        if dims.family != "qwen3moe" and ".mlp." in row.hf:
            wanted += _parse(DENSE, "thinker_text") if row.hf.endswith(".mlp.gate.weight") else []
        elif dims.family != "llama":
            wanted.append(row)
        elif not re.search(r"[qk]_norm", row.hf):
            kind = re.search(r"\.([qk])_proj", row.hf)
            wanted.append(replace(row, make=f"rope_{kind[1]}") if kind else row)
    if dims.rope_factors:
        factors = Row("", "rope_freqs.weight", (), (str(len(dims.rope_factors)),), "rope_factors", "thinker_text")
        wanted.insert(1, factors)
    return wanted


@lru_cache(maxsize=16)
def _parse(text: str, component: str) -> tuple[Row, ...]:
    parsed = []
    for line in text.strip().splitlines():
        hf, gguf, shape, *more = (cell.strip() for cell in line.split("|"))
        gguf_shape, make = [*more, "", ""][:2]
        sizes = () if shape == "-" else tuple(shape.split())
        parsed.append(Row(hf.strip("-"), gguf, sizes, tuple(gguf_shape.split()) or sizes, make, component))
    return tuple(parsed)


def targets(dims: Dims, part: str) -> Iterator[Target]:
    """The GGUF tensors of one part ("thinker", "mmproj" or "talker") in file order; nothing for a part that is absent.

    Lazily, so that an absurd layer count fails at the first tensor that is missing.
    """
    for component in PARTS[part]:
        if component in dims.components:
            mine = [row for row in rows(dims) if row.component == component]
            for row, at in _walk(mine, dims.components[component], 0, {}):
                yield _target(row, _At(dims.components[component], at), dims)


def part_of(tensor: str) -> str:
    """The part ("thinker", "mmproj" or "talker") that a tensor with a Hugging Face name belongs to."""
    if tensor.startswith(("thinker.audio_tower.", "thinker.visual.")):
        return "mmproj"
    return "talker" if tensor.startswith(("talker.", "code2wav.")) else "thinker"


def expected(dims: Dims) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(Hugging Face name, shape) of every tensor the checkpoint must hold, each once, lazily."""
    for part in PARTS:
        last = ""
        for target in targets(dims, part):
            for name, shape in target.sources:
                if name != last:  # the patch kernel is the source of two targets in a row
                    yield name, shape
                last = name


def unknown(names: Iterable[str], dims: Dims) -> list[str]:
    """Those of `names` that the table does not know: their weights would be left out, and the answers be wrong.

    Known are also the harmless leftovers, and the tensors of a component that config.json switches off.
    """
    table: dict[tuple[str, ...], list[Row]] = {}
    every = [row for name, text in TABLE.items() for row in _parse(text, name)]
    for row in rows(dims) + (every if dims.family == "qwen3omni" else []):
        if row.hf:
            table.setdefault(_key(row.hf), []).append(row)
    leftovers = re.compile("|".join(f"(?:{pattern})" for pattern in LEFTOVERS))
    return [
        name
        for name in names
        if not any(_matches(row, name, dims) for row in table.get(_key(name), ()))
        and not leftovers.fullmatch(name)
        and not (dims.tied and name.removeprefix("thinker.") == "lm_head.weight")
    ]


def _key(name: str) -> tuple[str, ...]:
    """A name or pattern with a placeholder for each number, to find the few rows that can match it."""
    return tuple("#" if piece.isdecimal() or piece.startswith("{") else piece for piece in name.split("."))


def _matches(row: Row, name: str, dims: Dims) -> bool:
    """Whether `name` is one of those that the row counts; its words agree already (`_key`)."""
    absent = row.component not in dims.components
    for pattern, piece in zip(row.hf.split("."), name.split("."), strict=True):
        place = _PLACE.fullmatch(pattern)
        if place is None:
            if pattern != piece:
                return False
            continue
        if not piece.isdecimal() or len(piece) > 6 or str(int(piece)) != piece:
            return False
        what, number = place[1], int(piece) - int(place[2] or 0)
        if absent:
            continue
        size = dims.size(row.component, _COUNTS.get(what, what))
        if not (0 <= number < size if what in _COUNTS else number == size):
            return False
    return True


@dataclass(frozen=True)
class _At:
    """Sizes at one place of the loops. A size that differs from block to block follows the outermost one."""

    symbols: Symbols
    index: dict[str, int]

    def size(self, symbol: str) -> int:
        if symbol.isdecimal():
            return int(symbol)
        if symbol in self.index:
            return self.index[symbol]
        value = self.symbols[symbol]
        return value[next(iter(self.index.values()))] if isinstance(value, tuple) else value

    def shape(self, symbols: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(self.size(symbol) for symbol in symbols)

    def fill(self, pattern: str) -> str:
        return _PLACE.sub(lambda place: str(self.size(place[1]) + int(place[2] or 0)), pattern)


def _walk(group: list[Row], symbols: Symbols, depth: int, at: dict[str, int]) -> Iterator[tuple[Row, dict[str, int]]]:
    """Each row with the numbers of its loops; neighbours that share a loop go through it together."""
    for letter, members in groupby(group, lambda row: row.loops[depth : depth + 1]):
        together = list(members)
        if not letter:
            yield from ((row, at) for row in together)
            continue
        count = symbols[_COUNTS[letter]]
        assert isinstance(count, int)
        for number in range(count):
            yield from _walk(together, symbols, depth + 1, {**at, letter: number})


def _target(row: Row, at: _At, dims: Dims) -> Target:
    shape, gguf_shape = at.shape(row.shape), at.shape(row.gguf_shape)
    places = [at] if row.hf else []
    if row.stacked:
        count = at.size(_COUNTS[row.stacked])
        places = [_At(at.symbols, {**at.index, row.stacked: number}) for number in range(count)]
        gguf_shape = (count, *gguf_shape)
    sources = tuple((place.fill(row.hf), shape) for place in places)
    make = _MAKERS[row.make](at, dims) if row.make else None
    return Target(at.fill(row.gguf), gguf_shape, sources, make, row.component)


def _sinusoids(at: _At, dims: Dims) -> Make:
    """[POS, D]: sines of all frequencies, then cosines (transformers, SinusoidsPositionEmbedding)."""
    length, half = at.size("POS"), at.size("D") // 2

    def make(_: Sequence[Array]) -> Array:
        step = np.log(10000.0) / (half - 1)
        frequencies = np.exp(-np.float32(step) * np.arange(half, dtype=np.float32))
        angles = np.arange(length, dtype=np.float32)[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)

    return make


def _rope_rows(heads_symbol: str) -> Callable[[_At, Dims], Make]:
    """Rows of q or k in llama.cpp's order for architecture llama.

    There the pair that turns together lies side by side (2j, 2j + 1), in Hugging Face's half a head apart.
    """

    def factory(at: _At, dims: Dims) -> Make:
        heads = at.size(heads_symbol)

        def make(sources: Sequence[Array]) -> Array:
            rows, columns = sources[0].shape
            halves = sources[0].reshape(heads, 2, rows // heads // 2, columns)
            return halves.swapaxes(1, 2).reshape(rows, columns)

        return make

    return factory


_MAKERS: dict[str, Callable[[_At, Dims], Make]] = {
    "frame0": lambda at, dims: lambda sources: sources[0][:, :, 0],
    "frame1": lambda at, dims: lambda sources: sources[0][:, :, 1],
    "sinusoids": _sinusoids,
    "rope_q": _rope_rows("H"),
    "rope_k": _rope_rows("KVH"),
    "rope_factors": lambda at, dims: lambda sources: np.array(dims.rope_factors, np.float32),
}
