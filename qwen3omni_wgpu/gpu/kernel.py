"""WGSL files to compute pipelines.

A shader is a legal WGSL file; its structure (include, if, for) is written as jinja2 line statements behind `//#`.
All parameters arrive as one generated block of `const` lines (module scope is order independent).
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import wgpu
from wgpu.backends.wgpu_native import GPUShaderModule

from .. import env
from ..errors import OmniError, UnsupportedDevice
from .device import Device, ffi, lib

Param = int | float | bool | str


class ShaderError(OmniError):
    """A shader does not compile on this driver; the message holds the rendered source with line numbers."""


def shader_root() -> Path:
    """$QWEN3OMNI_SHADERS (hot edits), the installed package's folder, or the repository's."""
    override = env.get("QWEN3OMNI_SHADERS")
    if override:
        return Path(override)
    package = Path(__file__).resolve().parent.parent
    for candidate in (package / "shaders", package.parent / "shaders"):
        if (candidate / "lib").is_dir():
            return candidate
    raise UnsupportedDevice(f"the shader files are missing beside {package}; reinstall the package")


@functools.cache
def _templates(root: Path) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(root),
        line_statement_prefix="//#",
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        # WGSL has braces and hashes of its own; only the line statements are directives.
        variable_start_string="\x01{",
        variable_end_string="}\x01",
        block_start_string="\x01%",
        block_end_string="%\x01",
        comment_start_string="\x01#",
        comment_end_string="#\x01",
    )


def _constant(name: str, value: int | float | bool) -> str:
    if isinstance(value, bool):
        return f"const {name}: bool = {str(value).lower()};"
    if isinstance(value, int):
        return f"const {name}: i32 = {value};" if value < 0 else f"const {name}: u32 = {value}u;"
    return f"const {name}: f32 = {value!r};"


@dataclass(frozen=True)
class Kernel:
    """A shader file with its parameters: cache key, label, profiler name and dump name in one value.

    Integers become `const u32`, floats `const f32`, bools `const bool`; strings are seen by the `//#` directives alone.
    """

    file: str
    params: tuple[tuple[str, Param], ...] = field(default=())

    @classmethod
    def of(cls, file: str, **params: Param) -> Kernel:
        return cls(file, tuple(sorted(params.items())))

    @property
    def name(self) -> str:
        return self.file.removesuffix(".wgsl")

    @property
    def label(self) -> str:
        return f"{self.name}({', '.join(f'{key}={value}' for key, value in self.params)})"

    def render(self) -> str:
        """The complete WGSL text."""
        params = dict(self.params)
        root = shader_root()
        try:
            body = _templates(root).get_template(self.file).render(params)
        except jinja2.TemplateNotFound as error:
            raise ShaderError(f"there is no shader {error.name} in {root} (QWEN3OMNI_SHADERS overrides it)") from error
        except jinja2.TemplateError as error:
            raise ShaderError(f"{root / self.file}: {error}; parameters: {self.label}") from error
        constants = [_constant(name, value) for name, value in self.params if not isinstance(value, str)]
        enables = [line for line in body.split("\n") if re.match(r"\s*(enable|requires)\s", line)]
        rest = [line for line in body.split("\n") if not re.match(r"\s*(enable|requires)\s", line)]
        return "\n".join([*dict.fromkeys(enables), *rest, "// parameters", *constants, ""])


@dataclass
class Pipeline:
    """A compiled kernel. `n_in` read-only bindings come first, then `n_out` writable ones."""

    kernel: Kernel
    handle: Any
    layout: Any
    immediate_size: int


def pipeline(device: Device, kernel: Kernel, n_in: int, n_out: int, immediate_size: int) -> Pipeline:
    """Compile (or fetch) a kernel for the device. ShaderError with the numbered source when it does not compile."""
    key = ("pipeline", kernel, n_in, n_out, immediate_size, device.checked)
    if key in device.cache:
        return device.cache[key]
    source = kernel.render()
    group_layout, pipeline_layout = _layouts(device, n_in, n_out, immediate_size)
    try:
        module = _module(device, source, kernel.label)
        handle = device.handle.create_compute_pipeline(
            label=kernel.label, layout=pipeline_layout, compute={"module": module, "entry_point": "main"}
        )
    except wgpu.GPUError as error:
        numbered = "\n".join(f"{i:4} {line}" for i, line in enumerate(source.split("\n"), 1))
        raise ShaderError(f"{kernel.label} does not compile on {device.info.name}:\n{error}\n{numbered}") from error
    device.cache[key] = Pipeline(kernel, handle, group_layout, immediate_size)
    return device.cache[key]


def _module(device: Device, source: str, label: str) -> Any:
    if device.checked:
        return device.handle.create_shader_module(label=label, code=source)
    # wgpu-py does not wrap this call. Without naga's bounds checks and loop bounding: every shader here gets its
    # bounds from shapes that the ops have checked, and the tests run them all in the checked form, too.
    code = source.encode()
    c_code, c_label = ffi.new("char[]", code), ffi.new("char[]", label.encode())
    wgsl = ffi.new("WGPUShaderSourceWGSL *")
    wgsl.chain.sType = lib.WGPUSType_ShaderSourceWGSL
    wgsl.code.data, wgsl.code.length = c_code, len(code)
    descriptor = ffi.new("WGPUShaderModuleDescriptor *")
    descriptor.nextInChain = ffi.cast("WGPUChainedStruct *", wgsl)
    descriptor.label.data, descriptor.label.length = c_label, len(label.encode())
    internal = _libf().wgpuDeviceCreateShaderModuleTrusted(device.handle._internal, descriptor, 0)
    return GPUShaderModule(label, internal, device.handle)


def _libf() -> Any:
    """The library handle that turns wgpu's errors into Python exceptions."""
    from wgpu.backends.wgpu_native import _api

    return _api.libf


def _layouts(device: Device, n_in: int, n_out: int, immediate_size: int) -> tuple[Any, Any]:
    key = ("layout", n_in, n_out, immediate_size)
    if key not in device.cache:
        kinds = ["read-only-storage"] * n_in + ["storage"] * n_out
        entries = [
            {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
            for i, kind in enumerate(kinds)
        ]
        group = device.handle.create_bind_group_layout(entries=entries)
        whole = device.handle.create_pipeline_layout(bind_group_layouts=[group], immediate_size=immediate_size)
        device.cache[key] = (group, whole)
    return device.cache[key]
