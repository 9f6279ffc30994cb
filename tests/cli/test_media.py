"""Pictures, sound and video on the command line: their order, what is refused before the model is loaded, the chat."""

import copy
import io
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from qwen3omni_wgpu.cli.session import PHASES, Bar
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Progress
from qwen3omni_wgpu.omni import Omni


@pytest.fixture
def asked(fake, monkeypatch):
    """asked("an answer", ...): the questions asked of a scripted model, which itself gets their texts only.

    It can read files that begin with "good".
    """

    def build(*answers: str) -> list[Any]:
        build.model = fake(*answers)
        questions: list[Any] = []
        original = Omni.stream

        def stream(self, prompt, **settings):
            questions.append(copy.deepcopy(prompt))
            return original(self, texts(prompt), **settings)

        monkeypatch.setattr(Omni, "stream", stream)
        monkeypatch.setattr(Omni, "check_media", check_media, raising=False)
        return questions

    return build


def texts(prompt: Any) -> Any:
    if isinstance(prompt, str):
        return prompt
    return [
        message
        if isinstance(message["content"], str)
        else message | {"content": "".join(part.get("text", "-") for part in message["content"])}
        for message in prompt
    ]


def check_media(self: Omni, part: dict[str, Any]) -> str:
    source = part[part["type"]]
    if not Path(source).read_bytes().startswith(b"good"):
        raise InvalidRequest(f"{source}: is not a picture")
    return f"{source}: 640x480, 300 tokens"


@pytest.fixture
def files(tmp_path):
    """Names of files that exist: a, b, c, d, and bad."""
    names = {name: tmp_path / f"{name}.bin" for name in "abcd"} | {"bad": tmp_path / "bad.bin"}
    for name, path in names.items():
        path.write_text("no" if name == "bad" else "good")
    return {name: str(path) for name, path in names.items()}


def part(kind: str, source: str, **options: Any) -> dict[str, Any]:
    return {"type": kind, kind: source, **options}


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


# generate ------------------------------------------------------------------------------------------------------------


def test_media_stand_in_the_order_of_the_command_line(command, asked, files):
    """Across options, whichever way they are written and whatever stands between them."""
    rng = np.random.default_rng()
    for _ in range(10):
        kinds = rng.choice(["image", "audio", "video"], 7).tolist()
        sources = [files[name] for name in rng.choice(list("abcd"), 7)]
        args = ["--temp", "0", "-p", "look"]
        for kind, source in zip(kinds, sources, strict=True):
            args += [f"--{kind}={source}"] if rng.integers(2) else [f"--{kind}", source]
            args += ["-n", "5"] if rng.integers(2) else []
        questions = asked("yes")
        assert command("generate", *args).out == "yes\n"
        wanted = [part(kind, source) for kind, source in zip(kinds, sources, strict=True)]
        assert questions == [[{"role": "user", "content": [*wanted, text("look")]}]], args


def test_the_system_message_stays_in_front(command, asked, files):
    questions = asked("yes")
    command("generate", "--image", files["a"], "-p", "look", "--system", "kind")
    assert [message["role"] for message in questions[0]] == ["system", "user"]
    assert questions[0][1]["content"] == [part("image", files["a"]), text("look")]


def test_without_media_the_content_is_a_text(command, asked):
    questions = asked("yes")
    command("generate", "-p", "look")
    assert questions == [[{"role": "user", "content": "look"}]]


def test_media_may_stand_for_themselves(command, asked, files, monkeypatch, capsys):
    """Qwen3-Omni's captioner takes one sound and no text."""
    from qwen3omni_wgpu.cli import run

    questions = asked("one", "two", "three")
    command("generate", "--audio", files["a"], "-p", "")
    command("generate", "--audio", files["a"], stdin="")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert run(["generate", "--audio", files["a"]]) == 0
    assert questions == [[{"role": "user", "content": [part("audio", files["a"])]}]] * 3


def test_how_videos_are_read(command, asked, files):
    questions = asked("yes")
    args = ["--video", files["a"], "--image", files["b"], "--video-fps", "0.5", "--video-sound"]
    command("generate", *args, "-p", "look")
    assert questions[0][0]["content"] == [
        part("video", files["a"], fps=0.5, sound=True),
        part("image", files["b"]),
        text("look"),
    ]


def test_home_is_found(command, asked, files, monkeypatch):
    monkeypatch.setenv("HOME", str(Path(files["a"]).parent))
    questions = asked("yes")
    command("generate", "--image", "~/a.bin", "-p", "look")
    assert questions[0][0]["content"][0] == part("image", files["a"])


def test_addresses(command, asked):
    """They go to the model as they are, which may fetch them only then."""
    urls = ["https://example.org/a.png", "HTTP://example.org/b.wav", "data:image/png;base64,AAAA"]
    questions = asked("yes")
    args = ["--image", urls[0], "--audio", urls[1], "--image", urls[2]]
    assert command("generate", *args, "-p", "look", "--allow-urls").status == 0
    wanted = [part(kind, url) for kind, url in zip(("image", "audio", "image"), urls, strict=True)]
    assert questions[0][0]["content"] == [*wanted, text("look")]
    assert asked.model.loads[0][1]["allow_urls"] is True


