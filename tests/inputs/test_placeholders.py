"""Prompts with media: transformers' goldens, the rules written out slowly, and prompts that are refused."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import write_tiny_checkpoint
from vocabularies import plain

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest
from qwen3omni_wgpu.inputs import placeholders
from qwen3omni_wgpu.inputs.placeholders import (
    AudioPart,
    Expanded,
    ImagePart,
    MediaTokens,
    Part,
    Place,
    VideoPart,
    expand,
    image_tokens,
)
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

GOLDENS = Path(__file__).parents[1] / "goldens" / "media_positions.npz"
TOKENS = MediaTokens(audio=10, image=11, video=12, vision_start=13, vision_end=14, audio_start=15, audio_end=16)
IMAGE, AUDIO, VIDEO = [13, 11, 14], [15, 10, 16], [13, 12, 14]
PICTURE, SOUND, FILM = ImagePart((1, 4, 6)), AudioPart(5), VideoPart((2, 4, 4), 1.0)

# As the reference has them -----------------------------------------------------------------------------------------


def goldens() -> Iterator[tuple[dict[str, np.ndarray], list[Part]]]:
    with np.load(GOLDENS) as file:
        for name in sorted({key.split(".")[0] for key in file.files}):
            found = {key: file[f"{name}.{key}"] for key in ("ids", "parts", "expanded", "positions")}
            yield found, [part(row) for row in found["parts"].tolist()]


def part(row: list[float]) -> Part:
    """As tools/make_position_goldens.py writes them."""
    kind, steps, rows, columns, seconds, sound = row
    if kind == 0:
        return AudioPart(int(sound))
    grid = int(steps), int(rows), int(columns)
    return ImagePart(grid) if kind == 1 else VideoPart(grid, seconds, None if sound < 0 else int(sound))


def test_prompts_are_those_of_transformers() -> None:
    """Bit by bit: ids, and positions in float32 with all their roundings."""
    kinds: set[tuple[type, bool]] = set()
    for number, (golden, parts) in enumerate(goldens()):
        found = expand(golden["ids"].tolist(), parts, TOKENS)
        assert found.ids == golden["expanded"].tolist(), number
        assert found.positions.dtype == np.float32
        np.testing.assert_array_equal(found.positions, golden["positions"], err_msg=str(number))
        check_places(found, parts)
        kinds |= {(type(item), getattr(item, "audio_tokens", None) is not None) for item in parts}
    assert number == 59
    assert kinds == {(AudioPart, False), (ImagePart, False), (VideoPart, False), (VideoPart, True)}


def check_places(found: Expanded, parts: list[Part]) -> None:
    """Every pad token belongs to one part, and each part has as many as it has embeddings, in the prompt's order."""
    ids, visual, audio = np.array(found.ids), [], []
    for item, place in zip(parts, found.places, strict=True):
        sounds = item.n_tokens if isinstance(item, AudioPart) else getattr(item, "audio_tokens", None)
        sights = None if isinstance(item, AudioPart) else image_tokens(item.grid)
        assert (sights, sounds) == (count(place.visual), count(place.audio))
        pad = TOKENS.image if isinstance(item, ImagePart) else TOKENS.video
        if place.visual is not None:
            assert place.visual.dtype == np.int64
            assert set(ids[place.visual].tolist()) == {pad}
        visual += [] if place.visual is None else place.visual.tolist()
        audio += [] if place.audio is None else place.audio.tolist()
    assert visual == np.flatnonzero((ids == TOKENS.image) | (ids == TOKENS.video)).tolist()
    assert audio == np.flatnonzero(ids == TOKENS.audio).tolist()


def count(indices: np.ndarray | None) -> int | None:
    return None if indices is None else len(indices)


# The rules, one token at a time --------------------------------------------------------------------------------------


def slowly(ids: list[int], parts: list[Part]) -> tuple[list[int], list[tuple[float, ...]], list[Place]]:
    """Every token by itself. Times are sums of 64ths here, so no arithmetic rounds and any order of it is right."""
    out: list[int] = []
    positions: list[tuple[float, ...]] = []
    places: list[Place] = []
    waiting = iter(parts)

    def put(token: int, *at: float) -> None:
        out.append(token)
        positions.append(at if at else (free(),) * 3)

    def free() -> float:
        return max(positions[-1]) + 1 if positions else 0.0

    for token in ids:
        if token not in (10, 11, 12):
            put(token)
            continue
        item = next(waiting)
        sound = item.n_tokens if isinstance(item, AudioPart) else getattr(item, "audio_tokens", None)
        both = isinstance(item, VideoPart) and sound is not None
        if both:
            put(TOKENS.audio_start)
        pads = list(pads_of(item, sound, free()))
        places.append(place_of(pads, len(out)))
        for pad, _, *at in pads:
            put(pad, *at)
        if both:
            put(TOKENS.audio_end)
    return out, positions, places


