"""Live: llama.cpp (its library comes with llama-cpp-python) reads the files that `quantize` writes, and says the same.

Run with `pytest -m oracle`; needs llama_cpp, torch and transformers.
"""

import ctypes
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_checkpoint import ADDED, SPECIAL, write_tiny_checkpoint

pytest.importorskip("torch")
pytest.importorskip("transformers")
pytest.importorskip("llama_cpp")
import llama_cpp
import torch
import transformers
from llama_cpp import mtmd_cpp
from reference.gpu_engine import relative, same_until_a_tie

from oracle.hf_models import oracle
from qwen3omni_wgpu.convert.parts import ModelParts, open_parts
from qwen3omni_wgpu.formats.gguf import GGUFFile, read_gguf
from qwen3omni_wgpu.formats.gguf_writer import write_gguf
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer

pytestmark = pytest.mark.oracle

# Largest error allowed, of the largest logit. f32: other sums, another exp. Else llama.cpp rounds the inputs of
# products to the type of the weights (q8_0: to 8 bits a block), where transformers has float32, and may choose another
# expert for it. Measured: 1e-6, 7e-4, 7e-3, 2e-2; a wrong tensor makes 50 % and more.
NOISE = {"f32": 1e-4, "f16": 5e-3, "bf16": 5e-2, "q8_0": 5e-2}

_log: list[str] = []


@llama_cpp.llama_log_callback
def _keep(_level: int, text: bytes, _data: Any) -> None:
    _log.append(text.decode(errors="replace"))


@pytest.fixture
def log() -> list[str]:
    """All that the two libraries print from here on."""
    _log.clear()
    llama_cpp.llama_log_set(_keep, ctypes.c_void_p())
    mtmd_cpp.mtmd_log_set(_keep, ctypes.c_void_p())
    return _log


@dataclass(frozen=True)
class Tiny:
    """A checkpoint and its files of one type, thinker and mmproj."""

    source: Path
    type: str
    thinker: Path
    mmproj: Path


def write_files(folder: Path, type: str, **dims: Any) -> Tiny:
    source = folder / "Tiny"
    if not source.exists():
        write_tiny_checkpoint(source, np.random.default_rng(31), **dims)
    parts: ModelParts = open_parts(source, type=type)
    paths = {part: folder / f"{part}-{type}.gguf" for part in ("thinker", "mmproj")}
    for part, path in paths.items():
        write_gguf(path, parts[part])
    return Tiny(source, type, paths["thinker"], paths["mmproj"])


@pytest.fixture(scope="module", params=NOISE)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """With deepstack, as the release is; 0.3 to 0.6 million weights in the thinker."""
    folder = tmp_path_factory.mktemp("deep")
    return write_files(folder, request.param, thinker_layers=3, thinker_hidden=96, experts=8, top_k=3)


# The thinker -------------------------------------------------------------------------------------------------------


def open_llama(path: Path) -> llama_cpp.Llama:
    """On the CPU, with float32 keys and values and no fused attention, which would round them."""
    return llama_cpp.Llama(
        str(path),
        n_gpu_layers=0,
        n_ctx=256,
        logits_all=True,
        verbose=False,
        type_k=llama_cpp.GGML_TYPE_F32,
        type_v=llama_cpp.GGML_TYPE_F32,
        flash_attn_type=llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
    )


def llama_logits(llama: llama_cpp.Llama, ids: list[int]) -> np.ndarray:
    llama.reset()
    llama.eval(ids)
    return np.array(llama.scores[: len(ids)], dtype=np.float32)


def llama_greedy(llama: llama_cpp.Llama, ids: list[int], count: int) -> list[int]:
    llama.reset()
    found: list[int] = []
    while len(found) < count:
        llama.eval(ids if not found else found[-1:])
        found.append(int(np.argmax(llama.scores[llama.n_tokens - 1])))
    return found


def test_logits_and_greedy_answer(tiny):
    live, llama = oracle(read_gguf(tiny.thinker)), open_llama(tiny.thinker)
    ids = np.random.default_rng(7).integers(0, 300, 40).tolist()
    expected = live.logits(ids)
    error = relative(llama_logits(llama, ids), expected)
    greedy, margins = live.greedy(ids, 48)
    near = 2 * NOISE[tiny.type] * np.abs(expected).max()
    compared = same_until_a_tie(llama_greedy(llama, ids, 48), greedy, margins, near=near)
    print(f"{tiny.type}: {error:.2e} of the largest logit, {compared} greedy ids agree")
    assert error < NOISE[tiny.type]
    assert compared >= (8 if tiny.type == "bf16" else 32)


