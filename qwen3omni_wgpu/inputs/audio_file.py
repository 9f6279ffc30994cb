"""Sound out: samples as WAV, FLAC, OGG or MP3, whole or while they come. No file of the wanted name is ever half."""

import contextlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from qwen3omni_wgpu.errors import InvalidRequest

if TYPE_CHECKING:
    import soundfile

RATE = 24000  # Hz, of Qwen3-Omni's speech

# Ending -> libsndfile's name of the format, and of what is in it.
_FORMATS = {
    ".wav": ("WAV", "PCM_16"),
    ".flac": ("FLAC", "PCM_16"),
    ".ogg": ("OGG", "VORBIS"),
    ".mp3": ("MP3", "MPEG_LAYER_III"),
}
_BLOCK = 1 << 14  # samples that are encoded at once: the Vorbis encoder holds them on its stack


@dataclass(frozen=True, eq=False)
class Audio:
    """Sound: float32 [S], mono, between -1 and 1, with `sampling_rate` samples a second."""

    samples: npt.NDArray[np.float32]
    sampling_rate: int = RATE

    @property
    def seconds(self) -> float:
        """How long it is."""
        return len(self.samples) / self.sampling_rate

    def save(self, path: str | Path) -> None:
        """Write it as the path's ending says: .wav, .flac, .ogg or .mp3. Raises InvalidRequest as `save` does."""
        save(path, self.samples, self.sampling_rate)


def save(path: str | Path, samples: npt.ArrayLike, sampling_rate: int = RATE) -> None:
    """Write mono samples [S] between -1 and 1 as the path's ending says; a file that is there is replaced.

    What lies beyond is clipped. Raises InvalidRequest: another ending, no samples or samples that are no numbers, or
    the file cannot be written; it is then as it was before.
    """
    writer = Writer(path, sampling_rate)
    try:
        writer.write(samples)
        if not writer.n_samples:
            raise InvalidRequest(f"{path}: there is no sound to write (0 samples)")
        writer.close()
    except BaseException:
        writer.discard()
        raise


def pcm16(samples: npt.ArrayLike) -> npt.NDArray[np.int16]:
    """Samples [S] as 16-bit little-endian integers, clipped. InvalidRequest when one is no finite number."""
    scaled = np.rint(_checked(samples) * np.float32(32768))
    return np.clip(scaled, -32768, 32767).astype("<i2")


def check_path(path: str | Path) -> Path:
    """The path, as one; InvalidRequest unless sound can be written there. Good to know before the sound is made."""
    import soundfile

    path = Path(path)
    ending, known = path.suffix.lower(), ", ".join(_FORMATS)
    if ending not in _FORMATS:
        what = f"sound is not written as {ending}" if ending else "the name does not end in a kind of sound"
        raise InvalidRequest(f"{path}: {what}; choose one of {known}")
    if not soundfile.check_format(*_FORMATS[ending]):
        raise InvalidRequest(f"{path}: the libsndfile of this system cannot write {ending}; choose another of {known}")
    with _explained(path):
        target, part = _places(path)
        folder = target.parent.stat()
        part.exists()  # says when the name is too long
        status = target.stat() if target.exists() else None
    if not stat.S_ISDIR(folder.st_mode):
        raise InvalidRequest(f"{path}: {path.parent} is not a folder; choose another one")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise InvalidRequest(f"{path}: the folder may not be written to; choose another one")
    if status is not None and not stat.S_ISREG(status.st_mode):
        kind = "is a folder" if stat.S_ISDIR(status.st_mode) else "is not a regular file"
        raise InvalidRequest(f"{path}: {kind}; name the sound file to write")
    return path


