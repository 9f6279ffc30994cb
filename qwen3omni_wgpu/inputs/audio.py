"""Sound in: any file that libsndfile reads, or samples, as mono at the model's rate, and its log-mel spectrogram."""

import hashlib
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.inputs.cut_off import cut_off, missing_from_log
from qwen3omni_wgpu.inputs.sources import DEFAULT_ACCESS, Access, Source, open_source

if TYPE_CHECKING:
    import soundfile

Samples = npt.NDArray[np.float32]

MAX_SECONDS = 3 * 3600.0
_RATES = (1000, 1_000_000)  # Hz; the headers of broken files say anything
_LOUDEST = 2.0**31  # 32-bit samples that were never scaled; the squares of more would leave float32
_BLOCK = 1 << 18  # samples of all channels that are read at once
_FRAMES = 1024  # mel frames that are computed at once
_MALFORMED = 3  # libsndfile's code for a format that it knows, broken
_UNKNOWN = 1 << 62  # what libsndfile says for a stream of unknown length is larger


@dataclass(frozen=True)
class AudioFrontEnd:
    """What the audio tower's features are made of. Lengths in samples, frequencies in Hz."""

    sampling_rate: int = 16000
    n_fft: int = 400
    hop_length: int = 160
    n_mels: int = 128
    mel_min: float = 0.0
    mel_max: float = 8000.0

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "AudioFrontEnd":
        """From an mmproj file's `clip.audio.*`; what llama.cpp has no key for is as in the release where it is absent.

        Raises InvalidModelFile for values that make no sense, UnsupportedModel for another mel scale.
        """
        usual = cls()
        front = cls(
            sampling_rate=_integer(metadata, "sampling_rate", usual.sampling_rate),
            n_fft=_integer(metadata, "n_fft", usual.n_fft),
            hop_length=_integer(metadata, "hop_length", usual.hop_length),
            n_mels=_integer(metadata, "num_mel_bins", usual.n_mels),
            mel_min=_frequency(metadata, "mel_min_frequency", usual.mel_min),
            mel_max=_frequency(metadata, "mel_max_frequency", usual.mel_max),
        )
        scale = metadata.get("clip.audio.mel_scale", "slaney")
        if scale != "slaney":
            raise UnsupportedModel(f"clip.audio.mel_scale is {scale!r}; this version computes the slaney scale only")
        if not front.mel_min < front.mel_max <= front.sampling_rate / 2:
            raise InvalidModelFile(
                f"clip.audio mel filters from {front.mel_min:g} to {front.mel_max:g} Hz do not fit a sampling rate of "
                f"{front.sampling_rate} Hz; download or convert the file again"
            )
        return front

    @property
    def least_samples(self) -> int:
        """The shortest sound with features: its ends are mirrored by half a transform."""
        return max(self.n_fft // 2 + 1, self.hop_length)


def _integer(metadata: Mapping[str, Any], key: str, usual: int) -> int:
    value = metadata.get(f"clip.audio.{key}", usual)
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not 0 < value <= 1 << 20:
        raise InvalidModelFile(f"clip.audio.{key} is {value!r}, expected 1 to {1 << 20}; convert the file again")
    return int(value)


def _frequency(metadata: Mapping[str, Any], key: str, usual: float) -> float:
    value = metadata.get(f"clip.audio.{key}", usual)
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not value >= 0:
        raise InvalidModelFile(f"clip.audio.{key} is {value!r}, expected a frequency in Hz; convert the file again")
    return float(value)


# Clips ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class AudioClip:
    """Sound as the model hears it: float32 [S], mono, at `sampling_rate`, which is the front end's.

    digest: 16 bytes that stand for samples and rate. name: of the source, for messages.
    """

    samples: Samples
    digest: bytes
    name: str
    sampling_rate: int = 16000

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sampling_rate

    def part(self, start: int, stop: int) -> "AudioClip":
        """Samples start to stop as a clip of their own (a view, no copy)."""
        samples = self.samples[start:stop]
        return replace(self, samples=samples, digest=_digest(samples, self.sampling_rate))

    def __repr__(self) -> str:
        return f"AudioClip({self.name!r}, {self.seconds:.2f} s)"


class ClipBuilder:
    """One clip from blocks of any rate and number of channels, in the memory of the result.

    name: of the source, for messages. sampling_rate: of the blocks, in Hz. Raises InvalidRequest for an absurd rate.
    """

    def __init__(self, name: str, sampling_rate: int, front: AudioFrontEnd, max_seconds: float = MAX_SECONDS):
        if not _RATES[0] <= sampling_rate <= _RATES[1]:
            raise InvalidRequest(
                f"{name}: has a sampling rate of {sampling_rate:,} Hz, and {_RATES[0]:,} to {_RATES[1]:,} Hz are "
                "taken; export it again"
            )
        self._name, self._front, self._rate = name, front, int(sampling_rate)
        self._most = int(max_seconds * sampling_rate)
        self._max_seconds = max_seconds
        self._taken = 0  # samples of one channel
        self._made = bytearray()  # grows in place, where joining a list of arrays would need all of it twice
        self._resampler: Any = None
        if self._rate != front.sampling_rate:
            import soxr

            self._resampler = soxr.ResampleStream(self._rate, front.sampling_rate, 1, dtype="float32", quality="HQ")

    def expect(self, frames: int) -> None:
        """InvalidRequest at once when as many samples a channel would be too long."""
        if frames > self._most:
            long = f" (it has {frames / self._rate:,.0f} s)" if frames < _UNKNOWN else ""
            raise InvalidRequest(
                f"{self._name}: is longer than the {self._max_seconds:,.0f} s that are taken{long}; cut it"
            )

    def add(self, block: npt.NDArray[Any]) -> None:
        """The next samples: floats [n] or [n, channels]; channels are averaged.

        Raises InvalidRequest for samples that are no numbers, and when the sound becomes too long.
        """
        with np.errstate(all="ignore"):  # whatever is no number is reported below
            mono = block.mean(axis=1, dtype=np.float32) if block.ndim == 2 else block.astype(np.float32)
        self.expect(self._taken + len(mono))
        usable = np.abs(mono) <= _LOUDEST  # false for NaN too
        if not usable.all():
            first = int(np.argmin(usable))
            raise InvalidRequest(
                f"{self._name}: has a sample of {mono[first]:g} at {(self._taken + first) / self._rate:.3f} s; "
                "samples lie between -1 and 1, export it again"
            )
        self._taken += len(mono)
        self._append(mono if self._resampler is None else self._resampler.resample_chunk(mono))

    def clip(self) -> AudioClip:
        """What was added, as a clip; the builder is spent. Raises InvalidRequest when it is too short for features."""
        if self._resampler is not None:
            self._append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        samples = np.frombuffer(self._made, np.float32)
        if not self._taken:
            raise InvalidRequest(f"{self._name}: holds no sound (0 samples); record or export it again")
        if len(samples) < (least := self._front.least_samples):
            raise InvalidRequest(
                f"{self._name}: is too short ({len(samples)} samples at {self._front.sampling_rate:,} Hz), {least} are "
                "the least; give a longer sound"
            )
        samples.flags.writeable = False
        rate = self._front.sampling_rate
        return AudioClip(samples, _digest(samples, rate), self._name, rate)

    def _append(self, samples: Samples) -> None:
        self._made += np.ascontiguousarray(samples, np.float32).data.cast("B")


def _digest(samples: Samples, sampling_rate: int) -> bytes:
    digest = hashlib.sha256(str(sampling_rate).encode())
    digest.update(np.ascontiguousarray(samples).data.cast("B"))
    return digest.digest()[:16]


# Sources -------------------------------------------------------------------------------------------------------------


def load_audio(
    source: Source, front: AudioFrontEnd, *, access: Access = DEFAULT_ACCESS, max_seconds: float = MAX_SECONDS
) -> AudioClip:
    """A sound file of any format, rate and channels that libsndfile reads; its content decides, not its name.

    It is read block by block. Raises InvalidRequest in one line: not readable as sound, cut off, without samples, too
    short for features, longer than max_seconds, samples that are NaN or infinite, and what open_source refuses.
    """
    import soundfile

    blob = open_source(source, "sound", access)
    with blob.open() as file:
        if lost := cut_off(file):
            raise _incomplete(blob.name, lost)
        try:
            reader = soundfile.SoundFile(_Unnamed(file))  # type: ignore[arg-type]
        except soundfile.LibsndfileError as error:
            if error.code == _MALFORMED:
                raise _incomplete(blob.name, _reason(error)) from error
            raise _no_sound(blob.name, file, error) from error
        reader.seekable = lambda: False  # else it seeks after every block, which fails where no end is announced
        with closing(reader):
            return _read(reader, blob.name, front, max_seconds)


class _Unnamed:
    """A file as libsndfile needs it: without a name, which would make it guess formats; and seeking never raises.

    Damaged headers lead before the file's beginning, and cffi prints what a callback raises. libsndfile looks where it
    came to, and says so itself.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell
        self.readinto = file.readinto  # type: ignore[attr-defined] - every binary file has it

    def seek(self, offset: int, whence: int = 0) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError):
            return self._file.tell()


def _read(reader: "soundfile.SoundFile", name: str, front: AudioFrontEnd, max_seconds: float) -> AudioClip:
    import soundfile

    if lost := missing_from_log(reader.extra_info):
        raise _incomplete(name, f"{lost:,} bytes are missing at its end")
    builder = ClipBuilder(name, reader.samplerate, front, max_seconds)
    promised = reader.frames
    if promised < _UNKNOWN:
        builder.expect(promised)
    size = max(1, _BLOCK // reader.channels)
    frames = 0
    try:
        while len(block := reader.read(size, dtype="float32", always_2d=True)):
            builder.add(block)
            frames += len(block)
    except soundfile.LibsndfileError as error:
        raise _incomplete(name, f"decoding fails: {_reason(error)}") from error
    # MP3 is left out: without a table of contents its length is an estimate.
    if frames < promised < _UNKNOWN and reader.format != "MP3":
        rate = reader.samplerate
        raise _incomplete(name, f"it ends after {frames / rate:.2f} s of the {promised / rate:.2f} s it should have")
    return builder.clip()


def from_waveform(
    waveform: npt.ArrayLike,
    sampling_rate: int,
    front: AudioFrontEnd,
    *,
    name: str = "the waveform",
    max_seconds: float = MAX_SECONDS,
) -> AudioClip:
    """Samples in memory as a clip: [S] or [S, channels]; floats, or 16-bit, 32-bit or unsigned 8-bit integers.

    Floats lie between -1 and 1; integers are scaled as in a WAV file. Raises InvalidRequest as load_audio does.
    """
    array = np.asarray(waveform)
    kind, zero, scale = array.dtype.kind, 0.0, 1.0
    if kind in "iu":
        if array.dtype not in (np.int16, np.int32, np.uint8):
            raise InvalidRequest(f"{name}: is {array.dtype}, expected float32, int16, int32 or uint8; convert it")
        zero, scale = (128.0, 2.0**-7) if kind == "u" else (0.0, 2.0 ** (1 - array.dtype.itemsize * 8))
    elif kind != "f":
        raise InvalidRequest(f"{name}: is {array.dtype}, expected float32, int16, int32 or uint8; convert it")
    if array.ndim not in (1, 2) or (array.ndim == 2 and not 0 < array.shape[1] <= max(array.shape[0], 1)):
        raise InvalidRequest(f"{name}: has the shape {list(array.shape)}, expected [samples] or [samples, channels]")
    builder = ClipBuilder(name, sampling_rate, front, max_seconds)
    builder.expect(len(array))
    size = max(1, _BLOCK // (array.shape[1] if array.ndim == 2 else 1))
    for start in range(0, len(array), size):
        block = array[start : start + size]
        builder.add(block if kind == "f" else (block.astype(np.float64) - zero) * scale)
    return builder.clip()


def _incomplete(name: str, how: str) -> InvalidRequest:
    return InvalidRequest(f"{name}: is damaged or cut off ({how}); copy or download it again")


# What people give in the place of sound: where in the file its mark stands, the mark, and what it is.
_OTHERS = (
    (4, b"ftyp", "an MP4 or M4A file"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM file"),
    (0, b"\xff\xf1", "raw AAC"),
    (0, b"\xff\xf9", "raw AAC"),
    (0, b"0&\xb2u", "a WMA or WMV file"),
    (0, b"#!AMR", "an AMR file"),
    (0, b"<", "a web page"),
    (0, b"version https://git-lfs", "a Git LFS pointer"),
)


def _no_sound(name: str, file: BinaryIO, error: "soundfile.LibsndfileError") -> InvalidRequest:
    file.seek(0)
    start = file.read(32)
    what = next((text for at, mark, text in _OTHERS if start.startswith(mark, at)), None)
    reason = f"it looks like {what}" if what else _reason(error)
    return InvalidRequest(
        f"{name}: cannot be read as sound ({reason}); give WAV, FLAC, OGG or MP3, `ffmpeg -i FILE out.wav` makes one"
    )


def _reason(error: "soundfile.LibsndfileError") -> str:
    """libsndfile's own words without their frame."""
    words = error.error_string.removeprefix("Error : ").strip().rstrip(".") or f"error {error.code}"
    return " ".join(words.split())[:120]


# Features ------------------------------------------------------------------------------------------------------------


def mel_spectrogram(samples: Samples, front: AudioFrontEnd) -> Samples:
    """Log-mel features float32 [n_mels, T] of mono samples [S], T = floor(S / hop): WhisperFeatureExtractor's.

    Frames are centred, the ends mirrored. Everything 8 powers of ten below the loudest place of the clip is cut. S is
    front.least_samples at least (a clip's always is). Memory: the result, and one block of frames.
    """
    if samples.ndim != 1 or len(samples) < front.least_samples:
        raise ValueError(f"samples {samples.shape}, expected [S] with S >= {front.least_samples}")
    n_frames = len(samples) // front.hop_length
    window = 0.5 - 0.5 * np.cos(2 * np.pi / front.n_fft * np.arange(front.n_fft))  # periodic Hann
    filters = mel_filters(front)
    features = np.empty((front.n_mels, n_frames), np.float32)
    for start in range(0, n_frames, _FRAMES):
        stop = min(start + _FRAMES, n_frames)
        first = start * front.hop_length - front.n_fft // 2
        around = _mirrored(samples, first, first + (stop - start - 1) * front.hop_length + front.n_fft)
        frames = np.lib.stride_tricks.sliding_window_view(around, front.n_fft)[:: front.hop_length]
        spectrum = np.fft.rfft(frames * window)  # float64: float32 would lose the quiet places beside loud ones
        power = (spectrum.real**2 + spectrum.imag**2).astype(np.float32)
        features[:, start:stop] = np.log10(np.maximum(power @ filters, 1e-10)).T
    np.maximum(features, features.max() - np.float32(8), out=features)
    features += 4
    features /= 4
    return features


def _mirrored(samples: Samples, start: int, stop: int) -> Samples:
    """samples[start:stop] where the sound goes on mirrored beyond its ends, the end samples not repeated."""
    if start >= 0 and stop <= len(samples):
        return samples[start:stop]
    places = np.abs(np.arange(start, stop))
    return samples[np.where(places < len(samples), places, 2 * (len(samples) - 1) - places)]


@lru_cache(maxsize=4)
def mel_filters(front: AudioFrontEnd) -> Samples:
    """Triangles on Slaney's mel scale, each of area 1: float32 [n_fft // 2 + 1, n_mels], read-only."""
    low, high = _hz_to_mel(front.mel_min), _hz_to_mel(front.mel_max)
    corners = _mel_to_hz(np.linspace(low, high, front.n_mels + 2))
    bins = np.linspace(0.0, front.sampling_rate / 2, front.n_fft // 2 + 1)[:, None]
    rise = (bins - corners[:-2]) / np.diff(corners)[:-1]
    fall = (corners[2:] - bins) / np.diff(corners)[1:]
    filters = np.maximum(0, np.minimum(rise, fall)) * 2 / (corners[2:] - corners[:-2])
    filters = filters.astype(np.float32)
    filters.flags.writeable = False
    return filters


# Slaney's scale: 200/3 Hz a mel below 1000 Hz (15 mel), then 27 mel for every factor of 6.4.


def _hz_to_mel(hz: float) -> float:
    return 3 * hz / 200 if hz < 1000 else 15 + 27 * float(np.log(hz / 1000)) / float(np.log(6.4))


def _mel_to_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return np.where(mel < 15, 200 * mel / 3, 1000 * 6.4 ** ((mel - 15) / 27))
