"""Folders of plain text models as transformers saves them: Qwen3, Qwen3-MoE and Llama, against transformers."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from reference.gpu_engine import open_engine, relative  # noqa: E402
from tiny_checkpoint import write_tokenizer  # noqa: E402

from qwen3omni_wgpu.convert.parts import open_parts  # noqa: E402
from qwen3omni_wgpu.formats.gguf_writer import write_gguf  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

COMMON = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS = {
    "qwen3": ("Qwen3", {}),
    "qwen3 tied": ("Qwen3", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "qwen3moe": (
        "Qwen3Moe",
        {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32, "norm_topk_prob": True},
    ),
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama3": ("Llama", {"rope_parameters": LLAMA3, "num_key_value_heads": 1}),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shards", ["5GB", "100KB"])
def test_logits(name, shards, tmp_path, device):
    kind, changes = MODELS[name]
    folder = tmp_path / "Plain-Model"
    folder.mkdir()
    vocabulary = len(write_tokenizer(folder, tokenizer_json=False)) + 5
    config = getattr(transformers, f"{kind}Config")(**(COMMON | {"vocab_size": vocabulary} | changes))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():  # as they are made, norms are all ones and matrices small
            parameter.copy_(
                torch.randn(parameter.shape) / (parameter.shape[-1] ** 0.5 if parameter.ndim > 1 else 3)
                + (parameter.ndim == 1)
            )
    model.save_pretrained(folder, max_shard_size=shards)
    ids = np.random.default_rng().integers(0, 256, 60)
    with torch.inference_mode():
        expected = model(input_ids=torch.tensor(ids[None])).logits[0].numpy()
    made = open_parts(folder, type="f32")["thinker"]
    write_gguf(tmp_path / "plain.gguf", made)
    for file in (made, open_parts(tmp_path / "plain.gguf")["thinker"]):
        engine = open_engine(file, device)
        # Float32 on both sides, sums in another order; rows swapped between pairs and halves make 10 % and more.
        assert relative(engine.logits(ids.tolist()), expected) < 1e-4
        engine.free()
        engine.model.free()
