"""Language models on the GPU through WebGPU: GGUF weights, WGSL compute shaders, Python.

from qwen3omni_wgpu import Omni
with Omni.from_pretrained("smollm2") as omni:
    print(omni.generate("What is a shader?").text)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from qwen3omni_wgpu.chat import Chat
    from qwen3omni_wgpu.errors import (
        DeviceLost,
        InvalidModelFile,
        InvalidRequest,
        ModelNotFound,
        OmniError,
        OutOfDeviceMemory,
        UnsupportedDevice,
        UnsupportedModel,
    )
    from qwen3omni_wgpu.events import AudioChunk, Done, Event, Progress, Reply, TextDelta, TokenLogprob, TopLogprob
    from qwen3omni_wgpu.inputs.audio_file import Audio
    from qwen3omni_wgpu.omni import Omni
    from qwen3omni_wgpu.sampler import GenerationConfig

__version__ = "0.1.0"

_HOME = {
    "chat": ("Chat",),
    "omni": ("Omni",),
    "sampler": ("GenerationConfig",),
    "events": ("AudioChunk", "Done", "Event", "Progress", "Reply", "TextDelta", "TokenLogprob", "TopLogprob"),
    "inputs.audio_file": ("Audio",),
    "errors": (
        "DeviceLost",
        "InvalidModelFile",
        "InvalidRequest",
        "ModelNotFound",
        "OmniError",
        "OutOfDeviceMemory",
        "UnsupportedDevice",
        "UnsupportedModel",
    ),
}

__all__ = [
    "Audio",
    "AudioChunk",
    "Chat",
    "DeviceLost",
    "Done",
    "Event",
    "GenerationConfig",
    "InvalidModelFile",
    "InvalidRequest",
    "ModelNotFound",
    "Omni",
    "OmniError",
    "OutOfDeviceMemory",
    "Progress",
    "Reply",
    "TextDelta",
    "TokenLogprob",
    "TopLogprob",
    "UnsupportedDevice",
    "UnsupportedModel",
]


def __getattr__(name: str) -> Any:
    """Import public names when they are first used: `qwen3omni --help` must not wait for the GPU library."""
    for module, names in _HOME.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
