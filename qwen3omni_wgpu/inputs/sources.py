"""Where sound, pictures and video come from: files, bytes, open files, data: URIs and, where allowed, the web.

This file says what may be read and how much of it; what the bytes are is decided by who decodes them.
"""

import base64
import binascii
import hashlib
import io
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes, urlsplit

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.formats.tensors import shown

Source = str | Path | bytes | BinaryIO

_CHUNK = 1 << 20
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]+):", re.IGNORECASE)  # two letters at least: C:\ is a drive


@dataclass(frozen=True)
class Access:
    """What the caller lets a source be. Local files are always allowed.

    urls: http and https, wherever they lead to, also inside this network: never for strangers' input on a server.
    data_uris: data: URIs. max_bytes: of what is held in memory, that is of all but local files. timeout: seconds that
    a server may keep silent.
    """

    urls: bool = False
    data_uris: bool = True
    max_bytes: int = 1 << 30
    timeout: float = 30.0


DEFAULT_ACCESS = Access()


@dataclass(frozen=True, eq=False)
class Blob:
    """Bytes that lie in memory (`data`) or in a local file (`path`). `name` stands for them in messages."""

    name: str
    data: bytes | None = field(default=None, repr=False)
    path: Path | None = None

    def open(self) -> BinaryIO:
        """A new seekable file at its first byte, to be closed. InvalidRequest when a local file cannot be opened."""
        if self.path is None:
            return io.BytesIO(self.data or b"")
        try:
            return self.path.open("rb")
        except OSError as error:
            reason = error.strerror or str(error)
            raise InvalidRequest(f"{self.name}: cannot be opened ({reason}); check its permissions") from error

    def digest(self) -> bytes:
        """The first 16 bytes of the content's SHA-256."""
        try:
            with self.open() as file:
                return hashlib.file_digest(file, "sha256").digest()[:16]  # type: ignore[arg-type] - BytesIO is one
        except OSError as error:
            raise unreadable(self.name, error) from error


def unreadable(name: str, error: OSError) -> InvalidRequest:
    """The error for a source that opens and then does not let itself be read."""
    return InvalidRequest(f"{name}: cannot be read ({error.strerror or error}); check the disk it is on")


def open_source(source: Source, what: str, access: Access = DEFAULT_ACCESS) -> Blob:
    """What a caller named, ready to be opened; a web address is downloaded here.

    source: path, file://, data: or http(s):// as text, a Path, the bytes themselves, or an open binary file, which is
    read to its end from where it stands. what: "sound", "picture" or "video", for messages.
    Raises InvalidRequest in one line: missing, empty, too large, no file, not allowed, or a server that fails.
    """
    if isinstance(source, str):
        return _from_text(source, what, access)
    if isinstance(source, os.PathLike):
        return _from_path(Path(source), what)
    if isinstance(source, bytes | bytearray | memoryview):
        if len(source) > access.max_bytes:
            raise _too_large(f"the {what}", access)
        return _in_memory(f"the {what}", bytes(source))
    if hasattr(source, "read"):
        return _from_stream(source, what, access)
    raise InvalidRequest(
        f"a {what} is named by a path, a URL, its bytes or an open binary file, not by {type(source).__name__}"
    )


def _from_text(text: str, what: str, access: Access) -> Blob:
    found = _SCHEME.match(text)
    scheme = found[1].lower() if found else ""
    if scheme == "data":
        return _from_data_uri(text, what, access)
    if scheme == "file":
        return _from_path(_file_url(text), what)
    if scheme in ("http", "https"):
        name = _short(re.sub("//[^/]*@", "//", text.split("?")[0]))  # passwords and tokens stay out of messages
        if not access.urls:
            raise InvalidRequest(
                f"{name}: web addresses are not fetched unless that is allowed (--allow-urls, Access(urls=True)); "
                f"allow it, or download the {what} first"
            )
        from qwen3omni_wgpu.inputs.web import fetch  # here, because HTTP and TLS take long to import

        return _in_memory(name, fetch(text, name, access.max_bytes, access.timeout))
    if found and text.startswith("//", found.end()):
        raise InvalidRequest(f"{_short(text)}: {scheme} addresses are not supported; download the {what} first")
    if not text:
        raise InvalidRequest(f"the name of the {what} file is empty; give a path")
    return _from_path(Path(text), what)


def _from_path(path: Path, what: str) -> Blob:
    """Only regular files that are not empty: opening a pipe or a device could block for ever."""
    name = _short(str(path))
    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"{name}: {reason}; check the path of the {what} file") from error
    if stat.S_ISDIR(status.st_mode):
        raise InvalidRequest(f"{name}: is a folder; name one {what} file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidRequest(f"{name}: is not a regular file; save the {what} to one first")
    if status.st_size == 0:
        raise _empty(name)
    blob = Blob(name, path=path)
    blob.open().close()  # a file that may not be read is found before anything is done with it
    return blob


def _file_url(text: str) -> Path:
    from urllib.request import url2pathname

    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise InvalidRequest(f"{_short(text)}: is not a valid address ({error}); give a path") from error
    if parts.netloc not in ("", "localhost"):
        raise InvalidRequest(f"{_short(text)}: names another machine; file:///path means a file of this one")
    return Path(url2pathname(parts.path))


def _from_data_uri(text: str, what: str, access: Access) -> Blob:
    """data:[type][;base64],content as RFC 2397 has it; base64 with blanks or without its padding is accepted."""
    head, comma, content = text.partition(",")
    kind = head[5:].split(";")[0][:40]
    name = f"the {what}'s data: URI" + (f" ({kind})" if kind.isprintable() and kind else "")
    if not access.data_uris:
        raise InvalidRequest(f"{name}: is not taken unless that is allowed (--allow-urls); give a file")
    if not comma:
        raise InvalidRequest(f"{name}: has no comma before its content; it is data:TYPE;base64,CONTENT")
    data = unquote_to_bytes(content)
    if head.lower().endswith(";base64"):
        data = b"".join(data.split())
        try:
            data = base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)
        except binascii.Error as error:
            raise InvalidRequest(f"{name}: is not valid base64 ({error}); encode the {what} again") from error
    if len(data) > access.max_bytes:
        raise _too_large(name, access)
    return _in_memory(name, data)


def _from_stream(stream: BinaryIO, what: str, access: Access) -> Blob:
    given = getattr(stream, "name", None)
    name = _short(given) if isinstance(given, str) else f"the {what}"
    chunks: list[bytes] = []
    size = 0
    try:
        while chunk := stream.read(_CHUNK):
            if not isinstance(chunk, bytes):
                raise InvalidRequest(f"{name}: is open as text; open it in binary mode, 'rb'")
            chunks.append(chunk)
            size += len(chunk)
            if size > access.max_bytes:
                raise _too_large(name, access)
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"{name}: is open as text; open it in binary mode, 'rb'") from error
    except OSError as error:
        raise unreadable(name, error) from error
    return _in_memory(name, b"".join(chunks))


def _in_memory(name: str, data: bytes) -> Blob:
    if not data:
        raise _empty(name)
    return Blob(name, data)


def _empty(name: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: is empty (0 bytes); save or download it again")


def _too_large(name: str, access: Access) -> InvalidRequest:
    return InvalidRequest(
        f"{name}: has more than the {access.max_bytes:,} bytes that are taken into memory; "
        "give the path of a local file, or raise Access(max_bytes=...)"
    )


def _short(name: str) -> str:
    """The name as it is where it fits one line of a message, else its repr, cut."""
    return name if name.isprintable() and len(name) <= 200 else shown(name)
