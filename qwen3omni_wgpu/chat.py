"""A conversation: its turns, and how they are kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Done, EventStream, Reply, TextDelta, reply_of
from qwen3omni_wgpu.messages import KINDS, taken_apart
from qwen3omni_wgpu.sampler import GenerationConfig

Content = str | Sequence[Mapping[str, Any]]


class Answers(Protocol):
    """What a conversation needs of a model."""

    path: Path

    def stream(
        self, prompt: Sequence[Mapping[str, Any]], *, speech: bool = False, config: GenerationConfig | None = None
    ) -> EventStream: ...


class Chat:
    """A conversation: `messages` are its turns as {"role", "content"}. Their KV cache is kept and reused."""

    def __init__(self, omni: Answers, system: str | None = None):
        self._omni = omni
        self.messages: list[dict[str, Any]] = []
        self.system = system

    @property
    def system(self) -> str | None:
        """The system message, or None. Setting it keeps the turns."""
        return self.messages[0]["content"] if self.messages and self.messages[0]["role"] == "system" else None

    @system.setter
    def system(self, text: str | None) -> None:
        turns = self.messages[1:] if self.system is not None else self.messages
        self.messages = ([{"role": "system", "content": text}] if text else []) + turns

    def clear(self) -> None:
        """Forget all turns; the system message stays."""
        self.messages = self.messages[:1] if self.system is not None else []

    def send(self, content: Content, config: GenerationConfig | None = None, *, speech: bool = False) -> Reply:
        """Say something and wait for the whole answer. content: a text, or parts as in Omni.stream's messages.

        speech: the answer is spoken, too. Raises what Omni.generate raises; the turn is then not kept.
        """
        return reply_of(self.stream(content, config, speech=speech))

    def stream(self, content: Content, config: GenerationConfig | None = None, *, speech: bool = False) -> EventStream:
        """The same as events. When it is closed early, what was written so far stays as the answer."""
        return self._turn([*self.messages, {"role": "user", "content": content}], config, speech)

    def regenerate(self, config: GenerationConfig | None = None, *, speech: bool = False) -> EventStream:
        """Answer the last user message anew, as events. InvalidRequest when there is none."""
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            raise InvalidRequest("there is no question to answer again")
        return self._turn(self.messages[: last + 1], config, speech)

    def _turn(self, messages: list[dict[str, Any]], config: GenerationConfig | None, speech: bool) -> EventStream:
        if config is not None and config.raw:
            raise InvalidRequest("a chat needs the chat template: raw is for single prompts")
        return self._events(messages, self._omni.stream(messages, speech=speech, config=config))

    def _events(self, messages: list[dict[str, Any]], events: EventStream) -> EventStream:
        text = ""
        try:
            for event in events:
                if isinstance(event, TextDelta):
                    text += event.text
                elif isinstance(event, Done):
                    self.messages = [*messages, {"role": "assistant", "content": event.reply.text}]
                    text = ""
                yield event
        finally:
            if text:  # cut short: what the user has seen is what was said
                self.messages = [*messages, {"role": "assistant", "content": text}]
            events.close()

    def save(self, path: str | Path) -> None:
        """Write the turns as JSON: {"messages": [{"role", "content"}, ...]}, with media as the paths they came from.

        InvalidRequest when the file cannot be written, or a medium came from memory and so has no path.
        """
        messages = [{**message, "content": _kept(message["content"])} for message in self.messages]
        document = {"model": self._omni.path.name, "messages": messages}
        try:
            Path(path).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"could not save the chat to {str(path)!r}: {error.strerror}") from error

    def load(self, path: str | Path) -> None:
        """Replace the turns by those of a saved chat. InvalidRequest when the file is not one."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            messages = document["messages"]
            loaded = [{"role": str(message["role"]), "content": message["content"]} for message in messages]
            taken_apart(loaded)
        except OSError as error:
            raise InvalidRequest(f"could not read the chat {str(path)!r}: {error.strerror}") from error
        except InvalidRequest as error:
            raise InvalidRequest(f"{str(path)!r} is not a saved chat: {error}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{str(path)!r} is not a saved chat: JSON with a list of messages is needed"
            ) from error
        self.messages = loaded


def _kept(content: Content) -> Content:
    if isinstance(content, str):
        return content
    return [_kept_part(part) for part in content]


def _kept_part(part: Mapping[str, Any]) -> dict[str, Any]:
    kind = part.get("type")
    if kind not in KINDS:
        return dict(part)
    source = part[kind]
    if isinstance(source, Path):
        source = str(source)
    if not isinstance(source, str):
        raise InvalidRequest(
            f"the chat holds {kind} that came from memory and cannot be saved; name media by the path of a file"
        )
    if "://" not in source and not source.startswith("data:"):
        source = str(Path(source).resolve())  # so that the chat can be loaded from another folder
    return {**part, kind: source}