def pads_of(item: Part, sound: int | None, base: float) -> list[tuple[Any, ...]]:
    """(token, 0 for what is seen and 1 for what is heard, t, h, w), sorted by time, the seen before the heard."""
    pads: list[tuple[Any, ...]] = [(TOKENS.audio, 1, base + k, base + k, base + k) for k in range(sound or 0)]
    if not isinstance(item, AudioPart):
        pad, seconds = (TOKENS.video, item.seconds_per_grid) if isinstance(item, VideoPart) else (TOKENS.image, 0.0)
        pads += [
            (pad, 0, base + step * seconds * 13, base + row, base + column)
            for step in range(item.grid[0])
            for row in range(item.grid[1] // 2)
            for column in range(item.grid[2] // 2)
        ]
    return sorted(pads, key=lambda pad: (pad[2], pad[1]))


def place_of(pads: list[tuple[Any, ...]], first: int) -> Place:
    where = [np.array([first + i for i, pad in enumerate(pads) if pad[1] == kind]) for kind in (0, 1)]
    return Place(*(indices if len(indices) else None for indices in where))


def test_films_with_and_without_sound_in_one_prompt() -> None:
    """transformers takes one flag for the whole prompt, so there is no golden for this."""
    rng = np.random.default_rng()
    for _ in range(40):
        ids, parts = rng.integers(20, 99, rng.integers(0, 4)).tolist(), []
        for kind in rng.integers(0, 4, rng.integers(2, 6)).tolist():
            grid = int(rng.integers(1, 5)), 2 * int(rng.integers(1, 6)), 2 * int(rng.integers(1, 6))
            seconds, sound = int(rng.integers(1, 150)) / 64, int(rng.integers(1, 60))
            parts.append([AudioPart(sound), ImagePart((1, *grid[1:])), VideoPart(grid, seconds)][min(kind, 2)])
            if kind == 3:
                parts[-1] = VideoPart(grid, seconds, sound)
            ids += [AUDIO, IMAGE, VIDEO, VIDEO][kind] + rng.integers(20, 99, rng.integers(0, 4)).tolist()
        found = expand(ids, parts, TOKENS)
        expected, positions, places = slowly(ids, parts)
        assert found.ids == expected, (ids, parts)
        np.testing.assert_array_equal(found.positions, np.array(positions, np.float32), err_msg=str((ids, parts)))
        for place, wanted in zip(found.places, places, strict=True):
            np.testing.assert_equal((place.visual, place.audio), (wanted.visual, wanted.audio))


def test_a_picture_between_texts() -> None:
    found = expand([20, 21, 22, *IMAGE, 20, 21, 22], [ImagePart((1, 6, 8))], TOKENS)
    assert found.positions[:, 0].tolist() == [0, 1, 2, 3, *[4] * 12, 8, 9, 10, 11]
    assert found.positions[4:16, 1].tolist() == [4] * 4 + [5] * 4 + [6] * 4
    assert found.positions[4:16, 2].tolist() == [4, 5, 6, 7] * 3
    assert found.positions[16:].tolist() == [[n] * 3 for n in (8, 9, 10, 11)]


def test_times_of_a_film_are_not_rounded() -> None:
    found = expand([20, 21, 22, *VIDEO, 20], [VideoPart((3, 4, 4), 0.7)], TOKENS)
    expected = [0, 1, 2, 3, *[4] * 4, *[13.1] * 4, *[22.2] * 4, 23.2, 24.2]
    np.testing.assert_allclose(found.positions[:, 0], expected, rtol=1e-6)  # float32
    assert set(found.positions[4:16, 1:].ravel().tolist()) == {4, 5}


def test_without_pictures_positions_count_the_tokens() -> None:
    for ids, parts in (([20, 21, 22], []), ([*AUDIO, 20, *AUDIO], [SOUND, AudioPart(400)])):
        found = expand(ids, parts, TOKENS)
        expected = np.repeat(np.arange(len(found.ids), dtype=np.float32)[:, None], 3, axis=1)
        np.testing.assert_array_equal(found.positions, expected)
    assert len(found.ids) == 410


def test_no_line_of_python_runs_once_a_token() -> None:
    """An hour of film would take seconds, not milliseconds."""

    def lines(steps: int) -> tuple[int, int]:
        """Lines that ran for a film with sound, and the tokens it became."""
        seen = 0

        def trace(frame: Any, event: str, _: Any) -> Any:
            nonlocal seen
            seen += event == "line"
            return trace if frame.f_code.co_filename == placeholders.__file__ else None

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            found = expand([20, *VIDEO, 20], [VideoPart((steps, 44, 80), 1.0, 13 * steps)], TOKENS)
        finally:
            sys.settrace(before)
        return seen, len(found.ids)

    (few, short), (many, long) = lines(2), lines(400)
    assert (short, long) == (2 * 893 + 6, 400 * 893 + 6)
    assert few == many > 20


# Counts --------------------------------------------------------------------------------------------------------------


def test_image_tokens() -> None:
    assert image_tokens((1, 68, 120)) == 2040
    assert image_tokens((3, 6, 9), merge=3) == 18
    for grid in ((1, 5, 4), (1, 4, 7), (0, 4, 4), (1, 0, 4), (1, -2, 4)):
        with pytest.raises(InvalidRequest, match="cannot be merged 2 by 2"):
            image_tokens(grid)


# What is refused -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ids", "parts", "words"),
    [
        ([20, *IMAGE, 11], [PICTURE], r"2 times <\|image_pad\|>, but 1 image parts.*must not be written"),
        ([20, 12], [], r"1 times <\|video_pad\|>, but 0 video"),
        ([20, 21], [SOUND], r"no place for audio: it wrote <\|audio_pad\|> 0 times for 1 parts"),
        ([*IMAGE, *VIDEO], [PICTURE, FILM, FILM], "no place for video"),
        (
            [*IMAGE, *AUDIO],
            [SOUND, PICTURE],
            r"order \['image', 'audio'\], but .* as \['audio', 'image'\]",
        ),
        ([13, 11, 20, 14], [PICTURE], r"<\|image_pad\|> outside <\|vision_start\|> and <\|vision_end\|>"),
        ([20, 11, 14], [PICTURE], "outside"),
        ([11, 14], [PICTURE], "outside"),
        ([13, 11], [PICTURE], "outside"),
        ([13, 10, 14], [SOUND], r"<\|audio_pad\|> outside <\|audio_start\|> and <\|audio_end\|>"),
        (AUDIO, [AudioPart(0)], "0 tokens"),
        (VIDEO, [VideoPart((1, 2, 2), 1.0, 0)], "0 tokens"),
        (VIDEO, [VideoPart((1, 2, 2), 0.0)], "0.0 seconds apart"),
        (VIDEO, [VideoPart((1, 2, 2), float("nan"))], "nan seconds apart"),
        (IMAGE, [ImagePart((1, 3, 2))], "1 x 3 x 2 patches"),
    ],
)
def test_refused(ids: list[int], parts: list[Part], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        expand(ids, parts, TOKENS)
    assert "\n" not in str(caught.value)


# From a file ---------------------------------------------------------------------------------------------------------


def test_ids_of_a_converted_checkpoint(tmp_path: Path) -> None:
    write_tiny_checkpoint(tmp_path / "omni", np.random.default_rng())
    metadata = open_parts(tmp_path / "omni")["thinker"].metadata
    tokenizer = Tokenizer.from_gguf(metadata)
    tokens = MediaTokens.from_gguf(metadata, tokenizer)
    assert tokens is not None
    texts = {name: tokenizer.token_text(getattr(tokens, name)) for name in ("audio", "image", "video")}
    assert texts == {"audio": "<|audio_pad|>", "image": "<|image_pad|>", "video": "<|video_pad|>"}
    around = [tokens.vision_start, tokens.vision_end, tokens.audio_start, tokens.audio_end]
    expected = ["<|vision_start|>", "<|vision_end|>", "<|audio_start|>", "<|audio_end|>"]
    assert [tokenizer.token_text(token) for token in around] == expected
    assert (tokens.position_id_per_seconds, tokens.merge) == (13.0, 2)


NAMES = ("audio", "image", "video", "vision_start", "vision_end", "audio_start", "audio_end")


def stated(**changes: Any) -> tuple[dict[str, Any], Tokenizer]:
    """Metadata with ids 0..6 for NAMES; None leaves a key out."""
    keys = {f"{name}_token_id": i for i, name in enumerate(NAMES)} | {"position_id_per_seconds": 25} | changes
    metadata = plain() | {f"qwen3omni.{key}": value for key, value in keys.items() if value is not None}
    return metadata, Tokenizer.from_gguf(metadata)


def test_ids_of_the_metadata() -> None:
    assert MediaTokens.from_gguf(*stated(), merge=3) == MediaTokens(0, 1, 2, 3, 4, 5, 6, 25.0, 3)
    text_only = plain()
    assert MediaTokens.from_gguf(text_only, Tokenizer.from_gguf(text_only)) is None


def test_an_id_without_a_key_is_looked_up_in_the_vocabulary() -> None:
    metadata, _ = stated(vision_end_token_id=None)
    metadata |= plain(specials=["<|vision_end|>"])
    tokens = MediaTokens.from_gguf(metadata, Tokenizer.from_gguf(metadata))
    assert tokens is not None
    assert (tokens.vision_start, tokens.vision_end) == (3, 256)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"vision_end_token_id": None}, r"no qwen3omni.vision_end_token_id and no token <\|vision_end\|>"),
        ({"image_token_id": 100_000}, "image_token_id is 100000, expected an id below 259"),
        ({"image_token_id": -1}, "is -1"),
        ({"image_token_id": "11"}, "is '11'"),
        ({"image_token_id": True}, "is True"),
        ({"image_token_id": 0}, "must differ"),
        ({"position_id_per_seconds": None}, "position_id_per_seconds is None"),
        ({"position_id_per_seconds": 0}, "position_id_per_seconds is 0"),
        ({"position_id_per_seconds": float("nan")}, "position_id_per_seconds is nan"),
    ],
)
def test_metadata_that_cannot_be_right(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidModelFile, match=words):
        MediaTokens.from_gguf(*stated(**changes))
