"""Sound in: every format and rate, what is refused and in which words, memory, and the log-mel features."""

import io
import json
import struct
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
from reference.goldens import FOLDER
from sounds import chord, signals, voice

from qwen3omni_wgpu.convert.mmproj import metadata
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, UnsupportedModel
from qwen3omni_wgpu.inputs import audio
from qwen3omni_wgpu.inputs.audio import (
    AudioClip,
    AudioFrontEnd,
    ClipBuilder,
    from_waveform,
    load_audio,
    mel_filters,
    mel_spectrogram,
)

FRONT = AudioFrontEnd()
DATA = Path(__file__).parent.parent / "data"


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng()


def encoded(samples, rate: int = 16000, format: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=format, subtype=subtype)
    return file.getvalue()


def refused(source, **options) -> str:
    """The message for a sound that must not be taken: one line."""
    with pytest.raises(InvalidRequest) as caught:
        load_audio(source, FRONT, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 300
    return message


def worst(a, b) -> float:
    return float(np.abs(np.asarray(a, np.float64) - b).max())


# Formats -------------------------------------------------------------------------------------------------------------

LOSSLESS = """
    WAV:PCM_U8 WAV:PCM_16 WAV:PCM_24 WAV:PCM_32 WAV:FLOAT WAV:DOUBLE WAVEX:PCM_24 RF64:PCM_16 W64:FLOAT
    FLAC:PCM_S8 FLAC:PCM_16 FLAC:PCM_24 AIFF:PCM_16 AIFF:FLOAT AU:PCM_16 AU:DOUBLE CAF:PCM_24 NIST:PCM_16
"""
LOSSY = "OGG:VORBIS OGG:OPUS MP3:MPEG_LAYER_III WAV:ULAW WAV:ALAW WAV:IMA_ADPCM WAV:MS_ADPCM WAV:GSM610"
WITH_LENGTH = """
    WAV:PCM_16 WAV:FLOAT WAV:ULAW RF64:PCM_16 W64:PCM_16 AIFF:PCM_16 AU:PCM_16 CAF:PCM_16 FLAC:PCM_16
    OGG:VORBIS OGG:OPUS MP3:MPEG_LAYER_III
"""
# Half a step of each number format; the float ones are exact.
EXACT = {
    "PCM_U8": 2.0**-7,
    "PCM_S8": 2.0**-7,
    "PCM_16": 2.0**-15,
    "PCM_24": 2.0**-23,
    "PCM_32": 2.0**-23,
    "FLOAT": 0,
    "DOUBLE": 0,
}


@pytest.mark.parametrize("kind", LOSSLESS.split())
def test_formats_that_lose_nothing(kind: str, rng) -> None:
    format, subtype = kind.split(":")
    sound = voice(rng, int(rng.integers(201, 40_000)))
    clip = load_audio(encoded(sound, format=format, subtype=subtype), FRONT)
    assert clip.samples.shape == sound.shape
    assert clip.samples.dtype == np.float32
    assert worst(clip.samples, sound) <= EXACT[subtype]


@pytest.mark.parametrize("kind", LOSSY.split())
def test_formats_that_lose_something(kind: str) -> None:
    format, subtype = kind.split(":")
    sound = chord(32_000, 16000)
    clip = load_audio(encoded(sound, format=format, subtype=subtype), FRONT)
    # Codecs with frames round the length up, and GSM is a telephone's; a wrong rate or scale is off by 1 and more.
    assert 0 <= len(clip.samples) - len(sound) <= 1024
    error = clip.samples[: len(sound)] - sound
    assert np.sqrt(np.mean(error**2) / np.mean(sound**2)) < (0.3 if subtype == "GSM610" else 0.1)


@pytest.mark.parametrize("name", ["flac.wav", "sound.raw", "sound.vox", "sound", "sound.mp4", "sound.sd2"])
def test_the_content_decides_and_not_the_name(name: str, rng, tmp_path) -> None:
    sound = voice(rng, 3000)
    (tmp_path / name).write_bytes(encoded(sound, format="FLAC", subtype="PCM_24"))
    clip = load_audio(tmp_path / name, FRONT)
    assert worst(clip.samples, sound) <= 2.0**-23
    assert clip.name == str(tmp_path / name)
    mp3 = encoded(chord(16_000, 16000), format="MP3")
    (tmp_path / name).write_bytes(mp3)
    assert load_audio(tmp_path / name, FRONT).digest == load_audio(mp3, FRONT).digest


@pytest.mark.parametrize("channels", [2, 3, 6, 64])
def test_channels_are_averaged(channels: int, rng) -> None:
    sound = np.stack([voice(rng, 5000) for _ in range(channels)], axis=1)
    clip = load_audio(encoded(sound, subtype="FLOAT"), FRONT)
    assert worst(clip.samples, sound.astype(np.float64).mean(axis=1)) < 1e-6  # float32's rounding


# Rates ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1000, 8000, 11025, 12345, 22050, 32000, 44100, 48000, 96000, 192000])
def test_rates(rate: int, monkeypatch) -> None:
    monkeypatch.setattr(audio, "_BLOCK", 999)  # many blocks, and none of them a round number of samples
    seconds = 2
    sound = chord(seconds * rate, rate) if rate > 4000 else voice(np.random.default_rng(), seconds * rate, rate)
    clip = load_audio(encoded(sound, rate, subtype="FLOAT"), FRONT)
    assert abs(len(clip.samples) - seconds * 16000) <= 1
    # In blocks it is what soxr makes of all of it at once, sample by sample; and it is the sound itself.
    np.testing.assert_array_equal(clip.samples, soxr.resample(sound, rate, 16000, "HQ"))
    if rate > 4000:
        assert worst(clip.samples[: seconds * 16000], chord(seconds * 16000, 16000)) < 1e-3


def test_what_is_above_half_the_rate_goes() -> None:
    t = np.arange(48000) / 48000
    high = np.sin(2 * np.pi * 11_000 * t).astype(np.float32)  # taking every third sample would make 5 kHz of it
    clip = load_audio(encoded(high, 48000, subtype="FLOAT"), FRONT)
    assert np.abs(clip.samples[2000:-2000]).max() < 1e-3


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", WITH_LENGTH.split())
def test_files_that_are_cut_off(kind: str, rng, capfd) -> None:
    format, subtype = kind.split(":")
    whole = encoded(voice(rng, 48_000), format=format, subtype=subtype)
    load_audio(whole, FRONT)
    capfd.readouterr()
    for part in (0.1, *rng.uniform(0.2, 0.97, 5)):
        cut = int(part * len(whole))
        if whole[cut:].startswith(b"OggS"):
            cut += 1  # whole pages are what a recording that was stopped leaves behind, too: those are played
        message = refused(whole[:cut])
        assert "damaged or cut off" in message, part
    assert capfd.readouterr().err == ""  # libraries below print warnings of their own


def test_a_long_page_of_ogg_that_is_cut_anywhere(rng) -> None:
    whole = encoded(voice(rng, 16_000), format="OGG", subtype="VORBIS")
    last = whole.rindex(b"OggS")
    for cut in (last + 1, last + 3, last + 20, last + 27, last + 40, len(whole) - 1):
        assert "inside an Ogg page" in refused(whole[:cut])


def test_whole_pages_of_ogg_without_an_end_are_played(rng) -> None:
    whole = encoded(voice(rng, 48_000), format="OGG", subtype="OPUS")
    stopped = load_audio(whole[: whole.rindex(b"OggS")], FRONT)
    assert 0 < len(stopped.samples) < 0.9 * 48_000


@pytest.mark.parametrize(("riff", "data"), [(0xFFFFFFFF, 0xFFFFFFFF), (0x7FFFF024, 0x7FFFF000), (8, 0), (44, None)])
def test_lengths_that_programs_write_into_pipes(riff: int, data: int | None, rng) -> None:
    sound = voice(rng, 5000)
    raw = bytearray(encoded(sound))
    raw[4:8] = struct.pack("<I", riff)
    if data is not None:
        raw[40:44] = struct.pack("<I", data)
    assert worst(load_audio(bytes(raw), FRONT).samples, sound) <= 2.0**-15


def test_things_that_are_no_sound(tmp_path, rng) -> None:
    text = tmp_path / "notes.wav"
    text.write_text("this is not sound\n" * 100)
    message = refused(text)
    assert str(text) in message
    assert "cannot be read as sound" in message
    assert "ffmpeg" in message
    assert "web page" in refused(b"<!doctype html>" + bytes(1000))
    assert "MP4" in refused(b"\0\0\0 ftypM4A " + bytes(1000))
    assert "WebM" in refused(b"\x1aE\xdf\xa3" + bytes(1000))
    assert "cannot be read" in refused(bytes(5000))
    assert "cannot be read" in refused(b"R")
    assert "empty" in refused(b"")
    assert "No such file" in refused(tmp_path / "none.wav")


def test_a_header_that_leads_before_the_beginning(monkeypatch) -> None:
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)  # what cffi makes of exceptions in callbacks
    raw = bytearray(encoded(np.zeros(2000), format="AIFF"))
    raw[35:39] = b"\xff" * 4
    assert "cannot be read" in refused(bytes(raw))
    assert printed == []


