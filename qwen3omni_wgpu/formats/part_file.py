"""A large file that is never seen half: it grows as `NAME.part` and gets its name when all of it is on the disk.

Three things make that hold at every moment, also for kill -9 and a power cut:
- the first bytes (a format's magic) stay zero until everything else is flushed, so that the .part does not load either;
- `NAME.part.json`, the journal, says how far the data are surely on the disk, and what they were made from; it is
  replaced as a whole, after the data are flushed, and removed last;
- a lock on the .part keeps a second process away.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..errors import InvalidRequest, OmniError

MAGIC_SIZE = 4

# How much work a kill may cost.
_FLUSH_BYTES = 256 << 20
_FLUSH_SECONDS = 2.0


class PartFile:
    """The file while it is written. Use as a context manager; leaving it without `finish` keeps the .part.

    path: the final name. head: the file's first bytes, magic included. total: its size. fingerprint: what the bytes
    depend on; a .part with another one is not continued. `done` bytes from the start need not be written again.
    """

    def __init__(
        self, path: Path, head: bytes, total: int, fingerprint: str, *, resume: bool = False, overwrite: bool = False
    ) -> None:
        """Raises InvalidRequest: the name is taken, the disk too full, another process writes, it cannot resume."""
        self.path = path
        self.part = path.with_name(path.name + ".part")
        self.done = 0
        self._head, self._total, self._fingerprint = head, total, fingerprint
        self._journal = path.with_name(path.name + ".part.json")
        self._flushed_at, self._flushed = time.monotonic(), 0
        self._flushing: Future[None] | None = None
        check_target(path)
        with self._explained():
            self._check_space()
            self._fd = self._open(resume, overwrite)
        try:
            with self._explained():
                if resume:
                    self._continue()
                if not self.done:
                    self._start()
        except BaseException:
            os.close(self._fd)
            raise
        self._flushed = self.done
        self._flusher = ThreadPoolExecutor(1, "flush")

    def __enter__(self) -> "PartFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._flusher.shutdown()
        os.close(self._fd)

    def write(self, offset: int, data: memoryview) -> None:
        """All of `data` at `offset` (any thread, any order)."""
        with self._explained():
            _write_all(self._fd, offset, data)

    def reached(self, done: int) -> None:
        """All bytes before `done` are written: now and then flush them and note it, beside the writing of others."""
        now = time.monotonic()
        if done - self._flushed < _FLUSH_BYTES and now - self._flushed_at < _FLUSH_SECONDS:
            return
        if self._flushing is not None:
            if not self._flushing.done():
                return
            self._flushing.result()  # its error, if there was one
        self._flushed, self._flushed_at = done, now
        self._flushing = self._flusher.submit(self._flush, done)

    def finish(self) -> None:
        """Everything is written: flush it, put the magic in front, and give the file its name."""
        if self._flushing is not None:
            self._flushing.result()
        with self._explained():
            os.ftruncate(self._fd, self._total)  # padding at the end
            self._flush(self._total)
            if os.path.lexists(self.path) and not self._replace:
                raise InvalidRequest(
                    f"{self.path}: was made by someone else meanwhile; move it away and run again with --resume"
                )
            _write_all(self._fd, 0, memoryview(self._head)[:MAGIC_SIZE])
            os.fsync(self._fd)
            os.replace(self.part, self.path)
            _flush_folder(self.path.parent)
            with contextlib.suppress(FileNotFoundError):
                self._journal.unlink()

    def _open(self, resume: bool, overwrite: bool) -> int:
        """The .part, ours alone."""
        self._replace = overwrite or (resume and self._may_replace())
        if os.path.lexists(self.path) and not self._replace:
            raise InvalidRequest(f"{self.path}: exists already; choose another name, or replace it with --overwrite")
        fd = os.open(self.part, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            self._lock(fd)
            if os.fstat(fd).st_size and not resume and not overwrite:
                raise InvalidRequest(
                    f"{self.part}: is left from a run that was stopped; --resume continues it, --overwrite starts again"
                )
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int) -> None:
        busy = InvalidRequest(f"{self.part}: another process is writing it; wait for it, or choose another name")
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise busy from None
            if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS):  # a file system without locks
                raise
        try:
            same = os.path.samestat(os.fstat(fd), os.stat(self.part))
        except FileNotFoundError:
            same = False
        if not same:  # the other process finished, and renamed it, between our opening and our lock
            raise busy

    def _may_replace(self) -> bool:
        """Whether the stopped run that is to be continued was one with --overwrite."""
        try:
            return self.part.exists() and json.loads(self._journal.read_text()).get("replace") is True
        except (OSError, ValueError, AttributeError):
            return False

    def _start(self) -> None:
        """The journal first: at no moment is there a .part with something in it that cannot be continued."""
        self._note(0)
        os.ftruncate(self._fd, 0)
        _write_all(self._fd, MAGIC_SIZE, memoryview(self._head)[MAGIC_SIZE:])
        _flush_folder(self.path.parent)
        self.done = len(self._head)

    def _continue(self) -> None:
        """Set `done` from the journal; 0 when there is nothing to continue yet."""
        size = os.fstat(self._fd).st_size
        if size == 0:
            return
        noted = self._read_journal()
        again = "use --overwrite to start again"
        if noted.get("fingerprint") != self._fingerprint:
            raise InvalidRequest(f"{self.part}: was made from other inputs or with other options; {again}")
        done = noted["done"]
        if done < len(self._head):
            return
        head = os.pread(self._fd, len(self._head), 0)
        if not done <= size or head[MAGIC_SIZE:] != self._head[MAGIC_SIZE:]:
            raise InvalidRequest(f"{self.part}: was changed since the run that made it was stopped; {again}")
        _write_all(self._fd, 0, memoryview(bytes(MAGIC_SIZE)))
        os.ftruncate(self._fd, done)
        self.done = done

    def _read_journal(self) -> dict[str, Any]:
        try:
            noted = json.loads(self._journal.read_text())
            if isinstance(noted["done"], int):
                return noted
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass
        raise InvalidRequest(
            f"{self._journal}: is missing or damaged, so {self.part.name} cannot be continued; "
            "use --overwrite to start again"
        )

    def _flush(self, done: int) -> None:
        with self._explained():
            os.fdatasync(self._fd)
            self._note(done)

    def _note(self, done: int) -> None:
        state = {"done": done, "total": self._total, "fingerprint": self._fingerprint, "replace": self._replace}
        fresh = self._journal.with_name(self._journal.name + ".new")
        with fresh.open("w") as file:
            file.write(json.dumps(state) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(fresh, self._journal)

    def _check_space(self) -> None:
        """Bytes that are still to come against bytes that are free; what the .part takes is counted once."""
        try:
            has = min(self.part.stat().st_blocks * 512, self._total)
        except FileNotFoundError:
            has = 0
        free = shutil.disk_usage(self.path.parent).free
        if self._total - has > free:
            raise InvalidRequest(
                f"{self.path}: needs {_gb(self._total - has)}, but only {_gb(free)} are free on its disk; "
                "free some space or choose another folder"
            )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> OmniError:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            try:
                left = self._total - min(os.fstat(self._fd).st_blocks * 512, self._total)
            except (OSError, AttributeError):
                left = self._total
            hint = f"free {_gb(left)} and run again with --resume"
        elif error.errno == errno.EFBIG:
            hint = (
                f"the file system or `ulimit -f` does not allow {_gb(self._total)}; "
                "raise the limit and run again with --resume, or choose another folder"
            )
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "choose a folder that you may write to"
        elif error.errno == errno.ENAMETOOLONG:
            hint = "choose a shorter name"
        else:
            hint = "check the disk and run again with --resume"
        return InvalidRequest(f"{self.part}: cannot be written ({reason}); {hint}")


def check_target(path: Path) -> os.stat_result | None:
    """What `path` is now, None when it does not exist; InvalidRequest unless a regular file can be written there."""
    try:
        if not stat.S_ISDIR(path.parent.stat().st_mode):
            raise InvalidRequest(f"{path}: {path.parent} is not a folder; choose another one")
        status = path.stat() if path.exists() else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(f"{path}: cannot be written there ({reason}); choose a folder that exists") from error
    if status is not None and not stat.S_ISREG(status.st_mode):
        kind = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        raise InvalidRequest(f"{path}: {kind}; name the .gguf file to write")
    return status


def _write_all(fd: int, offset: int, data: memoryview) -> None:
    while len(data):
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def _flush_folder(folder: Path) -> None:
    """So that the new name survives a power cut; some file systems cannot, and the file itself is safe already."""
    with contextlib.suppress(OSError):
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB"
