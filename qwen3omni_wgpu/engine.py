"""Token ids in, token ids out: prefill in chunks, decode, KV cache, sampling. Knows neither text nor sound.

All that changes from step to step (cached tokens, valid tokens, ids, positions) lives in small GPU buffers that kernels
read, so one recorded plan serves every token. Greedy decoding submits step t + 1 before the host has read token t.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import ops
from .errors import InvalidRequest, OmniError, OutOfDeviceMemory
from .gpu import Pending, Plan, ReadBack, Tensor
from .models.text import KVCache, TextModel, forward
from .ops.attention import most_keys
from .runner import Runner
from .sampler import GenerationConfig, Sampler

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
        """kv_type "f16" or "f32"; runner: shared with the model's other parts. OutOfDeviceMemory when a layer's cache exceeds what the device can bind or hold."""
        if kv_type not in ("f16", "f32"):
            raise InvalidRequest(f"kv_type is {kv_type!r}, but must be f16 or f32")
        if ctx_size < 1:
            raise InvalidRequest(f"--ctx-size {ctx_size} is not possible: give at least 1")
        self.model = model
        self.device = model.device
        self.ctx_size = ctx_size
        self.kv_type = kv_type
        self.tokens: list[int] = []
        self.timings = Timings()
        self.runner = runner or Runner(self.device)
        _check_cache_size(model, ctx_size, kv_type)
        self.buckets = BUCKETS if self.device.info.software else BUCKETS_GPU
        self._cache = KVCache.empty(self.device, model.config, ctx_size, kv_type)
        self._state = Tensor.empty(self.device, (2,), "u32", "state")
        self._ids = Tensor.empty(self.device, (self.buckets[-1],), "u32", "ids")
        self._positions = Tensor.empty(self.device, (self.buckets[-1], 3), "f32", "positions")
        self._logits = Tensor.empty(self.device, (1, model.config.vocab_size), "f32", "logits")
        self._recent: Tensor | None = None
        self._options = Tensor.empty(self.device, (4,), "f32", "penalties")
        self._plans: dict[Any, Plan] = {}
        self._reads: dict[Any, ReadBack] = {}

    # The KV cache -------------------------------------------------------------------------------------------------

    @property
    def n_past(self) -> int:
        """Tokens in the KV cache."""
        return len(self.tokens)

    def reset(self, keep: int = 0) -> None:
        """Forget every token after the first `keep`."""
        del self.tokens[keep:]

    def prefill(self, ids: Sequence[int], progress: Progress | None = None) -> None:
        """Append tokens to the cache in chunks; `progress(done, total)` after each. InvalidRequest when full."""
        self._append(ids, "none", progress)

    def _append(self, ids: Sequence[int], last_head: str, progress: Progress | None = None) -> None:
        """Run `ids`; the last chunk ends in `last_head`: "none", or "last" (logits of its last row)."""
        if self.n_past + len(ids) > self.ctx_size:
            raise InvalidRequest(
                f"{self.n_past + len(ids)} tokens do not fit the context of {self.ctx_size}; "
                "shorten the prompt or load the model with a larger --ctx-size"
            )
        self._check_ids(ids)
        chunk = self.buckets[-1]
        for start in range(0, len(ids), chunk):
            part = ids[start : start + chunk]
            done = start + len(part)
            plan = self._forward_plan(self._bucket(len(part)), last_head if done == len(ids) else "none")
            self._set_step(part)
            self.runner.run(plan)
            self.tokens += part
            if progress:
                self.device.wait()
                progress(done, len(ids))

    def logits(self, ids: Sequence[int]) -> np.ndarray:
        """Logits after every token of a fresh context: float32 [N, V]."""
        self._check_ids(ids)
        self.reset()
        if len(ids) > self.ctx_size:
            raise InvalidRequest(
                f"{len(ids)} tokens do not fit the context of {self.ctx_size}; use a larger --ctx-size"
            )
        vocabulary = self.model.config.vocab_size
        limit = min(LOGITS_BYTES, self.device.max_binding) // (4 * vocabulary)
        chunk = max(bucket for bucket in self.buckets if bucket <= max(1, limit))
        rows = np.empty((len(ids), vocabulary), np.float32)
        for start in range(0, len(ids), chunk):
            part = list(ids[start : start + chunk])
            bucket = min(self._bucket(len(part)), chunk)
            plan = self._forward_plan(bucket, "all")
            self._set_step(part)
            values = self._run([plan], self._reads["all", bucket])
            rows[start : start + len(part)] = values[0][: len(part)]
            self.tokens += part
        return rows

    # Answers ------------------------------------------------------------------------------------------------------

    def generate(
        self, ids: Sequence[int], config: GenerationConfig, eos_ids: frozenset[int]
    ) -> Generator[Token, None, None]:
        """Answer the prompt `ids` under a resolved config; what the cache shares with it is not run again.

        Ends after a token of `eos_ids`, after max_tokens, or when the context is full. Closing the iterator early
        leaves the cache valid.
        """
        if not ids:
            raise InvalidRequest("the prompt is empty")
        if len(ids) > self.ctx_size:
            raise InvalidRequest(
                f"the prompt has {len(ids)} tokens and the context holds {self.ctx_size}; "
                "shorten it or load the model with a larger --ctx-size"
            )
        self._check_ids(ids)
        self.timings = Timings()
        limit = self.ctx_size if config.max_tokens is None else config.max_tokens
        # The token after a full context still has logits to be drawn from, but no row in the cache.
        limit = min(limit, self.ctx_size - len(ids) + 1)
        start = time.perf_counter()
        self.reset(keep=_common(self.tokens, ids[:-1]))
        new = list(ids[self.n_past :])
        self._append(new, "last")
        self.timings.prompt_n = len(new)
        if limit <= 0:
            self.device.wait()
            self.timings.prompt_s = time.perf_counter() - start
            return
        sampler = Sampler(config, ids)
        steps = self._greedy(limit) if self._plain(sampler) else self._sampled(sampler, config.logprobs, limit)
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

    @staticmethod
    def _plain(sampler: Sampler) -> bool:
        return sampler.greedy and sampler.wanted == 0 and not sampler.penalising

    def _greedy(self, limit: int) -> Iterator[Token]:
        """The most likely token each time, chosen on the GPU; the next step is submitted before this one is read."""
        plans = [self._forward_plan(1, "last"), self._sample_plan(0, False)]
        read = self._reads[0, False]
        current = self.runner.start(plans[1:], read)
        for count in range(1, limit + 1):
            following = None
            if count < limit:
                self._set_count(self.n_past)
                following = self.runner.start(plans, read)
            token = self._known(int(current.result()[0][0]))
            try:
                yield Token(token)
            except GeneratorExit:
                if following is not None:
                    following.result()  # gives its buffer back
                raise
            self.tokens.append(token)
            if following is None:
                return
            current = following

    def _known(self, token: int) -> int:
        """The argmax of logits that are not numbers is no token."""
        if token < self.model.config.vocab_size:
            return token
        raise OmniError(
            "the model computed logits that are no numbers; damaged weights or a driver fault: "
            "run `qwen3omni doctor`, or try again with QWEN3OMNI_DEBUG=1 to find the op"
        )

    def _sampled(self, sampler: Sampler, logprobs: int, limit: int) -> Iterator[Token]:
        """Candidates from the GPU, the draw on the host."""
        wanted = min(max(1, sampler.wanted), self.model.config.vocab_size)
        for _ in range(limit):
            penalised = self._write_penalties(sampler)
            plan = self._sample_plan(wanted, penalised)
            ids, values = self._run([plan], self._reads[wanted, penalised])
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
                self._append([token], "last")

    # Steps --------------------------------------------------------------------------------------------------------

    def _bucket(self, n: int) -> int:
        return next(bucket for bucket in self.buckets if bucket >= n)

    def _check_ids(self, ids: Sequence[int]) -> None:
        """Kernels skip ids that are no rows of the embedding, which would leave garbage."""
        vocabulary = self.model.config.vocab_size
        wrong = next((token for token in ids if not 0 <= token < vocabulary), None)
        if wrong is not None:
            raise InvalidRequest(f"token {wrong} does not exist: the model's vocabulary has {vocabulary}")

    def _set_step(self, ids: Sequence[int]) -> None:
        """Write what the next forward pass reads: counts, ids and positions."""
        n = len(ids)
        self._state.write(np.array([self.n_past, n], np.uint32))
        self._ids.write(np.asarray(ids, np.uint32))
        positions = np.arange(self.n_past, self.n_past + n, dtype=np.float32)
        self._positions.write(np.repeat(positions[:, None], 3, axis=1))

    def _set_count(self, n_past: int) -> None:
        """The same for one token whose id the GPU has chosen itself."""
        self._state.write(np.array([n_past, 1], np.uint32))
        self._positions.write(np.full((1, 3), n_past, np.float32))

    def _write_penalties(self, sampler: Sampler) -> bool:
        if not sampler.penalising:
            return False
        ids, counts = sampler.penalties()
        if self._recent is None:
            self._recent = Tensor.empty(self.device, (self.ctx_size + 1, 2), "u32", "recent tokens")
        if len(ids):
            self._recent.write(np.stack([ids, counts], axis=1))
        self._options.write(np.array([len(ids), *sampler.penalty_options], np.float32))
        return True

    def _forward_plan(self, bucket: int, head: str) -> Plan:
        """`bucket` tokens through the model. head: "none", "last" (into self._logits) or "all" (read back)."""
        key = (bucket, head)
        if key in self._plans:
            return self._plans[key]
        name = f"{'decode' if bucket == 1 else 'prefill'} {bucket} {head}"
        plan = Plan(self.device, name, self._state, self.model.activations)
        x = ops.embed(plan, self.model.weights["token_embd.weight"], self._ids.first(bucket))
        h = forward(plan, self.model, x, self._positions.first(bucket), self._cache)
        kept = []
        if head == "last":
            row = ops.select_row(plan, h) if bucket > 1 else h
            ops.matmul(plan, row, self.model.head, out=self._logits)
        elif head == "all":
            kept = [ops.matmul(plan, h, self.model.head)]
        self._plans[key] = plan.finish(keep=kept)
        if kept:
            self._reads["all", bucket] = ReadBack(self.device, kept)
        return plan

    def _sample_plan(self, wanted: int, penalised: bool) -> Plan:
        """From self._logits to the next id (wanted 0, written where the next step reads it) or to candidates."""
        key = ("sample", wanted, penalised)
        if key in self._plans:
            return self._plans[key]
        plan = Plan(self.device, f"sample {wanted or 'argmax'}", self._state)
        if penalised:
            assert self._recent is not None
            ops.penalize(plan, self._logits, self._recent, self._options)
        if wanted:
            outputs = list(ops.top_k(plan, self._logits, wanted))
        else:
            outputs = [ops.argmax(plan, self._logits, out=self._ids.first(1))]
        self._plans[key] = plan.finish(keep=outputs)
        self._reads[wanted, penalised] = ReadBack(self.device, outputs)
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
        for tensor in (self._state, self._ids, self._positions, self._logits, self._options, self._recent):
            if tensor is not None:
                tensor.free()
        self._plans, self._reads = {}, {}


def _common(cached: Sequence[int], ids: Sequence[int]) -> int:
    """Length of the longest common beginning."""
    return next((i for i, (a, b) in enumerate(zip(cached, ids, strict=False)) if a != b), min(len(cached), len(ids)))


def _check_cache_size(model: TextModel, ctx_size: int, kv_type: str) -> None:
    config = model.config
    row = config.n_kv_heads * config.head_dim * (2 if kv_type == "f16" else 4)
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
