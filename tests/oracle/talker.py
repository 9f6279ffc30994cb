"""Speech by transformers' own generate, in float32: every piece between a conversation and the codes."""

import types
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from reference.talker_goldens import Spoken

from oracle.hf_media import MediaOracle


class SpeechOracle(MediaOracle):
    """A checkpoint folder that tests/tiny_checkpoint.py wrote, with its talker.

    transformers suppresses the last 1024 ids of the talker's vocabulary, so that must be 1024 larger than the codes.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.whole = transformers.Qwen3OmniMoeForConditionalGeneration.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager", experts_implementation="eager"
        ).eval()
        # transformers 5.23 looks for it here when a prompt has both sound and pictures; the releases do not have it.
        window = self.whole.config.thinker_config.audio_config.n_window
        self.whole.talker.config.audio_config = types.SimpleNamespace(n_window=window)

    def speak(self, messages: Sequence[Mapping[str, Any]], words: int, frames: int, voice: str = "Ethan") -> Spoken:
        """Greedy speech of `words` greedy tokens, the last of which is not spoken; at most `frames` frames."""
        model = self.whole
        inputs = self._inputs(messages, 2.0)
        with _calls(model.talker) as talker, _calls(model.talker.code_predictor) as predictor:  # noqa: SIM117
            with _calls(model.thinker.model.language_model) as language, torch.inference_mode():
                sequences, _ = model.generate(
                    **inputs,
                    speaker=voice,
                    return_audio=True,
                    thinker_max_new_tokens=words,
                    thinker_eos_token_id=None,
                    thinker_do_sample=False,
                    talker_max_new_tokens=frames + 1,
                    talker_do_sample=False,
                    talker_temperature=1.0,
                    talker_top_k=0,
                )
        config = model.config.talker_config
        first, steps = talker[0], talker[1:]
        layer = config.accept_hidden_layer
        states = torch.cat([out.hidden_states[layer] for _, out in language], dim=1)[0]
        given = language[0][1]["position_ids"] if "position_ids" in language[0][1] else language[0][0]["position_ids"]
        ids = inputs["input_ids"][0]
        pads = [getattr(model.config.thinker_config, f"{kind}_token_id") for kind in ("audio", "image", "video")]
        media = torch.isin(ids, torch.tensor(pads))
        groups = config.num_code_groups - 1
        chosen = [
            torch.stack([out.logits[0, -1] for _, out in predictor[i : i + groups]]) for i in _every(predictor, groups)
        ]
        return Spoken(
            ids=ids.numpy(),
            positions=given[-3:, 0].T.float().numpy(),
            answer=sequences[0, len(ids) :].numpy(),
            states=states[: len(ids)][media].numpy(),
            rows=first[0]["inputs_embeds"][0].numpy(),
            row_positions=first[0]["position_ids"][-3:, 0].T.float().numpy(),
            trailing=first[0]["trailing_text_hidden"][0].numpy(),
            pad=first[0]["tts_pad_embed"][0, 0].numpy(),
            hidden=torch.cat([out.hidden_states[0][-1][0, -1:] for _, out in talker]).numpy(),
            logits=torch.cat([out.logits[0, -1:] for _, out in talker]).numpy(),
            residual=torch.stack(chosen).numpy() if chosen else np.zeros((0, groups, 1), np.float32),
            codes=torch.stack([out.hidden_states[1][0] for _, out in steps]).numpy(),
        )


def _every(calls: list[Any], size: int) -> range:
    assert len(calls) % size == 0
    return range(0, len(calls), size)


@contextmanager
def _calls(module: torch.nn.Module) -> Iterator[list[tuple[dict[str, Any], Any]]]:
    """(keyword arguments, output) of every call inside the block."""
    found: list[tuple[dict[str, Any], Any]] = []
    handle = module.register_forward_hook(lambda _m, _a, kwargs, out: found.append((kwargs, out)), with_kwargs=True)
    try:
        yield found
    finally:
        handle.remove()
