"""`qwen3omni chat` through a pipe and on a (pretended) terminal."""

import io
import json
import os
import signal
import sys

import pytest

from qwen3omni_wgpu.cli import run


def test_two_turns_through_a_pipe(command, fake):
    model = fake("hello", "world")
    result = command("chat", stdin="hello in the world of tokens\n\nand you?\n")
    assert (result.status, result.out) == (0, "hello\nworld\n")
    assert len(result.err.splitlines()) == 2  # one line of timings a turn
    runs = [count for what, count in model.engine.log if what == "generate"]
    assert runs[1] < len(model.engine.tokens) / 2  # the second turn did not start anew


def test_json_is_one_document(command, fake):
    fake("hello", "world")
    document = json.loads(command("chat", "--json", "--system", "kind", stdin="hi\nyou?\n").out)
    assert [message["content"] for message in document["messages"]] == ["kind", "hi", "hello", "you?", "world"]
    assert len(document["turns"]) == 2


def test_exit_ends_the_chat(command, fake):
    fake("hello", "world")
    assert command("chat", stdin="hi\n/exit\nyou?\n").out == "hello\n"


def saved(path) -> list[str]:
    return [message["content"] for message in json.loads(path.read_text())["messages"]]


def test_clear(command, fake, tmp_path):
    fake("one", "two")
    command("chat", stdin=f"hi\n/clear\nyou?\n/save {tmp_path}/chat.json")
    assert saved(tmp_path / "chat.json") == ["you?", "two"]


def test_a_new_system_message_starts_a_new_chat(command, fake, tmp_path):
    fake("one", "two")
    result = command("chat", stdin=f"hi\n/system be brief\n/system\nyou?\n/save {tmp_path}/chat.json")
    assert "be brief" in result.err
    assert saved(tmp_path / "chat.json") == ["be brief", "you?", "two"]


def test_load_goes_on_with_a_saved_chat(command, fake, tmp_path):
    fake("one", "two")
    path = tmp_path / "chat.json"
    result = command("chat", stdin=f"hi\n/save {path}\n/clear\n/load {path}\ngo on\n/save {path}")
    assert result.out == "one\ntwo\n"
    assert saved(path) == ["hi", "one", "go on", "two"]


def test_regen(command, fake, tmp_path):
    model = fake("one", "two")
    path = tmp_path / "chat.json"
    assert command("chat", "-s", "1", stdin=f"hi\n/regen\n/save {path}\n").out == "one\ntwo\n"
    assert [m["content"] for m in json.loads(path.read_text())["messages"]] == ["hi", "two"]
    assert model.configs[0].seed != model.configs[1].seed


def test_set_and_stats(command, fake):
    model = fake("one")
    lines = ["/set temp 0", "/set top-k 7", "/set stop END", "/set max_tokens -1", "/set ignore_eos on", "/set seed"]
    result = command("chat", "-s", "3", stdin="\n".join([*lines, "hi", "/stats", "/set top_k default", "/help"]))
    assert result.status == 0, result.err
    config = model.configs[0]
    assert (config.temperature, config.top_k, config.stop, config.ignore_eos) == (0, 7, ("END",), True)
    for text in ("seed = 3", "of 512 tokens", "predicted_per_second", "top_k = None", "/regen"):
        assert text in result.err


@pytest.mark.parametrize(("line", "words"), [
    ("/dance", ["/dance", "/help"]),
    ("/image no-such.png", ["no-such.png", "No such file"]),
    ("/audio", ["name a file", "/audio FILE"]),
    ("/voice Ethan", ["speech"]),
    ("/set colour red", ["colour"]),
    ("/set top_k many", ["top_k", "whole number"]),
    ("/set top_p 3", ["top_p"]),
    ("/save", ["name a file"]),
    ("/load no-such.json", ["no-such.json"]),
    ("/regen", ["no question"]),
])  # fmt: skip
def test_a_bad_line_in_a_pipe_ends_it(command, fake, line, words):
    fake("hello")
    command("chat", stdin=f"{line}\nhi\n").failed_with(*words)


# On a terminal ----------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch, capsys, tmp_path):
    """terminal(lines): run the chat as a person would; a line may be an exception to raise at the prompt."""

    def call(*lines, args=()):
        queue = [*lines, EOFError()]

        def ask(prompt: str = "") -> str:
            line = queue.pop(0)
            if isinstance(line, BaseException):
                raise line
            return line

        monkeypatch.setattr("platformdirs.user_state_dir", lambda name: str(tmp_path))
        monkeypatch.setattr(sys, "stdin", Terminal())
        monkeypatch.setattr("builtins.input", ask)
        status = run(["chat", *args])
        out, err = capsys.readouterr()
        return status, out, err

    return call


def test_a_mistake_on_a_terminal_does_not_end_the_chat(terminal, fake):
    fake("hello")
    status, out, err = terminal("/dance", "hi")
    assert (status, out) == (0, "hello\n")
    assert "error: there is no command /dance" in err


def test_ctrl_c_at_the_prompt_leaves(terminal, fake):
    fake("hello", "world")
    status, out, _ = terminal("hi", KeyboardInterrupt(), "you?")
    assert (status, out) == (130, "hello\n")


def test_ctrl_c_in_an_answer_ends_only_that(terminal, fake):
    model = fake("hello world and more", "second")
    original = model.engine.generate

    def interrupted(ids, config, eos_ids):
        if len(model.engine.script) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        yield from original(ids, config, eos_ids)

    model.engine.generate = interrupted
    status, out, _ = terminal("hi", "you?")
    assert status == 0
    assert out.endswith("second\n")
    assert "more" not in out


def test_the_prompt_history_is_kept(terminal, fake, tmp_path):
    pytest.importorskip("readline").add_history("a question")
    fake()
    terminal()
    assert "a question" in (tmp_path / "chat_history").read_text()
