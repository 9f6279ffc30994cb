"""Sound files that end too early. libsndfile plays what is there and is silent about the rest, so this file looks."""

import re
import struct
from typing import BinaryIO

# Lengths that libsndfile corrects are in its log of the header: "data : 32000 (should be 16000)". Only those of the
# samples count, many programs write a wrong RIFF size; W64 and RF64 name no other.
_CORRECTED = re.compile(r"^\s*(?:data|SSND|BODY|Data Size|riff|Riff size)\s*: (\d+) \(should be (\d+)\)", re.MULTILINE)
_SLACK = 64  # bytes: some programs count a header in
_STREAMED = 0x7FFF0000  # lengths from here on mean "unknown" in files that were written into a pipe

_PAGE_HEADER = 27  # bytes
_CONTINUED, _TAG = b"OggS", (b"Xing", b"Info")


def missing_from_log(log: str) -> int:
    """Bytes of samples that a header announces and the file lacks, by libsndfile's log (SoundFile.extra_info)."""
    missing = [int(told) - int(there) for told, there in _CORRECTED.findall(log) if int(told) < _STREAMED]
    return max([0, *(count for count in missing if count > _SLACK)])


def cut_off(file: BinaryIO) -> str | None:
    """How an Ogg or MP3 file is seen to be cut off, for the message; None where it is whole, or of another format.

    The file is left at its beginning.
    """
    start = file.read(10)
    size = file.seek(0, 2)
    lost = None
    if start.startswith(_CONTINUED):
        lost = _ogg(file, size)
    elif start.startswith(b"ID3") or (len(start) > 1 and start[0] == 0xFF and start[1] & 0xE0 == 0xE0):
        lost = _mp3(file, size, start)
    file.seek(0)
    return lost


def _ogg(file: BinaryIO, size: int) -> str | None:
    """Page by page to the end: a file that was cut ends inside a page.

    One that ends between two pages is taken as it is: streams that somebody stopped recording look like that.
    """
    at = 0
    while at < size:
        file.seek(at)
        header = file.read(_PAGE_HEADER)
        if not header.startswith(_CONTINUED[: len(header)]):
            return None  # something else was appended, or the file is damaged, which decoding finds
        table = file.read(header[26]) if len(header) == _PAGE_HEADER else b""
        at += _PAGE_HEADER + len(table) + sum(table)
        if len(header) < _PAGE_HEADER or len(table) < header[26] or at > size:
            return "it ends inside an Ogg page"
    return None


def _mp3(file: BinaryIO, size: int, start: bytes) -> str | None:
    """The first frame of most MP3 files tells the bytes of all of them."""
    first = 0
    if start.startswith(b"ID3") and len(start) == 10:
        a, b, c, d = start[6:10]
        first = 10 + (a << 21 | b << 14 | c << 7 | d) + (10 if start[5] & 16 else 0)
    file.seek(first)
    frame = file.read(256)
    place = next((frame.find(tag, 4, 64) for tag in _TAG if frame.find(tag, 4, 64) >= 0), -1)
    if place < 0 or len(frame) < place + 16:
        return None
    flags, *counts = struct.unpack_from(">III", frame, place + 4)
    if not flags & 2:  # bytes; they follow the number of frames (flag 1)
        return None
    told, there = counts[1 if flags & 1 else 0], size - first
    return f"it has {there:,} of {told:,} bytes" if there < told * 0.99 else None