class Writer:
    """Writes sound while it comes: `NAME.part` grows, and gets its name when this is closed.

    Use as a context manager: whatever ends the block, the file then holds what was written until then, and is sound.
    Where nothing was written there is no file, and one of an earlier time stays. Raises InvalidRequest as `save` does;
    a file that cannot be written is given up.
    """

    def __init__(self, path: str | Path, sampling_rate: int = RATE) -> None:
        self.path = check_path(path)
        self.sampling_rate = sampling_rate
        self.n_samples = 0
        self._format, self._subtype = _FORMATS[self.path.suffix.lower()]
        self._target, self._part = _places(self.path)
        self._file: IO[bytes] | None = None
        self._sound: soundfile.SoundFile | None = None
        self._closed = False

    @property
    def seconds(self) -> float:
        """How much was written."""
        return self.n_samples / self.sampling_rate

    def write(self, samples: npt.ArrayLike) -> None:
        """Append mono samples [S] between -1 and 1."""
        if self._closed:
            raise InvalidRequest(f"{self.path}: is complete; nothing can be added to it")
        values = pcm16(samples) if self._subtype == "PCM_16" else _checked(samples)
        if not len(values):
            return
        sound = self._sound or self._open()
        with self._given_up_on_errors():
            for start in range(0, len(values), _BLOCK):
                sound.write(values[start : start + _BLOCK])
        self.n_samples += len(values)

    def close(self) -> None:
        """Finish the file and give it its name. Closing twice is fine."""
        self._closed = True
        if self._sound is None or self._file is None:
            return
        with self._given_up_on_errors():
            self._sound.close()  # writes lengths into headers, and what the encoder still holds
            os.fsync(self._file.fileno())
            self._file.close()
            os.replace(self._part, self._target)
        self._sound = self._file = None

    def discard(self) -> None:
        """Give the file up: nothing of it stays. What was closed before does."""
        import soundfile

        self._closed = True
        if self._file is None:
            return
        with contextlib.suppress(soundfile.LibsndfileError, OSError):
            if self._sound is not None:
                self._sound.close()
        with contextlib.suppress(OSError):
            self._file.close()
        self._part.unlink(missing_ok=True)
        self._sound = self._file = None

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _open(self) -> "soundfile.SoundFile":
        import soundfile

        with _explained(self.path):
            self._file = self._part.open("wb")
        try:
            self._sound = soundfile.SoundFile(
                self._file.fileno(), "w", self.sampling_rate, 1, self._subtype, None, self._format, closefd=False
            )
        except (soundfile.LibsndfileError, TypeError, OverflowError) as error:
            self.discard()
            raise InvalidRequest(
                f"{self.path}: {self._format} does not take {self.sampling_rate!r} samples a second; choose another "
                "rate or ending"
            ) from error
        return self._sound

    @contextmanager
    def _given_up_on_errors(self) -> Iterator[None]:
        import soundfile

        try:
            with _explained(self.path):
                try:
                    yield
                except soundfile.LibsndfileError as error:
                    self._ask_the_disk()
                    raise OSError(0, error.error_string.strip() or "encoding failed") from error
        except InvalidRequest:
            self.discard()
            raise

    def _ask_the_disk(self) -> None:
        """libsndfile says only that the disk failed; one more write has the OSError that says how."""
        if self._file is not None:
            os.write(self._file.fileno(), bytes(_BLOCK))


def _places(path: Path) -> tuple[Path, Path]:
    """The file that `path` is, or leads to as a link, and the .part beside it."""
    target = Path(os.path.realpath(path))
    return target, target.with_name(target.name + ".part")


def _checked(samples: npt.ArrayLike) -> npt.NDArray[np.float32]:
    values = np.asarray(samples, np.float32)
    if values.ndim != 1:
        raise InvalidRequest(f"samples have the shape {list(values.shape)}, but must be mono: [samples]")
    if not np.isfinite(values).all():
        raise InvalidRequest(f"sample {int(np.argmin(np.isfinite(values)))} is no finite number, so this is no sound")
    return values


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidRequest(
            f"{path}: cannot be written ({reason}); check the folder and its disk, or choose another one"
        ) from error
