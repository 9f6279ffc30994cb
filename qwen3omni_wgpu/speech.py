"""An answer spoken while it is written: tokens of the thinker -> frames of the talker -> samples.

The talker needs one token of the text to begin and one more a frame, so it runs behind the thinker as the tokens come;
what was said so far goes through the vocoder in chunks, a small one first.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence

import numpy as np

from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.errors import UnsupportedModel
from qwen3omni_wgpu.events import AudioChunk
from qwen3omni_wgpu.formats.tensors import read_rows
from qwen3omni_wgpu.inputs.prompt import Prompt
from qwen3omni_wgpu.inputs.talker_prompt import TalkerPrompt, talker_prompt
from qwen3omni_wgpu.models.talker import TalkerConfig
from qwen3omni_wgpu.resident import Resident
from qwen3omni_wgpu.sampler import GenerationConfig
from qwen3omni_wgpu.voice.code2wav import Vocoder
from qwen3omni_wgpu.voice.settings import SpeechSettings
from qwen3omni_wgpu.voice.talker import Talker

# Frames of 80 ms that go through the vocoder together: few at first, for an early start, then more, for less work.
CHUNKS = (4, 8, 16)
# What the user is taken to have said before a given text is spoken.
SAY = "Read the following text aloud."
RATE = 24000
Chunks = Generator[AudioChunk, None, None]


class Speaker:
    """The voice of one model. Raises UnsupportedModel for models that cannot speak, ModelNotFound without the part."""

    def __init__(self, resident: Resident) -> None:
        self._resident = resident

    @property
    def voices(self) -> tuple[str, ...]:
        """Names, the default one first."""
        config = self._config()
        return tuple(sorted(config.voices, key=lambda name: (name != config.default_voice, name)))

    def check(self, voice: str | None) -> None:
        """InvalidRequest with the voices there are, when this is none of them."""
        self._config().voice(voice)

    def speech(self, prompt: Prompt, config: GenerationConfig, engine: Engine | None = None) -> Speech:
        """What will speak an answer to the prompt, which `engine` writes. Loads talker and vocoder."""
        talker = self._resident.talker()
        table = self._resident.part("thinker").tensors["token_embd.weight"]
        if engine is not None:
            engine.keep_hidden(talker.model.config.accept_layer)
        settings = SpeechSettings.from_gguf(
            self._resident.part("talker"),
            temperature=config.talker_temperature,
            top_k=config.talker_top_k,
            top_p=config.talker_top_p,
            repeat_penalty=config.talker_repeat_penalty,
            max_frames=config.talker_max_tokens,
            predictor_temperature=config.predictor_temperature,
            seed=config.seed,
        )
        return Speech(
            talker,
            self._resident.vocoder(),
            prompt,
            embeddings=lambda ids: read_rows(table, ids),
            hidden=engine.hidden if engine else None,
            settings=settings,
            voice=config.voice,
        )

    def _config(self) -> TalkerConfig:
        thinker = self._resident.part("thinker")
        if thinker.metadata.get("general.architecture") != "qwen3vlmoe":
            raise UnsupportedModel(f"{thinker.path.name} is a model of text alone: for speech use Qwen3-Omni")
        return self._resident.talker_config()


class Speech:
    """Speaks one answer: `push` its tokens as they come, then `finish`. `audio`, `codes`: what was said so far."""

    def __init__(
        self,
        talker: Talker,
        vocoder: Vocoder,
        prompt: Prompt,
        *,
        embeddings: Callable[[Sequence[int]], np.ndarray],
        hidden: Callable[[np.ndarray], np.ndarray] | None,
        settings: SpeechSettings,
        voice: str | None = None,
    ) -> None:
        """embeddings: the thinker's, float32 [n, T] of ids; hidden: its states at tokens of the prompt that are media.

        InvalidRequest for an unknown voice, or a prompt that does not end in an assistant's turn.
        """
        self._talker, self._vocoder, self._prompt = talker, vocoder, prompt
        self._embeddings, self._hidden, self._settings = embeddings, hidden, settings
        config = talker.model.config
        self._voice = config.voice(voice)
        self._end = config.tokens.tts_eos
        # What the prompt already says of the answer is spoken, too.
        begun = talker_prompt(prompt.ids, prompt.positions, [], config, self._voice)
        self._started = False
        self._texts: deque[int] = deque()  # ids that frames will take
        self._last: int | None = None  # the token that may be the answer's last, which is never spoken
        self._frames: list[np.ndarray] = []
        self._spoken = 0  # frames that went through the vocoder
        self._samples: list[np.ndarray] = []
        self._begin, self._first_s, self._busy_s = time.perf_counter(), 0.0, 0.0
        vocoder.reset()
        if begun is not None:
            self._start(begun)

    def push(self, token: int) -> Chunks:
        """The answer's next token: what can be said now."""
        known, self._last = self._last, token
        if known is None:
            return
        if self._started:
            self._texts.append(known)
        else:
            config = self._talker.model.config
            made = talker_prompt(self._prompt.ids, self._prompt.positions, [known], config, self._voice)
            assert made is not None
            self._start(made)
        yield from self._speak()

    def finish(self) -> Chunks:
        """No more tokens: the rest of the speech. Nothing, where the answer was a single token."""
        if not self._started:
            return
        self._texts.append(self._end)
        yield from self._speak()
        while self._step(None):
            yield from self._voiced()
        yield from self._voiced(rest=True)

    @property
    def codes(self) -> np.ndarray | None:
        """What was said: int [16, frames]; None when nothing was."""
        return np.stack(self._frames, axis=1) if self._frames else None

    @property
    def audio(self) -> np.ndarray | None:
        """Samples so far, float32 [S], 24 kHz; None when there are none."""
        return np.concatenate(self._samples) if self._samples else None

    @property
    def cut_off(self) -> bool:
        """Whether a limit ended it, not the talker."""
        return self._talker.finish == "length"

    @property
    def timings(self) -> dict[str, float]:
        """frames_n, frames_s (talker and vocoder), first_audio_s (from the beginning to the first chunk)."""
        return {"frames_n": len(self._frames), "frames_s": self._busy_s, "first_audio_s": self._first_s}

    def _start(self, made: TalkerPrompt) -> None:
        """The talker's prompt, as soon as the answer's first token is known not to be its last."""
        begin = time.perf_counter()
        states = np.zeros((0, self._talker.model.config.thinker_dim), np.float32)
        if len(made.media_tokens):
            assert self._hidden is not None
            states = self._hidden(made.media_tokens)
        rows = self._talker.rows(made, self._embeddings(made.text_ids.tolist()), states)
        pad = self._text(self._talker.model.config.tokens.tts_pad)
        self._talker.start(rows, made.positions, pad, self._settings)
        self._texts.extend(made.spoken)
        self._started = True
        self._busy_s += time.perf_counter() - begin

    def _text(self, token: int) -> np.ndarray:
        return self._talker.project_text(self._embeddings([token]))[0]

    def _speak(self) -> Chunks:
        """Frames for every token that waits."""
        while self._texts and self._step(self._texts.popleft()):
            yield from self._voiced()

    def _step(self, token: int | None) -> bool:
        """One frame, which lets the talker read this token; False at the end of the speech."""
        begin = time.perf_counter()
        codes = self._talker.step(None if token is None else self._text(token))
        if codes is not None:
            self._frames.append(codes)
        self._busy_s += time.perf_counter() - begin
        return codes is not None

    def _voiced(self, rest: bool = False) -> Chunks:
        """A chunk of sound, when there are frames for one, or for the rest."""
        waiting = len(self._frames) - self._spoken
        wanted = CHUNKS[min(len(self._samples), len(CHUNKS) - 1)]
        if waiting < wanted and not (rest and waiting):
            return
        begin = time.perf_counter()
        samples = self._vocoder.push(np.stack(self._frames[self._spoken :], axis=1))
        self._spoken = len(self._frames)
        self._samples.append(samples)
        now = time.perf_counter()
        self._busy_s += now - begin
        self._first_s = self._first_s or now - self._begin
        yield AudioChunk(samples, RATE)


def spoken_text(speech: Speech, tokens: Iterable[int]) -> Chunks:
    """Speak tokens that are all there, the last of them the end of the answer."""
    for token in tokens:
        yield from speech.push(token)
    yield from speech.finish()
