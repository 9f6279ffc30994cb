"""GGUF bytes to the GPU: the same bytes, by either way, counted, and given back when something goes wrong."""

import os
from pathlib import Path

import numpy as np
import pytest
from tiny_gguf import write_tiny

from qwen3omni_wgpu import weights as weights_module
from qwen3omni_wgpu.errors import InvalidModelFile, ModelNotFound, OutOfDeviceMemory
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.tensors import dequantize
from qwen3omni_wgpu.gpu import Device, Tensor
from qwen3omni_wgpu.models.config import tensor_shapes, text_config
from qwen3omni_wgpu.models.text import TOGETHER, TextModel
from qwen3omni_wgpu.ops import values
from qwen3omni_wgpu.weights import load_weights

pytestmark = pytest.mark.gpu

KINDS = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1")
WAYS = ("mapped", "staged", "auto")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("models")


def model(folder: Path, kind: str = "q8_0", **recipe) -> GGUFFile:
    path = folder / f"{kind}.gguf"
    if not path.exists():
        write_tiny(path, type=kind, vocab=223, tokenizer=False, **recipe)
    return read_gguf(path)


def file_bytes(file: GGUFFile, name: str) -> np.ndarray:
    info = file.tensors[name]
    return np.fromfile(info.path, np.uint8, info.nbytes, offset=info.offset)


@pytest.fixture(params=WAYS)
def way(request, device, monkeypatch) -> str:
    if request.param == "mapped" and "mappable-primary-buffers" not in device.features:
        pytest.skip("this adapter cannot map buffers that shaders read")
    monkeypatch.setenv("QWEN3OMNI_UPLOAD", request.param)
    return request.param


def free(tensors: dict[str, Tensor]) -> None:
    for tensor in tensors.values():
        tensor.free()


@pytest.mark.parametrize("kind", KINDS)
def test_the_bytes_are_the_files(device, folder, way, kind):
    file = model(folder, kind)
    device.wait()
    before = device.allocated
    loaded = load_weights(device, file, file.tensors)
    assert set(loaded) == set(file.tensors)
    total = 0
    for name, tensor in loaded.items():
        info = file.tensors[name]
        assert tensor.shape == info.shape
        assert tensor.dtype == info.type
        assert tensor.name == name
        np.testing.assert_array_equal(tensor.numpy().view(np.uint8).reshape(-1), file_bytes(file, name), err_msg=name)
        total += info.nbytes
    slack = 16 * len(loaded)
    assert total <= device.allocated - before <= total + slack
    free(loaded)
    assert device.allocated == before


def test_tensors_in_parts(device, folder, way, monkeypatch):
    """Every row lands once, in order, also where parts begin in the middle of a word of the file."""
    file = model(folder, "q8_0")
    device.wait()
    before = device.allocated
    with monkeypatch.context() as patch:
        patch.setitem(device.limits, "max-storage-buffer-binding-size", 9000)
        loaded = load_weights(device, file, file.tensors)
    split = [tensor for tensor in loaded.values() if len(tensor.parts) > 1]
    assert {"token_embd.weight", "blk.0.ffn_gate_exps.weight"} <= {tensor.name for tensor in split}
    for name, tensor in loaded.items():
        assert all(part.nbytes <= 9000 for part in tensor.parts)
        np.testing.assert_array_equal(tensor.numpy().view(np.uint8).reshape(-1), file_bytes(file, name), err_msg=name)
    total = sum(file.tensors[name].nbytes for name in loaded)
    assert device.allocated - before <= total + 16 * sum(len(tensor.parts) for tensor in loaded.values())
    free(loaded)
    assert device.allocated == before


def test_small_chunks(device, folder, monkeypatch):
    """Staging in chunks that do not divide the tensors."""
    monkeypatch.setenv("QWEN3OMNI_UPLOAD", "staged")
    monkeypatch.setattr(weights_module, "STAGING_BYTES", 1000)
    file = model(folder, "q4_0")
    loaded = load_weights(device, file, ["output.weight", "blk.0.attn_q.weight"])
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy().reshape(-1), file_bytes(file, name))
    free(loaded)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_short_vectors_become_float32(device, folder, way, kind):
    """Norms read float32; a file that stores them shorter still works."""
    file = read_gguf(with_vectors_of(folder, kind))
    loaded = load_weights(device, file, ["output_norm.weight"])
    tensor = loaded["output_norm.weight"]
    assert file.tensors["output_norm.weight"].type == kind
    assert tensor.dtype == "f32"
    np.testing.assert_array_equal(tensor.numpy(), dequantize(file.tensors["output_norm.weight"]))
    free(loaded)


