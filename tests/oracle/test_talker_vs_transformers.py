"""Speech against transformers' own generate, live: fresh weights and conversations, other sizes, true dimensions."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from media_prompts import film, picture, prompts, sound  # noqa: E402
from reference.talker import TalkerTwin  # noqa: E402
from reference.talker_goldens import CODES, Spoken, margin  # noqa: E402
from tiny_checkpoint import write_tiny_checkpoint  # noqa: E402

from oracle.talker import SpeechOracle  # noqa: E402
from qwen3omni_wgpu.convert.parts import open_parts  # noqa: E402
from qwen3omni_wgpu.inputs.talker_prompt import talker_prompt  # noqa: E402
from qwen3omni_wgpu.models.code_predictor import CodePredictorModel  # noqa: E402
from qwen3omni_wgpu.models.talker import TalkerModel  # noqa: E402
from qwen3omni_wgpu.runner import Runner  # noqa: E402
from qwen3omni_wgpu.voice.settings import SpeechSettings  # noqa: E402
from qwen3omni_wgpu.voice.talker import Talker  # noqa: E402

pytestmark = [pytest.mark.oracle, pytest.mark.gpu]

# As in tests/voice/test_speaking.py. A choice nearer than CLOSE may rightly go the other way.
TOLERANCE, CLOSE = 2e-5, 1e-3
TURNS = [
    {"role": "system", "content": "what is"},
    {"role": "user", "content": "say hello"},
    {"role": "assistant", "content": "hello world"},
    {"role": "user", "content": "the world"},
]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def new_seed() -> int:
    return int(np.random.SeedSequence().generate_state(1)[0])


def listen(folder: Path, device, seed: int, messages: list[dict[str, Any]], frames: int, **recipe: Any) -> None:
    """Rows, hidden states, logits and codes of one speech, until a choice that is too close or the end."""
    arguments = {"dtype": "f32", "thinker_hidden": 32, "talker_vocab": recipe.get("codes", CODES) + 1024} | recipe
    stored = write_tiny_checkpoint(folder, np.random.default_rng(seed), **arguments)
    try:
        s = SpeechOracle(folder).speak(messages, 4, frames)
    except RuntimeError:  # transformers cannot be silent; the next test has another seed
        pytest.skip(f"seed {seed} says nothing")
    file = open_parts(folder, type=arguments["dtype"])["talker"]
    model, predictor = TalkerModel.load(file, device), CodePredictorModel.load(file, device)
    talker = Talker(model, predictor, Runner(device), ctx_size=600, kv_type="f32")
    voice = model.config.voice("Ethan")
    prompt = talker_prompt(s.ids.tolist(), s.positions, s.answer[:-1].tolist(), model.config, voice)
    assert prompt is not None
    table = np.asarray(stored["thinker.model.embed_tokens.weight"], np.float32)
    rows = talker.rows(prompt, table[prompt.text_ids], s.states)
    trailing = talker.project_text(table[[*prompt.spoken, model.config.tokens.tts_eos]])
    pad = talker.project_text(table[[model.config.tokens.tts_pad]])[0]
    assert np.abs(prompt.positions - s.row_positions).max() < 1e-4
    worst = {"rows": max(relative(rows, s.rows), relative(trailing, s.trailing), relative(pad, s.pad))}
    talker.start(rows, prompt.positions, pad, SpeechSettings(greedy=True, repeat_penalty=1.05))
    equal = follow(talker, s, trailing, worst)
    print(f"seed {seed}: {equal} of {len(s.codes)} frames, margin {margin(s, model.config.codec.eos):.1e}, {worst}")
    assert max(worst.values()) < TOLERANCE
    talker.free()
    for part in (model, predictor):
        part.free()


def follow(talker: Talker, s: Spoken, trailing: np.ndarray, worst: dict[str, float]) -> int:
    """How many frames were equal; errors go to `worst`."""
    c = talker.model.config
    for frame, expected in enumerate(s.codes):
        for name, found, want in (
            ("hidden", talker.hidden, s.hidden[frame]),
            ("logits", talker.next_logits, s.logits[frame]),
        ):
            worst[name] = max(worst.get(name, 0.0), relative(found, want))
        codes = talker.step(trailing[frame] if frame < len(trailing) else None)
        residual = np.concatenate([tensor.numpy() for tensor in talker.residual_logits])
        close = Spoken(**vars(s) | {"residual": s.residual[frame : frame + 1], "logits": s.logits[: frame + 1],
                                    "codes": s.codes[:frame]})  # fmt: skip
        if margin(close, c.codec.eos, c.codes) < CLOSE and (codes is None or codes.tolist() != expected.tolist()):
            return frame
        assert codes is not None
        assert codes.tolist() == expected.tolist(), frame
        worst["residual"] = max(worst.get("residual", 0.0), relative(residual, s.residual[frame]))
    return len(s.codes)


@pytest.mark.parametrize("number", range(3))
def test_text(number, tmp_path, device):
    listen(tmp_path / "model", device, new_seed(), TURNS, 64)


@pytest.mark.parametrize("name", sorted(prompts()))
def test_media(name, tmp_path, device):
    listen(tmp_path / "model", device, new_seed(), prompts()[name], 6)


@pytest.mark.parametrize("pictures_first", [False, True])
def test_a_video_with_sound_among_pictures(pictures_first, tmp_path, device):
    """What transformers makes of its place depends on what follows."""
    video = {"type": "video", "video": film(3, 4), "sound": sound(4, 32480)}
    images = [{"type": "image", "image": picture(5, 64, 96)}, {"type": "text", "text": "hello"}]
    content = [*images, video] if pictures_first else [video, *images]
    listen(tmp_path / "model", device, new_seed(), [{"role": "user", "content": content}], 4)


def test_other_sizes(tmp_path, device):
    sizes = {"talker_layers": 3, "talker_heads": 6, "talker_kv_heads": 3, "talker_hidden": 96, "experts": 6, "top_k": 3,
             "groups": 4, "codes": 80, "predictor_layers": 3, "talker_shared": 96, "head_dim": 64}  # fmt: skip
    listen(tmp_path / "model", device, new_seed(), TURNS, 12, **sizes)


def test_true_dimensions(tmp_path, device):
    """The 30B's talker with one of its 20 layers and 8 of its 128 experts, and one of the code predictor's 5 layers."""
    sizes = {"talker_hidden": 1024, "talker_heads": 16, "talker_kv_heads": 2, "head_dim": 128, "talker_moe": 384}
    sizes |= {"talker_shared": 768, "talker_resize": 2048, "talker_layers": 1, "experts": 8, "top_k": 6}
    sizes |= {"codes": 2048, "predictor_layers": 1, "predictor_ffn": 3072, "thinker_hidden": 2048, "thinker_heads": 2}
    listen(tmp_path / "model", device, new_seed(), TURNS, 6, **sizes)


def test_the_twin(tmp_path):
    """What the default tests compare with, so that it is the right thing."""
    seed, folder = new_seed(), tmp_path / "model"
    stored = write_tiny_checkpoint(
        folder, np.random.default_rng(seed), dtype="f32", thinker_hidden=32, talker_vocab=1072
    )
    try:
        s = SpeechOracle(folder).speak(prompts()["sound_text_picture"], 3, 4)
    except RuntimeError:
        pytest.skip(f"seed {seed} says nothing")
    twin = TalkerTwin(stored, json.loads((folder / "config.json").read_text())["talker_config"])
    h = twin.talker.forward(s.rows, s.row_positions)[-1:]
    assert relative(h[0], s.hidden[0]) < TOLERANCE
    assert relative(twin.logits(h)[0], s.logits[0]) < TOLERANCE
    assert relative(twin.residual(h, s.codes[0]), s.residual[0]) < TOLERANCE
