"""Every environment variable this package reads: name, default and meaning, in one table."""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, overload

from qwen3omni_wgpu.errors import InvalidRequest


def _flag(text: str) -> bool:
    if text not in ("0", "1"):
        raise ValueError("must be 0 or 1")
    return text == "1"


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError("must be a number of seconds above 0")
    return value


def _choice(*allowed: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in allowed:
            raise ValueError(f"must be one of {', '.join(allowed)}")
        return text

    return parse


@dataclass(frozen=True)
class Variable:
    """One environment variable. `parse` turns its text into the value or raises ValueError saying what is allowed."""

    name: str
    default: str  # as one would write it in a shell; empty = not set
    meaning: str
    parse: Callable[[str], Any]


_TABLE = (
    Variable("QWEN3OMNI_MODEL", "", "model to use when no -m/--model is given (file, folder or alias)", str),
    Variable("QWEN3OMNI_DEVICE", "", "adapter to use when no --device is given (part of its name, or its index)", str),
    Variable("QWEN3OMNI_SHADERS", "", "folder with the .wgsl files, instead of the installed ones", Path),
    Variable("QWEN3OMNI_CHECKED", "0", "1 = compile shaders with bounds checks (slower)", _flag),
    Variable("QWEN3OMNI_UPLOAD", "auto", "how weights reach the GPU: auto, mapped, staged",
             _choice("auto", "mapped", "staged")),
    Variable("QWEN3OMNI_TIMEOUT", "120", "seconds a wait for the GPU may last", _seconds),
    Variable("QWEN3OMNI_DEBUG", "0", "1 = run every op by itself and check its result against the NumPy twin", _flag),
    Variable("QWEN3OMNI_ACTIVATIONS", "auto", "activations of matmuls: auto, f32, q8 (packed 4x8-bit dot products)",
             _choice("auto", "f32", "q8")),
    Variable("QWEN3OMNI_TUNE", "auto",
             "kernels: auto = measured at a model's first load on a GPU, on = on any adapter, off = fixed rules",
             _choice("auto", "on", "off")),
)  # fmt: skip

VARIABLES: dict[str, Variable] = {variable.name: variable for variable in _TABLE}


@overload
def get(name: Literal["QWEN3OMNI_MODEL", "QWEN3OMNI_DEVICE"]) -> str | None: ...
@overload
def get(name: Literal["QWEN3OMNI_SHADERS"]) -> Path | None: ...
@overload
def get(name: Literal["QWEN3OMNI_CHECKED", "QWEN3OMNI_DEBUG"]) -> bool: ...
@overload
def get(name: Literal["QWEN3OMNI_TIMEOUT"]) -> float: ...
@overload
def get(name: Literal["QWEN3OMNI_UPLOAD", "QWEN3OMNI_ACTIVATIONS", "QWEN3OMNI_TUNE"]) -> str: ...
def get(name: str) -> Any:
    """The value of one registered variable: what is set, else its default, else None.

    An empty string counts as not set. InvalidRequest names the variable when its value cannot be used.
    """
    variable = VARIABLES[name]
    text = os.environ.get(name) or variable.default
    if not text:
        return None
    try:
        return variable.parse(text)
    except ValueError as error:
        raise InvalidRequest(f"environment variable {name}={text!r} {error}; meaning: {variable.meaning}") from None
