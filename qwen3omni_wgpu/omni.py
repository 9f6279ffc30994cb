"""The pipeline: messages -> tokens -> engine -> typed events. Knows texts and turns, not kernels."""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen3omni_wgpu import env
from qwen3omni_wgpu.answer import answer_events
from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.errors import InvalidRequest, OmniError, UnsupportedModel
from qwen3omni_wgpu.events import Done, Event, EventStream, Progress, Reply, TextDelta
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.inputs.prompt import Prompt
from qwen3omni_wgpu.inputs.template import ChatTemplate
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.locate import locate, type_in_name
from qwen3omni_wgpu.models.config import text_config, weight_bytes
from qwen3omni_wgpu.models.text import TextModel
from qwen3omni_wgpu.resident import Resident
from qwen3omni_wgpu.sampler import GenerationConfig

Message = Mapping[str, Any]
Question = str | Sequence[Message] | Sequence[int]

DEFAULT_CONTEXT = 8192  # tokens; a model's own context length where that is smaller
_TEXT_ONLY = "this version reads and writes text only"


class Omni:
    """A model ready to answer. Make one with `Omni.from_pretrained`; close it, or use it in a `with` block."""

    def __init__(self, resident: Resident, tokenizer: Tokenizer, load_s: float):
        self.file = resident.parts["thinker"]
        self.path = self.file.path
        self.tokenizer = tokenizer
        self.device = resident.device
        self._resident = resident
        self._template: ChatTemplate | None = None
        self.load_s = load_s
        self._busy = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        mmproj: str | Path | None = None,
        talker: str | Path | None = None,
        config: str | Path | None = None,
        device: str | int | None = None,
        ctx_size: int | None = None,
        type: str | None = None,
        activations: str = "auto",
        kv_type: str = "f16",
        cpu: bool = False,
        tokenizer_file: str | Path | None = None,
        offline: bool = False,
        progress: Callable[[Progress], None] | None = None,
    ) -> "Omni":
        """Load a model onto the GPU: the thinker now, other parts when they are first needed.

        model: a .gguf file, a folder with one, a Hugging Face checkpoint folder, a hub id `user/repo[:quant]`, or
        `smollm2`; None = QWEN3OMNI_MODEL, else an installed SmolLM2. offline: take hub ids from the cache only.
        mmproj, talker: files of these parts where they do not lie beside the thinker's.
        config: a config.json that does not lie beside weights with Hugging Face names.
        type: what a checkpoint's weights become while they are loaded: "q8_0" (default), "f16", "bf16", "f32".
        device: part of an adapter's name or its index; cpu: a software adapter on purpose.
        ctx_size: tokens of prompt and answer together that fit (default: the model's own limit, at most 8192).
        activations: "f32", "q8" (packed 4x8-bit dot products) or "auto". kv_type: "f16" or "f32".
        tokenizer_file: a tokenizer.json instead of the model's own. progress: called with bytes loaded.
        Raises ModelNotFound, InvalidModelFile, UnsupportedModel, UnsupportedDevice, OutOfDeviceMemory, InvalidRequest.
        """
        chosen = _activations(activations)
        start = time.perf_counter()
        path = locate(model, offline=offline, progress=_reporter(progress, "pull"))
        parts = open_parts(
            path,
            type=type or type_in_name(model, path),
            config=_path(config),
            mmproj=_path(mmproj),
            talker=_path(talker),
            tokenizer=tokenizer_file is None,
        )
        file = parts["thinker"]
        tokens = context_size(ctx_size, text_config(file).context_length)
        # Before the weights: a missing tokenizer should not be found after minutes of loading.
        tokenizer = Tokenizer.from_file(tokenizer_file) if tokenizer_file else Tokenizer.from_gguf(file.metadata)
        opened = Device.open(device, cpu=cpu)
        try:
            report = _reporter(progress, "load")
            resident = Resident(opened, parts, lambda: _engine(file, opened, tokens, chosen, kv_type, report))
            resident.engine()
            return cls(resident, tokenizer, time.perf_counter() - start)
        except BaseException:
            opened.close()
            raise

    # Answers --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Question,
        *,
        images: Sequence[Any] = (),
        audio: Sequence[Any] = (),
        video: Sequence[Any] = (),
        speech: bool = False,
        config: GenerationConfig | None = None,
    ) -> Reply:
        """One whole answer. `prompt`: a text, chat messages ({"role", "content"}), or token ids.

        A text becomes one user message, unless `config.raw`. Raises InvalidRequest (bad settings, prompt longer than
        the context), UnsupportedModel (images, audio, video, speech: this version is text only), DeviceLost.
        """
        return _reply(self.stream(prompt, images=images, audio=audio, video=video, speech=speech, config=config))

    def stream(
        self,
        prompt: Question,
        *,
        images: Sequence[Any] = (),
        audio: Sequence[Any] = (),
        video: Sequence[Any] = (),
        speech: bool = False,
        config: GenerationConfig | None = None,
    ) -> EventStream:
        """The same as events while they happen: Progress for a long prompt, TextDelta, and Done at the end.

        Bad input raises here, before the first event is asked for. Closing the iterator ends the answer; what it wrote
        stays in the KV cache and is reused.
        """
        given = {"images": images, "audio": audio, "video": video, "speech": speech}
        if wanted := [name for name, value in given.items() if value]:
            raise UnsupportedModel(f"{', '.join(wanted)}: {_TEXT_ONLY}")
        engine = self._ready()
        settings = (config or GenerationConfig()).resolved(self.file.metadata)
        ids = self.tokenize(prompt, raw=settings.raw)
        if len(ids) > engine.ctx_size:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the context holds {engine.ctx_size}; "
                "shorten it, or load the model with a larger --ctx-size"
            )
        return self._events(engine, ids, settings)

    def tokenize(self, prompt: Question, *, raw: bool = False) -> list[int]:
        """The token ids that a prompt becomes: through the chat template, or without it for `raw` texts and ids."""
        if not isinstance(prompt, str) and all(isinstance(item, int | np.integer) for item in prompt):
            ids = [int(item) for item in prompt]  # type: ignore[arg-type] - all() does not narrow the type
            if bad := [token for token in ids if not 0 <= token < self.tokenizer.vocab_size]:
                raise InvalidRequest(f"token id {bad[0]} is outside the vocabulary of {self.tokenizer.vocab_size}")
        elif isinstance(prompt, str) and raw:
            ids = self.tokenizer.encode(prompt, add_special=True)
        elif raw:
            raise InvalidRequest("raw takes a text or token ids; chat messages need the chat template")
        else:
            messages: Sequence[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            ids = self.tokenizer.encode(self._chat_template().render([_text_message(m) for m in messages]))
        if not ids:
            raise InvalidRequest("the prompt is empty")
        return ids

    def logits(self, token_ids: Sequence[int]) -> np.ndarray:
        """Logits after every position of a fresh context: float32 [N, V]. InvalidRequest when N exceeds the context."""
        return self._ready().logits(self.tokenize(list(token_ids)))

    def chat(self, system: str | None = None) -> "Chat":
        """A conversation that remembers its turns and keeps their KV cache."""
        return Chat(self, system)

    # Life -----------------------------------------------------------------------------------------------------------

    @property
    def ctx_size(self) -> int:
        """Tokens of prompt and answer together that fit."""
        return self._ready().ctx_size

    @property
    def engine(self) -> Engine:
        """The engine below: token ids and timings, for measuring."""
        return self._ready()

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this model has: "thinker", and where they are there "mmproj" (towers) and "talker"."""
        return tuple(self._resident.parts)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The parts whose weights are on the device now. Only what was used is."""
        return self._resident.loaded

    def load(self, part: str) -> None:
        """Put a part's weights on the device before its first use would.

        Raises ModelNotFound when the model has no such part, else what from_pretrained raises.
        """
        if part == "thinker":
            self._resident.engine()
        else:
            self._resident.weights(part)

    def release(self, part: str) -> None:
        """Free a part's memory on the device; its next use loads it again. The thinker also forgets its KV cache.

        InvalidRequest when an answer is being written.
        """
        if self._busy:
            raise InvalidRequest("an answer is still being written; finish or close its stream before releasing parts")
        self._resident.release(part)

    def close(self) -> None:
        """Free the GPU memory. Closing twice is fine."""
        self._resident.close()

    def __enter__(self) -> "Omni":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ready(self) -> Engine:
        return self._resident.engine()

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = ChatTemplate.from_gguf(self.file.metadata, self.tokenizer)
        return self._template

    # One answer -----------------------------------------------------------------------------------------------------

    def _events(self, engine: Engine, ids: list[int], config: GenerationConfig) -> EventStream:
        if self._busy:
            raise InvalidRequest("another answer is still being written; finish or close its stream first")
        self._busy = True
        try:
            yield from answer_events(engine, self.tokenizer, Prompt.text(ids), config, {"load_s": self.load_s})
        finally:
            self._busy = False


class Chat:
    """A conversation: `messages` are its turns as {"role", "content"}. Their KV cache is kept and reused."""

    def __init__(self, omni: Omni, system: str | None = None):
        self._omni = omni
        self.messages: list[dict[str, str]] = []
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

    def send(self, text: str, config: GenerationConfig | None = None) -> Reply:
        """Say something and wait for the whole answer. Raises what Omni.generate raises; the turn is then not kept."""
        return _reply(self.stream(text, config))

    def stream(self, text: str, config: GenerationConfig | None = None) -> EventStream:
        """The same as events. When it is closed early, what was written so far stays as the answer."""
        return self._turn([*self.messages, {"role": "user", "content": text}], config)

    def regenerate(self, config: GenerationConfig | None = None) -> EventStream:
        """Answer the last user message anew, as events. InvalidRequest when there is none."""
        last = max((i for i, message in enumerate(self.messages) if message["role"] == "user"), default=None)
        if last is None:
            raise InvalidRequest("there is no question to answer again")
        return self._turn(self.messages[: last + 1], config)

    def _turn(self, messages: list[dict[str, str]], config: GenerationConfig | None) -> EventStream:
        if config is not None and config.raw:
            raise InvalidRequest("a chat needs the chat template: raw is for single prompts")
        return self._events(messages, self._omni.stream(messages, config=config))

    def _events(self, messages: list[dict[str, str]], events: EventStream) -> EventStream:
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
        """Write the turns as JSON: {"messages": [{"role", "content"}, ...]}."""
        document = {"model": self._omni.path.name, "messages": self.messages}
        try:
            Path(path).write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise InvalidRequest(f"could not save the chat to {str(path)!r}: {error.strerror}") from error

    def load(self, path: str | Path) -> None:
        """Replace the turns by those of a saved chat. InvalidRequest when the file is not one."""
        try:
            document = json.loads(Path(path).read_text(encoding="utf-8"))
            messages = document["messages"]
            loaded = [
                {"role": str(message["role"]), "content": _text_message(message)["content"]} for message in messages
            ]
        except OSError as error:
            raise InvalidRequest(f"could not read the chat {str(path)!r}: {error.strerror}") from error
        except (ValueError, KeyError, TypeError) as error:
            raise InvalidRequest(
                f"{str(path)!r} is not a saved chat: JSON with a list of messages is needed"
            ) from error
        self.messages = loaded


def _reply(events: Iterable[Event]) -> Reply:
    for event in events:
        if isinstance(event, Done):
            return event.reply
    raise OmniError("the answer ended without a result")


def _reporter(
    progress: Callable[[Progress], None] | None, phase: Literal["load", "pull"]
) -> Callable[[int, int], None] | None:
    return (lambda done, total: progress(Progress(phase, done, total))) if progress else None


def _engine(
    file: GGUFFile,
    device: Device,
    ctx_size: int,
    activations: str,
    kv_type: str,
    report: Callable[[int, int], None] | None,
) -> Engine:
    """The text model's weights on the device, and an engine for them."""
    if report:
        report(0, weight_bytes(file))  # the clock of a progress bar starts before the first tensor is there
    model = TextModel.load(file, device, activations=activations, progress=report)
    try:
        return Engine(model, ctx_size, kv_type=kv_type)
    except BaseException:
        model.free()
        raise


def _path(value: str | Path | None) -> Path | None:
    return None if value is None else Path(value).expanduser()


def _activations(wanted: str) -> str:
    if wanted not in ("auto", "f32", "q8"):
        raise InvalidRequest(f"activations is {wanted!r}, but must be auto, f32 or q8")
    return env.get("QWEN3OMNI_ACTIVATIONS") if wanted == "auto" else wanted


def context_size(wanted: int | None, limit: int) -> int:
    """Tokens the context shall hold: what is wanted, else the model's own limit up to DEFAULT_CONTEXT."""
    if wanted is None:
        return min(limit, DEFAULT_CONTEXT)
    if not 1 <= wanted <= limit:
        raise InvalidRequest(f"--ctx-size {wanted} is not possible: this model holds between 1 and {limit} tokens")
    return wanted


def _text_message(message: Message) -> dict[str, Any]:
    """A chat message whose content is one text; lists of {"type": "text"} parts are joined."""
    if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
        raise InvalidRequest(f'a chat message must look like {{"role": "user", "content": "..."}}, not {message!r}')
    content = message.get("content")
    if isinstance(content, str):
        return dict(message)
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise InvalidRequest(f"the content of a chat message must be a text, not {content!r}")
    if kinds := sorted({str(part.get("type")) for part in content} - {"text"}):
        raise UnsupportedModel(f"message parts of type {', '.join(kinds)}: {_TEXT_ONLY}")
    return {**message, "content": "".join(str(part.get("text", "")) for part in content)}