def test_sounds_that_are_too_short(rng) -> None:
    assert "0 samples" in refused(encoded(np.zeros(0, np.float32)))
    for n in (1, 2, 200):
        assert f"too short ({n} samples" in refused(encoded(voice(rng, n)))
    assert len(load_audio(encoded(voice(rng, 201)), FRONT).samples) == 201
    assert "too short" in refused(encoded(voice(rng, 400), 48000))  # 134 samples at the model's rate
    assert "too short" in refused(encoded(voice(rng, 10), 8000))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e30])
def test_samples_that_are_no_numbers(value: float, rng) -> None:
    for channels, rate in ((1, 16000), (2, 16000), (1, 44100)):
        sound = np.stack([voice(rng, 3 * rate)] * channels, axis=1)
        sound[int(1.5 * rate), -1] = value
        message = refused(encoded(sound, rate, subtype="FLOAT"))
        assert "at 1.500 s" in message
    wide = voice(rng, 1000).astype(np.float64)
    wide[500] = 1e300  # more than float32 holds
    assert "inf at 0.031 s" in refused(encoded(wide, subtype="DOUBLE"))


@pytest.mark.parametrize("rate", [1, 999, 1_000_001, 2**31 - 1])
def test_absurd_rates(rate: int, rng) -> None:
    raw = bytearray(encoded(voice(rng, 5000)))
    raw[24:28] = struct.pack("<I", rate)
    assert f"{rate:,} Hz" in refused(bytes(raw))
    with pytest.raises(InvalidRequest, match="Hz"):
        from_waveform(np.zeros(5000), rate, FRONT)


