"""Sizes of the GPUs' matvec, shaders/pair_matvec.wgsl: threads a row, rows and tokens a thread, threads a workgroup."""

from __future__ import annotations

# lanes, rows, tokens, threads of a workgroup, in the order of a Variant
Size = tuple[int, int, int, int]
SHADER = "pair_matvec"
MOST_TOKENS = 8
_MOST_LANES = 32
# Workgroups that keep the 40 units of the largest APU busy, twice.
_ENOUGH = 80


def in_pairs(d: int) -> bool:
    """Whether rows of D are pairs of blocks of 32."""
    return d % 64 == 0


def rule(n: int, f: int, d: int) -> Size:
    """For N tokens, F rows of the matrix and D inputs."""
    lanes = _lanes(d // 64)
    # What a workgroup does once, the staging of x, is worth more rows, as long as there are workgroups enough.
    for rows, threads in ((4, 256), (2, 256), (2, 128)):
        if f * lanes >= rows * threads * (2 if rows == 4 else 1) * _ENOUGH and n * rows <= 8:
            return _whole(lanes, rows, n, threads)
    return _whole(lanes, 2 if n <= 4 else 1, n, 64 if f * lanes < 128 * _ENOUGH else 128)


def sizes(n: int, f: int, d: int) -> list[Size]:
    """The rule's choice, then its like with other numbers of threads and rows."""
    first, pairs = rule(n, f, d), d // 64
    lanes = [size for size in (first[0], first[0] * 2, first[0] // 2) if 1 < size <= min(64, 2 * pairs)]
    more = [_whole(size, rows, n, threads) for size in lanes for rows in (1, 2, 4) for threads in (64, 128, 256)]
    return list(dict.fromkeys([first, *more]))


def workgroup_bytes(size: Size, packed: bool, d: int, staged: int, normed: bool = True) -> int:
    """Workgroup memory for `staged` rows of x, the sums over a row's threads and the norm's."""
    lanes, rows, tokens, threads = size
    # int8, a scale and a sum for every 8; or floats, 17 for every 16
    values = staged * (d // 64) * (36 * 4 if packed else 17 * 16)
    sums = max(2, rows) * tokens * (threads // lanes) * (lanes + 1)
    return values + 4 * (sums + (tokens * (threads + 16) if normed else 0))


def _lanes(pairs: int) -> int:
    """Threads that share a row: so many that their steps cover it exactly, where such a number is near."""
    for rounds in range(-(-pairs // _MOST_LANES), pairs // 4 + 1):
        if pairs % rounds == 0:
            return pairs // rounds
    return min(_MOST_LANES, max(2, 1 << (pairs - 1).bit_length()))


def _whole(lanes: int, rows: int, tokens: int, threads: int) -> Size:
    """With as many whole groups of lanes as `threads` hold."""
    return lanes, rows, tokens, lanes * max(1, threads // lanes)
