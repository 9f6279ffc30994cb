"""The only folder that knows wgpu: device, tensors, kernels, plans and profiling."""

from .device import AdapterInfo, Device, list_adapters
from .kernel import Kernel, ShaderError
from .plan import NumericalError, Plan, Step
from .profile import Profiler
from .readback import Pending, ReadBack
from .stopwatch import Stopwatch
from .tensor import BLOCK, Part, Storage, Tensor, nbytes_of

__all__ = [
    "BLOCK",
    "AdapterInfo",
    "Device",
    "Kernel",
    "NumericalError",
    "Part",
    "Pending",
    "Plan",
    "Profiler",
    "ReadBack",
    "ShaderError",
    "Step",
    "Stopwatch",
    "Storage",
    "Tensor",
    "list_adapters",
    "nbytes_of",
]
