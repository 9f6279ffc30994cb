"""docs/MEMORY.md says what `inspect` computes today, and its bound for the engine's own memory holds."""

import numpy as np
import pytest
from memory_table import BEGIN, END, PAGE, table
from reference.gpu_engine import open_engine
from tiny_gguf import write_tiny

from qwen3omni_wgpu.cli.footprint import workspace_bytes
from qwen3omni_wgpu.formats.gguf import read_gguf
from qwen3omni_wgpu.models.config import kv_bytes_per_token

pytestmark = pytest.mark.gpu


def test_the_page_is_what_inspect_says():
    assert PAGE.read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0].strip() == table(), (
        "run: python tools/memory_table.py --write"
    )


@pytest.mark.parametrize("arch", ["qwen3", "qwen3moe"])
def test_the_engine_stays_below_its_bound(arch, tmp_path, device):
    recipe = {"dim": 256, "n_heads": 8, "n_kv_heads": 2, "head_dim": 64, "vocab": 512, "context_length": 256}
    file = read_gguf(write_tiny(tmp_path / "x.gguf", arch=arch, **recipe))
    before = device.allocated
    engine = open_engine(file, device, ctx_size=256, kv_type="f16")
    config, chunk = engine.model.config, engine.buckets[-1]
    weights = sum(info.nbytes for info in file.tensors.values())
    engine.prefill(np.random.default_rng().integers(0, 500, chunk).tolist())
    used = device.allocated - before - weights - kv_bytes_per_token(config, "f16") * 256
    bound = workspace_bytes(config, chunk)
    engine.free()
    engine.model.free()
    assert bound / 8 < used <= bound
