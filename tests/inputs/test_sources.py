"""Where media come from: what is read, what is refused and in which words, and how much of it at most."""

import base64
import io
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote

import pytest

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs import web
from qwen3omni_wgpu.inputs.sources import DEFAULT_ACCESS, Access, Blob, open_source

WEB = Access(urls=True, max_bytes=100_000, timeout=30)


@pytest.fixture
def content() -> bytes:
    return os.urandom(5000)


def read(blob: Blob) -> bytes:
    with blob.open() as file:
        assert file.seekable()
        return file.read()


def refused(source, access: Access = DEFAULT_ACCESS) -> str:
    """The message for a source that must not be taken: one line, short enough to read."""
    with pytest.raises(InvalidRequest) as caught:
        open_source(source, "sound", access)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Files and memory ----------------------------------------------------------------------------------------------------


def test_every_kind_of_source(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a b%20ü.wav"
    path.write_bytes(content)
    with path.open("rb") as open_file:
        sources = [
            path,
            str(path),
            path.as_uri(),
            path.as_uri().replace("file:///", "FILE://localhost/"),
            content,
            bytearray(content),
            memoryview(content),
            io.BytesIO(content),
            open_file,
            "data:audio/wav;base64," + base64.b64encode(content).decode(),
            "DATA:;charset=x;base64," + base64.encodebytes(content).decode().rstrip("\n="),
            "data:," + quote(content),
        ]
        blobs = [open_source(source, "sound") for source in sources]
    assert [read(blob) for blob in blobs] == [content] * len(sources)
    assert {blob.digest() for blob in blobs} == {blobs[0].digest()}
    assert len(blobs[0].digest()) == 16
    assert open_source(content[:-1], "sound").digest() != blobs[0].digest()


def test_a_local_file_stays_where_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x"
    path.write_bytes(content)
    blob = open_source(path, "sound", Access(max_bytes=10))
    assert (blob.path, blob.data) == (path, None)
    assert read(blob) == read(blob) == content


def test_an_open_file_is_read_from_where_it_stands(content: bytes) -> None:
    stream = io.BytesIO(content)
    stream.seek(100)
    assert read(open_source(stream, "sound")) == content[100:]


def test_files_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "empty.wav").touch()
    os.mkfifo(tmp_path / "pipe")
    assert "empty (0 bytes)" in refused(tmp_path / "empty.wav")
    assert "is a folder" in refused(str(tmp_path))
    assert "not a regular file" in refused(tmp_path / "pipe")  # opening it would wait for a writer
    missing = refused(tmp_path / "none.wav")
    assert str(tmp_path / "none.wav") in missing
    assert "No such file" in missing
    assert "the path of the sound file" in missing
    assert "name of the sound file is empty" in refused("")
    assert "zero" in refused("a\0b").replace("null", "zero")
    assert "too long" in refused("x" * 5000)
    assert "\\n" in refused("two\nlines.wav")


def test_a_file_without_permission(tmp_path: Path, monkeypatch) -> None:
    path = tmp_path / "secret.wav"
    path.write_bytes(b"x")

    def denied(*args: object) -> None:  # root may read everything, whatever the file's mode
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert "secret.wav: cannot be opened (Permission denied)" in refused(path)


def test_a_file_that_vanishes(tmp_path: Path) -> None:
    path = tmp_path / "gone.wav"
    path.write_bytes(b"x")
    blob = open_source(path, "sound")
    path.unlink()
    with pytest.raises(InvalidRequest, match=r"gone\.wav: cannot be opened"):
        blob.open()
    with pytest.raises(InvalidRequest, match=r"gone\.wav: cannot be opened"):
        blob.digest()


def test_limits_of_what_is_held_in_memory(content: bytes) -> None:
    exact, less = Access(max_bytes=len(content)), Access(max_bytes=len(content) - 1)
    uri = "data:;base64," + base64.b64encode(content).decode()
    for source in (content, uri, "data:," + quote(content)):
        assert read(open_source(source, "sound", exact)) == content
        assert "more than the 4,999 bytes" in refused(source, less)
    assert read(open_source(io.BytesIO(content), "sound", exact)) == content
    assert "more than the 4,999 bytes" in refused(io.BytesIO(content), less)


def test_an_endless_stream_is_left_at_the_limit() -> None:
    class Endless(io.RawIOBase):
        given = 0

        def read(self, size: int = -1) -> bytes:
            assert size > 0
            self.given += size
            return bytes(size)

    stream = Endless()
    assert "more than the" in refused(stream, Access(max_bytes=5_000_000))
    assert stream.given < 8_000_000


def test_streams_that_fail() -> None:
    class Broken(io.RawIOBase):
        name = "/media/usb/a.wav"

        def read(self, size: int = -1) -> bytes:
            raise OSError(5, "Input/output error")

    assert "/media/usb/a.wav: cannot be read (Input/output error)" in refused(Broken())
    assert "binary mode" in refused(io.StringIO("text"))
    assert "empty" in refused(io.BytesIO())
    assert "empty" in refused(b"")


@pytest.mark.parametrize("source", [None, 5, 1.5, ["a.wav"], {"url": "x"}])
def test_things_that_name_nothing(source) -> None:
    assert type(source).__name__ in refused(source)


# Addresses -----------------------------------------------------------------------------------------------------------


