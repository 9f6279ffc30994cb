"""Every case of the op table against its NumPy twin, with fresh random inputs, trusted and bounds-checked."""

import dataclasses

import pytest

from qwen3omni_wgpu.gpu import Device
from qwen3omni_wgpu.ops.cases import CASES, Case

SMALL = [case for case in CASES if not case.large]
# naga's bounds checks make the unrolled matmul kernels slow to compile on a CPU driver (minutes for all of them), so
# the checked form runs the shapes that can trip over a border: few blocks, odd rows, padded tokens.
CHECKED = [case for case in SMALL if case.params.get("d", 0) <= 96 or case.op not in ("matmul", "moe_matmul")]


def name_of(case: Case) -> str:
    return case.name


@pytest.mark.parametrize("case", SMALL, ids=name_of)
def test_trusted(case: Case, device: Device) -> None:
    assert not device.checked
    result = case.run(device)
    assert result.ok


@pytest.mark.parametrize("case", CHECKED, ids=name_of)
def test_checked(case: Case, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "checked", True)
    assert case.run(device).ok


@pytest.mark.parametrize("case", [case for case in SMALL if "variant" not in case.params], ids=name_of)
def test_with_the_rules_for_gpus(case: Case, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernel choice and workgroup sizes as on a real GPU, run on the software adapter."""
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, kind="integrated"))
    assert case.run(device).ok


def test_cases_cover_every_op() -> None:
    from qwen3omni_wgpu import ops

    not_ops = {"ShapeError", "Rows", "Tile", "Variant", "empty_rows", "lead_rows", "values", "window_tiles"}
    assert {case.op for case in CASES} == set(ops.__all__) - not_ops


def test_names_are_unique() -> None:
    assert len({case.name for case in CASES}) == len(CASES)
