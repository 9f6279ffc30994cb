"""`qwen3omni chat`: a conversation on the terminal, or line by line through a pipe."""

import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qwen3omni_wgpu.cli.media import MediaOptions, Part, content
from qwen3omni_wgpu.cli.session import Bar, Interrupt, generation_config, note, opened, print_json, timing_line
from qwen3omni_wgpu.cli.speech import SpeechOptions, Spoken, known_voice
from qwen3omni_wgpu.cli.verbs import Common, Sampling, verb
from qwen3omni_wgpu.errors import InvalidRequest, OmniError
from qwen3omni_wgpu.events import Done, Event, EventStream, Reply, TextDelta

if TYPE_CHECKING:
    from qwen3omni_wgpu.omni import Chat, Omni
    from qwen3omni_wgpu.sampler import GenerationConfig

_HELP = """\
/help                this list                /regen              answer the last message again
/exit                leave (also Ctrl-D)      /stats              speed and context use
/clear               forget all turns         /save FILE          write the chat as JSON
/system [TEXT]       show or set, and clear   /load FILE          go on with a saved chat
/image FILE  /audio FILE  /video FILE         give with the next message; repeatable
/voice [NAME]        show or set who speaks the answers (with --speech)
/set [NAME [VALUE]]  show or change settings, for example: /set temperature 0
Ctrl-C ends an answer; at an empty prompt it leaves."""


@verb("chat")
def chat(
    common: Common,
    sampling: Sampling,
    options: MediaOptions,
    voice: SpeechOptions,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="system message")] = None,
    speech: Annotated[
        Path | None,
        typer.Option("--speech", metavar="FILE", help="speak the answers, too: a.wav makes a-1.wav, a-2.wav and so on"),
    ] = None,
) -> int:
    """A conversation; /help lists its commands. Reads one message a line when stdin is a pipe."""
    voice.check(speech)
    config = generation_config(sampling, speech=voice.settings())
    config.resolved({})
    options.check()
    with opened(common, **options.loading()) as omni:
        session = _Session(omni, omni.chat(system), config, common, options, speech)
        if speech is not None:  # a model that cannot speak, or not so, says that now and not after the first message
            session.config = replace(config, voice=known_voice(omni, config.voice))
        status = session.loop()
        if common.json:
            print_json({"messages": session.chat.messages, "turns": session.turns, "device": omni.device.info.name})
        return status


class _Session:
    """One conversation: reads lines, runs slash commands and answers."""

    def __init__(
        self,
        omni: "Omni",
        chat: "Chat",
        config: "GenerationConfig",
        common: Common,
        options: MediaOptions,
        speech: Path | None,
    ) -> None:
        self.omni = omni
        self.chat = chat
        self.config = config
        self.common = common
        self.options = options
        self.media: list[Part] = []  # for the next message
        self.speech = speech
        self.n_spoken = 0  # answers; each has a file of its own
        self.turns: list[dict[str, Any]] = []
        self.last: Reply | None = None
        self.interactive = sys.stdin.isatty()

    def loop(self) -> int:
        if self.interactive:
            note(f"{self.omni.path.name} on {self.omni.device.info.name}; /help lists commands", self.common)
        for line in _lines(self.interactive):
            try:
                if not line.strip():
                    continue
                if line.strip() in ("/exit", "/quit", "/bye"):
                    break
                if line.startswith("/"):
                    self.command(line)
                elif not self.answer(self._asked(line)) and not self.interactive:
                    return 130
            except OmniError as error:
                if not self.interactive:
                    raise
                print(f"error: {error}", file=sys.stderr)
        if self.media:
            note(f"no message came after the last /{self.media[-1]['type']}; it was not used", self.common)
        return 0

    def _asked(self, line: str) -> EventStream:
        return self.chat.stream(self._message(line), self.config, speech=self.speech is not None)

    def _message(self, line: str) -> str | list[Part]:
        """The line with the media that wait for it. They are then gone, also when the answer fails."""
        media, self.media = self.media, []
        return content(media, line)

    def answer(self, events: EventStream) -> bool:
        """Print one answer as it comes, and speak it if asked to; False when Ctrl-C ended it."""
        show = not self.common.json
        event: Event | None = None
        spoken = Spoken(self._next_file())
        with Interrupt() as interrupt, Bar(self.common) as bar, closing(events) as stream, spoken:
            for event in stream:
                bar.show(event)
                spoken.take(event)
                if show and isinstance(event, TextDelta):
                    sys.stdout.write(event.text)
                    sys.stdout.flush()
                if isinstance(event, Done) or interrupt.pressed:
                    break
        if show:
            print(flush=True)
        complete = isinstance(event, Done)
        if isinstance(event, Done):
            self.last = event.reply
            turn = {"finish_reason": self.last.finish_reason, "timings": self.last.timings}
            self.turns.append(turn | ({"speech": spoken.document()} if spoken.path else {}))
            note(timing_line(self.last), self.common)
        if spoken.path and (complete or spoken.n_samples):
            note(spoken.line(), self.common)
        return complete

    def _next_file(self) -> Path | None:
        """Where the next answer is spoken to; answers that are cut short have numbers, too."""
        if self.speech is None:
            return None
        self.n_spoken += 1
        return self.speech.with_stem(f"{self.speech.stem}-{self.n_spoken}")

    def command(self, line: str) -> None:
        name, _, rest = line.strip().partition(" ")
        commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: print(_HELP, file=sys.stderr),
            "/?": lambda _: print(_HELP, file=sys.stderr),
            "/clear": self._clear,
            "/regen": self._regenerate,
            "/system": self._system,
            "/save": lambda path: self.chat.save(_path(path)),
            "/load": self._load,
            "/stats": self._stats,
            "/set": self._set,
            "/image": lambda path: self._add("image", path),
            "/audio": lambda path: self._add("audio", path),
            "/video": lambda path: self._add("video", path),
            "/voice": self._voice,
        }
        if name not in commands:
            raise InvalidRequest(f"there is no command {name}; /help lists them")
        commands[name](rest.strip())

    def _add(self, kind: str, path: str) -> None:
        if not path:
            raise InvalidRequest(f"name a file: /{kind} FILE")
        part = self.options.part(kind, _unquoted(path))
        note(self.omni.check_media(part), self.common)  # what cannot be read is refused now, not with the message
        self.media.append(part)

    def _clear(self, _: str) -> None:
        self.chat.clear()
        self.media.clear()

    def _regenerate(self, _: str) -> None:
        # With the same seed the answer would be the same again.
        seed = (self.config.seed or 0) + 1
        self.config = replace(self.config, seed=seed)
        self.answer(self.chat.regenerate(self.config, speech=self.speech is not None))

    def _voice(self, name: str) -> None:
        voice = known_voice(self.omni, name or self.config.voice)
        if name:
            self.config = replace(self.config, voice=voice)
        print(f"voice = {voice} (of {', '.join(self.omni.voices)})", file=sys.stderr)
        if name and self.speech is None:
            note("answers are only written; start the chat with --speech FILE to have them spoken, too", self.common)

    def _system(self, text: str) -> None:
        if text:
            self._clear("")
            self.chat.system = text
        else:
            print(self.chat.system or "no system message is set", file=sys.stderr)

    def _load(self, path: str) -> None:
        self.chat.load(_path(path))
        note(f"{len(self.chat.messages)} messages", self.common)

    def _stats(self, _: str) -> None:
        used, size = len(self.omni.engine.tokens), self.omni.ctx_size
        print(f"context: {used} of {size} tokens", file=sys.stderr)
        if self.last is not None:
            for key, value in self.last.timings.items():
                print(f"{key}: {value:.6g}", file=sys.stderr)

    def _set(self, text: str) -> None:
        name, _, value = text.partition(" ")
        name = {"temp": "temperature", "n": "max_tokens"}.get(name, name).replace("-", "_")
        if not name:
            for key in _SETTINGS:
                print(f"{key} = {getattr(self.config, key)}", file=sys.stderr)
            return
        if name not in _SETTINGS:
            raise InvalidRequest(f"there is no setting {name}; /set lists them")
        if value:
            changed = replace(self.config, **{name: _value(name, value.strip())})
            changed.resolved({})
            self.config = changed
        print(f"{name} = {getattr(self.config, name)}", file=sys.stderr)