def test_all_metadata_are_read(tiny, log):
    """What llama.cpp takes out of the file, and no complaint about anything it looks for."""
    llama = open_llama(tiny.thinker)
    found, file = llama.metadata, read_gguf(tiny.thinker)
    for key, value in file.metadata.items():
        if not isinstance(value, list):
            text = found[key]
            assert float(text) == pytest.approx(value, abs=1e-6) if isinstance(value, float) else True
            assert text.lower() == str(value).lower() if isinstance(value, bool | int | str) else True
    model = llama._model.model
    assert llama_cpp.llama_model_n_embd_inp(model) == 96 * (1 + 2)  # with the maps of deepstack
    assert llama_cpp.llama_model_rope_type(model) == 40  # interleaved M-RoPE
    assert llama_cpp.llama_model_n_params(model) == sum(int(np.prod(info.shape)) for info in file.tensors.values())
    text = "".join(log)
    assert "missing" not in text
    assert "not found" not in text
    assert f"file type   = {'all F32' if tiny.type == 'f32' else tiny.type.upper()}" in text
    assert llama.token_eos() == file.metadata["tokenizer.ggml.eos_token_id"]


def test_tokens(tiny):
    """NFC texts only: llama.cpp does not normalise."""
    llama, ours = open_llama(tiny.thinker), Tokenizer.from_gguf(read_gguf(tiny.thinker).metadata)
    rng = np.random.default_rng(11)
    texts = ["hello world", " It's", " 42", "\n\n\t ", "日本語", "👩\u200d👧", "\r\n  x", "\xe9", "<|im_", "user"]
    pieces = [*SPECIAL, *ADDED, *texts]
    for _ in range(300):
        text = "".join(rng.choice(pieces, rng.integers(0, 8)))
        assert llama.tokenize(text.encode(), add_bos=True, special=True) == ours.encode(text, add_special=True), text
        plain = text.replace("<|", "<").replace("|>", ">")
        assert llama.tokenize(plain.encode(), add_bos=False, special=False) == ours.encode(plain, parse_special=False)


# The towers --------------------------------------------------------------------------------------------------------


