"""Shader files to WGSL text to pipelines, and what one is told when that fails."""

import re

import numpy as np
import pytest

from qwen3omni_wgpu.gpu import Kernel, Plan, ShaderError, Tensor
from qwen3omni_wgpu.gpu.kernel import pipeline, shader_root

pytestmark = pytest.mark.gpu


def constants(source: str) -> dict[str, str]:
    block = source.split("// parameters\n")[1]
    return dict(re.findall(r"^const (\w+): (.+);$", block, re.MULTILINE))


def test_parameters_become_constants(shader_folder):
    (shader_folder / "probe.wgsl").write_text("// Probe.\n")
    kernel = Kernel.of("probe.wgsl", COUNT=3, LOW=-2, EPS=1e-6, SCALE=0.5, CACHE=True, NORM=False, TYPE="q8_0")
    assert constants(kernel.render()) == {
        "COUNT": "u32 = 3u",
        "LOW": "i32 = -2",
        "EPS": "f32 = 1e-06",
        "SCALE": "f32 = 0.5",
        "CACHE": "bool = true",
        "NORM": "bool = false",
    }


def test_directives(shader_folder):
    (shader_folder / "lib" / "part.wgsl").write_text("// included\n")
    (shader_folder / "probe.wgsl").write_text(
        '//# include "lib/part.wgsl"\n//# if TYPE == "a"\nlet x = 1;\n//# else\nlet x = 2;\n//# endif\n'
        "//# for i in range(2)\n// again\n//# endfor\n// {{ left }} {% alone %} # {# here #}\n"
    )
    text = Kernel.of("probe.wgsl", TYPE="b").render()
    assert "let x = 2;" in text
    assert "let x = 1;" not in text
    assert text.count("// again") == 2
    assert "// included" in text
    assert "{{ left }} {% alone %} # {# here #}" in text
    assert "//#" not in text


def test_enable_lines_come_first(shader_folder):
    (shader_folder / "probe.wgsl").write_text("// Probe.\nconst A: u32 = 1u;\nenable f16;\n  enable f16;\n")
    lines = Kernel.of("probe.wgsl").render().splitlines()
    assert lines[0] == "enable f16;"


def test_a_missing_parameter_is_named(shader_folder):
    with pytest.raises(ShaderError, match=r"elementwise\.wgsl: 'OP' is undefined; parameters: .*COUNT=8"):
        Kernel.of("elementwise.wgsl", COUNT=8).render()


def test_a_missing_file_is_named(shader_folder):
    with pytest.raises(ShaderError, match=r"no shader nothing\.wgsl in .*shaders .*QWEN3OMNI_SHADERS"):
        Kernel.of("nothing.wgsl").render()


def test_a_wrong_folder_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("QWEN3OMNI_SHADERS", str(tmp_path / "none"))
    with pytest.raises(ShaderError, match=r"add\.wgsl in .*none .*QWEN3OMNI_SHADERS"):
        Kernel.of("add.wgsl").render()


def test_a_broken_directive_is_named(shader_folder):
    (shader_folder / "probe.wgsl").write_text("//# if X\n")
    with pytest.raises(ShaderError, match=r"probe\.wgsl: .*end of template"):
        Kernel.of("probe.wgsl", X=True).render()


def test_where_shaders_are(monkeypatch, tmp_path):
    monkeypatch.delenv("QWEN3OMNI_SHADERS", raising=False)
    assert (shader_root() / "lib" / "reduce.wgsl").is_file()
    monkeypatch.setenv("QWEN3OMNI_SHADERS", str(tmp_path))
    assert shader_root() == tmp_path


def test_edited_shaders_run(fresh, shader_folder):
    """The override decides what the GPU computes."""
    path = shader_folder / "elementwise.wgsl"
    path.write_text(path.read_text().replace("a[at] + b[at]", "a[at] - b[at]"))
    x = Tensor.from_numpy(fresh, np.full((1, 4), 7, np.float32))
    y = Tensor.from_numpy(fresh, np.full((1, 4), 5, np.float32))
    plan = Plan(fresh)
    z = plan.empty((1, 4))
    plan.add("add", Kernel.of("elementwise.wgsl", OP="add", COUNT=4, WG=64), [x, y, plan.state], [z], (1, 1, 1))
    plan.finish(keep=[z]).run()
    np.testing.assert_array_equal(z.numpy(), np.full((1, 4), 2, np.float32))


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        ("y[0] = nothing;", "nothing"),
        ("y[0] = 1.0;", "f32|float|Abstract"),
        ("let from = 1u;", "from"),
        ("const_assert COUNT > 5u;", "[Aa]ssert"),
    ],
)
def test_a_compile_error_shows_the_numbered_source(fresh, shader_folder, monkeypatch, broken, says, checked):
    monkeypatch.setattr(fresh, "checked", checked)
    (shader_folder / "probe.wgsl").write_text(
        "// Probe.\n@group(0) @binding(0) var<storage, read_write> y: array<u32>;\n\n"
        f"@compute @workgroup_size(COUNT)\nfn main() {{\n    {broken}\n    y[1] = 1u;\n}}\n"
    )
    with pytest.raises(ShaderError, match=says) as caught:
        pipeline(fresh, Kernel.of("probe.wgsl", COUNT=4), 0, 1, 0)
    message = str(caught.value)
    assert message.startswith(f"probe(COUNT=4) does not compile on {fresh.info.name}")
    assert f"   6     {broken}" in message
    assert "const COUNT: u32 = 4u;" in message


def test_kernels_are_compiled_once(fresh):
    first = Kernel.of("argmax.wgsl", V=9, WG=64, PARTS=1, LISTED=False)
    again = Kernel.of("argmax.wgsl", WG=64, LISTED=False, V=9, PARTS=1)
    assert first == again
    assert pipeline(fresh, first, 1, 1, 0) is pipeline(fresh, again, 1, 1, 0)
    other = Kernel.of("argmax.wgsl", V=10, WG=64, PARTS=1, LISTED=False)
    assert pipeline(fresh, other, 1, 1, 0) is not pipeline(fresh, first, 1, 1, 0)


def test_checked_and_trusted_are_two_pipelines(fresh, monkeypatch):
    kernel = Kernel.of("argmax.wgsl", V=9, WG=64, PARTS=1, LISTED=False)
    trusted = pipeline(fresh, kernel, 1, 1, 0)
    monkeypatch.setattr(fresh, "checked", True)
    assert pipeline(fresh, kernel, 1, 1, 0) is not trusted


def test_checked_shaders_stay_inside_their_buffers(fresh, shader_folder, monkeypatch):
    """The point of the checked form: a wild write is kept away from other memory."""
    monkeypatch.setattr(fresh, "checked", True)
    (shader_folder / "wild.wgsl").write_text(
        "// Writes far behind its buffer.\n@group(0) @binding(0) var<storage, read_write> y: array<u32>;\n"
        "@compute @workgroup_size(1)\nfn main(@builtin(workgroup_id) group: vec3<u32>) {\n"
        "    y[group.x * 50000000u] = 7u;\n}\n"
    )
    plan = Plan(fresh)
    y = plan.empty((4,), "u32", "y")
    plan.add("wild", Kernel.of("wild.wgsl"), [], [y], (20, 1, 1))
    plan.finish(keep=[y]).run()
    assert y.numpy()[0] == 7


def test_labels():
    kernel = Kernel.of("rms_norm.wgsl", WG=64, D=3)
    assert kernel.name == "rms_norm"
    assert kernel.label == "rms_norm(D=3, WG=64)"
