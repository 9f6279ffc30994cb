"""Fixtures of the GPU layer's tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.gpu.kernel import shader_root


@pytest.fixture
def fresh(adapter: str) -> Iterator[Device]:
    """A device of one's own: nothing compiled, nothing allocated."""
    with Device.open(adapter) as opened:
        yield opened


@pytest.fixture
def shader_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of all shaders that a test may change; use it with `fresh`, whose pipelines are not compiled yet."""
    monkeypatch.delenv("QWEN3OMNI_SHADERS", raising=False)
    folder = tmp_path / "shaders"
    shutil.copytree(shader_root(), folder)
    monkeypatch.setenv("QWEN3OMNI_SHADERS", str(folder))
    return folder