_FLOATS = (
    *("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty"),
    *("talker_temperature", "talker_top_p", "talker_repeat_penalty", "predictor_temperature"),
)
_WHOLES = ("max_tokens", "top_k", "repeat_last_n", "seed", "talker_top_k", "talker_max_tokens")
_SETTINGS = (*_WHOLES, *_FLOATS, "stop", "ignore_eos")


def _value(name: str, text: str) -> Any:
    """The text of `/set NAME VALUE` as the setting's type; `default` = the model's own."""
    if text == "default":
        from qwen3omni_wgpu.sampler import GenerationConfig

        return next(field.default for field in fields(GenerationConfig) if field.name == name)
    if name == "stop":
        return (text,)
    if name == "ignore_eos":
        if text not in ("on", "off"):
            raise InvalidRequest("ignore_eos is on or off")
        return text == "on"
    try:
        number = int(text) if name in _WHOLES else float(text)
    except ValueError:
        raise InvalidRequest(f"{name} must be {'a whole number' if name in _WHOLES else 'a number'}") from None
    return None if name == "max_tokens" and number == -1 else number


def _path(text: str) -> Path:
    if not text:
        raise InvalidRequest("name a file, for example: /save chat.json")
    return Path(text).expanduser()


def _unquoted(path: str) -> str:
    """As a terminal writes the name of a file that is dropped on it: with quotes when it holds blanks."""
    return path[1:-1] if len(path) > 2 and path[0] == path[-1] and path[0] in "'\"" else path


def _lines(interactive: bool) -> Iterator[str]:
    """Lines from stdin: edited and with a history on a terminal, plain from a pipe. Ctrl-C at the prompt goes up."""
    if not interactive:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    history = _history()
    try:
        while True:
            try:
                if not sys.stdout.isatty():  # input() would put its prompt into the answer
                    print("> ", end="", file=sys.stderr, flush=True)
                yield input("> " if sys.stdout.isatty() else "")
            except EOFError:
                print(file=sys.stderr)
                return
    finally:
        if history is not None:
            history()


def _history() -> Callable[[], None] | None:
    """Load the prompt history; the returned function saves it. None where Python has no readline."""
    try:
        import readline
    except ImportError:
        return None
    import platformdirs

    path = Path(platformdirs.user_state_dir("qwen3omni")) / "chat_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        readline.read_history_file(path)
    except OSError:
        pass  # no history yet, or a home that cannot be written: the chat works without
    readline.set_history_length(1000)

    def save() -> None:
        try:
            readline.write_history_file(path)
        except OSError as error:
            print(f"the prompt history was not saved: {error}", file=sys.stderr)

    return save
