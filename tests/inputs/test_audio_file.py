"""Sound files: what is in them, and that none is ever half there."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
import soundfile
from sounds import chord, voice

import qwen3omni_wgpu
from qwen3omni_wgpu.errors import DeviceLost, InvalidRequest
from qwen3omni_wgpu.inputs.audio_file import Audio, Writer, check_path, pcm16, save

ENDINGS = (".wav", ".flac", ".ogg", ".mp3")
PLAIN = (".wav", ".flac")  # these keep every sample
# Of full scale: samples are rounded to 16 bits. Beside it, what float32 loses on the way.
HALF_STEP = 0.5 / 32768 + 1e-7
# Of the strength of a chord, for formats that do not keep every sample: 0.015 to 0.03 was measured.
LOSSY = 0.1


def read(path: Path) -> np.ndarray:
    samples, rate = soundfile.read(path, dtype="float32")
    assert rate == 24000
    assert samples.ndim == 1
    return samples


def pieces(rng: np.random.Generator, samples: np.ndarray) -> list[np.ndarray]:
    cuts = np.sort(rng.integers(0, len(samples), 12))  # some are empty
    return np.split(samples, cuts)


def chord_of(rng: np.random.Generator, n: int, rate: int) -> np.ndarray:
    return chord(n, rate) * np.float32(rng.uniform(0.5, 2))


def loss(found: np.ndarray, samples: np.ndarray) -> float:
    return float(np.sqrt(np.mean((found - samples) ** 2) / np.mean(samples**2)))


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# What is in a file ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ending", "kind"), [
    (".wav", ("WAV", "PCM_16")), (".flac", ("FLAC", "PCM_16")), (".ogg", ("OGG", "VORBIS")),
    (".mp3", ("MP3", "MPEG_LAYER_III")), (".WAV", ("WAV", "PCM_16")),
])  # fmt: skip
def test_the_ending_says_the_format(tmp_path, ending, kind):
    samples = chord(30000, 24000)
    save(tmp_path / f"a{ending}", samples)
    info = soundfile.info(tmp_path / f"a{ending}")
    assert (info.format, info.subtype) == kind
    assert (info.samplerate, info.channels, info.frames) == (24000, 1, 30000)
    assert left(tmp_path) == [f"a{ending}"]
    found = read(tmp_path / f"a{ending}")
    if ending.lower() in PLAIN:
        assert np.abs(found - samples).max() <= HALF_STEP
    else:
        assert loss(found, samples) < LOSSY


@pytest.mark.parametrize("ending", ENDINGS)
def test_pieces_make_the_same_sound_as_the_whole(tmp_path, ending):
    rng = np.random.default_rng()
    make = voice if ending in PLAIN else chord_of  # lossy formats keep tones, however they are cut into blocks
    samples = make(rng, int(rng.integers(20000, 50000)), 24000)
    save(tmp_path / f"whole{ending}", samples)
    with Writer(tmp_path / f"pieces{ending}") as writer:
        for piece in pieces(rng, samples):
            writer.write(piece)
    assert writer.seconds == len(samples) / 24000
    whole, made = read(tmp_path / f"whole{ending}"), read(tmp_path / f"pieces{ending}")
    assert len(whole) == len(made) == len(samples)
    if ending in PLAIN:
        np.testing.assert_array_equal(whole, made)
    else:
        assert loss(made, samples) < LOSSY


def test_16_bit_samples():
    steps = np.arange(-32768, 32768)
    np.testing.assert_array_equal(pcm16((steps / 32768).astype(np.float32)), steps)
    between = np.random.default_rng().uniform(-0.49, 0.49, len(steps)).astype(np.float32)
    np.testing.assert_array_equal(pcm16((steps + between)[1:-1] / 32768), steps[1:-1])
    assert pcm16([1.0, 1.5, 1e30, -1.0, -1.5, -1e30]).tolist() == [32767] * 3 + [-32768] * 3
    assert pcm16([0.5, -2 / 32768]).tobytes() == b"\x00\x40\xfe\xff"


@pytest.mark.parametrize("ending", PLAIN)
def test_what_is_too_loud_is_clipped(tmp_path, ending):
    save(tmp_path / f"a{ending}", np.array([0.0, 1.2, -3.0, 0.25], np.float32))
    assert read(tmp_path / f"a{ending}").tolist() == [0.0, 32767 / 32768, -1.0, 0.25]


def test_audio(tmp_path):
    assert qwen3omni_wgpu.Audio is Audio
    samples = chord(16000, 16000)
    audio = Audio(samples, 16000)
    assert audio.seconds == 1.0
    audio.save(str(tmp_path / "a.flac"))
    found, rate = soundfile.read(tmp_path / "a.flac", dtype="float32")
    assert rate == 16000
    assert np.abs(found - samples).max() <= HALF_STEP
    assert Audio(samples).sampling_rate == 24000


def test_long_sound_needs_no_deep_stack(tmp_path):
    """libsndfile's Vorbis encoder puts all that it is given at once on the stack: minutes end the process."""
    code = (
        "import sys, threading, numpy as np\n"
        "from qwen3omni_wgpu.inputs.audio_file import save\n"
        "threading.stack_size(1 << 20)\n"
        "thread = threading.Thread(target=save, args=(sys.argv[1], np.zeros(1 << 20, np.float32)))\n"
        "thread.start(); thread.join()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path / "a.ogg"], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert soundfile.info(tmp_path / "a.ogg").frames == 1 << 20


# Never half -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ENDINGS)
def test_the_name_is_there_when_the_sound_is_complete(tmp_path, ending):
    path = tmp_path / f"a{ending}"
    path.write_bytes(b"of an earlier time")
    with Writer(path) as writer:
        for _ in range(3):
            writer.write(chord(24000, 24000))
            assert path.read_bytes() == b"of an earlier time"
        assert left(tmp_path) == [path.name, f"{path.name}.part"]
    assert left(tmp_path) == [path.name]
    assert len(read(path)) == 72000
    writer.close()
    with pytest.raises(InvalidRequest, match="complete"):
        writer.write(chord(10, 24000))


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("error", [KeyboardInterrupt, DeviceLost])
def test_what_was_written_stays_when_the_rest_fails(tmp_path, ending, error):
    path = tmp_path / f"a{ending}"
    samples = chord(int(np.random.default_rng().integers(30000, 60000)), 24000)

    def write() -> None:
        with Writer(path) as writer:
            writer.write(samples[:20000])
            writer.write(samples[20000:])
            raise error("stop")

    with pytest.raises(error, match="stop"):
        write()
    assert left(tmp_path) == [path.name]
    found = read(path)
    assert len(found) == len(samples)
    assert loss(found, samples) < LOSSY


def test_without_sound_there_is_no_file(tmp_path):
    with Writer(tmp_path / "a.wav") as writer:
        writer.write(np.zeros(0, np.float32))
    assert left(tmp_path) == []
    (tmp_path / "a.wav").write_bytes(b"before")
    with Writer(tmp_path / "a.wav"):
        pass
    assert (tmp_path / "a.wav").read_bytes() == b"before"


def test_a_link_stays_one(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.wav").symlink_to(tmp_path / "folder" / "b.wav")
    save(tmp_path / "a.wav", chord(2400, 24000))
    assert (tmp_path / "a.wav").is_symlink()
    assert left(tmp_path / "folder") == ["b.wav"]
    assert len(read(tmp_path / "folder" / "b.wav")) == 2400


def bad_samples() -> dict[str, np.ndarray]:
    broken = np.random.default_rng().uniform(-1, 1, 20000).astype(np.float32)
    broken[17000] = np.nan
    return {"17000 is no finite": broken, "0 samples": np.zeros(0, np.float32), "mono": np.zeros((100, 2), np.float32)}


@pytest.mark.parametrize("words", bad_samples())
def test_bad_samples_leave_everything_as_it_was(tmp_path, words):
    (tmp_path / "a.wav").write_bytes(b"before")
    with pytest.raises(InvalidRequest, match=words):
        save(tmp_path / "a.wav", bad_samples()[words])
    assert left(tmp_path) == ["a.wav"]
    assert (tmp_path / "a.wav").read_bytes() == b"before"


def test_a_save_that_is_interrupted_leaves_nothing(tmp_path, monkeypatch):
    original, calls = soundfile.SoundFile.write, []

    def interrupted(self, data):
        calls.append(len(data))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, data)

    monkeypatch.setattr(soundfile.SoundFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "a.wav", chord(1 << 17, 24000))
    assert left(tmp_path) == []


def test_a_full_disk(tmp_path):
    """The limit on the size of files fails as a full disk does: in the middle, and with its own reason."""
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from qwen3omni_wgpu.errors import InvalidRequest\n"
        "from qwen3omni_wgpu.inputs.audio_file import Writer, save\n"
        "def pieces(path, samples):\n"
        "    with Writer(path) as writer:\n"
        "        writer.write(samples[:100])\n"
        "        writer.write(samples[100:])\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "samples = np.random.default_rng().uniform(-1, 1, 200000).astype(np.float32)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "for path in sys.argv[1:]:\n"
        "    for write in (save, pieces):\n"
        "        try:\n"
        "            write(path, samples)\n"
        "        except InvalidRequest as error:\n"
        "            print(error)\n"
    )
    paths = [tmp_path / f"a{ending}" for ending in ENDINGS]
    for path in paths:
        path.write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", code, *paths], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    for path, line in zip([path for path in paths for _ in range(2)], done.stdout.splitlines(), strict=True):
        assert line.startswith(f"{path}: cannot be written (File too large)")
        assert path.read_bytes() == b"before"
    assert left(tmp_path) == sorted(path.name for path in paths)


