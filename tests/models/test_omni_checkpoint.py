"""Qwen3-Omni checkpoint folders on the GPU: every layout and type, as a folder and as written files, against
transformers' goldens."""

from pathlib import Path

import gguf
import numpy as np
import pytest
from reference.goldens import OmniGolden, omni_names, read_omni
from reference.gpu_engine import decode, open_engine, relative, same_until_a_tie

from qwen3omni_wgpu.convert.parts import open_parts
from qwen3omni_wgpu.formats.checkpoint import read_checkpoint
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.formats.gguf_writer import write_gguf
from qwen3omni_wgpu.formats.tensors import dequantize

pytestmark = pytest.mark.gpu

# Of the largest logit. Sums are in another order than transformers', and WGSL lets a GPU's sin and cos be off by 2^-11;
# on software adapters, whose functions are exact, 2e-6 was measured. One weight rounded to f16 shows as 3e-4.
SAME_WEIGHTS = {True: 5e-5, False: 1e-3}
LAYOUTS = ("index", "single", "numbered")


def check(golden: OmniGolden, file: GGUFFile, device, expected: np.ndarray) -> None:
    engine = open_engine(file, device)
    try:
        assert relative(engine.logits(golden.ids.tolist()), expected) < SAME_WEIGHTS[device.info.software]
        if expected is golden.logits:
            assert same_until_a_tie(decode(engine, golden.ids, len(golden.greedy)), golden.greedy, golden.margins, 1e-3)
    finally:
        engine.free()
        engine.model.free()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", omni_names())
def test_a_folder_runs_as_it_is(name, layout, tmp_path, device):
    golden = read_omni(name)
    folder = golden.write(tmp_path / "Tiny-Omni", layout)
    check(golden, open_parts(folder, type="f32")["thinker"], device, golden.logits)


@pytest.mark.parametrize("name", omni_names())
@pytest.mark.parametrize("type", ["f32", "q8_0"])
def test_a_written_file_is_the_folder(name, type, tmp_path, device):
    """Bytes of the file are those the folder is loaded with, and both answer as transformers does."""
    golden = read_omni(name)
    folder = golden.write(tmp_path / "Tiny-Omni", LAYOUTS[len(name) % 3])
    made = open_parts(folder, type=type)["thinker"]
    write_gguf(tmp_path / "tiny.gguf", made)
    written = open_parts(tmp_path / "tiny.gguf")["thinker"]
    assert list(written.tensors) == list(made.tensors)
    for key, value in made.metadata.items():
        assert written.metadata[key] == (pytest.approx(value, rel=1e-7) if isinstance(value, float) else value), key
    for tensor, info in made.tensors.items():
        assert (written.tensors[tensor].type, written.tensors[tensor].shape) == (info.type, info.shape)
        np.testing.assert_array_equal(dequantize(written.tensors[tensor]), dequantize(info))
    expected = golden.logits if type == "f32" else golden.q8_0_logits
    for file in (made, written):
        check(golden, file, device, expected)


def test_quantised_weights_are_not_the_original_ones():
    """The bound would not hold between the two models: the test above can fail."""
    for name in omni_names():
        golden = read_omni(name)
        assert relative(golden.q8_0_logits, golden.logits) > 10 * max(SAME_WEIGHTS.values())


@pytest.mark.parametrize("type", ["f32", "f16", "q8_0"])
def test_one_gguf_with_hugging_face_names(type, tmp_path, device):
    """All tensors under the checkpoint's names in one file, config.json and tokenizer beside it."""
    golden = read_omni("small")
    folder = golden.write(tmp_path / "Tiny-Omni", "single")
    write_single(folder, folder / "model.gguf", type)
    (folder / "model.safetensors").unlink()
    model = open_parts(folder / "model.gguf")
    assert list(model) == ["thinker", "mmproj", "talker"]
    kinds = {info.type for info in model["thinker"].tensors.values()}
    assert kinds == {"f32", type}
    check(golden, model["thinker"], device, golden.q8_0_logits if type == "q8_0" else golden.logits)
    for part in ("mmproj", "talker"):
        assert all(np.isfinite(dequantize(info)).all() for info in model[part].tensors.values())


def write_single(folder: Path, path: Path, type: str) -> None:
    """As the candle example's quantiser writes it: matrices with whole blocks in `type`, all else float32."""
    writer = gguf.GGUFWriter(path, "qwen3omni")
    for name, info in read_checkpoint(folder).tensors.items():
        values = dequantize(info)
        if values.ndim > 4:  # the video patch kernel has five dimensions, GGUF four
            values = values.reshape(values.shape[0], -1)
        whole = values.ndim == 2 and values.shape[-1] % 32 == 0 and not name.endswith(".mlp.gate.weight")
        kind = gguf.GGMLQuantizationType[type.upper() if whole else "F32"]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
