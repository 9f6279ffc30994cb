"""Exit status and messages that all commands share."""

import os
import subprocess
import sys

import pytest

from qwen3omni_wgpu import __version__, cli, errors
from qwen3omni_wgpu.cli import generate as generate_module
from qwen3omni_wgpu.cli import run

VERBS = ("generate", "chat", "say", "transcribe", "inspect", "bench", "perplexity", "doctor")


def test_without_arguments_there_is_help(command):
    result = command()
    assert result.status == 0
    assert all(verb in result.out for verb in VERBS)


def test_version(command):
    result = command("--version")
    assert (result.status, result.out, result.err) == (0, f"qwen3omni {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_the_common_flags(command, verb):
    result = command(verb, "--help")
    assert result.status == 0
    for flag in ("--model", "--ctx-size", "--device", "--cpu", "--json", "--quiet", "--verbose", "--debug", "--trace"):
        assert flag in result.out


@pytest.mark.parametrize(("args", "words"), [
    (["dance"], ["dance", "qwen3omni --help"]),
    (["generate", "--nope"], ["--nope", "qwen3omni generate --help"]),
    (["generate", "-n", "many"], ["--max-tokens", "integer"]),
    (["generate", "-p"], ["-p"]),
    (["generate", "-p", "hi", "there"], ["there"]),
    (["perplexity"], ["--file"]),
    (["generate", "-p", "hi", "--temp", "-1"], ["temperature", "-1"]),
    (["generate", "-p", "hi", "--top-p", "1.5"], ["top_p", "1.5"]),
    (["generate", "-p", "hi", "-m", "no-such.gguf"], ["no-such.gguf"]),
    (["inspect", "no-such.gguf"], ["no-such.gguf"]),
    (["inspect", "a.gguf", "-m", "b.gguf"], ["once"]),
    (["bench", "ops", "-o", "xml"], ["xml", "jsonl"]),
    (["bench", "ops", "-k", "("], ["regular expression"]),
    (["bench", "ops", "-k", "no op is called so"], ["no op case"]),
    (["bench", "cats"], ["cats"]),
    (["bench", "-p", "512-"], ["-p", "512-"]),
    (["bench", "-r", "0"], ["-r 0"]),
    (["perplexity", "-f", "no-such.txt"], ["no-such.txt"]),
])  # fmt: skip
def test_bad_usage_is_one_line_and_2(command, args, words):
    command(*args).failed_with(*words)


FAMILY = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OmniError)]


@pytest.mark.parametrize("kind", FAMILY)
def test_each_error_of_the_family_is_one_line_and_2(command, monkeypatch, kind):
    monkeypatch.setattr(generate_module, "opened", raising(kind("what is wrong\nand what to do")))
    command("generate", "-p", "hi").failed_with("what is wrong; and what to do")


def test_an_internal_error_is_one_line_and_1(command, monkeypatch):
    monkeypatch.setattr(generate_module, "opened", raising(KeyError("oops")))
    command("generate", "-p", "hi").failed_with("internal error", "oops", "--debug", status=1)


@pytest.mark.parametrize("error", [KeyError("oops"), errors.InvalidRequest("oops")])
def test_debug_shows_the_traceback(monkeypatch, error):
    monkeypatch.setattr(generate_module, "opened", raising(error))
    with pytest.raises(type(error)):
        run(["generate", "-p", "hi", "--debug"])


def test_ctrl_c_is_130_and_silent(command, monkeypatch):
    monkeypatch.setattr(generate_module, "opened", raising(KeyboardInterrupt()))
    result = command("generate", "-p", "hi")
    assert (result.status, result.out, result.err) == (130, "", "")


def raising(error: BaseException):
    def opened(*_args, **_kwargs):
        raise error

    return opened


@pytest.mark.parametrize("verb", VERBS)
def test_help_waits_for_no_gpu_library(verb):
    """`--help` must be quick: neither the GPU library nor the tokenizers are loaded for it."""
    code = (
        "import sys; from qwen3omni_wgpu.cli import run; status = run(sys.argv[1:]); "
        "heavy = {'wgpu', 'tokenizers', 'gguf'} & set(sys.modules); sys.exit(str(heavy) if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code, verb, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_closed_pipe_is_quiet(tiny):
    """As in `qwen3omni inspect ... | head -1`: the reader leaves, and nobody hears of it."""
    reader, writer = os.pipe()
    os.close(reader)
    code = "import sys; from qwen3omni_wgpu.cli import main; main(sys.argv[1:])"
    for args in (["--help"], ["inspect", str(tiny), "--tensors"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *args],
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
        assert (done.returncode, done.stderr) == (0, "")
    os.close(writer)


def test_mesa_has_nothing_to_say_where_there_is_no_display(process, tiny):
    assert process("inspect", str(tiny), XDG_RUNTIME_DIR="").err == ""


def test_main_exits_with_the_status():
    with pytest.raises(SystemExit) as exit_:
        cli.main(["generate", "--nope"])
    assert exit_.value.code == 2