def test_several_files_at_once(tmp_path):
    sounds = [np.full(30000, level, np.float32) for level in (0.125, 0.25, 0.5)]
    threads = [threading.Thread(target=save, args=(tmp_path / f"{i}.wav", sound)) for i, sound in enumerate(sounds)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, sound in enumerate(sounds):
        np.testing.assert_array_equal(read(tmp_path / f"{i}.wav"), sound)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "words"), [
    ("a.aac", [".aac", ".wav, .flac, .ogg, .mp3"]),
    ("a", ["does not end", ".wav, .flac, .ogg, .mp3"]),
    (".wav", ["does not end"]),
    ("folder.wav", ["is a folder"]),
    ("pipe.wav", ["not a regular file"]),
    ("no-such/a.wav", ["no-such", "No such file"]),
    ("b.wav/a.wav", ["b.wav", "not a folder"]),
    ("x" * 252 + ".wav", ["too long"]),
    ("x" * 250 + ".wav", ["too long"]),
    ("a\0.wav", ["null"]),
])  # fmt: skip
def test_where_no_sound_can_go(tmp_path, name, words):
    (tmp_path / "folder.wav").mkdir()
    (tmp_path / "b.wav").write_bytes(b"")
    os.mkfifo(tmp_path / "pipe.wav")
    before = left(tmp_path)
    for call in (check_path, Writer, lambda path: save(path, chord(100, 24000))):
        with pytest.raises(InvalidRequest) as found:
            call(tmp_path / name)
        message = str(found.value)
        assert "\n" not in message
        for word in words:
            assert word in message
    assert left(tmp_path) == before


def test_a_folder_that_may_not_be_written_to(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # for root every folder may be
    with pytest.raises(InvalidRequest, match="may not be written to"):
        check_path(tmp_path / "a.wav")


def test_a_library_without_the_format(tmp_path, monkeypatch):
    monkeypatch.setattr(soundfile, "check_format", lambda *kind: kind[0] != "MP3")
    assert check_path(tmp_path / "a.wav") == tmp_path / "a.wav"
    with pytest.raises(InvalidRequest, match=r"cannot write \.mp3"):
        check_path(tmp_path / "a.mp3")


@pytest.mark.parametrize("rate", [12345, 0, -1, 24000.5, 10**12])
def test_rates_that_a_format_does_not_take(tmp_path, rate):
    with pytest.raises(InvalidRequest, match=f"MP3 does not take {rate} samples a second"):
        save(tmp_path / "a.mp3", chord(100, 24000), rate)
    with pytest.raises(InvalidRequest, match="MP3 does not take"), Writer(tmp_path / "a.mp3", rate) as writer:
        writer.write(chord(100, 24000))
    assert left(tmp_path) == []
