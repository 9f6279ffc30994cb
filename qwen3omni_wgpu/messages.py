"""Chat messages with pictures, sounds and video among their texts: what a caller may write, in one form."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from qwen3omni_wgpu.errors import InvalidRequest

Message = Mapping[str, Any]
KINDS = ("image", "audio", "video")
# What may stand beside the source of each kind.
_OPTIONS = {"image": (), "audio": (), "video": ("fps", "sound")}
_LOOKS = 'a chat message must look like {"role": "user", "content": "..."}'


@dataclass(frozen=True)
class Given:
    """One medium as the caller named it: a file, an address, bytes, an array or a Pillow image; and how to read it."""

    kind: str
    source: Any
    options: tuple[tuple[str, Any], ...] = ()


def with_media(messages: Sequence[Message], media: Sequence[tuple[str, Any]]) -> list[Message]:
    """Put media (kind, source) before what the last user message says. InvalidRequest when there is none."""
    if not media:
        return list(messages)
    last = max((i for i, message in enumerate(messages) if message.get("role") == "user"), default=None)
    if last is None:
        raise InvalidRequest("pictures, sound and video belong to a user's message, and the messages have none")
    said = messages[last].get("content")
    texts = [{"type": "text", "text": said}] if isinstance(said, str) else list(said or ())
    parts = [{"type": kind, kind: source} for kind, source in media]
    return [*messages[:last], {**messages[last], "content": [*parts, *texts]}, *messages[last + 1 :]]


def taken_apart(messages: Sequence[Message]) -> tuple[list[Message], list[Given]]:
    """The messages as a chat template takes them, and their media in order.

    A content list becomes parts of {"type": "text", "text"} and {"type": kind, kind: ""}; one of texts alone becomes
    one text. Media are {"type": "image" | "audio" | "video", <the same>: SOURCE}, a video with "fps" and "sound" if
    wanted. InvalidRequest for anything else.
    """
    plain: list[Message] = []
    media: list[Given] = []
    for message in messages:
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise InvalidRequest(f"{_LOOKS}, not {message!r}")
        content = message.get("content")
        if isinstance(content, str):
            plain.append(message)
            continue
        if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
            raise InvalidRequest(f"the content of a chat message must be a text or a list of parts, not {content!r}")
        parts = [_part(part, media) for part in content]
        if all(part["type"] == "text" for part in parts):
            plain.append({**message, "content": "".join(part["text"] for part in parts)})
        else:
            plain.append({**message, "content": parts})
    return plain, media


def _part(part: Mapping[str, Any], media: list[Given]) -> dict[str, Any]:
    kind = part.get("type")
    if kind == "text":
        if not isinstance(part.get("text"), str):
            raise InvalidRequest(f'a text part must look like {{"type": "text", "text": "..."}}, not {dict(part)!r}')
        return {"type": "text", "text": part["text"]}
    if kind not in KINDS:
        raise InvalidRequest(f"a message part is of type {kind!r}, but must be text, {', '.join(KINDS)}")
    if part.get(kind) is None:
        raise InvalidRequest(f'a part of type {kind} must name its source: {{"type": "{kind}", "{kind}": "FILE"}}')
    options = {key: value for key, value in part.items() if key not in ("type", kind)}
    if unknown := sorted(set(options) - set(_OPTIONS[kind])):
        known = ", ".join(_OPTIONS[kind]) or "none"
        raise InvalidRequest(f"a part of type {kind} has no option {', '.join(unknown)} (it has: {known})")
    media.append(Given(kind, part[kind], tuple(sorted(options.items()))))
    return {"type": kind, kind: ""}