# Length and memory ---------------------------------------------------------------------------------------------------


def test_ten_hours_are_refused_by_their_header(tmp_path, monkeypatch) -> None:
    path = tmp_path / "day.wav"
    frames = 10 * 3600 * 16000
    with path.open("wb") as file:
        head = encoded(np.zeros(1, np.float32))[:40]
        file.write(head[:4] + struct.pack("<I", 36 + 2 * frames) + head[8:] + struct.pack("<I", 2 * frames))
        file.truncate(44 + 2 * frames)  # zeros that take no room on the disk
    monkeypatch.setattr(ClipBuilder, "add", lambda *args: pytest.fail("nothing of it should be decoded"))
    message = refused(path)
    assert "10,800 s" in message
    assert "36,000 s" in message


def test_a_sound_without_an_announced_end_is_left_at_the_limit(rng, monkeypatch) -> None:
    whole = bytearray(encoded(voice(rng, 16_000 * 4), format="FLAC"))
    whole[21] &= 0xF0  # the number of samples, 36 bits: unknown
    whole[22:26] = bytes(4)
    monkeypatch.setattr(audio, "_BLOCK", 1000)
    taken = []
    original = ClipBuilder.add
    monkeypatch.setattr(ClipBuilder, "add", lambda self, block: (taken.append(len(block)), original(self, block))[1])
    assert "longer than the 2 s" in refused(bytes(whole), max_seconds=2)
    assert sum(taken) < 16_000 * 2 + 2000
    assert load_audio(bytes(whole), FRONT, max_seconds=4).seconds == 4


def test_the_limit_of_seconds_is_exact(rng) -> None:
    data = encoded(voice(rng, 8001), 8000)
    assert "(it has 1 s)" in refused(data, max_seconds=1)
    load_audio(data, FRONT, max_seconds=1.001)


