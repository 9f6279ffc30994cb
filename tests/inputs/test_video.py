"""Video: which frames are taken and when, pixels as transformers', sound in step, and what is refused."""

import io
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from reference.goldens import FOLDER

pytest.importorskip("av", reason="video needs PyAV (the [video] extra)")
import av
from films import SIZE, film, number, numbered

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.inputs import video_files
from qwen3omni_wgpu.inputs.audio import AudioFrontEnd, from_waveform
from qwen3omni_wgpu.inputs.image import PictureRules, load_image
from qwen3omni_wgpu.inputs.video import Video, chosen, frame_count, frame_limit, load_video

GOLDENS = np.load(FOLDER / "pictures.npz")
RULES = PictureRules(video_min_pixels=4096, video_max_pixels=8192)  # small frames make quick tests
FRONT = AudioFrontEnd()
LEVEL, OFTEN = 1, 0.02  # as in test_image.py


def numbers(video: Video) -> list[int]:
    return [number(frame) for frame in video.frames]


def refused(source: Any, **options: Any) -> str:
    """The message for a video that must not be taken: one line, short enough to read."""
    with pytest.raises(InvalidRequest) as caught:
        load_video(source, RULES, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


# Against transformers -----------------------------------------------------------------------------------------------


def test_frames_are_those_of_transformers() -> None:
    expected = GOLDENS["indices"].tolist()
    for total, seconds, fps, count in GOLDENS["samples"]:
        total, count = int(total), int(count)
        assert frame_count(total, seconds, fps, 4, 768, 2) == count
        ticks = np.arange(total) * 1000
        found = chosen(ticks, total * 1000, count).tolist()
        assert found == expected[:count], (total, seconds, fps)
        del expected[:count]
    assert not expected


def test_limits_of_long_videos_are_those_of_transformers() -> None:
    for count, most in GOLDENS["limits"].tolist():
        assert frame_limit(count, PictureRules()) == most


def test_pixels_are_those_of_transformers() -> None:
    video = load_video(GOLDENS["video"], replace(RULES, video_min_pixels=2048, video_max_pixels=4096), fps=4.0)
    expected = GOLDENS["video_levels"]
    assert video.frames.shape == expected.shape == (6, *expected.shape[1:])  # five, and the last once more
    assert video.grid == (3, expected.shape[1] // 16, expected.shape[2] // 16)
    assert video.seconds_per_grid == 0.5
    off = np.abs(video.frames.astype(int) - expected)
    assert off.max() <= LEVEL
    assert np.mean(off > 0) < OFTEN


def test_patches() -> None:
    """The order of patches has its own test; here: the frames of a step and no others."""
    frames = np.random.default_rng().integers(0, 256, (6, 64, 96, 3), dtype=np.uint8)
    video = load_video(frames, RULES)
    rows = video.patches(24, 48).reshape(24, 3, 2, 16, 16)
    np.testing.assert_allclose(rows[0, :, 0], frames[2, :16, :16].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)
    np.testing.assert_allclose(rows[23, :, 1], frames[3, 48:, 80:].transpose(2, 0, 1) / 127.5 - 1, atol=1e-6)


# Files ---------------------------------------------------------------------------------------------------------------

KINDS: dict[str, dict[str, Any]] = {
    "mp4": {},
    "mov": {"kind": "mov"},
    "avi": {"kind": "avi"},
    "mkv": {"kind": "matroska"},
    "mkv 29.97": {"kind": "matroska", "rate": Fraction(30000, 1001), "frames": 100},
    "mp4 with B frames": {"bf": "2"},
    "mkv with B frames": {"kind": "matroska", "bf": "2"},
    "lossless": {"kind": "matroska", "codec": "ffv1", "pixels": "bgr0"},
    "gif": {"kind": "gif", "codec": "gif", "pixels": "rgb8"},
    "ts": {"kind": "mpegts", "codec": "mpeg2video", "rate": 25, "frames": 50},
    "flv": {"kind": "flv", "codec": "flv1"},
    "no timestamps": {"kind": "h264", "codec": "libx264", "rate": 25, "frames": 50},
    "mjpeg": {"kind": "matroska", "codec": "mjpeg", "pixels": "yuvj420p"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    recipe = KINDS[kind]
    if recipe.get("codec") == "libx264" and "libx264" not in av.codecs_available:
        pytest.skip("this FFmpeg cannot make H.264")
    data = film(**recipe)
    path = tmp_path / "film.wrong"  # the content decides, not the name
    path.write_bytes(data)
    video = load_video(path, RULES)
    total, rate = recipe.get("frames", 20), recipe.get("rate", 10)
    count = int(total / rate) * 2
    assert numbers(video) == [i * total // count for i in range(count)]
    assert video.seconds_per_grid == pytest.approx(2 * total / float(rate) / count)
    assert video.audio is None
    assert video.name == str(path)
    assert load_video(io.BytesIO(data), RULES).digest == video.digest
    assert capfd.readouterr() == ("", "")  # FFmpeg prints nothing


def test_how_many_frames() -> None:
    data = film("matroska", "ffv1", pixels="bgr0", frames=100)
    assert numbers(load_video(data, RULES)) == list(range(0, 100, 5))
    assert numbers(load_video(data, RULES, fps=5)) == list(range(0, 100, 2))
    slow = load_video(data, RULES, fps=0.1)
    assert numbers(slow) == [0, 25, 50, 75]  # four at least
    assert slow.seconds_per_grid == 5.0
    few = load_video(data, RULES, max_frames=7)
    assert numbers(few) == [0, 16, 33, 50, 66, 83]  # an even number
    assert few.seconds_per_grid == pytest.approx(10 / 3)
    assert numbers(load_video(data, RULES, fps=1000)) == list(range(100))
    for total, expected in ((1, [0, 0]), (2, [0, 1]), (3, [0, 1]), (5, [0, 1, 2, 3])):
        assert numbers(load_video(film(frames=total), RULES)) == expected
    one = load_video(film(frames=1), RULES)
    np.testing.assert_array_equal(one.frames[0], one.frames[1])
    assert one.frames.max() > 200
    assert one.seconds_per_grid == pytest.approx(0.2)


def test_frames_that_do_not_come_regularly() -> None:
    times = [40, 140, 190, 1040, 1050, 2040, 2140, 5040]
    video = load_video(film("matroska", "ffv1", pixels="bgr0", times=times), RULES, fps=1.2)
    assert video.seconds_per_grid == pytest.approx(2 * 5.1 / 6)  # the last frame is shown for 0.1 s
    assert numbers(video) == [0, 2, 4, 6, 6, 6]  # seen after 0, 0.85, 1.7, 2.55, 3.4 and 4.25 s


def test_every_choice_by_time() -> None:
    """Against the frame that is seen then, found one by one."""
    rng = np.random.default_rng()
    for _ in range(50):
        times = np.cumsum(rng.integers(1, 400, rng.integers(2, 60))) + rng.integers(-1000, 1000)
        end, count = int(times[-1]) + int(rng.integers(1, 400)), int(rng.integers(1, len(times) + 1))
        steps = np.diff(times)
        if len(set(steps.tolist())) < 3:  # regular within its clock: counted, not timed
            continue
        seen = [times[0] + Fraction(i * int(end - times[0]), count) for i in range(count)]
        expected = [max(k for k, time in enumerate(times.tolist()) if time <= at) for at in seen]
        assert chosen(times, end, count).tolist() in (expected, [i * len(times) // count for i in range(count)])


def test_large_frames_of_a_long_video_become_smaller() -> None:
    data = film("matroska", "ffv1", pixels="bgr0", frames=40, size=(128, 192))
    assert load_video(data, RULES, fps=10).frames.shape == (40, 64, 96, 3)
    tokens = 40 * 5200 // 2 * 10 // 9 // 1024  # leave 5200 pixels to each frame
    assert load_video(data, RULES, fps=10, max_video_tokens=tokens).frames.shape == (40, 32, 64, 3)


@pytest.mark.parametrize(("turns", "matrix"), [(1, (0, 1, -1, 0)), (2, (-1, 0, 0, -1)), (3, (0, -1, 1, 0))])
def test_rotation(turns: int, matrix: tuple[int, int, int, int]) -> None:
    """Cameras store frames as the sensor lies; a matrix in the track's header says how to turn them (clockwise)."""
    data = bytearray(film(size=(64, 96)))
    place = data.index(b"tkhd") + 4 + 40  # the matrix of a version 0 header: a b u c d v x y w
    a, b, c, d = (value << 16 for value in matrix)
    data[place : place + 20] = b"".join(v.to_bytes(4, "big", signed=True) for v in (a, b, 0, c, d))
    video, plain = load_video(bytes(data), RULES), load_video(film(size=(64, 96)), RULES)
    for turned, frame in zip(video.frames, plain.frames, strict=True):
        np.testing.assert_array_equal(turned, np.rot90(frame, -turns))


def test_memory_does_not_grow_with_the_film() -> None:
    """Only what NumPy holds is counted; FFmpeg's frames are few."""
    data = film("matroska", "mpeg4", frames=200, size=(256, 384))
    load_video(data, RULES)
    tracemalloc.start()
    video = load_video(data, RULES, max_frames=20)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    frame = 256 * 384 * 3
    assert peak < video.frames.nbytes + 6 * frame + 2 * len(data)  # all frames would be 200


# Frames that are given ---------------------------------------------------------------------------------------------


def test_pictures_are_a_video(tmp_path: Path) -> None:
    frames = np.stack([numbered(i) for i in range(3)])
    path = tmp_path / "1.png"
    Image.fromarray(frames[1]).save(path)
    video = load_video(frames, RULES, fps=4)
    assert numbers(video) == [0, 1, 2, 2]
    assert video.seconds_per_grid == 0.5
    assert (video.grid, video.name, video.audio) == ((2, 4, 6), "the video", None)
    listed = load_video([frames[0], path, Image.fromarray(frames[2])], RULES, fps=4)
    np.testing.assert_array_equal(listed.frames, video.frames)
    assert listed.digest == video.digest
    assert load_video(frames, RULES, fps=2).digest != video.digest
    assert load_video(frames[::-1].copy(), RULES, fps=4).digest != video.digest
    one = load_video([path], RULES)
    assert numbers(one) == [1, 1]
    assert one.digest != load_image(path, RULES).digest


def test_frames_that_are_no_video() -> None:
    frame = np.zeros((*SIZE, 3), np.uint8)
    assert "not float32 [2, 64, 96, 3]" in refused(np.zeros((2, *SIZE, 3), np.float32))
    assert "not uint8 [64, 96, 3]" in refused(frame)
    assert "not uint8 [2, 3, 64, 96]" in refused(np.zeros((2, 3, *SIZE), np.uint8))
    assert "has 0 pictures" in refused([])
    assert "has 5 pictures, and 1 to 4 are taken" in refused([frame] * 5, max_frames=4)
    assert "is 64 x 96 pixels, the video's first picture is 96 x 64" in refused([frame, frame.transpose(1, 0, 2)])
    assert "pictures have no sound" in refused([frame], sound=True, front=FRONT)
    assert load_video([frame], RULES, sound=None, front=FRONT).audio is None


# Sound ---------------------------------------------------------------------------------------------------------------


def tone(seconds: float, rate: int = 16000) -> np.ndarray:
    """int16: a tone whose pitch rises, so that every place sounds different."""
    t = np.arange(round(seconds * rate)) / rate
    return np.round(12000 * np.sin(2 * np.pi * (200 * t + 150 * t * t))).astype(np.int16)


def test_sound() -> None:
    sound = tone(2)
    video = load_video(film("matroska", sound=sound), RULES, sound=True, front=FRONT)
    assert video.audio is not None
    np.testing.assert_array_equal(video.audio.samples, (sound / 32768).astype(np.float32))
    assert load_video(film("matroska", sound=sound), RULES, sound=None, front=FRONT).digest == video.digest
    silent = load_video(film("matroska", sound=sound), RULES)
    assert silent.audio is None
    assert len({video.digest, silent.digest}) == 2
    assert load_video(film("matroska"), RULES, sound=None, front=FRONT).audio is None


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
def test_sound_is_mixed_and_resampled(rate: int) -> None:
    left = tone(1.5, rate)
    stereo = np.stack([left, left // 3], axis=1)
    for kind in ("matroska", "mov"):
        video = load_video(film(kind, sound=stereo, sound_rate=rate), RULES, sound=True, front=FRONT)
        expected = from_waveform(stereo, rate, FRONT)
        assert video.audio is not None
        assert len(video.audio.samples) == len(expected.samples)
        np.testing.assert_allclose(video.audio.samples, expected.samples, atol=2e-6)  # float32 sums in other blocks


@pytest.mark.parametrize("late", [0.35, -0.25])
def test_sound_keeps_step_with_the_pictures(late: float) -> None:
    """The clip begins with the first picture, whichever of the two begins earlier in the file."""
    first = max(0, round(-late * 1000))
    times = [first + 100 * i for i in range(20)]
    data = film("matroska", "ffv1", pixels="bgr0", times=times, sound=tone(2), sound_at=max(late, 0.0))
    video = load_video(data, RULES, sound=True, front=FRONT)
    assert video.audio is not None
    whole, shift = (tone(2) / 32768).astype(np.float32), round(late * 16000)
    expected = np.concatenate([np.zeros(shift, np.float32), whole]) if shift > 0 else whole[-shift:]
    assert abs(len(video.audio.samples) - len(expected)) <= 16  # Matroska's clock has milliseconds
    ours = video.audio.samples
    best = min(np.abs(ours[16 + k :][:27000] - expected[16:][:27000]).max() for k in range(-16, 17))
    assert best < 1e-4


def test_gaps_of_the_sound_are_silent() -> None:
    whole = tone(1)
    file = film("matroska", sound=np.concatenate([whole, whole]))
    cut = remuxed_without_sound(file, 0.5, 0.9)
    video = load_video(cut, RULES, sound=True, front=FRONT)
    assert video.audio is not None
    samples = video.audio.samples
    assert abs(len(samples) - 32000) <= 1024
    assert np.abs(samples[9000:13000]).max() == 0
    expected = np.concatenate([whole, whole]) / 32768
    np.testing.assert_allclose(samples[:7000], expected[:7000], atol=1e-6)
    off = min(np.abs(samples[16000 + k : 30000 + k] - expected[16000:30000]).max() for k in range(-16, 17))
    assert off < 1e-4  # what follows the gap is where it was


def remuxed_without_sound(data: bytes, start: float, stop: float) -> bytes:
    """The file without the sound's packets from start to stop seconds."""
    out = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(out, "w", format="matroska") as target:
        streams = {stream.index: target.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "audio" and start <= packet.dts * packet.time_base < stop:
                continue
            packet.stream = streams[packet.stream.index]
            target.mux(packet)
    return out.getvalue()


def test_sound_that_is_not_there() -> None:
    assert "has no sound" in refused(film(), sound=True, front=FRONT)
    assert "needs the front end of a model that hears" in refused(film(), sound=True)
    message = refused(film("matroska", sound=tone(0.005)), sound=True, front=FRONT)
    assert "is too short (80 samples" in message


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mp4", "mov", "mkv", "avi", "gif"])
def test_truncated(tmp_path: Path, capfd: pytest.CaptureFixture[str], kind: str) -> None:
    data = film(**KINDS[kind])
    for share in (0.02, 0.5, 0.95):
        path = tmp_path / f"half.{kind}"
        path.write_bytes(data[: int(len(data) * share)])
        message = refused(path)
        assert str(path) in message
        assert "damaged" in message
    assert capfd.readouterr() == ("", "")


def test_what_is_no_video(tmp_path: Path) -> None:
    picture = io.BytesIO()
    Image.new("RGB", (96, 64)).save(picture, "PNG")
    for name, data in {
        "text.mp4": b"no video\n" * 99,
        "nulls.mkv": bytes(5000),
        "picture.mp4": picture.getvalue(),
        "list.m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
        "list.ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    }.items():
        (tmp_path / name).write_bytes(data)
        assert "is not a video, or damaged" in refused(tmp_path / name)
    (tmp_path / "empty.mp4").touch()
    assert "is empty (0 bytes)" in refused(tmp_path / "empty.mp4")
    assert "check the path of the video file" in refused(tmp_path / "none.mp4")
    assert "not fetched unless that is allowed" in refused("https://localhost/a.mp4")


def test_sound_alone_is_no_video(tmp_path: Path) -> None:
    import soundfile

    soundfile.write(tmp_path / "sound.wav", tone(1), 16000)
    assert "has no video, only sound; give it as audio" in refused(tmp_path / "sound.wav")
    soundfile.write(tmp_path / "sound.mp3", tone(1), 16000)
    cover = io.BytesIO()  # FFmpeg shows it as a video track
    Image.new("RGB", (96, 64)).save(cover, "PNG")
    tag = b"\0image/png\0\3\0" + cover.getvalue()
    tag = b"APIC" + len(tag).to_bytes(4, "big") + b"\0\0" + tag
    size = bytes(len(tag) >> shift & 127 for shift in (21, 14, 7, 0))
    data = b"ID3\3\0\0" + size + tag + (tmp_path / "sound.mp3").read_bytes()
    assert "has no video, only sound; give it as audio" in refused(data)


def test_a_video_without_frames() -> None:
    assert "has a video track without frames" in refused(film("matroska", frames=0, sound=tone(1)))


def test_endless_videos() -> None:
    data = film("matroska", "ffv1", pixels="bgr0", times=[0, 1000, 3_599_000])
    assert "is longer than the 600 s that are taken" in refused(data, max_seconds=600)
    assert load_video(data, RULES, max_seconds=3600).grid[0] == 1
    hour = film("mpegts", "mpeg2video", frames=90, rate=25)  # its length is not in a header
    assert "is longer than the 3 s" in refused(hour, max_seconds=3)
    if "libx264" in av.codecs_available:
        raw = film("h264", "libx264", frames=50, rate=25)  # it has no timestamps
        assert "is longer than the 1 s" in refused(raw, max_seconds=1)


def test_reading_stops_where_a_video_is_too_long(monkeypatch: pytest.MonkeyPatch) -> None:
    data = film("avi", frames=90)
    data = data[: int(len(data) * 0.7)]
    monkeypatch.setattr(video_files, "cut_off_video", lambda file: None)
    assert "frames is not whole" in refused(data)  # the last packet
    assert "is longer than the 3 s" in refused(data, max_seconds=3)  # found before it


def test_frames_of_too_many_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    frame = av.VideoFrame(96, 64, "rgb24")
    assert video_files._upright(frame, "x").size == (96, 64)
    monkeypatch.setattr(video_files, "MAX_SOURCE_PIXELS", 6000)
    with pytest.raises(InvalidRequest, match="x: has frames of 96 x 64 pixels, more than the 6,000"):
        video_files._upright(frame, "x")  # they may grow on the way
    monkeypatch.setattr(video_files, "_upright", None)
    assert "has frames of 96 x 64 pixels, more than the 6,000" in refused(film())  # before any is decoded


def test_frames_that_never_come() -> None:
    """Some decoders drop what they cannot decode without a word."""
    pictures = [SimpleNamespace(pts=pts) for pts in (0, 1000, 2000)]
    stream = SimpleNamespace(index=0, codec_context=SimpleNamespace(width=96, height=64))
    times = np.arange(0, 60_000, 1000)
    track = video_files.Track(0, times, 60_000, Fraction(1, 1000), True, 60.0)
    for found, message in (([], "none of its frames can be decoded"), (pictures, r"cannot be decoded after 2\.0 s")):
        container: Any = SimpleNamespace(streams=SimpleNamespace(video=[stream]), decode=lambda _, found=found: found)
        with pytest.raises(InvalidRequest, match=message):
            list(video_files.frames_at(container, track, times[3:4] + 50_000, "x"))


def test_strips_are_refused() -> None:
    assert "one side more than 200 times the other" in refused(film("avi", "ffv1", pixels="bgr0", size=(16, 3232)))


def test_codecs_that_are_not_known() -> None:
    data = film("mov", "mjpeg", pixels="yuvj420p", sound=tone(1))
    assert "its pictures are coded in a way" in refused(data.replace(b"jpeg", b"zzzz"))
    silent = data.replace(b"sowt", b"zzzz")
    assert load_video(silent, RULES).audio is None
    assert "its sound is coded in a way" in refused(silent, sound=None, front=FRONT)


def test_titles_need_not_be_utf8() -> None:
    data = film("avi")
    place = data.index(b"ISFT") + 8  # the program that wrote the file
    assert load_video(data[:place] + b"\xfc\xe9" + data[place + 2 :], RULES).grid[0] == 2


def test_packets_that_do_not_decode() -> None:
    data = bytearray(film())
    start = data.index(b"mdat") + 4
    size = int.from_bytes(data[start - 8 : start - 4], "big") - 8
    data[start + size // 3 : start + size // 2] = bytes(size // 2 - size // 3)
    assert "damaged or cut off (it cannot be decoded" in refused(bytes(data))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fps": 0}, "frames a second are 0"),
        ({"fps": float("nan")}, "frames a second are nan"),
        ({"fps": float("inf")}, "frames a second are inf"),
        ({"max_frames": 1}, "frames from 4 to 1 cannot be"),
        ({"min_frames": 9, "max_frames": 8}, "frames from 9 to 8 cannot be"),
        ({"min_frames": 0}, "frames from 0 to 768 cannot be"),
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], message: str) -> None:
    assert message in refused(film(), **options)


def test_without_pyav() -> None:
    """One line that says what to install; in a process of its own, where the import fails."""
    code = (
        "import sys; sys.modules['av'] = None\n"
        "from qwen3omni_wgpu.inputs.video import load_video\n"
        "from qwen3omni_wgpu.inputs.image import PictureRules\n"
        "from qwen3omni_wgpu.errors import InvalidRequest\n"
        "try: load_video(b'1234', PictureRules())\n"
        "except InvalidRequest as error: print(error)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "video needs PyAV; install it: pip install 'qwen3omni-wgpu[video]'\n"


def test_a_pyav_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    for version in ("17.0.0", "9.2.0"):
        monkeypatch.setattr(av, "__version__", version)
        assert refused(film()).startswith(f"PyAV {version} crashes on some videos; update it")
    for version in ("17.1.0", "18.0.0rc1", "20.0"):
        monkeypatch.setattr(av, "__version__", version)
        assert load_video(film(), RULES).grid[0] == 2