def test_data_uris_that_are_refused() -> None:
    assert "no comma" in refused("data:audio/wav;base64")
    assert "not valid base64" in refused("data:audio/wav;base64,@@@@")
    assert "not valid base64" in refused("data:audio/wav;base64,QQQQQ")
    assert "audio/wav" in refused("data:audio/wav;base64,")
    assert "--allow-urls" in refused("data:,abc", Access(data_uris=False))
    assert "\\n" not in refused("data:a\nb;base64,@")


def test_a_long_data_uri_is_not_in_the_message() -> None:
    for uri in ("data:" + "Z" * 10**6, "data:;base64,@" + "Z" * 10**6, "data:" + "Z" * 10**6 + ";base64,@"):
        assert refused(uri).count("Z") < 50


def test_addresses_that_are_refused() -> None:
    message = refused("https://example.com/a.wav?token=secret")
    assert "--allow-urls" in message
    assert "Access(urls=True)" in message
    assert "secret" not in message
    assert "allow" in refused("HTTP://example.com/a.wav")
    assert "ftp addresses are not supported" in refused("ftp://example.com/a.wav", WEB)
    assert "another machine" in refused("file://server/share/a.wav")
    message = refused("http://user:secret@127.0.0.1/a", WEB)
    assert "secret" not in message
    assert "with a user name" in message
    for url in ("http://[::1/a", "http://127.0.0.1:port/a", "http:///a"):
        assert url in refused(url, WEB)


# The web -------------------------------------------------------------------------------------------------------------


class Handler(BaseHTTPRequestHandler):
    """Behaves as the first part of the path says."""

    content = b""
    done = threading.Event()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        kind, _, rest = self.path[1:].partition("/")
        getattr(self, f"send_{kind}")(rest)

    def head(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def send_whole(self, rest: str) -> None:
        self.head(Content_Length=str(len(self.content)))
        self.wfile.write(self.content)

    def send_unannounced(self, rest: str) -> None:
        self.head()
        self.wfile.write(self.content)

    def send_short(self, rest: str) -> None:
        self.head(Content_Length=str(len(self.content) + 1))
        self.wfile.write(self.content)

    def send_huge(self, rest: str) -> None:
        self.head(Content_Length=str(10**12))

    def send_endless(self, rest: str) -> None:
        self.head()
        try:
            while not self.done.is_set():
                self.wfile.write(bytes(10_000))
        except OSError:
            pass

    def send_silent(self, rest: str) -> None:
        self.done.wait(60)

    def send_status(self, rest: str) -> None:
        self.head(int(rest))

    def send_to(self, rest: str) -> None:
        self.head(302, Location=rest)

    def send_hops(self, rest: str) -> None:
        self.head(302, Location=f"/hops/{int(rest) - 1}" if int(rest) > 1 else "/whole/")


@pytest.fixture
def server(content: bytes, monkeypatch) -> Iterator[str]:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(Handler, "content", content)
    monkeypatch.setattr(Handler, "done", threading.Event())
    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    thread = threading.Thread(target=http.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    Handler.done.set()
    http.shutdown()
    http.server_close()
    thread.join()


@pytest.mark.parametrize("path", ["whole/a.wav?x=1#part", "unannounced/", "to//whole/", "hops/5", "whole/ü b"])
def test_downloads(server: str, content: bytes, path: str) -> None:
    blob = open_source(f"{server}/{path}", "sound", WEB)
    assert read(blob) == content
    assert blob.path is None
    assert "?" not in blob.name


@pytest.mark.parametrize(("path", "words"), [
    ("status/404", "answers 404 Not Found"),
    ("status/503", "answers 503"),
    ("hops/6", "answers 302"),
    ("to//status/404", "answers 404"),
    ("to/file:///etc/passwd", "answers 302"),
    ("to/ftp://127.0.0.1/x", "cannot be reached"),
    ("to/data:,abc", "answers 302"),
    ("short/", "broke off after 5,000 of 5,001 bytes"),
    ("huge/", "more than the 100,000 bytes"),
    ("endless/", "more than the 100,000 bytes"),
])  # fmt: skip
def test_downloads_that_fail(server: str, path: str, words: str) -> None:
    message = refused(f"{server}/{path}", WEB)
    assert words in message
    assert message.startswith(server)


def test_the_limit_of_a_download_is_exact(server: str, content: bytes) -> None:
    for path in ("whole/", "unannounced/"):
        assert read(open_source(f"{server}/{path}", "sound", Access(urls=True, max_bytes=5000))) == content
        assert "4,999" in refused(f"{server}/{path}", Access(urls=True, max_bytes=4999))


def test_a_silent_server(server: str) -> None:
    assert "did not answer within 0.2 s" in refused(f"{server}/silent/", Access(urls=True, timeout=0.2))


def test_a_server_that_never_ends_slowly(server: str, monkeypatch) -> None:
    clock = iter(range(0, 10**9, 1000))  # seconds that pass with every piece
    monkeypatch.setattr(web.time, "monotonic", lambda: next(clock))
    assert "too slowly" in refused(f"{server}/endless/", Access(urls=True))


def test_nobody_listens(server: str) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as other:
        port = other.server_address[1]
    assert "cannot be reached (Connection refused)" in refused(f"http://127.0.0.1:{port}/x", WEB)


def test_no_answer_in_http(server: str, monkeypatch) -> None:
    monkeypatch.setattr(Handler, "send_whole", lambda self, rest: self.wfile.write(b"hello\r\n\r\n"))
    assert "broke off" in refused(f"{server}/whole/", WEB)
