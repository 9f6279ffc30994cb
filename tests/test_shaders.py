"""All shader files against the conventions in shaders/README.md, as text and as the op cases render them."""

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from qwen3omni_wgpu.gpu import Device, Kernel, Plan
from qwen3omni_wgpu.gpu import plan as plan_module
from qwen3omni_wgpu.gpu.kernel import Pipeline
from qwen3omni_wgpu.ops.cases import BUILDERS, CASES

pytestmark = pytest.mark.gpu

ROOT = Path(__file__).resolve().parent.parent
SHADERS = ROOT / "shaders"
OPS = ROOT / "qwen3omni_wgpu" / "ops"
FILES = sorted(SHADERS.glob("*.wgsl"))
LIBRARY = sorted((SHADERS / "lib").glob("*.wgsl"))
EVERY = [*FILES, *LIBRARY]

# (file, variable): every element is assigned before it is read, in every round.
ASSIGNED_IN_FULL = {("matvec.wgsl", "blocks"), ("matvec.wgsl", "fours"), ("matmul.wgsl", "fours")}
ASSIGNED_IN_FULL |= {("matmul.wgsl", name) for name in ("low", "high", "factors")}

# Uses subgroups of 8 where ops/row_chunks.py knows that there are such, and else does without.
EIGHTS = {"row_matvec.wgsl"}


def name_of(path: Path) -> str:
    return str(path.relative_to(SHADERS))


every_file = pytest.mark.parametrize("path", EVERY, ids=name_of)
every_shader = pytest.mark.parametrize("path", FILES, ids=name_of)


@pytest.fixture(scope="module")
def kernels(device: Device) -> dict[Kernel, tuple[int, int]]:
    """Every kernel of the op table with its numbers of inputs and outputs; recorded, not compiled."""
    found: dict[Kernel, tuple[int, int]] = {}

    def record(_device: Device, kernel: Kernel, n_in: int, n_out: int, immediates: int) -> Pipeline:
        found[kernel] = (n_in, n_out)
        return Pipeline(kernel, None, None, immediates)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("QWEN3OMNI_SHADERS", raising=False)
        patch.setattr(plan_module, "pipeline", record)
        for case in CASES:
            if not case.large:
                BUILDERS[case.op](Plan(device, case.op), np.random.default_rng(0), **case.params)
    return found


@pytest.fixture(scope="module")
def rendered(kernels) -> dict[Kernel, str]:
    return {kernel: kernel.render() for kernel in kernels}


@cache
def code_of(path: Path) -> str:
    """The file without comments and directives."""
    return re.sub(r"//.*", "", path.read_text())


def test_there_are_shaders():
    assert len(FILES) >= 15
    assert {path.parent for path in SHADERS.rglob("*.wgsl")} == {SHADERS, SHADERS / "lib"}


@every_shader
def test_some_case_renders_it(path, kernels):
    assert path.name in {kernel.file for kernel in kernels}


@every_file
def test_every_line_is_rendered_by_some_case(path, rendered):
    """No branch of a directive is left that the op table, and so the tests, never see."""
    seen = {line for text in rendered.values() for line in text.splitlines()}
    lines = [line for line in path.read_text().splitlines() if not line.startswith("//#")]
    assert [line for line in lines if line not in seen] == []


@every_file
def test_opens_with_a_comment(path):
    if path.name == "weight.wgsl":
        pytest.skip("directives only")
    first = path.read_text().splitlines()[0]
    assert re.match(r"// \S.{10,}", first), first


@every_shader
def test_head_says_bindings_and_caller(path):
    head = "\n".join(line for line in path.read_text().split("\n@")[0].splitlines() if line.startswith("//"))
    assert "Bindings: " in head
    callers = re.findall(r"ops/(\w+\.py)", head)
    assert callers
    source = (OPS / callers[0]).read_text()
    assert path.name in source or "{variant.shader}.wgsl" in source


def value_of(expression: str, constants: dict[str, str]) -> int:
    """Of a WGSL expression of numbers, bools, select, u32 and other constants."""
    words = re.sub(r"\b(\d+)u\b", r"\1", expression).replace("||", " or ").replace("&&", " and ").replace("!", " not ")
    known = {"select": lambda no, yes, which: yes if which else no, "u32": int, "true": True, "false": False}
    names = set(re.findall(r"[A-Za-z_]\w*", words)) - known.keys() - {"or", "and", "not"}
    return eval(words, known | {name: value_of(constants[name], constants) for name in names})


def bindings_of(text: str) -> list[tuple[int, int, str, str]]:
    """(group, number, access, name) of every buffer, by number."""
    code = re.sub(r"//.*", "", text)
    constants = dict(re.findall(r"const (\w+): \w+ = ([^;]+);", code))
    found = re.findall(r"@group\((\d)\) @binding\((.+?)\) var<storage, (\w+)> (\w+)", code)
    return sorted((int(group), value_of(number, constants), access, name) for group, number, access, name in found)


