"""What readers of model files do first: is it a regular file, is it what its name says, is its JSON sound."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from ..errors import InvalidModelFile, ModelNotFound
from .tensors import shown

AGAIN = "download or convert it again"

_OTHER_FILES = (
    (b"version https://git-lfs", "it is a Git LFS pointer; run `git lfs pull` or download the file"),
    (b"<", "it looks like a web page; download the file itself"),
)


def check_regular(path: Path, kind: str, suffix: str) -> None:
    """Only regular files that are not empty pass: opening a FIFO or a device could block for ever.

    kind, suffix: what the caller reads ("a GGUF file", ".gguf"), for the message.
    """
    try:
        status = path.stat()
    except (OSError, ValueError) as error:
        if _leads_nowhere(path):
            raise ModelNotFound(f"{path}: is a link to a file that is missing; {AGAIN}") from error
        reason = getattr(error, "strerror", None) or str(error)
        raise ModelNotFound(f"{path}: {reason}; check the path of the model file") from error
    if stat.S_ISDIR(status.st_mode):
        raise InvalidModelFile(f"{path}: is a folder, not {kind}; name the {suffix} file in it")
    if not stat.S_ISREG(status.st_mode):
        raise InvalidModelFile(f"{path}: is not a regular file; name a {suffix} file")
    if status.st_size == 0:
        raise InvalidModelFile(f"{path}: is empty; {AGAIN}")


def _leads_nowhere(path: Path) -> bool:
    """Whether it is a link whose target is missing: the hub's cache is made of links."""
    try:
        return path.is_symlink() and not os.path.lexists(os.path.realpath(path))
    except (OSError, ValueError):
        return False


def what_it_is(start: bytes, more: tuple[tuple[bytes, str], ...] = ()) -> str | None:
    """For a file with a wrong start: what people often have in its place, and what to do. None where unknown."""
    return next((text for magic, text in (*_OTHER_FILES, *more) if start.startswith(magic)), None)


def unreadable(path: Path, error: OSError) -> InvalidModelFile:
    """The error for a file that is there and does not let itself be read."""
    reason = error.strerror or str(error)
    return InvalidModelFile(f"{path}: cannot be read ({reason}); check its permissions and disk")


def parse_json(path: Path, raw: bytes, what: str) -> dict[str, Any]:
    """A JSON object from bytes; `what` names it in messages. A key that occurs twice is an error: which one counts?

    Raises InvalidModelFile. NaN and Infinity are numbers here as they are for Python: look at values before use.
    """
    where = f"{path}: {what}"

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            seen: set[str] = set()
            twice = next(key for key, _ in pairs if key in seen or seen.add(key))
            raise InvalidModelFile(f"{where} has the key {shown(twice)} twice; {AGAIN}")
        return made

    try:
        value = json.loads(str(raw, "utf-8"), object_pairs_hook=build)
    except UnicodeDecodeError as error:
        raise InvalidModelFile(f"{where} is not valid UTF-8 at byte {error.start}; {AGAIN}") from error
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise InvalidModelFile(f"{where} is not valid JSON ({error.msg}, {place}); {AGAIN}") from error
    except RecursionError:
        raise InvalidModelFile(f"{where} is not valid JSON (nested too deeply); {AGAIN}") from None
    except ValueError as error:  # Python's limit of 4300 digits
        raise InvalidModelFile(f"{where} is not valid JSON (a number of thousands of digits); {AGAIN}") from error
    if not isinstance(value, dict):
        raise InvalidModelFile(f"{where} is a JSON {type(value).__name__}, it must be an object; {AGAIN}")
    return value
