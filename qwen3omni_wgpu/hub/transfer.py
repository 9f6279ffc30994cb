"""Files from the hub into huggingface_hub's own cache: resumed where an earlier run stopped, and verified.

huggingface_hub keeps the cache, the token and the addresses. Only the bytes of a file are fetched here, because its
newer versions throw an unfinished file away when a run ends: 36 GB would begin again after every interruption.
"""

import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar

from qwen3omni_wgpu.errors import InvalidModelFile, OmniError

T = TypeVar("T")
Report = Callable[[int], None]  # bytes more; negative when some have to come again

RETRY_WAITS = (1.0, 2.0, 4.0, 8.0, 8.0)  # seconds, before tries in a row that bring nothing new
_PASSING = (408, 429, 500, 502, 503, 504)  # statuses that a later try may not meet
_SPAN = 16 << 30  # bytes asked for at once: content networks do not send 50 GB and more in one answer
_CHUNK = 1 << 20


def cache_folder(repo: str) -> Path:
    """Where huggingface_hub keeps a model: blobs/ (contents), snapshots/COMMIT/ (names), refs/ (branch -> commit)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE) / f"models--{repo.replace('/', '--')}"


def bytes_here(repo: str, sha256: str | None) -> int:
    """How much of a file an earlier run, or an earlier revision of the repository, has brought."""
    blob = cache_folder(repo) / "blobs" / (sha256 or "?")
    for path in (blob, _unfinished(blob)):
        if path.is_file():
            return path.stat().st_size
    return 0


def check_space(repo: str, needed: int) -> None:
    """OmniError unless the cache's disk has room for `needed` more bytes."""
    folder = cache_folder(repo)
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OmniError(
            f"{repo} needs {readable(needed)} more on the disk of {folder}, and {readable(free)} are free; make room, "
            "or set HF_HOME to a folder on another disk"
        )


def readable(nbytes: int) -> str:
    """1.2 GB, as the hub's pages count: powers of ten."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if nbytes >= size:
            return f"{nbytes / size:.1f} {unit}"
    return f"{nbytes} bytes"


def get_file(repo: str, name: str, commit: str, report: Report) -> Path:
    """One file of a repository, in the cache. Raises huggingface_hub's errors, and InvalidModelFile for wrong bytes."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_download, hf_hub_url
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(repo, name, revision=commit, endpoint=constants.ENDPOINT)
    found = _patiently(lambda: get_hf_file_metadata(url, headers=build_hf_headers(), endpoint=constants.ENDPOINT))
    etag, size = found.etag or "", found.size
    if not re.fullmatch(r"\w[\w.-]*", etag):  # it becomes a file name
        raise InvalidModelFile(f"{constants.ENDPOINT} gives no usable ETag for {name} of {repo}; check HF_ENDPOINT")
    if size is not None:
        blob = cache_folder(repo) / "blobs" / etag
        lock = Path(constants.HF_HUB_CACHE) / ".locks" / cache_folder(repo).name / f"{etag}.lock"
        for folder in (blob.parent, lock.parent):
            folder.mkdir(parents=True, exist_ok=True)
        with WeakFileLock(lock):  # the lock that huggingface_hub takes, too
            if blob.exists():
                report(size)
            else:
                _fetch(url, blob, size, f"{name} of {repo}", report)
    # With the blob in place this only writes the file's name in the snapshot; where the server tells no size, all.
    return Path(
        hf_hub_download(repo, name, revision=commit, endpoint=constants.ENDPOINT, cache_dir=constants.HF_HUB_CACHE)
    )


def _unfinished(blob: Path) -> Path:
    return blob.with_name(blob.name + ".incomplete")  # huggingface_hub 1's name: each goes on with the other's


def _fetch(url: str, blob: Path, size: int, label: str, report: Report) -> None:
    """The file at `url` as `blob`, which appears whole and verified or not at all."""
    path = _unfinished(blob)
    with path.open("a+b") as file:
        body = _Body(file, report)
        if body.size > size:
            body.clear()
        _complete(url, body, size, label)
        file.flush()
        os.fsync(file.fileno())
    wrong = f"{body.size} bytes instead of {size}" if body.size != size else ""
    if not wrong and re.fullmatch("[0-9a-f]{64}", blob.name) and body.digest.hexdigest() != blob.name:
        wrong = "other bytes than its SHA-256 says"
    if wrong:
        path.unlink()
        raise InvalidModelFile(
            f"{label} arrived damaged ({wrong}) and was deleted; pull it again, and if that does not help, look for a "
            "proxy in between or tell the repository's owner"
        )
    path.replace(blob)


class _Body:
    """A file that grows, with the SHA-256 of what it holds. `size` is in bytes."""

    def __init__(self, file: BinaryIO, report: Report) -> None:
        self._file, self._report = file, report
        self.size, self.digest = 0, hashlib.sha256()
        file.seek(0)
        while chunk := file.read(_CHUNK):
            self._count(chunk)

    def append(self, chunk: bytes) -> None:
        self._file.write(chunk)
        self._count(chunk)

    def clear(self) -> None:
        self._file.truncate(0)
        self._report(-self.size)
        self.size, self.digest = 0, hashlib.sha256()

    def _count(self, chunk: bytes) -> None:
        self.digest.update(chunk)
        self.size += len(chunk)
        self._report(len(chunk))


def _complete(url: str, body: _Body, size: int, label: str) -> None:
    """Append until the body has `size` bytes. A broken line is taken up again; RETRY_WAITS is the end of that."""
    waits = iter(RETRY_WAITS)
    while (have := body.size) < size:
        failure: Exception = InvalidModelFile(f"{label} ends after {have} of {size} bytes; try again later")
        try:
            _append(url, body, size)
        except _http_error() as error:
            if not _may_pass(error):
                raise
            failure = error
        if body.size > have:
            waits = iter(RETRY_WAITS)
        elif (wait := next(waits, None)) is not None:
            time.sleep(wait)
        else:
            raise failure


def _patiently(ask: Callable[[], T]) -> T:
    """The answer to one question, asked again after each of RETRY_WAITS while the failure is one that may pass."""
    for wait in RETRY_WAITS:
        try:
            return ask()
        except _http_error() as error:
            if not _may_pass(error):
                raise
        time.sleep(wait)
    return ask()


def _http_error() -> type[Exception]:
    """What huggingface_hub's transport raises: httpx's or httpx2's class, depending on its version."""
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]

    return HTTPError


def _may_pass(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError

    return not isinstance(error, HfHubHTTPError) or error.response.status_code in _PASSING


def _append(url: str, body: _Body, size: int) -> None:
    """One request for what is missing. The address is asked anew every time: those it leads to expire."""
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    headers = build_hf_headers() | {"Accept-Encoding": "identity"}
    if body.size or size > _SPAN:
        headers["Range"] = f"bytes={body.size}-{min(size, body.size + _SPAN) - 1}"
    timeout = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, timeout=timeout, follow_redirects=True) as response:
        hf_raise_for_status(response)
        if response.status_code == 200:
            body.clear()  # a server that knows no ranges sends all of it again
        for chunk in response.iter_bytes():
            body.append(chunk)