class Clip:
    """llama.cpp's towers from an mmproj file, beside a thinker."""

    def __init__(self, mmproj: Path, thinker: Path | None):
        parameters = llama_cpp.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self.model = llama_cpp.llama_model_load_from_file(str(thinker).encode(), parameters) if thinker else None
        settings = mtmd_cpp.mtmd_context_params_default()
        settings.use_gpu, settings.warmup, settings.n_threads = False, False, 1
        settings.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self.context = mtmd_cpp.mtmd_init_from_file(str(mmproj).encode(), self.model, settings)

    def image(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [H, W, 3] -> float32 [tokens, columns]."""
        return self._encode(self._picture(pixels))

    def sound(self, waveform: np.ndarray) -> np.ndarray:
        """float32 at 16 kHz -> float32 [tokens, columns]."""
        data = (ctypes.c_float * waveform.size).from_buffer_copy(np.ascontiguousarray(waveform, np.float32))
        return self._encode(mtmd_cpp.mtmd_bitmap_init_from_audio(waveform.size, data))

    def prompt_logits(self, prompt: str, pixels: np.ndarray, llama: llama_cpp.Llama) -> np.ndarray:
        """Logits float32 [V] after a prompt with one image where the marker stands."""
        chunks, end = self._chunks(prompt.encode(), self._picture(pixels)), ctypes.c_int32()
        context = llama._ctx.ctx
        status = mtmd_cpp.mtmd_helper_eval_chunks(self.context, context, chunks, 0, 0, 256, True, ctypes.byref(end))
        assert status == 0
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (llama.n_vocab(),)).copy()

    def _picture(self, pixels: np.ndarray) -> Any:
        height, width, _ = pixels.shape
        return mtmd_cpp.mtmd_bitmap_init(width, height, (ctypes.c_uint8 * pixels.size).from_buffer_copy(pixels))

    def _chunks(self, prompt: bytes, bitmap: Any) -> Any:
        chunks = mtmd_cpp.mtmd_input_chunks_init()
        text = mtmd_cpp.mtmd_input_text(prompt, len(prompt), False, True)
        assert mtmd_cpp.mtmd_tokenize(self.context, chunks, ctypes.byref(text), (ctypes.c_void_p * 1)(bitmap), 1) == 0
        return chunks

    def _encode(self, bitmap: Any) -> np.ndarray:
        chunks = self._chunks(mtmd_cpp.mtmd_default_marker(), bitmap)
        count = mtmd_cpp.mtmd_input_chunks_size(chunks)
        media = [mtmd_cpp.mtmd_input_chunks_get(chunks, i) for i in range(count)]
        media = [m for m in media if mtmd_cpp.mtmd_input_chunk_get_type(m) != mtmd_cpp.MTMD_INPUT_CHUNK_TYPE_TEXT]
        assert len(media) == 1
        assert mtmd_cpp.mtmd_encode_chunk(self.context, media[0]) == 0
        tokens = mtmd_cpp.mtmd_input_chunk_get_n_tokens(media[0])
        columns = llama_cpp.llama_model_n_embd_inp(self.model)
        values = mtmd_cpp.mtmd_get_output_embd(self.context)
        return np.ctypeslib.as_array(values, (tokens, columns)).copy()


def only(path: Path, tower: str, target: Path) -> Path:
    """The mmproj file with one of the towers left out, as `clip` files of other models are."""
    file = read_gguf(path)
    other = "audio" if tower == "vision" else "vision"
    audio = ("a.", "mm.a.")
    tensors = {n: info for n, info in file.tensors.items() if n.startswith(audio) == (tower == "audio")}
    metadata = {key: value for key, value in file.metadata.items() if not key.startswith(f"clip.{other}.")}
    write_gguf(target, GGUFFile(path, metadata | {f"clip.has_{other}_encoder": False}, tensors))
    return target


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    """A size that nobody has to scale: whole merged patches, and not too few of them."""
    return np.random.default_rng(41).integers(0, 256, (96, 128, 3)).astype(np.uint8)


def load(source: Path) -> Any:
    return transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
        source, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
    ).eval()


def patches(pixels: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, 3 * 2 * 16 * 16] in the order of merged groups of four, and the grid (t, h, w)."""
    height, width = pixels.shape[0] // 16, pixels.shape[1] // 16
    x = np.repeat(pixels[None].astype(np.float32) / 127.5 - 1, 2, axis=0)  # both frames are the same
    x = x.reshape(1, 2, height // 2, 2, 16, width // 2, 2, 16, 3).transpose(0, 2, 5, 3, 6, 8, 1, 4, 7)
    return torch.from_numpy(x.reshape(height * width, -1)), torch.tensor([[1, height, width]])


def see(model: Any, pixels: np.ndarray) -> np.ndarray:
    """What transformers makes of an image: the merged patches, and beside them the maps of deepstack."""
    values, grid = patches(pixels)
    with torch.inference_mode():
        out = model.thinker.model.visual(values, grid_thw=grid)
    return torch.cat([out.pooler_output, *(out.deepstack_features or ())], dim=1).numpy()


def hear(model: Any, waveform: np.ndarray) -> np.ndarray:
    """The same for sound, with every frame that llama.cpp counts: one more than transformers does."""
    extractor = transformers.WhisperFeatureExtractor(feature_size=128)
    frames = np.lib.stride_tricks.sliding_window_view(np.pad(waveform.astype(np.float64), 200, "reflect"), 400)[::160]
    power = np.abs(np.fft.rfft(frames * np.hanning(401)[:-1])) ** 2
    mel = np.log10(np.maximum(power @ extractor.mel_filters, 1e-10)).T
    mel = ((np.maximum(mel, mel.max() - 8) + 4) / 4).astype(np.float32)
    assert mel.shape[1] % 100 == 0, "a part of a chunk, which llama.cpp fills up"
    with torch.inference_mode():
        out = model.thinker.model.audio_tower(torch.from_numpy(mel), feature_lens=torch.tensor([mel.shape[1]]))
    return out.last_hidden_state.numpy()


# Of the largest value. llama.cpp takes the tanh approximation of GELU in the mergers, where transformers has erf.
VISION = {"f32": 3e-3, "q8_0": 6e-2}
AUDIO = {"f32": 5e-4, "q8_0": 8e-2}


@pytest.mark.parametrize("type", VISION)
def test_both_towers_of_one_file(type, tmp_path, picture, log):
    """Without deepstack, which would make the two towers' widths differ: mtmd refuses that."""
    tiny = write_files(tmp_path, type, thinker_hidden=96, deepstack=())
    clip, model = Clip(tiny.mmproj, tiny.thinker), load(tiny.source)
    assert clip.context, "".join(log)
    assert mtmd_cpp.mtmd_support_vision(clip.context)
    assert mtmd_cpp.mtmd_support_audio(clip.context)
    assert mtmd_cpp.mtmd_get_audio_sample_rate(clip.context) == 16000
    errors = [relative(clip.image(picture), see(model, picture))]
    rng = np.random.default_rng(43)
    for chunks in (1, 2):
        count = chunks * 100 * 160 - int(rng.integers(1, 160))
        waveform = (0.3 * np.sin(np.arange(count) / 9) + 0.1 * rng.standard_normal(count)).astype(np.float32)
        errors.append(relative(clip.sound(waveform), hear(model, waveform)))
    print(f"{type}: image {errors[0]:.2e}, sound {max(errors[1:]):.2e} of the largest value")
    assert errors[0] < VISION[type]
    assert max(errors[1:]) < AUDIO[type]


@pytest.mark.parametrize("type", VISION)
def test_images_with_deepstack(type, tmp_path, picture, log):
    """As many maps as the thinker expects, and the prompt's logits with them."""
    tiny = write_files(tmp_path, type, thinker_hidden=96, thinker_layers=4, deepstack=(0, 2))
    clip = Clip(only(tiny.mmproj, "vision", tmp_path / "vision.gguf"), tiny.thinker)
    assert clip.context, "".join(log)
    model = load(tiny.source)
    found, expected = clip.image(picture), see(model, picture)
    assert found.shape == (12, 3 * 96)
    error = relative(found, expected)
    tokenizer = Tokenizer.from_gguf(read_gguf(tiny.thinker).metadata)
    before, after = "<|im_start|>user\n<|vision_start|>", "<|vision_end|>what is the world<|im_end|>\n"
    ids = tokenizer.encode(before) + [tokenizer.token_id("<|image_pad|>")] * 12 + tokenizer.encode(after)
    values, grid = patches(picture)
    with torch.inference_mode():
        out = model.thinker(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            pixel_values=values,
            image_grid_thw=grid,
        )
    # mtmd puts <|vision_start|> and <|vision_end|> around the image itself.
    prompt = "<|im_start|>user\n<__media__>what is the world<|im_end|>\n"
    logits = clip.prompt_logits(prompt, picture, open_llama(tiny.thinker))
    prompt_error = relative(logits[None], out.logits[0, -1:].numpy())
    print(f"{type}: image {error:.2e} of the largest value, prompt {prompt_error:.2e} of the largest logit")
    assert error < VISION[type]
    assert prompt_error < 2 * VISION[type]


def test_the_whole_file_is_read(tiny, log):
    """The release's kind: both towers are read to the last tensor, then mtmd stops, for it knows one width only."""
    clip, file = Clip(tiny.mmproj, None), read_gguf(tiny.mmproj)
    text = "".join(log)
    assert clip.context is None
    assert "mismatch between vision and audio mmproj (n_embd_v = 288, n_embd_a = 96)" in text
    assert text.count("error") == 1
    sound = {name for name in file.tensors if name.startswith(("a.", "mm.a."))}
    loaded = [int(count) for count in re.findall(r"loaded (\d+) tensors", text)]
    # Beside its own the audio tower is given the patch kernels and the first deepstack merger, by name.
    more = {n for n in file.tensors if n.startswith(("v.patch_embd.", "v.deepstack.0.", "v.deepstack.1."))}
    assert loaded == [len(file.tensors) - len(sound), len(sound) + len(more)]
    caps = mtmd_cpp.mtmd_get_cap_from_file(str(tiny.mmproj).encode())
    assert (caps.inp_vision, caps.inp_audio) == (True, True)


@pytest.mark.parametrize("tower", ["vision", "audio"])
def test_no_tensor_of_a_tower_is_left(tiny, tower, tmp_path, log):
    file = only(tiny.mmproj, tower, tmp_path / "one.gguf")
    clip = Clip(file, None)
    text = "".join(log)
    assert clip.context, text
    assert [int(count) for count in re.findall(r"loaded (\d+) tensors", text)] == [len(read_gguf(file).tensors)]
    assert "error" not in text


def test_a_missing_tensor_is_missed(tiny, tmp_path, log):
    """The check above can fail."""
    file = read_gguf(tiny.mmproj)
    left = {name: info for name, info in file.tensors.items() if name != "a.conv2d.2.weight"}
    write_gguf(tmp_path / "less.gguf", replace(file, tensors=left))
    assert Clip(tmp_path / "less.gguf", None).context is None
    assert "unable to find tensor a.conv2d.2.weight" in "".join(log)
