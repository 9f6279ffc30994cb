"""The talker's prompt: what of a conversation it gets, row by row, as transformers' generate builds it.

    all user turns          media: the thinker's hidden states; everything else: its embeddings
    <|im_start|> assistant newline
    4 x <tts_pad>           + no-think, begin of thought, end of thought, speaker
    <tts_text_bos>          + pad
    the answer's 1st token  + begin of codes

System turns and earlier answers are left out. Every frame then takes one more token of the answer, <tts_text_eod>
behind the last one, and <tts_pad> from there on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import InvalidRequest
from ..models.talker import TalkerConfig

# Rows of the answer's part, and those before the first that has a codec id.
_ANSWER, _BARE = 9, 3


@dataclass(frozen=True, eq=False)
class TalkerPrompt:
    """P rows. Each is one of the projected texts or hidden states; the last six get a codec embedding besides.

    text_at and text_ids [A]: rows, and the thinker's ids whose embeddings go there through text_proj. media_at and
    media_tokens [M]: rows, and indices of the thinker's prompt whose hidden states go there through hidden_proj.
    codec_at and codec_ids [6]. positions: float32 [P, 3]. spoken: ids of the answer that frames take, one each, as far
    as it is known. All indices int64.
    """

    text_at: np.ndarray
    text_ids: np.ndarray
    media_at: np.ndarray
    media_tokens: np.ndarray
    codec_at: np.ndarray
    codec_ids: np.ndarray
    positions: np.ndarray
    spoken: list[int]

    def __len__(self) -> int:
        return len(self.positions)


def talker_prompt(
    ids: Sequence[int], positions: np.ndarray, answer: Sequence[int], config: TalkerConfig, voice: int
) -> TalkerPrompt | None:
    """ids [N] and positions float32 [N, 3] of the thinker's prompt, media expanded; voice: a codec id.

    answer: what the thinker has generated so far without the last token, which is never spoken: with one token there,
    speech can begin. None while there is none. InvalidRequest for a prompt without an assistant's turn at its end.
    """
    given, tokens = np.asarray(ids, np.int64), config.tokens
    starts = np.flatnonzero((given[:-1] == tokens.im_start) & (given[1:] == tokens.assistant))
    if not len(starts):
        raise InvalidRequest("the prompt has no assistant's turn to speak; use the model's chat template")
    turn = [*given[starts[-1] :].tolist(), *answer]
    if len(turn) <= _BARE:
        return None
    user = _user_rows(given, config)
    media = np.isin(given[user], (tokens.audio, tokens.image, tokens.video))
    last = [*turn[:_BARE], *[tokens.tts_pad] * 4, tokens.tts_bos, turn[_BARE]]
    first = len(user)
    codec = config.codec
    return TalkerPrompt(
        text_at=np.concatenate([np.flatnonzero(~media), first + np.arange(_ANSWER)]),
        text_ids=np.concatenate([given[user[~media]], np.array(last, np.int64)]),
        media_at=np.flatnonzero(media),
        media_tokens=user[media],
        codec_at=first + np.arange(_BARE, _ANSWER),
        codec_ids=np.array([codec.nothink, codec.think_bos, codec.think_eos, voice, codec.pad, codec.bos]),
        positions=_positions(given, user, positions, config),
        spoken=turn[_BARE + 1 :],
    )


def _user_rows(ids: np.ndarray, config: TalkerConfig) -> np.ndarray:
    """Indices of the tokens of user turns. A turn runs from <|im_start|> to just before the next one."""
    marks = np.where(ids == config.tokens.im_start, np.arange(len(ids)), 0)
    start = np.maximum.accumulate(marks)
    role = ids[np.minimum(start + 1, len(ids) - 1)]
    return np.flatnonzero(role == config.tokens.user)


def _positions(ids: np.ndarray, user: np.ndarray, positions: np.ndarray, config: TalkerConfig) -> np.ndarray:
    """Those of the thinker, without the gaps that its other turns leave: the talker counts on from row to row."""
    line = np.zeros((len(user) + _ANSWER, 3), np.float32)
    following, at = np.float32(0), 0
    plain = _plain(ids[user], config)
    cuts = np.flatnonzero((np.diff(user) > 1) | np.diff(plain)) + 1
    for piece in np.split(np.arange(len(user)), cuts) if len(user) else []:
        if plain[piece[0]]:
            places = np.repeat(np.arange(len(piece), dtype=np.float32)[:, None], 3, axis=1)
        else:
            places = positions[user[piece]] - positions[user[piece[0]]]
        line[piece] = places + following
        following, at = line[piece[-1]].max() + np.float32(1), piece[-1] + 1
    line[at:] = (following + np.arange(_ANSWER, dtype=np.float32))[:, None]
    return line


def _plain(ids: np.ndarray, config: TalkerConfig) -> np.ndarray:
    """Which rows of user turns count one by one although they are a video's: bool [N].

    transformers does not tell its talker that a video has sound. It finds out at such a video only while it still
    expects pictures or silent videos; else the video counts like text.
    """
    t = config.tokens
    plain = np.zeros(len(ids), bool)
    starts = np.flatnonzero(ids[:-1] == t.vision_start)
    inside = ids[starts + 1]
    expected = starts[(inside == t.image) | (inside == t.video)].max(initial=-1)
    for start in starts[(inside == t.audio_start) & (starts > expected)]:
        plain[start : start + np.flatnonzero(ids[start:] == t.vision_end).min(initial=len(ids) - start)] = True
    return plain
