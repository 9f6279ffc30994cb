"""Token ids in, token ids out: prefill in chunks, decode, KV cache, sampling. Knows neither text nor sound.

What pictures and sounds became comes as rows that replace embeddings (inputs/prompt.py). All that changes from step to
step lies in small GPU buffers (step_inputs.py), so one recorded plan serves every token. Tokens are drawn on the GPU,
and step t + 1 is submitted before the host has read token t; only what a few candidates cannot decide goes to the host.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .draws import Draws
from .errors import InvalidRequest, OmniError, OutOfDeviceMemory
from .gpu import Plan, ReadBack, Tensor
from .inputs.prompt import Prompt, Step
from .models.config import KV_TYPES, kv_row_bytes
from .models.rehearse import rehearse
from .models.text import KVCache, TextModel, logits
from .ops.attention import most_keys
from .ops.attention_ways import Q8_HEADS
from .ops.choice import Problem
from .runner import Runner
from .sampler import NO_TOKEN, GenerationConfig, Sampler
from .step_inputs import StepInputs

# Tokens a plan is recorded for; a chunk runs in the smallest that holds it, and its empty rows are skipped.
BUCKETS = (1, 8, 32, 128)
BUCKETS_GPU = (*BUCKETS, 512)
# Rows of logits that are brought to the host at once when all are wanted.
LOGITS_BYTES = 64 << 20
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Token:
    """One generated token. `finish` is set on the last: "stop" (an end token, not part of the text) or "length".

    logprob and top (id, log-probability; falling) are there when logprobs were asked for, after penalties.
    """

    id: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
    finish: str | None = None


@dataclass
class Timings:
    """Of the last answer: prompt tokens that were run, generated tokens, and the seconds they took."""

    prompt_n: int = 0
    prompt_s: float = 0.0
    predicted_n: int = 0
    predicted_s: float = 0.0


class Engine:
    """A text model with a KV cache for `ctx_size` tokens."""

    def __init__(self, model: TextModel, ctx_size: int, kv_type: str = "f16", runner: Runner | None = None):
        """kv_type "f16", "f32" or "q8_0"; runner: shared with the model's other parts.

        OutOfDeviceMemory when a layer's cache exceeds what the device can bind or hold.
        """
        if kv_type not in KV_TYPES:
            raise InvalidRequest(f"--kv-type {kv_type} is not possible: give {', '.join(KV_TYPES)}")
        if kv_type == "q8_0" and model.config.head_dim not in Q8_HEADS:
            raise InvalidRequest(
                f"--kv-type q8_0 is for models with heads of 64 or 128, and this one's have {model.config.head_dim}; "
                "use f16"
            )
        if ctx_size < 1:
            raise InvalidRequest(f"--ctx-size {ctx_size} is not possible: give at least 1")
        self.model = model
        self.device = model.device
        self.ctx_size = ctx_size
        self.kv_type = kv_type
        self.tokens: list[int] = []
        self._keys: list[Hashable] = []  # what each cached token is: Prompt.keys
        self._past = np.zeros((ctx_size, 3), np.float32)  # positions of the cached tokens
        self._tap_layer = 0
        self._hidden: np.ndarray | None = None  # [ctx_size, D], of the cached tokens that stand for media
        self.timings = Timings()
        self.runner = runner or Runner(self.device)
        _check_cache_size(model, ctx_size, kv_type)
        self.buckets = BUCKETS if self.device.info.software else BUCKETS_GPU
        self._cache = KVCache.empty(self.device, model.config, ctx_size, kv_type)
        self._in = StepInputs(self.device, model.config, self.buckets[-1])
        self._logits = Tensor.empty(self.device, (1, model.config.vocab_size), "f32", "logits")
        self._draws = Draws(self._logits, self._in.ids, self._in.state, ctx_size + 1)
        self._plans: dict[Any, Plan] = {}
        self._reads: dict[Any, ReadBack] = {}

    def rehearse(self) -> list[Problem]:
        """What text will ask of the device, before the first plan is recorded (tuner.py)."""
        return rehearse(self.model, self._cache, self.buckets)

    # The KV cache -------------------------------------------------------------------------------------------------

    @property
    def n_past(self) -> int:
        """Tokens in the KV cache."""
        return len(self.tokens)

    def reset(self, keep: int = 0) -> None:
        """Forget every token after the first `keep`."""
        del self.tokens[keep:], self._keys[keep:]

    def prefill(self, ids: Sequence[int], progress: Progress | None = None) -> None:
        """Append text tokens to the cache in chunks; `progress(done, total)` after each. InvalidRequest when full."""
        self._append(self._following(ids), 0, len(ids), "none", progress)

    def cached(self, prompt: Prompt) -> int:
        """How many tokens of the prompt the cache holds already; never its last, whose logits are wanted."""
        return _common(self._keys, prompt.keys[:-1])

    def begin(self, prompt: Prompt) -> int:
        """Keep of the cache what the prompt begins with, and forget the rest; how many tokens that is."""
        self.reset(keep=self.cached(prompt))
        return self.n_past

    def feed(self, prompt: Prompt, stop: int) -> None:
        """Append a begun prompt's tokens up to number `stop`."""
        self._append(prompt, self.n_past, stop, "none")

    def _following(self, ids: Sequence[int]) -> Prompt:
        """Text tokens that come after those in the cache."""
        return Prompt.text(ids, self._next_position())

    def _next_position(self) -> np.ndarray:
        """Of the token after the cached ones: float32 [3], one more on every axis (transformers' generate)."""
        return self._past[self.n_past - 1] + 1 if self.n_past else np.zeros(3, np.float32)

    def _append(self, prompt: Prompt, start: int, stop: int, last_head: str, progress: Progress | None = None) -> None:
        """Run tokens start to stop; the last chunk ends in `last_head`: "none", or "last" (logits of its last row)."""
        if self.n_past + stop - start > self.ctx_size:
            raise InvalidRequest(
                f"{self.n_past + stop - start} tokens do not fit the context of {self.ctx_size}; "
                "shorten the prompt or load the model with a larger --ctx-size"
            )
        self._check_ids(prompt.ids[start:stop])
        for first in range(start, stop, self.buckets[-1]):
            step = prompt.step(first, min(stop, first + self.buckets[-1]))
            done = first + len(step.ids)
            bucket, head = self._bucket(len(step.ids)), last_head if done == stop else "none"
            plan = self._forward_plan(bucket, head, self._in.write(step, self.n_past))
            if self._tap_layer and step.rows is not None:
                self._keep_hidden(step, self._run([plan], self._reads[plan.name])[0])
            else:
                self.runner.run(plan)
            self._keep(step)
            if progress:
                self.device.wait()
                progress(done - start, stop - start)

    def keep_hidden(self, layer: int) -> None:
        """From now on keep the hidden states after so many layers, of tokens that stand for media, for `hidden`.

        What is in the cache has none, so it is forgotten when this is new.
        """
        if layer != self._tap_layer:
            self.reset()
            self._tap_layer = layer

    def hidden(self, at: np.ndarray) -> np.ndarray:
        """Of cached tokens that stand for media: float32 [len(at), D]. See `keep_hidden`."""
        assert self._hidden is not None
        return self._hidden[at]

    def _keep_hidden(self, step: Step, values: np.ndarray) -> None:
        if self._hidden is None:
            self._hidden = np.zeros((self.ctx_size, self.model.config.dim), np.float32)
        self._hidden[self.n_past : self.n_past + len(step.ids)] = values[: len(step.ids)]

    def _keep(self, step: Step) -> None:
        """The step's tokens are in the cache now."""
        self._past[self.n_past : self.n_past + len(step.ids)] = step.positions
        self.tokens += step.ids
        self._keys += step.keys

    def logits(self, prompt: Sequence[int] | Prompt) -> np.ndarray:
        """Logits after every token of a fresh context: float32 [N, V]. `prompt`: text ids, or what has media."""
        prompt = _prompt(prompt)
        self._check_ids(prompt.ids)
        self.reset()
        if len(prompt) > self.ctx_size:
            raise InvalidRequest(
                f"{len(prompt)} tokens do not fit the context of {self.ctx_size}; use a larger --ctx-size"
            )
        vocabulary = self.model.config.vocab_size
        limit = min(LOGITS_BYTES, self.device.max_binding) // (4 * vocabulary)
        chunk = max(bucket for bucket in self.buckets if bucket <= max(1, limit))
        rows = np.empty((len(prompt), vocabulary), np.float32)
        for start in range(0, len(prompt), chunk):
            step = prompt.step(start, min(len(prompt), start + chunk))
            n = len(step.ids)
            bucket = min(self._bucket(n), chunk)
            plan = self._forward_plan(bucket, "all", self._in.write(step, self.n_past))
            values = self._run([plan], self._reads[plan.name])
            rows[start : start + n] = values[0][:n]
            self._keep(step)
        return rows

    # Answers ------------------------------------------------------------------------------------------------------

    def generate(
        self, prompt: Sequence[int] | Prompt, config: GenerationConfig, eos_ids: frozenset[int]
    ) -> Generator[Token, None, None]:
        """Answer the prompt under a resolved config; what the cache shares with it is not run again.

        Ends after a token of `eos_ids`, after max_tokens, or when the context is full. Closing the iterator early
        leaves the cache valid.
        """
        prompt = _prompt(prompt)
        if not prompt.ids:
            raise InvalidRequest("the prompt is empty")
        if len(prompt) > self.ctx_size:
            raise InvalidRequest(
                f"the prompt has {len(prompt)} tokens and the context holds {self.ctx_size}; "
                "shorten it or load the model with a larger --ctx-size"
            )
        self._check_ids(prompt.ids)
        self.timings = Timings()
        limit = self.ctx_size if config.max_tokens is None else config.max_tokens
        # The token after a full context still has logits to be drawn from, but no row in the cache.
        limit = min(limit, self.ctx_size - len(prompt) + 1)
        start = time.perf_counter()
        cached = self.begin(prompt)
        self._append(prompt, cached, len(prompt), "last")
        self.timings.prompt_n = len(prompt) - cached
        if limit <= 0:
            self.device.wait()
            self.timings.prompt_s = time.perf_counter() - start
            return
        sampler = Sampler(config, prompt.ids)
        drawn = sampler.decided and config.logprobs == 0
        steps = self._drawn(sampler, limit) if drawn else self._sampled(sampler, config.logprobs, limit)
        for count, token in enumerate(steps, 1):
            now = time.perf_counter()
            if count == 1:  # the first token is the prompt's work
                self.timings.prompt_s, start = now - start, now
            else:
                self.timings.predicted_n, self.timings.predicted_s = count - 1, now - start
            finish = "stop" if token.id in eos_ids else "length" if count == limit else None
            yield Token(token.id, token.logprob, token.top, finish)
            if finish:
                return

    def _drawn(self, sampler: Sampler, limit: int) -> Iterator[Token]:
        """Tokens chosen on the GPU; the next step is submitted before this one is read."""
        choice, read = self._draws.chosen(sampler)
        plans = [self._forward_plan(1, "last"), choice]
        self._draws.write(sampler)
        current = self.runner.start([choice], read)
        for count in range(1, limit + 1):
            following = None
            if count < limit:
                self._in.write_next(self.n_past, self._next_position())
                # The window moves by the token that is not read yet: it is counted on the GPU.
                self._draws.write(sampler, sampler.leaving)
                following = self.runner.start(plans, read)
            token = self._known(int(current.result()[0][0]))
            try:
                yield Token(token)
            except GeneratorExit:
                if following is not None:
                    following.result()  # gives its buffer back
                raise
            sampler.accept(token)
            self._keep(Step([token], [token], self._next_position()[None]))
            if following is None:
                return
            current = following

    def _known(self, token: int) -> int:
        """What is drawn from logits that are no numbers, or all -inf, is no token."""
        if token < self.model.config.vocab_size:
            return token
        if token > self.model.config.vocab_size:
            raise InvalidRequest(NO_TOKEN)
        raise OmniError(
            "the model computed logits that are no numbers; damaged weights or a driver fault: "
            "run `qwen3omni doctor`, or try again with QWEN3OMNI_DEBUG=1 to find the op"
        )

    def _sampled(self, sampler: Sampler, logprobs: int, limit: int) -> Iterator[Token]:
        """Candidates from the GPU, the draw on the host."""
        for _ in range(limit):
            plan, read = self._draws.candidates(sampler)
            ids, values = self._run([plan], read)
            logits, logsumexp = values[:-1], float(values[-1])
            order = np.lexsort((ids, -logits))
            ids, logits = ids[order], logits[order]
            token = sampler.pick(ids, logits, logsumexp, lambda: self._logits.numpy()[0])
            chosen = None
            top = None
            if logprobs:
                known = np.flatnonzero(ids == token)
                logit = float(logits[known[0]]) if len(known) else float(self._logits.numpy()[0, token])
                chosen = logit - logsumexp
                pairs = zip(ids[:logprobs], logits[:logprobs], strict=True)
                top = [(int(i), float(value) - logsumexp) for i, value in pairs]
            yield Token(token, chosen, top)
            sampler.accept(token)
            if self.n_past < self.ctx_size:
                self._append(self._following([token]), 0, 1, "last")

    # Steps --------------------------------------------------------------------------------------------------------

    def _bucket(self, n: int) -> int:
        return next(bucket for bucket in self.buckets if bucket >= n)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Kernels skip ids that are no rows of the embedding, which would leave garbage."""
        vocabulary = self.model.config.vocab_size
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"token {wrong} does not exist: the model's vocabulary has {vocabulary}")

    def _forward_plan(self, bucket: int, head: str, taps: int | None = None) -> Plan:
        """`bucket` tokens through the model. head: "none", "last" (into self._logits) or "all" (read back).

        taps: deepstack maps that are added, None where no token's embedding is replaced.
        """
        tap = self._tap_layer if taps is not None else 0
        key = (bucket, head, taps, tap)
        if key in self._plans:
            return self._plans[key]
        media = "" if taps is None else f" media {taps}" + (f" tap {tap}" if tap else "")
        name = f"{'decode' if bucket == 1 else 'prefill'} {bucket} {head}{media}"
        plan = Plan(self.device, name, self._in.state, self.model.activations)
        media_rows = None
        if taps is not None:
            rows, flags = self._in.media()
            media_rows = rows.first(bucket), flags.first(bucket)
        tapped: dict[int, Tensor | None] = {tap: None} if tap else {}
        found = logits(
            plan, self.model, self._in.ids.first(bucket), self._in.positions.first(bucket), self._cache, head,
            self._logits if head == "last" else None, media_rows, self._in.deepstack(taps or 0, bucket), tapped,
        )  # fmt: skip
        kept = [found] if head == "all" and found is not None else []
        kept += [tensor for tensor in tapped.values() if tensor is not None]
        self._plans[key] = plan.finish(keep=kept)
        if kept:
            self._reads[name] = ReadBack(self.device, kept)
        return plan

    def _run(self, plans: list[Plan], read: ReadBack) -> list[np.ndarray]:
        """Run plans and wait for the values of `read`."""
        return self.runner.start(plans, read).result()

    def free(self) -> None:
        """Release the cache and the plans; the weights belong to the model."""
        for plan in self._plans.values():
            plan.free()
        for read in self._reads.values():
            read.free()
        self._cache.free()
        self._in.free()
        self._draws.free()
        self._logits.free()
        self._plans, self._reads = {}, {}


def _prompt(prompt: Sequence[int] | Prompt) -> Prompt:
    return prompt if isinstance(prompt, Prompt) else Prompt.text(prompt)


def _common(cached: Sequence[Hashable], ids: Sequence[Hashable]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(cached, ids, strict=False)) if a != b), min(len(cached), len(ids)))


def _check_cache_size(model: TextModel, ctx_size: int, kv_type: str) -> None:
    config = model.config
    row = kv_row_bytes(config, kv_type)
    limit = model.device.max_binding
    if row * ctx_size > limit:
        raise OutOfDeviceMemory(
            f"--ctx-size {ctx_size} needs {row * ctx_size:,} bytes of keys a layer, and {model.device.info.name} can "
            f"bind {limit:,}; the largest that fits is {limit // row}",
            needed=row * ctx_size,
            free=limit,
        )
    most = most_keys(model.device, config.n_heads, config.n_kv_heads, config.head_dim)
    if ctx_size > most:
        raise InvalidRequest(
            f"--ctx-size {ctx_size} is more than {model.device.info.name} can compute: this driver ends long loops; "
            f"the largest that works is {most}"
        )
