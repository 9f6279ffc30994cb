"""`qwen3omni generate`: where prompts come from, what goes to stdout and stderr, JSON, Ctrl-C."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import pytest

from qwen3omni_wgpu.cli import run

PROMPT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"


def shown_prompt(model, result) -> str:
    return model.tokenizer.decode(json.loads(result.out)["prompt_token_ids"], skip_special=False)


def test_stdout_is_the_answer_and_nothing_else(command, fake):
    fake("hello world")
    result = command("generate", "-p", "hi")
    assert (result.status, result.out) == (0, "hello world\n")
    assert "tokens" in result.err  # the muted line of timings
    assert len(result.err.splitlines()) == 1


def test_quiet_leaves_stderr_empty(command, fake):
    fake("hello world")
    result = command("generate", "-p", "hi", "-q")
    assert (result.out, result.err) == ("hello world\n", "")


def test_an_answer_that_ends_its_line_gets_no_second_line_end(command, fake):
    fake("hello\n")
    assert command("generate", "-p", "hi").out == "hello\n"


def test_no_stream_prints_the_same(command, fake):
    fake("hello world")
    assert command("generate", "-p", "hi", "--no-stream").out == "hello world\n"


def test_the_answer_is_printed_while_it_is_written(command, fake, monkeypatch):
    model = fake("hello world")
    written: list[int] = []
    original = model.engine.generate

    def watched(ids, config, eos_ids):
        for token in original(ids, config, eos_ids):
            written.append(sys.stdout.tell() if sys.stdout.seekable() else len(sys.stdout.getvalue()))
            yield token

    model.engine.generate = watched
    command("generate", "-p", "hi")
    assert written == sorted(written)
    assert written[-1] > written[0]


# Prompts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("args", "stdin", "prompt"), [
    (["-p", "hi"], "ignored", "hi"),
    (["-p", "-"], "from stdin\n", "from stdin"),
    ([], "from a pipe\n", "from a pipe"),
    ([], "two\nlines\n\n", "two\nlines\n"),
    (["-f", "-"], "from stdin\r\n", "from stdin"),
])  # fmt: skip
def test_where_the_prompt_comes_from(command, fake, args, stdin, prompt):
    model = fake("hello")
    result = command("generate", "--json", *args, stdin=stdin)
    assert shown_prompt(model, result) == PROMPT.format(prompt)


def test_a_prompt_file(command, fake, tmp_path):
    model = fake("hello")
    (tmp_path / "p.txt").write_text("grüße\n", encoding="utf-8")
    result = command("generate", "--json", "-f", str(tmp_path / "p.txt"))
    assert shown_prompt(model, result) == PROMPT.format("grüße")


def test_a_prompt_that_is_not_text(command, fake):
    fake("hello")
    command("generate", stdin=b"\xff\xfe").failed_with("UTF-8")


def test_a_terminal_without_a_prompt_is_an_error(fake, monkeypatch, capsys):
    fake("hello")
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    assert run(["generate"]) == 2
    assert "no prompt" in capsys.readouterr().err


@pytest.mark.parametrize(("args", "words"), [
    (["-p", "hi", "-f", "x.txt"], ["-p", "-f"]),
    (["-f", "no-such.txt"], ["no-such.txt"]),
    (["-p", "hi", "--raw", "--system", "x"], ["--raw", "--system"]),
    (["-p", "hi", "--image", "no-such.png"], ["no-such.png", "No such file"]),
    (["-p", "hi", "--speech", "x.aac"], ["x.aac", ".wav, .flac, .ogg, .mp3"]),
    (["-p", "hi", "--voice", "Ethan"], ["--voice", "--speech FILE"]),
    (["-p", "hi", "--logprobs", "129"], ["logprobs", "129"]),
    (["-p", ""], ["empty"]),
])  # fmt: skip
def test_refusals(command, fake, args, words):
    fake("hello")
    if args == ["-p", ""]:
        args = ["--raw", *args]
    command("generate", *args).failed_with(*words)


def test_a_named_part_must_be_there(command, tiny):
    command("generate", "-m", str(tiny), "-p", "hi", "--mmproj", "x.gguf").failed_with("x.gguf", "No such file")


def test_system_and_raw(command, fake):
    model = fake("hello", "hello")
    result = command("generate", "--json", "-p", "hi", "--system", "be kind")
    assert shown_prompt(model, result) == "<|im_start|>system\nbe kind<|im_end|>\n" + PROMPT.format("hi")
    result = command("generate", "--json", "-p", "hi", "--raw")
    assert shown_prompt(model, result) == "hi"


# Options ----------------------------------------------------------------------------------------------------------


def test_every_option_reaches_the_sampler(command, fake):
    model = fake("hello")
    args = "--temp 0.5 --top-k 3 --top-p 0.9 --min-p 0.1 --repeat-penalty 1.1 --repeat-last-n 32 --presence-penalty 0.2"
    more = "--frequency-penalty 0.3 -s 7 --stop A --stop B --ignore-eos --logprobs 2 -n 20"
    assert command("generate", "-p", "hi", *args.split(), *more.split()).status == 0
    config = model.configs[0]
    assert (config.temperature, config.top_k, config.top_p, config.min_p) == (0.5, 3, 0.9, 0.1)
    assert (config.repeat_penalty, config.repeat_last_n) == (1.1, 32)
    assert (config.presence_penalty, config.frequency_penalty) == (0.2, 0.3)
    assert (config.seed, config.stop, config.ignore_eos) == (7, ("A", "B"), True)
    assert (config.logprobs, config.max_tokens) == (2, 20)


def test_the_candle_examples_names(command, fake):
    model = fake("hello")
    command("generate", "--weight-path", "some.gguf", "--sample-len", "9", "--temperature", "0", "-p", "hi")
    assert model.loads[0][0] == "some.gguf"
    assert (model.configs[0].max_tokens, model.configs[0].temperature) == (9, 0)


def test_minus_one_token_means_no_limit(command, fake):
    model = fake("hello")
    command("generate", "-p", "hi", "-n", "-1")
    assert model.configs[0].max_tokens is None


def test_options_of_loading(command, fake):
    model = fake("hello")
    command("generate", "-p", "hi", "-m", "x.gguf", "-c", "128", "--device", "radeon", "--cpu")
    name, arguments = model.loads[0]
    assert name == "x.gguf"
    assert (arguments["ctx_size"], arguments["device"], arguments["cpu"]) == (128, "radeon", True)


# JSON and Ctrl-C --------------------------------------------------------------------------------------------------


def test_json_is_one_document(command, fake):
    model = fake("hello wörld")
    result = command("generate", "--json", "-p", "hi", "--logprobs", "1", "-s", "5")
    document = json.loads(result.out)
    assert len(result.out.splitlines()) == 1
    assert document["text"] == "hello wörld"
    assert model.tokenizer.decode(document["token_ids"]) == "hello wörld"
    assert (document["finish_reason"], document["device"], document["seed"]) == ("stop", "fake adapter", 5)
    for name in ("load_s", "prompt_n", "prompt_per_second", "predicted_n", "predicted_per_second"):
        assert document["timings"][name] > 0
    assert document["logprobs"][0]["id"] == document["token_ids"][0]
    assert document["logprobs"][0]["top_logprobs"][0]["logprob"] == -0.5
    assert "logprobs" not in json.loads((fake("hello"), command("generate", "--json", "-p", "hi"))[1].out)


def test_a_seed_that_was_not_given_is_reported(command, fake):
    seeds = {json.loads((fake("hello"), command("generate", "--json", "-p", "hi"))[1].out)["seed"] for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_ends_the_answer(command, fake, flags):
    model = fake("hello world and more")
    original = model.engine.generate

    def interrupted(ids, config, eos_ids):
        answer = original(ids, config, eos_ids)
        try:
            for index, token in enumerate(answer):
                if index == 1:
                    os.kill(os.getpid(), signal.SIGINT)
                yield token
        finally:
            answer.close()

    model.engine.generate = interrupted
    before = signal.getsignal(signal.SIGINT)
    result = command("generate", "-p", "hi", *flags)
    assert result.status == 130
    assert model.engine.closed_early
    assert signal.getsignal(signal.SIGINT) is before
    if flags:
        assert result.out == ""
    else:
        assert result.out.endswith("\n")
        assert 1 < len(result.out) < len("hello world and more\n")