@pytest.mark.parametrize(("args", "words"), [
    (["--image", "https://example.org/a.png"], ["example.org/a.png", "--allow-urls"]),
    (["--image", "data:image/png;base64,AAAA"], ["data:", "--allow-urls"]),
    (["--audio", "no-such.wav"], ["no-such.wav", "No such file", "sound"]),
    (["--audio", "no-such.wav", "--allow-urls"], ["no-such.wav", "No such file"]),
    (["--video", "."], ["folder", "video"]),
    (["--image", ""], ["path"]),
    (["--video", __file__, "--video-fps", "0"], ["--video-fps 0"]),
    (["--video", __file__, "--video-fps", "nan"], ["--video-fps nan"]),
    (["--image", __file__, "--video-fps", "2"], ["--video FILE"]),
    (["--image", __file__, "--video-sound"], ["--video FILE"]),
    (["--image", __file__, "--raw"], ["media", "--raw"]),
    (["--image"], ["--image"]),
])  # fmt: skip
def test_refused_before_the_model_is_loaded(command, asked, args, words):
    asked("yes")
    command("generate", "-p", "look", *args).failed_with(*words)
    assert asked.model.loads == []


# chat ----------------------------------------------------------------------------------------------------------------


def test_media_belong_to_the_next_message(command, asked, files):
    questions = asked("one", "two")
    lines = [f"/image {files['a']}", f"/audio {files['b']}", f"/video '{files['c']}'", "look", "and now?"]
    result = command("chat", "--video-fps", "4", stdin="\n".join(lines))
    assert (result.status, result.out) == (0, "one\ntwo\n")
    media = [part("image", files["a"]), part("audio", files["b"]), part("video", files["c"], fps=4.0)]
    first = {"role": "user", "content": [*media, text("look")]}
    assert questions[0] == [first]
    assert questions[1] == [first, {"role": "assistant", "content": "one"}, {"role": "user", "content": "and now?"}]
    assert f"{files['a']}: 640x480, 300 tokens" in result.err


def test_how_a_chat_reads_media(command, asked, monkeypatch):
    questions = asked("one")
    monkeypatch.setattr(Omni, "check_media", lambda self, part: "read")
    command("chat", "--allow-urls", "--video-sound", stdin="/video https://example.org/a.mp4\nlook\n")
    assert questions[0][0]["content"][0] == part("video", "https://example.org/a.mp4", sound=True)
    assert asked.model.loads[0][1]["allow_urls"] is True
    command("chat", "--video-fps", "0", stdin="hi\n").failed_with("--video-fps 0")
    assert len(asked.model.loads) == 1


def test_clear_drops_what_waits(command, asked, files):
    questions = asked("one", "two")
    command("chat", stdin=f"/image {files['a']}\n/clear\nhi\n/image {files['a']}\n/system be kind\nhi")
    assert [question[-1]["content"] for question in questions] == ["hi", "hi"]


def test_media_without_a_message_are_mentioned(command, asked, files):
    asked("one")
    result = command("chat", stdin=f"hi\n/image {files['a']}\n")
    assert "/image" in result.err.splitlines()[-1]
    assert "not used" in result.err.splitlines()[-1]


def test_a_bad_file_does_not_end_the_chat(asked, files, monkeypatch, capsys):
    """Of a file that is not there, and of one that is no picture, the chat says so at once."""
    questions = asked("one")
    status, out, err = terminal(
        monkeypatch, capsys, "/image no-such.png", f"/image {files['bad']}", f"/image {files['a']}", "look"
    )
    assert (status, out) == (0, "one\n")
    assert "error: no-such.png" in err
    assert f"error: {files['bad']}: is not a picture" in err
    assert questions[0][-1]["content"] == [part("image", files["a"]), text("look")]


def test_media_of_a_message_that_fails_do_not_come_back(asked, files, monkeypatch, capsys):
    questions = asked("one")
    stream, failing = Omni.stream, [InvalidRequest("the prompt is too long")]

    def fails_once(self, prompt, **settings):
        if failing:
            raise failing.pop()
        return stream(self, prompt, **settings)

    monkeypatch.setattr(Omni, "stream", fails_once)
    status, out, err = terminal(monkeypatch, capsys, f"/image {files['a']}", "look", "hi")
    assert (status, out) == (0, "one\n")
    assert "too long" in err
    assert questions == [[{"role": "user", "content": "hi"}]]


def test_saved_chats_find_their_media_again(command, asked, files, tmp_path, monkeypatch):
    """Also from another folder."""
    questions = asked("one", "two")
    path = tmp_path / "chat.json"
    monkeypatch.chdir(tmp_path)
    command("chat", stdin=f"/image a.bin\nlook\n/save {path}")
    assert json.loads(path.read_text())["messages"][0]["content"] == [part("image", files["a"]), text("look")]
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    result = command("chat", stdin=f"/load {path}\ngo on\n")
    assert result.out == "two\n", result.err
    assert questions[1][0]["content"] == [part("image", files["a"]), text("look")]


def test_help_and_json(command, asked, files):
    asked("one")
    result = command("chat", "--json", stdin=f"/help\n/image {files['a']}\nlook\n")
    for name in ("/image FILE", "/audio FILE", "/video FILE"):
        assert name in result.err
    assert json.loads(result.out)["messages"][0]["content"][0] == part("image", files["a"])


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def terminal(monkeypatch, capsys, *lines: str) -> tuple[int, str, str]:
    from qwen3omni_wgpu.cli import run

    queue = iter([*lines, "/exit"])
    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", lambda *_: next(queue))
    monkeypatch.setattr("qwen3omni_wgpu.cli.chat._history", lambda: None)
    status = run(["chat"])
    return status, *capsys.readouterr()


def test_every_phase_has_a_bar(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    for phase, words in PHASES.items():
        with Bar(SimpleNamespace(quiet=False)) as bar:
            bar.show(Progress(phase, 1, 4))
            bar.show(Progress(phase, 4, 4))
        assert words in screen.getvalue(), phase
    assert {"audio", "vision"} < set(PHASES)
