"""One answer: prompt ids through the engine, its tokens into text, stop rules and typed events."""

import contextlib
import time
from collections.abc import Generator
from dataclasses import dataclass, replace
from typing import Any, cast

from qwen3omni_wgpu.engine import Engine, Token
from qwen3omni_wgpu.events import (
    Done,
    Event,
    EventStream,
    FinishReason,
    Progress,
    Reply,
    TextDelta,
    TokenLogprob,
    TopLogprob,
)
from qwen3omni_wgpu.inputs.detokenize import TextStream
from qwen3omni_wgpu.inputs.prompt import Prompt
from qwen3omni_wgpu.inputs.tokenizer import Tokenizer
from qwen3omni_wgpu.sampler import GenerationConfig
from qwen3omni_wgpu.speech import Speech


def answer_events(
    engine: Engine,
    tokenizer: Tokenizer,
    prompt: Prompt,
    config: GenerationConfig,
    timings: dict[str, float],
    speech: Speech | None = None,
) -> EventStream:
    """Answer the prompt under a resolved config: Progress for a long prompt, TextDelta, AudioChunk, Done.

    timings: what the answer took before this, to be reported with the rest. speech: speaks the answer as it comes.
    """
    ahead = yield from _prefill(engine, prompt)
    answer = _Answer(tokenizer, config)
    tokens = engine.generate(prompt, config, frozenset() if config.ignore_eos else tokenizer.eos_ids)
    with contextlib.closing(tokens):
        for token in tokens:
            if text := answer.take(token):
                yield TextDelta(text)
            if speech is not None:
                yield from speech.push(token.id)
            if answer.stopped:
                break
    if text := answer.rest():
        yield TextDelta(text)
    spoken: dict[str, Any] = {}
    if speech is not None:
        yield from speech.finish()
        spoken, timings = {"audio": speech.audio, "codes": speech.codes}, timings | speech.timings
    yield Done(replace(answer.reply(prompt.ids, {**timings, **_timings(engine, ahead)}), **spoken))


class _Answer:
    """Collects one answer from its tokens: text with stop rules, ids, log-probabilities."""

    def __init__(self, tokenizer: Tokenizer, config: GenerationConfig):
        self._tokenizer = tokenizer
        self._text = TextStream(tokenizer, config.stop, continues=config.raw)
        self._parts: list[str] = []
        self._ids: list[int] = []
        self._logprobs: list[TokenLogprob] | None = [] if config.logprobs else None
        self.finish_reason: FinishReason | None = None

    def take(self, token: Token) -> str:
        """Add a token; the text that is safe to show now."""
        self._ids.append(token.id)
        if self._logprobs is not None and token.logprob is not None:
            top = tuple(TopLogprob(i, self._name(i), value) for i, value in token.top or ())
            self._logprobs.append(TokenLogprob(token.id, self._name(token.id), token.logprob, top))
        self.finish_reason = cast("FinishReason | None", token.finish)
        if token.finish == "stop":  # the token that ends the answer is not part of its text
            return ""
        text = self._text.push(token.id)
        if self.stopped:
            self.finish_reason = "stop"
        self._parts.append(text)
        return text

    @property
    def stopped(self) -> bool:
        """True once a stop text has come: the engine itself does not know of it."""
        return self._text.stopped is not None

    def rest(self) -> str:
        """What was held back because a character or a stop text could have followed."""
        text = self._text.finish()
        self._parts.append(text)
        return text

    def reply(self, prompt_ids: list[int], timings: dict[str, float]) -> Reply:
        # Without any token (max_tokens 0) nothing said why the answer ended.
        reason = self.finish_reason or "length"
        timings = timings | {"predicted_n": len(self._ids)}
        return Reply("".join(self._parts), self._ids, prompt_ids, reason, timings, self._logprobs)

    def _name(self, token_id: int) -> str:
        return self._tokenizer.token_bytes(token_id).decode("utf-8", "replace")


@dataclass(frozen=True)
class _Ahead:
    """Prompt tokens that were in the cache, and those run before the engine's last chunk, with their seconds."""

    cached: int
    tokens: int
    seconds: float


def _prefill(engine: Engine, prompt: Prompt) -> Generator[Event, None, _Ahead]:
    """Run a long prompt up to its last chunk, reporting after each one; that last chunk is the engine's own start."""
    total, chunk = len(prompt), engine.buckets[-1]
    cached = engine.cached(prompt)
    if total - cached <= chunk:
        return _Ahead(cached, 0, 0.0)
    engine.begin(prompt)
    start, done = time.perf_counter(), cached
    while total - done > chunk:
        done += chunk
        engine.feed(prompt, done)
        engine.device.wait()
        yield Progress("prefill", done, total)
    return _Ahead(cached, done - cached, time.perf_counter() - start)


def _timings(engine: Engine, ahead: _Ahead) -> dict[str, float]:
    """Seconds and rates. The first token is the prompt's work, so the answer's rate counts from the second."""
    times = engine.timings
    prompt_n, prompt_s = ahead.tokens + times.prompt_n, ahead.seconds + times.prompt_s
    return {
        "cached_n": ahead.cached,
        "prompt_n": prompt_n,
        "prompt_s": prompt_s,
        "prompt_per_second": prompt_n / prompt_s if prompt_s else 0.0,
        "predicted_s": times.predicted_s,
        "predicted_per_second": times.predicted_n / times.predicted_s if times.predicted_s else 0.0,
    }
