"""The registry of environment variables: defaults, parsing, and errors that name the variable."""

import re
from pathlib import Path

import pytest

from qwen3omni_wgpu import env
from qwen3omni_wgpu.errors import InvalidRequest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("name", "text", "value"), [
    ("QWEN3OMNI_TIMEOUT", None, 120.0),
    ("QWEN3OMNI_TIMEOUT", "1.5", 1.5),
    ("QWEN3OMNI_CHECKED", None, False),
    ("QWEN3OMNI_CHECKED", "1", True),
    ("QWEN3OMNI_DEBUG", "", False),
    ("QWEN3OMNI_MODEL", None, None),
    ("QWEN3OMNI_MODEL", "", None),
    ("QWEN3OMNI_MODEL", "a.gguf", "a.gguf"),
    ("QWEN3OMNI_SHADERS", "x", Path("x")),
    ("QWEN3OMNI_UPLOAD", None, "auto"),
    ("QWEN3OMNI_ACTIVATIONS", "q8", "q8"),
    ("QWEN3OMNI_TUNE", None, "auto"),
    ("QWEN3OMNI_TUNE", "on", "on"),
])  # fmt: skip
def test_values(monkeypatch, name, text, value):
    if text is None:
        monkeypatch.delenv(name, raising=False)
    else:
        monkeypatch.setenv(name, text)
    assert env.get(name) == value


@pytest.mark.parametrize(("name", "text"), [
    ("QWEN3OMNI_TIMEOUT", "soon"),
    ("QWEN3OMNI_TIMEOUT", "0"),
    ("QWEN3OMNI_TIMEOUT", "nan"),
    ("QWEN3OMNI_TIMEOUT", "inf"),
    ("QWEN3OMNI_CHECKED", "yes"),
    ("QWEN3OMNI_UPLOAD", "fast"),
    ("QWEN3OMNI_ACTIVATIONS", "f16"),
    ("QWEN3OMNI_TUNE", "1"),
])  # fmt: skip
def test_a_bad_value_is_named(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(InvalidRequest, match=f"{name}='{text}' must be"):
        env.get(name)


def test_the_package_reads_no_variable_that_is_not_in_the_table():
    used = set()
    for path in (ROOT / "qwen3omni_wgpu").rglob("*.py"):
        used |= set(re.findall(r"\bQWEN3OMNI_[A-Z]+\b", path.read_text()))
    assert used == set(env.VARIABLES)