def test_memory_of_loading(rng, tmp_path) -> None:
    path = tmp_path / "long.wav"
    soundfile.write(path, np.tile(voice(rng, 160_000), 30), 16000)  # 5 minutes
    load_audio(encoded(voice(rng, 5000)), FRONT)  # what is imported and cached with the first
    tracemalloc.start()
    try:
        clip = load_audio(path, FRONT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # A growing buffer keeps an eighth in reserve; two copies of the samples, 38 MB, are over the bound.
    assert peak < 1.2 * clip.samples.nbytes + 8e6


def test_memory_of_features(rng) -> None:
    sound = np.tile(voice(rng, 160_000), 30)
    mel_filters(FRONT)
    tracemalloc.start()
    try:
        mel = mel_spectrogram(sound, FRONT)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 10 MB of one block at any length; a padded copy of the sound alone, 19 MB, is over the bound.
    assert peak < mel.nbytes + 14e6


# Samples in memory ---------------------------------------------------------------------------------------------------


def test_waveforms(rng) -> None:
    sound = voice(rng, 8000)
    clip = from_waveform(sound, 16000, FRONT)
    np.testing.assert_array_equal(clip.samples, sound)
    assert clip.seconds == 0.5
    assert clip.digest == load_audio(encoded(sound, subtype="FLOAT"), FRONT).digest
    same = {
        "list": sound.tolist(),
        "float64": sound.astype(np.float64),
        "two channels": np.stack([sound, sound], axis=1),
        "other layout": np.asfortranarray(np.stack([sound, sound], axis=1)),
        "every other": np.repeat(sound, 2)[::2],
    }
    for name, waveform in same.items():
        assert from_waveform(waveform, 16000, FRONT).digest == clip.digest, name
    for kind, scale, zero in ((np.int16, 2**15, 0), (np.int32, 2**31, 0), (np.uint8, 2**7, 128)):
        whole = np.round(sound.astype(np.float64) * scale * 0.99 + zero).astype(kind)
        assert worst(from_waveform(whole, 16000, FRONT).samples, 0.99 * sound) <= 1.01 / scale + 1e-7
    resampled = from_waveform(sound, 44100, FRONT)
    np.testing.assert_array_equal(resampled.samples, soxr.resample(sound, 44100, 16000, "HQ"))


@pytest.mark.parametrize(("waveform", "words"), [
    (np.zeros(500, np.int8), "int8"),
    (np.zeros(500, np.int64), "int64"),
    (np.zeros(500, bool), "bool"),
    (np.zeros(500, np.complex64), "complex64"),
    (["a"] * 500, "expected float32"),
    (np.zeros((2, 500)), "[2, 500]"),
    (np.zeros((1, 500, 1)), "[1, 500, 1]"),
    (np.zeros((500, 0)), "[500, 0]"),
    (np.float32(1), "[]"),
    (np.zeros(0), "0 samples"),
    (np.full(500, np.nan), "nan at 0.000 s"),
    (np.zeros(200), "too short"),
])  # fmt: skip
def test_waveforms_that_are_refused(waveform, words: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        from_waveform(waveform, 16000, FRONT)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_waveform_that_is_too_long() -> None:
    with pytest.raises(InvalidRequest, match="longer than the 2 s"):
        from_waveform(np.zeros(16_000 * 2 + 1), 16000, FRONT, max_seconds=2)


def test_digests(rng) -> None:
    sound = voice(rng, 8000)
    other = sound.copy()
    other[4000] += 1e-4
    clips = [
        from_waveform(sound, 16000, FRONT),
        from_waveform(other, 16000, FRONT),
        from_waveform(sound[:-1], 16000, FRONT),
        from_waveform(sound, 8000, FRONT),
        from_waveform(sound, 8000, AudioFrontEnd(sampling_rate=8000, mel_max=4000)),
    ]
    assert len({clip.digest for clip in clips}) == len(clips)
    assert all(len(clip.digest) == 16 for clip in clips)
    assert from_waveform(sound, 16000, FRONT, name="x").digest == clips[0].digest


def test_clips_are_not_changed_by_accident(rng) -> None:
    clip = from_waveform(voice(rng, 8000), 16000, FRONT)
    with pytest.raises(ValueError, match="read-only"):
        clip.samples[0] = 1


def test_parts_of_clips(rng) -> None:
    sound = voice(rng, 8000)
    clip = from_waveform(sound, 16000, FRONT, name="x")
    part = clip.part(1000, 3000)
    np.testing.assert_array_equal(part.samples, sound[1000:3000])
    assert np.shares_memory(part.samples, clip.samples)
    assert part.digest == from_waveform(sound[1000:3000], 16000, FRONT).digest
    assert (part.name, part.seconds) == ("x", 0.125)
    assert isinstance(part, AudioClip)
    assert "0.12 s" in repr(part) or "0.13 s" in repr(part)


# Features ------------------------------------------------------------------------------------------------------------


def test_features_equal_transformers() -> None:
    golden = np.load(FOLDER / "mel.npz")
    names = [name for name in golden if f"{name}_mel" in golden]
    assert len(names) == 7
    for name in names:
        mel = mel_spectrogram(golden[name] / np.float32(32768), FRONT)
        assert mel.shape == (128, len(golden[name]) // 160)
        assert mel.dtype == np.float32
        # The goldens' transform is in float32, ours in float64: 2e-5 was measured.
        np.testing.assert_allclose(mel, golden[f"{name}_mel"], rtol=0, atol=1e-4, err_msg=name)


def test_filters_equal_transformers() -> None:
    np.testing.assert_allclose(mel_filters(FRONT), np.load(FOLDER / "mel.npz")["filters"], rtol=0, atol=1e-8)


def test_blocks_do_not_show(rng, monkeypatch) -> None:
    for samples in (201, 1600, 3201, 20_000):
        for name, sound in signals(rng, samples).items():
            monkeypatch.setattr(audio, "_FRAMES", 10**6)
            whole = mel_spectrogram(sound, FRONT)
            for frames in (1, 2, 7):
                monkeypatch.setattr(audio, "_FRAMES", frames)
                # A sum of 201 products may be ordered differently for blocks of another size.
                np.testing.assert_allclose(mel_spectrogram(sound, FRONT), whole, rtol=0, atol=1e-6, err_msg=name)


OTHER = AudioFrontEnd(sampling_rate=8000, n_fft=256, hop_length=100, n_mels=20, mel_min=100, mel_max=3000)


@pytest.mark.parametrize("front", [FRONT, OTHER], ids=["release", "other"])
def test_features_by_their_definition(front: AudioFrontEnd, rng) -> None:
    n, bins = front.n_fft, front.n_fft // 2 + 1
    transform = np.exp(np.outer(np.arange(bins), np.arange(n)) * (-2j * np.pi / n)) * np.hanning(n + 1)[:-1]
    # Beside a pure tone, the noise of a transform in float32 shows: 6e-6.
    tone = np.sin(2 * np.pi * 125 / front.sampling_rate * np.arange(9000)).astype(np.float32)
    for sound in (voice(rng, 9000, front.sampling_rate), tone):
        padded = np.pad(sound.astype(np.float64), n // 2, mode="reflect")
        frames = [padded[t * front.hop_length :][:n] for t in range(len(sound) // front.hop_length)]
        power = np.abs(transform @ np.stack(frames, axis=1)) ** 2
        log = np.log10(np.maximum(mel_filters(front).astype(np.float64).T @ power, 1e-10))
        expected = (np.maximum(log, log.max() - 8) + 4) / 4
        np.testing.assert_allclose(mel_spectrogram(sound, front), expected, rtol=0, atol=2e-6)


def test_features_need_enough_samples(rng) -> None:
    with pytest.raises(ValueError, match="S >= 201"):
        mel_spectrogram(voice(rng, 200), FRONT)
    with pytest.raises(ValueError, match="expected"):
        mel_spectrogram(voice(rng, 800).reshape(2, 400), FRONT)


# The front end of a model --------------------------------------------------------------------------------------------


def test_front_end_of_the_release() -> None:
    described = metadata(json.loads((DATA / "config_30b.json").read_text()), {}, "x")
    assert AudioFrontEnd.from_gguf(described) == FRONT == AudioFrontEnd.from_gguf({})
    described |= {"clip.audio.sampling_rate": 8000, "clip.audio.n_fft": 256, "clip.audio.hop_length": 80}
    described |= {"clip.audio.num_mel_bins": 80, "clip.audio.mel_min_frequency": 20.0}
    described |= {"clip.audio.mel_max_frequency": 4000.0}
    assert AudioFrontEnd.from_gguf(described) == AudioFrontEnd(8000, 256, 80, 80, 20.0, 4000.0)


@pytest.mark.parametrize(("key", "value"), [
    ("sampling_rate", 0),
    ("n_fft", "400"),
    ("hop_length", -1),
    ("num_mel_bins", True),
    ("num_mel_bins", 1 << 40),
    ("mel_min_frequency", float("nan")),
    ("mel_max_frequency", 8001.0),
    ("mel_min_frequency", 8000.0),
])  # fmt: skip
def test_front_ends_that_make_no_sense(key: str, value) -> None:
    with pytest.raises(InvalidModelFile, match=r"clip\.audio"):
        AudioFrontEnd.from_gguf({f"clip.audio.{key}": value})


def test_another_mel_scale() -> None:
    with pytest.raises(UnsupportedModel, match="htk"):
        AudioFrontEnd.from_gguf({"clip.audio.mel_scale": "htk"})
