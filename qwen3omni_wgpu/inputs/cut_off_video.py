"""Video files that end too early. FFmpeg plays what is there and is silent about the rest, so this file looks.

Only at containers that say how long they are: MP4 and MOV, Matroska and WebM, AVI, GIF. A transport stream may begin
and end anywhere.
"""

from collections.abc import Callable
from typing import BinaryIO

# Types of the boxes that MP4 and MOV files begin with.
_BOXES = frozenset((b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"pnot", b"styp", b"sidx", b"moof", b"uuid"))
_EBML, _SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"
_STREAMED = 0x7FFF0000  # RIFF sizes from here on mean "unknown" in files that were written into a pipe
_GIF_END = b";"


def cut_off_video(file: BinaryIO) -> str | None:
    """How the file is seen to be cut off, for the message; None where it is whole, or of a kind that does not tell.

    The file is left at its beginning.
    """
    start = file.read(12)
    size = file.seek(0, 2)
    look: Callable[[BinaryIO, int], str | None] | None = None
    if start[4:8] in _BOXES:
        look = _boxes
    elif start.startswith(_EBML):
        look = _matroska
    elif start.startswith(b"RIFF") and start[8:] == b"AVI ":
        look = _riff
    elif start.startswith((b"GIF87a", b"GIF89a")):
        look = _gif
    lost = look(file, size) if look else None
    file.seek(0)
    return lost


def _boxes(file: BinaryIO, size: int) -> str | None:
    """From box to box to the end. What is no box is something that was appended, and ends the search."""
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(16)
        kind, length = header[4:8], int.from_bytes(header[:4], "big")
        if len(kind) < 4 or not kind.isalnum():
            return None
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length == 0:  # to the end of the file
            return None
        if length < 8:
            return None
        if at + length > size:
            return _missing(f"inside its {kind.decode()!r} part", at + length - size)
        at += length
    return None


def _matroska(file: BinaryIO, size: int) -> str | None:
    """The header, then one segment that holds all the rest."""
    file.seek(len(_EBML))
    length = _vint(file)
    if length is None:
        return None
    file.seek(length, 1)
    if file.read(4) != _SEGMENT:
        return None
    length = _vint(file)
    end = file.tell() + length if length is not None else 0
    return _missing("inside its segment", end - size) if end > size else None


def _vint(file: BinaryIO) -> int | None:
    """A length of EBML; None where it is unknown, as in a live recording, or where the file ends."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    more = 8 - first[0].bit_length()
    rest = file.read(more)
    bits = 7 * (more + 1)
    value = int.from_bytes(first + rest, "big") & ((1 << bits) - 1)
    return None if len(rest) < more or value == (1 << bits) - 1 else value


def _riff(file: BinaryIO, size: int) -> str | None:
    file.seek(4)
    end = 8 + int.from_bytes(file.read(4), "little")
    return _missing("before its end", end - size) if size < end < _STREAMED else None


def _gif(file: BinaryIO, size: int) -> str | None:
    file.seek(max(0, size - 64))
    whole = file.read().rstrip(b"\0").endswith(_GIF_END)
    return None if whole else "it lacks the mark at its end"


def _missing(where: str, count: int) -> str:
    return f"it ends {where}, {count:,} bytes are missing"
