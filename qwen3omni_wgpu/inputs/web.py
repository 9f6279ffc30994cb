"""One download into memory with every length bounded: bytes, redirects, silence and slowness."""

import http.client
import time
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
    UnknownHandler,
)

from qwen3omni_wgpu.errors import InvalidRequest

_CHUNK = 1 << 16
_SLOWEST = 4096  # bytes a second: a server that sends less, on the whole, is as good as silent


class _Redirects(HTTPRedirectHandler):
    max_redirections = 5
    max_repeats = 2


def _opener() -> OpenerDirector:
    """http and https only: urllib's usual one follows a redirect to ftp too."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler,
        HTTPHandler,
        HTTPSHandler,
        HTTPErrorProcessor,
        HTTPDefaultErrorHandler,
        UnknownHandler,
        _Redirects,
    ):
        opener.add_handler(handler())
    return opener


def fetch(url: str, name: str, max_bytes: int, timeout: float) -> bytes:
    """The content of an http or https address. `name` stands for it in messages. timeout: seconds of silence.

    Raises InvalidRequest in one line for everything that can go wrong on the way.
    """
    try:
        if urlsplit(url).username is not None:
            raise InvalidRequest(f"{name}: addresses with a user name in them are not supported; download it first")
        request = Request(_ascii(url), headers={"User-Agent": "qwen3omni-wgpu", "Accept": "*/*"})
        with _opener().open(request, timeout=timeout) as response:
            return _body(response, name, max_bytes, timeout)
    except HTTPError as error:
        error.close()
        reason = " ".join(str(error.reason).split())[:80]
        raise InvalidRequest(f"{name}: the server answers {error.code} {reason}; check the address") from error
    except TimeoutError as error:
        raise _silent(name, timeout) from error
    except URLError as error:
        if isinstance(error.reason, TimeoutError):
            raise _silent(name, timeout) from error
        reason = getattr(error.reason, "strerror", None) or error.reason
        raise InvalidRequest(f"{name}: cannot be reached ({reason}); check the address and the network") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "strerror", None) or type(error).__name__
        raise InvalidRequest(f"{name}: the download broke off ({reason}); try again, or download it first") from error
    except ValueError as error:
        raise InvalidRequest(f"{name}: is not a valid web address ({error}); check it") from error


def _body(response: Any, name: str, max_bytes: int, timeout: float) -> bytes:
    announced = response.headers.get("Content-Length", "")
    length = int(announced) if announced.isdecimal() else None
    if length is not None and length > max_bytes:
        raise _too_large(name, max_bytes)
    chunks: list[bytes] = []
    size, start = 0, time.monotonic()
    while chunk := response.read1(_CHUNK):
        chunks.append(chunk)
        size += len(chunk)
        if size > max_bytes:
            raise _too_large(name, max_bytes)
        if time.monotonic() - start > timeout + size / _SLOWEST:
            raise InvalidRequest(f"{name}: arrives too slowly ({size:,} bytes so far); download it first")
    if length is not None and size < length:
        raise InvalidRequest(f"{name}: the download broke off after {size:,} of {length:,} bytes; try again")
    return b"".join(chunks)


def _ascii(url: str) -> str:
    """Letters beyond ASCII and blanks percent-coded, as browsers do; what is coded already stays."""
    return quote(url.strip(), safe="%/:=&?~#+!$,;'@()*[]")


def _silent(name: str, timeout: float) -> InvalidRequest:
    return InvalidRequest(f"{name}: the server did not answer within {timeout:g} s; try again, or download it first")


def _too_large(name: str, max_bytes: int) -> InvalidRequest:
    return InvalidRequest(
        f"{name}: has more than the {max_bytes:,} bytes that are taken into memory; "
        "download it and give the path of the file, or raise Access(max_bytes=...)"
    )
