"""Running commands: in this process over a scripted engine, or as a user does, in a process of their own."""

import io
import os
import subprocess
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fake_engine import FakeEngine
from tiny_gguf import write_tiny

from qwen3omni_wgpu.cli import run
from qwen3omni_wgpu.convert.parts import ModelParts
from qwen3omni_wgpu.events import AudioChunk, Done, Progress, Reply
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.omni import Omni
from qwen3omni_wgpu.resident import Resident

ROOT = Path(__file__).parent.parent.parent


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    status: int
    out: str
    err: str

    def failed_with(self, *words: str, status: int = 2) -> None:
        """Assert: nothing on stdout, and exactly one line on stderr, which holds all the words."""
        assert (self.status, self.out) == (status, "")
        lines = self.err.splitlines()
        assert len(lines) == 1, self.err
        assert lines[0].startswith("qwen3omni: error: ")
        for word in words:
            assert word in lines[0]


@pytest.fixture
def command(capsys, monkeypatch):
    """command("generate", "-p", "hi", stdin="...") in this process."""

    def call(*args: str, stdin: str | bytes = "") -> Result:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capsys.readouterr()
        status = run(args)
        out, err = capsys.readouterr()
        return Result(status, out, err)

    return call


@pytest.fixture
def process():
    """process("generate", ...) in a process of its own, on the test adapter."""

    def call(*args: str, stdin: str = "", timeout: float = 300, **variables: str) -> Result:
        done = subprocess.run(
            [sys.executable, "-m", "qwen3omni_wgpu", *map(str, args)],
            input=stdin,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            cwd=ROOT,
            env=os.environ | {"QWEN3OMNI_DEVICE": os.environ.get("QWEN3OMNI_TEST_ADAPTER", "llvmpipe")} | variables,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> Path:
    """A random qwen3 model with a tokenizer and a chat template."""
    return write_tiny(tmp_path_factory.mktemp("cli") / "tiny.gguf", arch="qwen3", context_length=256)


@dataclass
class FakeModel:
    """What the scripted model was asked: the arguments of loading, and the config of every answer."""

    engine: FakeEngine
    tokenizer: Tokenizer
    loads: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    configs: list[Any] = field(default_factory=list)


@pytest.fixture
def fake(tiny, monkeypatch):
    """fake("first answer", "second answer"): every model that a command opens is this one."""

    def build(*answers: str, **settings: Any) -> FakeModel:
        file = read_gguf(tiny)
        tokenizer = Tokenizer.from_gguf(file.metadata)
        eos = [min(tokenizer.eos_ids)]
        engine = FakeEngine([tokenizer.encode(text) + eos for text in answers], **settings)
        model = FakeModel(engine, tokenizer)
        info = SimpleNamespace(name="fake adapter", software=False, driver="1.0", backend="Vulkan")
        device = SimpleNamespace(info=info, close=lambda: None, wait=lambda: None)
        engine.device = device

        def from_pretrained(name=None, **arguments):
            model.loads.append((name, arguments))
            if arguments.get("ctx_size"):
                engine.ctx_size = arguments["ctx_size"]
            return Omni(
                Resident(device, ModelParts(file.path, {"thinker": lambda: file}), lambda runner: engine),
                tokenizer,
                load_s=0.25,
            )

        original = engine.generate

        def generate(ids, config, eos_ids):
            model.configs.append(config)
            return original(ids, config, eos_ids)

        engine.generate = generate
        monkeypatch.setattr(Omni, "from_pretrained", from_pretrained)
        return model

    return build


@dataclass
class FakeVoice:
    """A model that speaks: `chunks` is all it ever says, `asked` what it was asked.

    before(i) is called when chunk i is wanted, and by `say` with -1 when it starts; closed: speeches that ended, by
    themselves or from outside.
    """

    model: FakeModel
    chunks: list[np.ndarray]
    asked: list[SimpleNamespace] = field(default_factory=list)
    finish_reason: Any = "stop"
    before: Any = lambda index: None
    closed: int = 0
    streams: list[Any] = field(default_factory=list)  # held, so that nothing is closed by being forgotten

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate([np.zeros(0, np.float32), *self.chunks])

    def speech(self):
        for index, chunk in enumerate(self.chunks):
            self.before(index)
            yield AudioChunk(chunk)

    def spoken(self, reply: Reply) -> Reply:
        codes = np.zeros((16, len(self.samples) // 1920 + 1), np.int64)
        timings = reply.timings | {"frames_n": codes.shape[1]}
        return replace(reply, audio=self.samples, codes=codes, timings=timings)


@pytest.fixture
def speaking(fake, monkeypatch):
    """speaking("an answer", ...): as `fake`, of a model with the voices ethan and chelsie that can speak."""

    def build(*answers: str) -> FakeVoice:
        rng = np.random.default_rng()
        sizes = [1365, 1920, 3840, 5760]
        made = FakeVoice(fake(*answers), [rng.uniform(-1, 1, size).astype(np.float32) for size in sizes])

        def stream(self, prompt, *, speech=False, config=None, **media):
            made.asked.append(SimpleNamespace(prompt=prompt, speech=speech, config=config))
            events = original(self, prompt, config=config, **media)
            made.streams.append(with_speech(events) if speech else events)
            return made.streams[-1]

        def with_speech(events):
            """Sound between the words, most of it after them, as where a talker is slower than a thinker."""
            sound = made.speech()
            try:
                for event in events:
                    if isinstance(event, Done):
                        yield from sound
                        yield Done(made.spoken(event.reply))
                        return
                    yield event
                    if (chunk := next(sound, None)) is not None:
                        yield chunk
            finally:
                events.close()
                made.closed += 1

        def say_stream(self, text, voice=None, config=None):
            made.asked.append(SimpleNamespace(prompt=text, voice=voice, config=config))
            made.streams.append(saying())
            return made.streams[-1]

        def saying():
            try:
                made.before(-1)
                yield Progress("prefill", 1, 1)
                yield from made.speech()
                yield Done(made.spoken(Reply("", [], [], made.finish_reason)))
            finally:
                made.closed += 1

        monkeypatch.setattr(Omni, "stream", stream)
        monkeypatch.setattr(Omni, "say_stream", say_stream, raising=False)
        monkeypatch.setattr(Omni, "voices", ("ethan", "chelsie"), raising=False)
        return made

    original = Omni.stream
    return build
