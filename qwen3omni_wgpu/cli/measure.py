"""Numbers that several verbs compare with: the device's copy rate, and the bytes that one decoded token must read."""

import time
from statistics import median
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from qwen3omni_wgpu.formats.gguf import GGUFFile
    from qwen3omni_wgpu.gpu import Device
    from qwen3omni_wgpu.models.config import TextConfig


def copy_rate(device: "Device", nbytes: int = 128 << 20, repeat: int = 5) -> float:
    """Bytes read plus bytes written a second by a buffer copy on the device: the ceiling for all other rates."""
    nbytes = min(nbytes, device.limits["max-buffer-size"] // 4)
    source, target = device.create_buffer(nbytes, "copy source"), device.create_buffer(nbytes, "copy target")
    try:
        times = []
        for _ in range(repeat + 1):
            encoder = device.handle.create_command_encoder()
            encoder.copy_buffer_to_buffer(source, 0, target, 0, nbytes)
            commands = encoder.finish()
            device.wait()
            start = time.perf_counter()
            device.submit([commands])
            device.wait()
            times.append(time.perf_counter() - start)
        return 2 * nbytes / median(times[1:])  # the first one touches fresh memory
    finally:
        device.free_buffer(source)
        device.free_buffer(target)


def bytes_per_token(file: "GGUFFile", config: "TextConfig", cached: float, kv_type: str = "f16") -> float:
    """Bytes that decoding one token reads: weights (the used experts only) and `cached` tokens of the KV cache."""
    from qwen3omni_wgpu.models.config import kv_bytes_per_token

    total = kv_bytes_per_token(config, kv_type) * cached
    for name, info in file.tensors.items():
        if name == "token_embd.weight" and not config.tied_head:
            total += info.nbytes / info.shape[0]  # one row; a tied embedding is read whole, as the head
        elif "_exps." in name:
            total += info.nbytes * config.n_experts_used / config.n_experts
        else:
            total += info.nbytes
    return total