def test_bindings_are_inputs_then_outputs(kernels, rendered):
    for kernel, (n_in, n_out) in kernels.items():
        found = bindings_of(rendered[kernel])
        assert [group for group, *_ in found] == [0] * (n_in + n_out), kernel.label
        assert [number for _, number, *_ in found] == list(range(n_in + n_out)), kernel.label
        assert [access for *_, access, _ in found] == ["read"] * n_in + ["read_write"] * n_out, kernel.label


def test_bindings_are_listed_in_order(kernels, rendered):
    for kernel in kernels:
        text = rendered[kernel]
        listed = re.search(r"Bindings: ([^.]*?)\.(?: |$)", text.replace("\n//", " "), re.MULTILINE)
        assert listed, kernel.label
        at = -1
        for *_, name in bindings_of(text):
            match = re.search(rf"\b{name}\b", listed[1][at + 1 :])
            assert match, f"{kernel.label}: {name} is not in its place in 'Bindings: {listed[1]}'"
            at += 1 + match.start()


def test_every_parameter_is_used(kernels, rendered):
    """A parameter that no shader reads would only split the pipeline cache."""
    for kernel, text in rendered.items():
        source = (SHADERS / kernel.file).read_text()
        for name, value in kernel.params:
            if isinstance(value, str):
                names_it = re.search(rf"\b{name}\b", source) or "lib/" in source
            else:
                body = text.split("// parameters")[0]
                names_it = len(re.findall(rf"\b{name}\b", body + source))
            assert names_it, f"{kernel.label}: {name}"


@every_shader
def test_entry_point(path):
    code = code_of(path)
    assert len(re.findall(r"@compute @workgroup_size\(\w+\)\s+fn main\(", code)) == 1
    assert code.count("@compute") == 1


def variables_in_loops(code: str) -> Iterator[str]:
    """Names of `var x: T;` without a value inside the body of a loop."""
    loops: list[bool] = []
    statement = ""
    depth = 0
    for char in code:
        depth += {"(": 1, ")": -1}.get(char, 0)
        if char == "{":
            loops.append(bool(re.search(r"\b(for|while|loop|continuing)\b", statement)))
            statement = ""
        elif char == "}":
            loops.pop()
            statement = ""
        elif char == ";" and depth == 0:
            match = re.fullmatch(r"\s*var (\w+)\s*:[^=]*", statement)
            if match and any(loops):
                yield match[1]
            statement = ""
        else:
            statement += char


def test_the_check_of_loops_finds_what_it_should():
    inside = "var b: array<u32, 4>; if (x) { var c: f32; } var d = 1; var e = array<u32, 2>();"
    code = f"fn f() {{ var a: u32; for (var i = 0u; i < 3u; i++) {{ {inside} }} var g: u32; }}"
    assert list(variables_in_loops(code)) == ["b", "c"]


@every_file
def test_variables_in_loops_have_values(path):
    """naga 29 sets them once and not in every round."""
    found = {(path.name, name) for name in variables_in_loops(code_of(path))}
    assert found <= ASSIGNED_IN_FULL, "write `var x = T();` (see shaders/README.md)"


def test_the_list_of_exceptions_is_not_longer_than_needed():
    found = {(path.name, name) for path in EVERY for name in variables_in_loops(code_of(path))}
    assert found == ASSIGNED_IN_FULL


@every_file
def test_no_pointer_to_an_element_is_passed(path):
    """naga 29 aborts the process over them; atomics are built in and fine."""
    assert re.findall(r"(?<!atomicAdd\()(?<!atomicLoad\()(?<!atomicStore\()&\w+(?:\.\w+)*\[", code_of(path)) == []


@every_file
def test_directives_are_the_only_templates(path):
    text = path.read_text()
    assert not re.search(r"\{\{|\{%|\{#", text)
    for line in text.splitlines():
        if "//#" in line:
            assert re.match(r"//# (include|if|elif|else|endif|for|endfor)\b", line), line


@every_file
def test_includes_are_one_level_deep(path):
    if path in FILES:
        return
    for included in re.findall(r'include "(lib/\w+\.wgsl)"', path.read_text()):
        assert "include" not in (SHADERS / included).read_text()


@every_file
def test_nothing_optional_is_needed(path):
    """Neither half precision nor subgroups: some drivers have neither, and none promises a subgroup size."""
    if path.name in EIGHTS:
        return
    assert not re.search(r"\benable\b|\bsubgroup\w*|\bf16\(|<f16>|: f16\b", code_of(path))


@every_file
def test_lines_are_short_and_clean(path):
    for line in path.read_text().splitlines():
        assert len(line) <= 130, line
        assert line == line.rstrip(), line
        assert "\t" not in line
