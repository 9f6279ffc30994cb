"""The pipeline: messages -> tokens and media -> engine -> typed events. Knows texts and turns, not kernels."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from qwen3omni_wgpu.answer import answer_events
from qwen3omni_wgpu.chat import Chat
from qwen3omni_wgpu.engine import Engine
from qwen3omni_wgpu.errors import InvalidRequest
from qwen3omni_wgpu.events import Done, EventStream, FinishReason, Progress, Reply, reply_of
from qwen3omni_wgpu.formats.gguf import GGUFFile
from qwen3omni_wgpu.inputs.audio_file import Audio
from qwen3omni_wgpu.inputs.image import load_image
from qwen3omni_wgpu.inputs.placeholders import Expanded
from qwen3omni_wgpu.inputs.prompt import Prompt
from qwen3omni_wgpu.inputs.sources import Access
from qwen3omni_wgpu.inputs.template import ChatTemplate
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.loading import open_model
from qwen3omni_wgpu.media import Media, Medium
from qwen3omni_wgpu.messages import Given, Message, taken_apart, with_media
from qwen3omni_wgpu.resident import Resident
from qwen3omni_wgpu.runner import Runner
from qwen3omni_wgpu.sampler import GenerationConfig
from qwen3omni_wgpu.speech import SAY, Speaker, Speech, spoken_text
from qwen3omni_wgpu.transcribe import (
    WINDOW,
    Transcript,
    TranscriptStream,
    generation_settings,
    transcribe,
    transcript_of,
)

Question = str | Sequence[Message] | Sequence[int]


class Omni:
    """A model ready to answer. Make one with `Omni.from_pretrained`; close it, or use it in a `with` block."""

    def __init__(self, resident: Resident, tokenizer: Tokenizer, load_s: float, access: Access | None = None):
        self.file = resident.parts["thinker"]
        self.path = self.file.path
        self.tokenizer = tokenizer
        self.device = resident.device
        self._resident = resident
        self._speaker = Speaker(resident)
        self._media = Media(resident, tokenizer, access or Access(data_uris=False))
        self._template: ChatTemplate | None = None
        self.load_s = load_s
        self._busy = False

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        mmproj: str | Path | None = None,
        talker: str | Path | None = None,
        config: str | Path | None = None,
        device: str | int | None = None,
        ctx_size: int | None = None,
        type: str | None = None,
        activations: str = "auto",
        kv_type: str = "f16",
        cpu: bool = False,
        tokenizer_file: str | Path | None = None,
        offline: bool = False,
        allow_urls: bool = False,
        lazy: bool = False,
        tune: Literal["auto", "on", "off"] = "auto",
        progress: Callable[[Progress], None] | None = None,
    ) -> "Omni":
        """Load a model onto the GPU: the thinker now, other parts when they are first needed.

        model: a .gguf file, a folder with one, a Hugging Face checkpoint folder, a hub id `user/repo[:quant]`, or
        `smollm2`; None = QWEN3OMNI_MODEL, else an installed SmolLM2. offline: take hub ids from the cache only.
        mmproj, talker: files of these parts where they do not lie beside the thinker's.
        config: a config.json that does not lie beside weights with Hugging Face names.
        type: what a checkpoint's weights become while they are loaded: "q8_0" (default), "f16", "bf16", "f32".
        device: part of an adapter's name or its index; cpu: a software adapter on purpose.
        ctx_size: tokens of prompt and answer together that fit (default: the model's own limit, at most 8192).
        activations: "f32", "q8" (packed 4x8-bit dot products) or "auto". kv_type: "f16", "f32" or "q8_0".
        tokenizer_file: a tokenizer.json instead of the model's own. progress: called with bytes loaded.
        lazy: load nothing yet; `say` needs no thinker at all.
        tune: kernels are chosen by what is fastest on this device ("auto": measured for a few seconds at the first load
        on a GPU, "on": all of them, on any adapter) or by fixed rules ("off"). "auto" follows QWEN3OMNI_TUNE.
        allow_urls: media may be named by http, https and data: addresses, too, not only by files of this machine.
        Raises ModelNotFound, InvalidModelFile, UnsupportedModel, UnsupportedDevice, OutOfDeviceMemory, InvalidRequest.
        """
        start = time.perf_counter()
        resident, tokenizer = open_model(
            model,
            mmproj=mmproj,
            talker=talker,
            config=config,
            device=device,
            ctx_size=ctx_size,
            type=type,
            activations=activations,
            kv_type=kv_type,
            cpu=cpu,
            tokenizer_file=tokenizer_file,
            offline=offline,
            lazy=lazy,
            tune=tune,
            progress=progress,
        )
        access = Access(urls=allow_urls, data_uris=allow_urls)
        return cls(resident, tokenizer, time.perf_counter() - start, access)

    # Answers --------------------------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: Question,
        *,
        images: Sequence[Any] = (),
        audio: Sequence[Any] = (),
        video: Sequence[Any] = (),
        speech: bool = False,
        config: GenerationConfig | None = None,
    ) -> Reply:
        """One whole answer. `prompt`: a text, chat messages ({"role", "content"}), or token ids.

        A text becomes one user message, unless `config.raw`. images, audio, video: what the last user message shows and
        lets hear before its text, in this order; each a file, its bytes, an open file, an address (allow_urls), a
        Pillow image, or an array: uint8 [H, W, 3], samples float32 [S] at 16 kHz or (samples, rate), frames uint8
        [F, H, W, 3]. In messages, content may be a list of parts {"type": "text", "text"}, {"type": "image", "image"},
        {"type": "audio", "audio"} and {"type": "video", "video", "fps"?, "sound"?}. Token ids have one pad token for
        each medium, in the order of the media.
        Raises InvalidRequest (bad settings or media, prompt longer than the context), UnsupportedModel (a model of text
        alone, speech), ModelNotFound (the towers are not there), DeviceLost.
        """
        return reply_of(self.stream(prompt, images=images, audio=audio, video=video, speech=speech, config=config))

    def stream(
        self,
        prompt: Question,
        *,
        images: Sequence[Any] = (),
        audio: Sequence[Any] = (),
        video: Sequence[Any] = (),
        speech: bool = False,
        config: GenerationConfig | None = None,
    ) -> EventStream:
        """The same as events while they happen: Progress for media and a long prompt, TextDelta, and Done at the end.

        Bad input raises here, before the first event is asked for. Closing the iterator ends the answer; what it wrote
        stays in the KV cache and is reused.
        """
        engine = self._ready()
        settings = (config or GenerationConfig()).resolved(self.file.metadata)
        start = time.perf_counter()
        if speech:
            self._speaker.check(settings.voice)
        ids, media = self._question(prompt, settings.raw, _given(images, audio, video))
        made, expanded = self._media.prompt(ids, media) if media else (Prompt.text(ids), None)
        if len(made) > engine.ctx_size:
            long = "".join(f", {medium.name} {medium.n_tokens}" for medium in media)
            raise InvalidRequest(
                f"the prompt has {len(made)} tokens{long} and the context holds {engine.ctx_size}; "
                "shorten it, or load the model with a larger --ctx-size"
            )
        speaker = self._speaker.speech(made, settings, engine) if speech else None
        return self._events(engine, made, expanded, media, settings, time.perf_counter() - start, speaker)

    def tokenize(self, prompt: Question, *, raw: bool = False) -> list[int]:
        """The token ids that a prompt becomes: through the chat template, or without it for `raw` texts and ids.

        Each medium in chat messages has as many pad tokens as it will have embeddings.
        """
        ids, media = self._question(prompt, raw, [])
        return self._media.prompt(ids, media)[0].ids if media else ids

    def _question(self, prompt: Question, raw: bool, given: list[tuple[str, Any]]) -> tuple[list[int], list[Medium]]:
        """Token ids with one pad token a medium, and the media."""
        if not isinstance(prompt, str) and all(isinstance(item, int | np.integer) for item in prompt):
            ids = [int(item) for item in prompt]  # type: ignore[arg-type] - all() does not narrow the type
            if bad := [token for token in ids if not 0 <= token < self.tokenizer.vocab_size]:
                raise InvalidRequest(f"token id {bad[0]} is outside the vocabulary of {self.tokenizer.vocab_size}")
            media = [Given(*one) for one in given]
        elif isinstance(prompt, str) and raw:
            ids, media = self.tokenizer.encode(prompt, add_special=True), [Given(*one) for one in given]
        elif raw:
            raise InvalidRequest("raw takes a text or token ids; chat messages need the chat template")
        else:
            messages: Sequence[Any] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            plain, media = taken_apart(with_media(messages, given))
            if media:
                assert self._media.tokens  # a model of text alone says so before its template does
            ids = self.tokenizer.encode(self._chat_template().render(plain))
        if not ids:
            raise InvalidRequest("the prompt is empty")
        return ids, self._media.read(media)

    def logits(
        self, prompt: Question, *, images: Sequence[Any] = (), audio: Sequence[Any] = (), video: Sequence[Any] = ()
    ) -> np.ndarray:
        """Logits after every position of a fresh context: float32 [N, V]. Arguments and errors: see `generate`."""
        engine = self._ready()
        ids, media = self._question(prompt, False, _given(images, audio, video))
        made, expanded = self._media.prompt(ids, media) if media else (Prompt.text(ids), None)
        if expanded is not None:
            made = self._alone(self._media.encode(made, expanded, media, 0))
        return engine.logits(made)

    def chat(self, system: str | None = None) -> "Chat":
        """A conversation that remembers its turns and keeps their KV cache."""
        return Chat(self, system)

    # Speech ---------------------------------------------------------------------------------------------------------

    @property
    def voices(self) -> tuple[str, ...]:
        """Names of the voices, the default one first. Raises what `say` raises for models that cannot speak."""
        return self._speaker.voices

    def say(self, text: str, voice: str | None = None, config: GenerationConfig | None = None) -> Audio:
        """Speak a text, as if it were the model's answer. The thinker is not run, only its embeddings are read.

        Raises InvalidRequest (unknown voice, nothing to say), UnsupportedModel or ModelNotFound (no talker),
        DeviceLost.
        """
        reply = reply_of(self.say_stream(text, voice, config))
        if reply.audio is None:
            raise InvalidRequest("the model spoke nothing; try other words, or another seed")
        return Audio(reply.audio, reply.sampling_rate)

    def say_stream(self, text: str, voice: str | None = None, config: GenerationConfig | None = None) -> EventStream:
        """The same as events: AudioChunk while it is spoken, Done with the whole at the end."""
        settings = config or GenerationConfig()
        settings = replace(settings, voice=voice or settings.voice).resolved(self.file.metadata)
        self._speaker.check(settings.voice)
        ids, _ = self._question([{"role": "user", "content": SAY}], False, [])
        words = self.tokenizer.encode(text, parse_special=False)
        if not text.strip() or not words:
            raise InvalidRequest("there is nothing to say: the text is empty")
        tokens = [*words, min(self.tokenizer.eos_ids)]
        return self._spoken(self._speaker.speech(Prompt.text(ids), settings), text, ids, tokens)

    def _spoken(self, speech: Speech, text: str, ids: list[int], tokens: list[int]) -> EventStream:
        self._start()
        try:
            yield from spoken_text(speech, tokens)
            timings = {"load_s": self.load_s, **speech.timings}
            reason: FinishReason = "length" if speech.cut_off else "stop"
            yield Done(Reply(text, tokens, ids, reason, timings, audio=speech.audio, codes=speech.codes))
        finally:
            self._busy = False

    def code2wav(self, codes: Any, mode: Literal["gapless", "reference"] = "gapless") -> np.ndarray:
        """Codes int [16, frames] to samples float32, 24 kHz: 1920 a frame, less 555 at the beginning.

        mode "reference": decoded in pieces as transformers does, which loses 555 samples at every 300 frames.
        """
        self._start()
        try:
            return self._resident.vocoder().decode(np.asarray(codes), mode=mode)
        finally:
            self._busy = False

    # Media ----------------------------------------------------------------------------------------------------------

    def encode_audio(self, source: Any, sampling_rate: int | None = None) -> np.ndarray:
        """What the thinker hears of a sound: float32 [T, D], 13 rows a second.

        source: samples [S] or [S, channels] at sampling_rate (default 16000), or a file as in `generate`.
        Raises InvalidRequest, UnsupportedModel or ModelNotFound.
        """
        return self._alone(self._media.hear(self._media.clip(source, sampling_rate)))

    def encode_image(self, source: Any) -> tuple[np.ndarray, np.ndarray]:
        """What the thinker sees of a picture: (float32 [T, D], deepstack float32 [taps, T, D]).

        source: a Pillow image, uint8 [H, W, 3], or a file as in `generate`. Raises what `encode_audio` raises.
        """
        picture = load_image(source, self._media.rules, access=self._media.access)
        return self._alone(self._media.see(picture))

    def transcribe(
        self,
        source: Any,
        *,
        language: str | None = None,
        window: float = WINDOW,
        config: GenerationConfig | None = None,
    ) -> Transcript:
        """What is said in a sound of any length. source: as `encode_audio`. language: an English name or ISO code.

        Sound longer than `window` seconds is cut at pauses, and each window has a Segment of its own in the result.
        Raises what `generate` raises.
        """
        return transcript_of(self.transcribe_stream(source, language=language, window=window, config=config))

    def transcribe_stream(
        self,
        source: Any,
        *,
        language: str | None = None,
        window: float = WINDOW,
        config: GenerationConfig | None = None,
    ) -> TranscriptStream:
        """The same as events while they happen: Progress, TextDelta, a Segment after each window, a Transcript last."""
        settings = generation_settings(config, window)
        clip = self._media.clip(source)
        return transcribe(
            clip,
            lambda part, text: self.stream(text, audio=[part], config=settings),
            language=language,
            window=window,
        )

    def check_media(self, part: Message) -> str:
        """Read one part of a message, {"type": "image", "image": FILE} and so on, and describe it in one line.

        Raises what `generate` would raise for it.
        """
        _, given = taken_apart([{"role": "user", "content": [part]}])
        (medium,) = self._media.read(given)
        return f"{medium.name}: {medium.size}, {medium.n_tokens} tokens"

    def _alone(self, steps: Generator[Progress, None, Any]) -> Any:
        """The result of encoding outside of an answer."""
        self._start()
        try:
            while True:
                next(steps)
        except StopIteration as stop:
            return stop.value
        finally:
            self._busy = False

    # Life -----------------------------------------------------------------------------------------------------------

    @property
    def ctx_size(self) -> int:
        """Tokens of prompt and answer together that fit."""
        return self._ready().ctx_size

    @property
    def engine(self) -> Engine:
        """The engine below: token ids and timings, for measuring."""
        return self._ready()

    @property
    def runner(self) -> Runner:
        """What runs every part's plans: its profiler times them all."""
        return self._resident.runner

    def part(self, name: str) -> GGUFFile:
        """Headers and metadata of a part ("thinker", "mmproj", "talker"). ModelNotFound when the model has none."""
        return self._resident.part(name)

    @property
    def parts(self) -> tuple[str, ...]:
        """The parts this model has: "thinker", and where they are there "mmproj" (towers) and "talker"."""
        return tuple(self._resident.parts)

    @property
    def loaded(self) -> tuple[str, ...]:
        """The parts whose weights are on the device now. Only what was used is."""
        return self._resident.loaded

    def load(self, part: str) -> None:
        """Put a part's weights on the device before its first use would.

        Raises ModelNotFound when the model has no such part, else what from_pretrained raises.
        """
        self._resident.load(part)

    def release(self, part: str) -> None:
        """Free a part's memory on the device; its next use loads it again. The thinker also forgets its KV cache.

        InvalidRequest when an answer is being written.
        """
        if self._busy:
            raise InvalidRequest("an answer is still being written; finish or close its stream before releasing parts")
        self._resident.release(part)

    def close(self) -> None:
        """Free the GPU memory. Closing twice is fine."""
        self._resident.close()

    def __enter__(self) -> "Omni":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _ready(self) -> Engine:
        return self._resident.engine()

    def _chat_template(self) -> ChatTemplate:
        if self._template is None:
            self._template = ChatTemplate.from_gguf(self.file.metadata, self.tokenizer)
        return self._template

    # One answer -----------------------------------------------------------------------------------------------------

    def _events(
        self,
        engine: Engine,
        prompt: Prompt,
        expanded: Expanded | None,
        media: list[Medium],
        config: GenerationConfig,
        media_s: float,
        speech: Speech | None,
    ) -> EventStream:
        self._start()
        try:
            timings = {"load_s": self.load_s}
            if expanded is not None:
                start = time.perf_counter()
                prompt = yield from self._media.encode(prompt, expanded, media, engine.cached(prompt))
                timings["media_s"] = media_s + time.perf_counter() - start
            yield from answer_events(engine, self.tokenizer, prompt, config, timings, speech)
        finally:
            self._busy = False

    def _start(self) -> None:
        if self._busy:
            raise InvalidRequest("another answer is still being written; finish or close its stream first")
        self._busy = True


def _given(images: Sequence[Any], audio: Sequence[Any], video: Sequence[Any]) -> list[tuple[str, Any]]:
    kinds = (("image", images), ("audio", audio), ("video", video))
    return [(kind, source) for kind, sources in kinds for source in sources]
