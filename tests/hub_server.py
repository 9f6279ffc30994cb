"""A stand-in for huggingface.co on loopback: as much of its interface as huggingface_hub asks for, and its failures.

Files that end in .gguf or .safetensors live on a second server, to which /resolve redirects, as on the real hub: there
it is a content network, and the token must not reach it.
"""

import hashlib
import json
import re
import threading
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LARGE = (".gguf", ".safetensors")


@dataclass(frozen=True)
class Request:
    """One request as it arrived, and the status it got."""

    method: str
    path: str
    range: str | None
    token: str | None
    large: bool  # whether it came to the content network
    status: int
    sent: int  # bytes of the body


@dataclass
class Repo:
    """A repository: its files, and the commit that stands for them."""

    files: dict[str, bytes]

    @property
    def commit(self) -> str:
        digest = hashlib.sha1()
        for name, data in sorted(self.files.items()):
            digest.update(name.encode() + b"\0" + hashlib.sha256(data).digest())
        return digest.hexdigest()


@dataclass
class Failure:
    """Answer with `status` wherever `pattern` is found in "METHOD /path", `times` times (-1 = always)."""

    pattern: str
    status: int
    times: int = -1
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""


class HubServer:
    """`with HubServer() as hub`: hub.repos, hub.url, and what to do wrong. `log` holds every request."""

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.log: list[Request] = []
        self.failures: list[Failure] = []
        self.cuts: dict[str, list[int]] = {}  # file name -> after how many bytes of the next bodies the line drops
        self.wrong: set[str] = set()  # files that arrive with one byte changed
        self.stalls: dict[str, tuple[int, threading.Event]] = {}  # after how many bytes to wait for what
        self.no_ranges = False
        self._servers = [_Server(self, large) for large in (False, True)]
        self.url, self.content_url = (f"http://127.0.0.1:{server.server_port}" for server in self._servers)

    def __enter__(self) -> "HubServer":
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def bodies(self) -> Counter[str]:
        """How many bytes of every file were sent, by name."""
        sent: Counter[str] = Counter()
        for request in self.log:
            if request.method == "GET" and "/resolve/" in request.path and request.sent:
                sent[request.path.split("/resolve/")[1].split("/", 1)[1]] += request.sent
        return sent

    def use(self, monkeypatch: Any, home: Path) -> None:
        """Let huggingface_hub in this process talk to this server, with an empty cache and no token."""
        from huggingface_hub import constants

        from qwen3omni_wgpu.hub import transfer

        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_TELEMETRY": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setattr(transfer, "RETRY_WAITS", (0.0, 0.0))

    def environment(self, home: Path) -> dict[str, str]:
        """The same for a process of its own."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_TOKEN": "",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }

    def requested(self) -> set[str]:
        """Names of all files that anything was asked about."""
        paths = [request.path for request in self.log if "/resolve/" in request.path]
        return {path.split("/resolve/")[1].split("/", 1)[1] for path in paths}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: HubServer, large: bool) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub, self.large = hub, large

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away in the middle is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # headers and body in one packet: otherwise every answer waits for an acknowledgement
    server: _Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def _serve(self) -> None:
        hub, path = self.server.hub, unquote(urlsplit(self.path).path)
        for failure in hub.failures:
            if failure.times and re.search(failure.pattern, f"{self.command} {path}"):
                failure.times -= 1
                return self._answer(failure.status, failure.headers, failure.body)
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/revision/(.+)", path):
            return self._info(match[1], match[2])
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            return self._file(*match.groups())
        return self._answer(404)

    def _repo(self, name: str, revision: str) -> Repo | None:
        repo = self.server.hub.repos.get(name)
        if repo is None:
            self._answer(401, {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
        elif revision not in ("main", repo.commit):
            self._answer(404, {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "Invalid rev id"})
            return None
        return repo

    def _info(self, name: str, revision: str) -> None:
        repo = self._repo(name, revision)
        if repo is not None:
            siblings = [_sibling(name, data) for name, data in repo.files.items()]
            info = {"id": name, "modelId": name, "sha": repo.commit, "siblings": siblings, "tags": []}
            warning = "Authentication; Warning: You are sending unauthenticated requests"
            headers = {"Content-Type": "application/json", "X-HF-Warning": warning}
            self._answer(200, headers, json.dumps(info).encode())

    def _file(self, name: str, revision: str, file: str) -> None:
        repo = self._repo(name, revision)
        if repo is None:
            return
        data = repo.files.get(file)
        if data is None:
            self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Error-Message": "Entry not found"})
        elif self.server.large:
            self._body(file, data, {"ETag": f'"{hashlib.md5(data).hexdigest()}"'})
        elif file.endswith(LARGE):
            headers = {
                "X-Repo-Commit": repo.commit,
                "X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"',
                "X-Linked-Size": str(len(data)),
                "Location": self.server.hub.content_url + self.path,
            }
            self._answer(302, headers)
        else:
            self._body(file, data, {"X-Repo-Commit": repo.commit, "ETag": f'"{_git_id(data)}"'})

    def _body(self, file: str, data: bytes, headers: dict[str, str]) -> None:
        hub = self.server.hub
        if file in hub.wrong:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start, status = 0, 200
        if asked and not hub.no_ranges:
            start, stop = int(asked[1]), min(int(asked[2] or len(data)) + 1, len(data))
            headers |= {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}
            data, status = data[start:stop], 206
        cuts = hub.cuts.get(file)
        limit = cuts.pop(0) if cuts and self.command == "GET" else None
        self._answer(status, headers, data, limit)

    def _answer(
        self, status: int, headers: dict[str, str] | None = None, body: bytes = b"", limit: int | None = None
    ) -> None:
        sent = body if self.command == "GET" else b""
        sent = sent if limit is None else sent[:limit]
        path, token = unquote(urlsplit(self.path).path), self.headers.get("Authorization")
        self.server.hub.log.append(
            Request(self.command, path, self.headers.get("Range"), token, self.server.large, status, len(sent))
        )
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        stall = self.server.hub.stalls.pop(path.rsplit("/", 1)[-1], None) if sent else None
        if stall:
            self.wfile.write(sent[: stall[0]])
            self.wfile.flush()
            stall[1].wait(60)
        self.wfile.write(sent[stall[0] if stall else 0 :])
        if limit is not None:
            self.close_connection = True


def _git_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(name: str, data: bytes) -> dict[str, Any]:
    sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": _git_id(data)}
    if name.endswith(LARGE):
        sibling["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
    return sibling
