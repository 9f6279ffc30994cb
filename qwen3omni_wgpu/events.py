"""What a running answer reports, and the finished answer. One stream of these sits under the API and every command."""

from collections.abc import Generator, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from .errors import OmniError

if TYPE_CHECKING:
    import numpy as np

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class TopLogprob:
    """A token that could have come, with the natural logarithm of its probability before any filter."""

    id: int
    token: str
    logprob: float


@dataclass(frozen=True)
class TokenLogprob:
    """The token that came at one position, and the most likely ones there, falling."""

    id: int
    token: str
    logprob: float
    top_logprobs: tuple[TopLogprob, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A finished answer.

    token_ids are all generated tokens, also the one that ended the answer, which is not part of `text`.
    finish_reason is "stop" (end-of-answer token or stop text) or "length" (max_tokens, or the context is full).
    timings: load_s, media_s (reading and encoding media), prompt_n, prompt_s, prompt_per_second, cached_n (prompt
    tokens found in the KV cache), predicted_n, predicted_s (from the first token to the last), predicted_per_second.
    audio: the speech, float32 [samples] between -1 and 1 at sampling_rate; codes: what it was made of, int
    [16, frames]. Both are None where no speech was asked for.
    """

    text: str
    token_ids: list[int]
    prompt_token_ids: list[int]
    finish_reason: FinishReason
    timings: dict[str, float] = field(default_factory=dict)
    logprobs: list[TokenLogprob] | None = None
    audio: "np.ndarray | None" = None
    sampling_rate: int = 24000
    codes: "np.ndarray | None" = None


@dataclass(frozen=True)
class TextDelta:
    """Text to append to the answer: whole characters, and never the beginning of a stop text."""

    text: str


@dataclass(frozen=True, eq=False)
class AudioChunk:
    """Sound to append to the speech: float32 [n], mono, between -1 and 1. All chunks together are Reply.audio."""

    samples: "np.ndarray"
    sampling_rate: int = 24000


@dataclass(frozen=True)
class Progress:
    """How far a long step is: `done` of `total`.

    Bytes for "load", "quantize" and "pull", prompt tokens for "prefill"; for media that are encoded, feature frames of
    10 ms for "audio" and a share of the work for "vision"; kinds of work whose kernels are chosen for "tune".
    """

    phase: Literal["load", "prefill", "quantize", "pull", "audio", "vision", "tune"]
    done: int
    total: int


@dataclass(frozen=True)
class Done:
    """The last event of every stream."""

    reply: Reply


Event = TextDelta | AudioChunk | Progress | Done
EventStream = Generator[Event, None, None]


def reply_of(events: Iterable[Event]) -> Reply:
    """Wait for the end of a stream: its answer."""
    for event in events:
        if isinstance(event, Done):
            return event.reply
    raise OmniError("the answer ended without a result")
