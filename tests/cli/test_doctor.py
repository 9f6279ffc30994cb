"""`qwen3omni doctor`: judgements about machines that are not this one, and a real run on this one."""

import json
import os

import pytest

from qwen3omni_wgpu.cli import doctor
from qwen3omni_wgpu.errors import UnsupportedDevice
from qwen3omni_wgpu.ops import cases

GIB = 2**30


@pytest.fixture
def machine(tmp_path):
    """machine(memory, gttsize, pages): the root of a Linux machine with an AMD GPU and these kernel parameters."""

    def build(memory: int = 128 * GIB, gttsize: int | None = None, pages: int | None = None, node: bool = True):
        files = {"proc/meminfo": f"MemTotal: {memory // 1024} kB\nMemFree: 1 kB\n"}
        if gttsize is not None:
            files["sys/module/amdgpu/parameters/gttsize"] = f"{gttsize}\n"
        if pages is not None:
            files["sys/module/ttm/parameters/pages_limit"] = f"{pages}\n"
        if node:
            files["dev/dri/renderD128"] = ""
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return {check.name: check for check in doctor.strix_halo(tmp_path)}

    return build


def test_a_well_set_up_strix_halo(machine):
    checks = machine(gttsize=110 * 1024, pages=110 * GIB // 4096)
    assert {name: check.status for name, check in checks.items()} == {
        "/dev/dri": "OK", "amdgpu.gttsize": "OK", "ttm.pages_limit": "OK",
    }  # fmt: skip
    assert not any(check.fix for check in checks.values())


def test_too_small_kernel_parameters_come_with_the_ones_to_set(machine):
    checks = machine(gttsize=-1, pages=16 * GIB // 4096)
    assert checks["amdgpu.gttsize"].status == checks["ttm.pages_limit"].status == "WARN"
    assert "64 GiB of 128 GiB" in checks["amdgpu.gttsize"].found
    wanted = int(128 * GIB * 0.85)
    assert f"amdgpu.gttsize={wanted >> 20} " in checks["amdgpu.gttsize"].fix
    assert f"ttm.pages_limit={wanted // 4096} " in checks["ttm.pages_limit"].fix
    assert "16 GiB of 128 GiB" in checks["ttm.pages_limit"].found


def test_a_machine_without_an_amd_gpu_is_not_asked_about_its_parameters(machine):
    assert set(machine(node=True)) == {"/dev/dri"}


def test_no_render_node(machine):
    check = machine(node=False)["/dev/dri"]
    assert (check.status, "--device /dev/dri" in check.fix) == ("WARN", True)


def test_a_node_that_may_not_be_opened(machine, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    check = machine()["/dev/dri"]
    assert check.status == "FAIL"
    assert "usermod -aG render" in check.fix


def test_a_bad_environment_variable_fails(monkeypatch):
    monkeypatch.setenv("QWEN3OMNI_TIMEOUT", "soon")
    monkeypatch.setenv("QWEN3OMNI_CHECKED", "1")
    checks = {check.name: check for check in doctor.environment()}
    assert (checks["QWEN3OMNI_TIMEOUT"].status, checks["QWEN3OMNI_CHECKED"].status) == ("FAIL", "OK")
    assert "seconds" in checks["QWEN3OMNI_TIMEOUT"].fix


def test_small_limits_are_warnings():
    small = {"max-buffer-size": 2**31 - 1, "max-storage-buffer-binding-size": 128 << 20}
    assert [check.status for check in doctor.limits(small)] == ["OK", "WARN"]


def test_without_any_adapter_it_fails_with_the_fix(command, monkeypatch):
    def none(*_args, **_kwargs):
        raise UnsupportedDevice("no Vulkan driver was found. Install one")

    monkeypatch.setattr("qwen3omni_wgpu.gpu.Device.open", none)
    result = command("doctor")
    assert result.status == 1
    assert "FAIL  adapter" in result.out
    assert "fix: no Vulkan driver was found" in result.out


@pytest.fixture
def few_cases(monkeypatch):
    """Only the quick cases of two ops."""
    chosen = tuple(case for case in cases.CASES if case.op in ("rms_norm", "argmax"))
    monkeypatch.setattr(cases, "CASES", chosen)
    return chosen


@pytest.mark.gpu
def test_a_real_run(command, adapter, few_cases):
    result = command("doctor", "--device", adapter, "--cpu", "--json")
    report = json.loads(result.out)
    assert (result.status, report["status"] in ("OK", "WARN")) == (0, True), report
    assert adapter.lower() in report["device"]["name"].lower()
    assert report["copy_bytes_per_second"] > 1e8
    assert set(report["self_test"]) == {"rms_norm", "argmax"}
    assert report["self_test"]["rms_norm"]["max_error"] < 1e-4
    text = command("doctor", "--device", adapter, "--cpu").out
    assert "OK    op argmax" in text
    assert "GB/s" in text


@pytest.mark.gpu
def test_an_op_that_computes_nonsense_fails(command, adapter, few_cases, monkeypatch):
    from qwen3omni_wgpu.ops.cases import Case

    original = Case.run

    def broken(self, device, **options):
        if self.op == "argmax":
            from qwen3omni_wgpu.gpu import NumericalError

            raise NumericalError("argmax differs from its twin")
        return original(self, device, **options)

    monkeypatch.setattr(Case, "run", broken)
    result = command("doctor", "--device", adapter, "--cpu")
    assert result.status == 1
    assert "FAIL  op argmax" in result.out
    assert "OK    op rms_norm" in result.out
