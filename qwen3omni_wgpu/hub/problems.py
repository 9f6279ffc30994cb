"""What can go wrong between here and the hub, each as one line of this project's own errors."""

import errno
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from qwen3omni_wgpu.errors import InvalidRequest, ModelNotFound, OmniError

_LOG_IN = "log in with `hf auth login` or set HF_TOKEN"


@contextmanager
def explained(repo: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises inside the block into an OmniError; its own warnings are not shown meanwhile."""
    from huggingface_hub import constants, errors
    from huggingface_hub.errors import HTTPError  # pyright: ignore[reportPrivateImportUsage]  (httpx's or httpx2's)

    with _QUIET:
        try:
            yield
        except errors.GatedRepoError:
            page = f"{constants.ENDPOINT}/{repo}"
            raise ModelNotFound(
                f"{repo} is open only to those who accepted its terms at {page}; then {_LOG_IN}"
            ) from None
        except errors.RevisionNotFoundError:
            raise ModelNotFound(f"{repo} has no revision {revision!r}; leave --revision out for the newest") from None
        except errors.RepositoryNotFoundError:
            raise ModelNotFound(
                f"there is no model {repo} at {constants.ENDPOINT}, or it is private; check the name, or {_LOG_IN}"
            ) from None
        except errors.LocalEntryNotFoundError as error:  # wraps the reason, which may be any of those below
            cause = error.__cause__ or error
            answered = isinstance(cause, errors.HfHubHTTPError)
            raise OmniError(_status(repo, cause) if answered else _unreachable(cause)) from None
        except errors.EntryNotFoundError as error:
            raise ModelNotFound(
                f"{repo} lists a file that cannot be fetched: {_first_line(error)}; try again later"
            ) from None
        except errors.HfHubHTTPError as error:
            raise OmniError(_status(repo, error)) from None
        except errors.HFValidationError as error:
            raise InvalidRequest(f"{repo!r} cannot be the name of a repository: {_first_line(error)}") from None
        except errors.OfflineModeIsEnabled:
            raise ModelNotFound(f"{repo} is not in the cache, and HF_HUB_OFFLINE forbids to fetch it") from None
        except HTTPError as error:
            raise OmniError(_unreachable(error)) from None
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise OmniError(
                    f"the disk of {constants.HF_HUB_CACHE} is full; what has come is kept: make room, and the same "
                    "command goes on from there, or set HF_HOME to a folder on another disk"
                ) from None
            if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise OmniError(
                    f"no right to write {error.filename or constants.HF_HUB_CACHE}; set HF_HOME to another folder"
                ) from None
            raise


class _Quiet:
    """While any thread is inside, huggingface_hub's warnings are not shown. Someone who asked for more gets it all."""

    def __init__(self) -> None:
        self._lock, self._inside, self._level = threading.Lock(), 0, 0

    def __enter__(self) -> None:
        from huggingface_hub.utils import logging as hub_logging

        with self._lock:
            if self._inside == 0:
                self._level = hub_logging.get_verbosity()
                if self._level == logging.WARNING:
                    hub_logging.set_verbosity_error()
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        from huggingface_hub.utils import logging as hub_logging

        with self._lock:
            self._inside -= 1
            if self._inside == 0:
                hub_logging.set_verbosity(self._level)


_QUIET = _Quiet()


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _unreachable(error: BaseException) -> str:
    from huggingface_hub import constants

    return (
        f"cannot reach {constants.ENDPOINT} ({_first_line(error)}); check the network and HF_ENDPOINT; what has come "
        "is kept, and --offline uses only what is already on this machine"
    )


def _status(repo: str, error: Any) -> str:
    from huggingface_hub import constants

    response = error.response
    code, server = response.status_code, constants.ENDPOINT
    if code == 401:
        return f"{server} does not accept the token for {repo}; {_LOG_IN}, or unset HF_TOKEN for a public model"
    if code == 403:
        return f"{server} denies access to {repo} (403); {_LOG_IN} with a token that may read it"
    if code == 429:
        after = response.headers.get("Retry-After", "")
        wait = f"in {after} s" if after.isdigit() else "in a few minutes"
        return f"{server} has had too many requests from here (429); try again {wait}, or {_LOG_IN} for a higher limit"
    if code >= 500:
        return f"{server} is out of order ({code}) while asked for {repo}; try again later; what has come is kept"
    return f"{server} refuses a request for {repo} ({code}: {_first_line(error)})"
