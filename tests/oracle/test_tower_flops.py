"""Live: the work that `bench --media` says the towers have, against what torch counts in transformers' towers."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.qwen3_omni_moe.configuration_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoderConfig,
    Qwen3OmniMoeVisionEncoderConfig,
)
from transformers.models.qwen3_omni_moe.modeling_qwen3_omni_moe import (
    Qwen3OmniMoeAudioEncoder,
    Qwen3OmniMoeVisionEncoder,
)

from qwen3omni_wgpu.cli.bench_media import audio_flops, vision_flops

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("frames", [1, 57, 100, 101, 199, 200])
def test_audio(frames: int) -> None:
    """One window of attention: over several, transformers' eager code multiplies what its mask then hides."""
    rng = np.random.default_rng()
    heads, channels, layers = (int(rng.integers(1, 4)) for _ in range(3))
    dim, hidden, out = 16 * heads, 8 * int(rng.integers(1, 9)), 8 * int(rng.integers(1, 9))
    config = Qwen3OmniMoeAudioEncoderConfig(
        num_mel_bins=24, encoder_layers=layers, encoder_attention_heads=heads, encoder_ffn_dim=hidden, d_model=dim,
        n_window=50, n_window_infer=200, output_dim=out, downsample_hidden_size=channels, max_source_positions=100,
    )  # fmt: skip
    config._attn_implementation = "eager"
    tower = Qwen3OmniMoeAudioEncoder(config).eval()
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(torch.zeros(24, frames), torch.tensor([frames]))
    metadata = {
        "embedding_length": dim, "feed_forward_length": hidden, "downsample_hidden_size": channels, "n_window": 50,
        "num_mel_bins": 24, "n_window_infer": 200, "block_count": layers, "projection_dim": out,
    }  # fmt: skip
    found = audio_flops({f"clip.audio.{key}": value for key, value in metadata.items()}, frames)
    assert found == counter.get_total_flops()


@pytest.mark.parametrize(("steps", "rows", "columns"), [(1, 2, 2), (1, 6, 4), (3, 4, 8)])
def test_vision(steps: int, rows: int, columns: int) -> None:
    rng = np.random.default_rng()
    heads, layers = (int(rng.integers(1, 4)) for _ in range(2))
    dim, hidden, out = 16 * heads, 8 * int(rng.integers(1, 9)), 8 * int(rng.integers(1, 9))
    taps = list(range(int(rng.integers(0, layers + 1))))
    config = Qwen3OmniMoeVisionEncoderConfig(
        depth=layers, hidden_size=dim, intermediate_size=hidden, num_heads=heads, patch_size=16, spatial_merge_size=2,
        temporal_patch_size=2, out_hidden_size=out, num_position_embeddings=64, deepstack_visual_indexes=taps,
    )  # fmt: skip
    config._attn_implementation = "eager"
    tower = Qwen3OmniMoeVisionEncoder(config).eval()
    count = steps * rows * columns
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        tower(torch.zeros(count, 3 * 2 * 16 * 16), torch.tensor([[steps, rows, columns]]))
    metadata = {
        "embedding_length": dim, "feed_forward_length": hidden, "projection_dim": out, "block_count": layers,
        "in_channels": 3, "temporal_patch_size": 2, "patch_size": 16, "spatial_merge_size": 2,
        "deepstack_visual_indexes": taps,
    }  # fmt: skip
    found = vision_flops({f"clip.vision.{key}": value for key, value in metadata.items()}, steps, rows * columns)
    assert found == counter.get_total_flops()