def with_vectors_of(folder: Path, kind: str) -> Path:
    import gguf
    from tiny_gguf import TYPES

    path = folder / f"vectors_{kind}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    array = np.random.default_rng(0).standard_normal(37).astype(np.float32)
    writer.add_tensor("output_norm.weight", gguf.quants.quantize(array, TYPES[kind]), raw_dtype=TYPES[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_progress_reaches_the_total(device, folder, way):
    file = model(folder, "q8_0")
    seen: list[tuple[int, int]] = []
    loaded = load_weights(device, file, file.tensors, lambda done, total: seen.append((done, total)))
    total = sum(info.nbytes for info in file.tensors.values())
    assert {whole for _, whole in seen} == {total}
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (total, total)
    free(loaded)


def cut(folder: Path, keep: float) -> GGUFFile:
    """A file that became shorter after its header was read."""
    path = write_tiny(folder / f"cut_{keep}.gguf", type="q8_0", vocab=223, tokenizer=False)
    file = read_gguf(path)
    start = min(info.offset for info in file.tensors.values())
    os.truncate(path, start + int(keep * (path.stat().st_size - start)))
    return file


@pytest.mark.parametrize("keep", [0, 0.3, 0.999])
def test_a_file_that_became_shorter(device, tmp_path, way, keep):
    file = cut(tmp_path, keep)
    device.wait()
    before = device.allocated
    with pytest.raises(InvalidModelFile, match=r"cut_.*\.gguf: ends inside tensor '\S+' .*shorter"):
        load_weights(device, file, file.tensors)
    assert device.allocated == before


def test_a_short_vector_that_became_shorter(device, tmp_path):
    path = with_vectors_of(tmp_path, "f16")
    file = read_gguf(path)
    os.truncate(path, file.tensors["output_norm.weight"].offset + 10)
    before = device.allocated
    with pytest.raises(InvalidModelFile, match="output_norm"):
        load_weights(device, file, ["output_norm.weight"])
    assert device.allocated == before


def test_a_file_that_is_gone(device, tmp_path, way):
    file = cut(tmp_path, 1)
    file.path.unlink()
    device.wait()
    before = device.allocated
    with pytest.raises(ModelNotFound) as caught:
        load_weights(device, file, file.tensors)
    assert str(file.path) in str(caught.value)
    assert device.allocated == before


def test_no_room_gives_everything_back(device, folder, monkeypatch, way):
    device.wait()
    before = device.allocated
    original, made = Device.create_buffer, []

    def limited(self, nbytes, label="", **kwargs):
        if device.allocated - before + nbytes > 300_000 and label != "fence":
            raise OutOfDeviceMemory(f"no room for {label}", needed=nbytes)
        made.append(nbytes)
        return original(self, nbytes, label, **kwargs)

    monkeypatch.setattr(Device, "create_buffer", limited)
    file = model(folder, "f32")
    with pytest.raises(OutOfDeviceMemory, match="no room for"):
        load_weights(device, file, file.tensors)
    assert made
    assert device.allocated == before


@pytest.mark.parametrize("allowed", [0, 3])
def test_staging_takes_over_where_mapping_fails(device, folder, monkeypatch, caplog, allowed):
    """Several threads then stage at once. (The heap that the host can map may be small.)"""
    if "mappable-primary-buffers" not in device.features:
        pytest.skip("this adapter cannot map buffers that shaders read")
    monkeypatch.setenv("QWEN3OMNI_UPLOAD", "mapped")
    original, calls = Device.create_mapped, []

    def failing(self, nbytes, label=""):
        calls.append(label)
        if len(calls) > allowed:
            raise OutOfDeviceMemory("the mappable heap is full", needed=nbytes)
        return original(self, nbytes, label)

    monkeypatch.setattr(Device, "create_mapped", failing)
    device.wait()
    before = device.allocated
    file = model(folder, "q4_1")
    loaded = load_weights(device, file, file.tensors)
    assert len(calls) > allowed
    assert "mappable heap is full" in caplog.text
    for name, tensor in loaded.items():
        np.testing.assert_array_equal(tensor.numpy().view(np.uint8).reshape(-1), file_bytes(file, name), err_msg=name)
    free(loaded)
    assert device.allocated == before


def test_mapping_that_is_not_there(device, folder, monkeypatch):
    monkeypatch.setenv("QWEN3OMNI_UPLOAD", "mapped")
    monkeypatch.setattr(device, "features", device.features - {"mappable-primary-buffers"})
    before = device.allocated
    file = model(folder, "q8_0")
    with pytest.raises(OutOfDeviceMemory, match="QWEN3OMNI_UPLOAD=mapped"):
        load_weights(device, file, file.tensors)
    assert device.allocated == before


def test_which_way_is_taken(device, folder, monkeypatch):
    taken = []
    for name in ("_read_mapped", "_read_staged"):
        original = getattr(weights_module, name)
        monkeypatch.setattr(
            weights_module, name, lambda *args, name=name, original=original: (taken.append(name), original(*args))[1]
        )
    file = model(folder, "q8_0")
    for choice, uma, expected in (("auto", True, "mapped"), ("auto", False, "staged"), ("staged", True, "staged")):
        monkeypatch.setenv("QWEN3OMNI_UPLOAD", choice)
        monkeypatch.setattr(Device, "uma", uma)
        taken.clear()
        free(load_weights(device, file, ["output.weight"]))
        assert taken == [f"_read_{expected}"]


def test_an_interrupted_load_gives_everything_back(device, folder, way):
    """Ctrl-C arrives while progress is shown."""
    device.wait()
    before = device.allocated
    file = model(folder, "q8_0")

    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        load_weights(device, file, file.tensors, interrupt)
    assert device.allocated == before


@pytest.mark.parametrize("kind", KINDS)
def test_a_whole_model(device, folder, way, kind):
    file = model(folder, kind)
    device.wait()
    before = device.allocated
    loaded = TextModel.load(file, device)
    seen = set()
    for name, tensor in loaded.weights.items():
        members = members_of(name)
        expected = np.concatenate([dequantize(file.tensors[member]) for member in members])
        np.testing.assert_allclose(values(tensor), expected, rtol=1e-6, err_msg=name)
        seen |= set(members)
    for i, norms in enumerate(loaded.qk_norms):
        members = [f"blk.{i}.attn_{which}_norm.weight" for which in "qk"]
        expected = np.concatenate([dequantize(file.tensors[name]) for name in members])
        np.testing.assert_array_equal(norms.numpy(), expected)
        seen |= set(members)
    assert seen == set(tensor_shapes(text_config(file)))
    loaded.free()
    assert device.allocated == before


def members_of(name: str) -> list[str]:
    for joined, members in TOGETHER.items():
        if joined in name:
            return [name.replace(joined, member) for member in members]
    return [name]


def test_joined_tensors_hold_the_files_bytes_whatever_the_parts(device, folder, way, monkeypatch):
    """Parts that end inside a member, and staging chunks that span two."""
    file = model(folder, "q8_0")
    members = [f"blk.0.attn_{name}.weight" for name in "qkv"]
    expected = np.concatenate([file_bytes(file, name) for name in members])
    row = file.tensors[members[0]].nbytes // file.tensors[members[0]].shape[0]
    monkeypatch.setattr(weights_module, "STAGING_BYTES", 4 * row)
    for rows in (7, 64, 10_000):
        monkeypatch.setitem(device.limits, "max-storage-buffer-binding-size", rows * row)
        loaded = load_weights(device, file, members, joined={"qkv": members})
        assert set(loaded) == {"qkv"}
        assert len(loaded["qkv"].parts) == -(-loaded["qkv"].shape[0] // min(rows, loaded["qkv"].shape[0]))
        np.testing.assert_array_equal(loaded["qkv"].numpy().reshape(-1), expected)
        free(loaded)


def test_matrices_of_different_types_stay_apart(device, folder):
    file = model(folder, "q8_0")
    members = ["blk.0.attn_q.weight", "blk.0.ffn_norm.weight"]
    loaded = load_weights(device, file, members, joined={"both": members})
    assert set(loaded) == set(members)
    free(loaded)
