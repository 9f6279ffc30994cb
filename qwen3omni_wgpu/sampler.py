"""Choosing the next token: settings, penalties' window, filters and the draw.

The chain is llama.cpp's: penalties, top_k, top_p, min_p, temperature, draw. Where a few candidates always decide, the
GPU runs all of it with `numbers` from here. Else it applies the penalties and hands back the few largest logits, and
the rest is done here; only when these cannot decide exactly are all logits fetched.
"""

import math
import secrets
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from qwen3omni_wgpu.errors import InvalidModelFile, InvalidRequest, OmniError

MAX_CANDIDATES = 128  # the most top candidates the GPU hands back
MAX_LOGPROBS = MAX_CANDIDATES
NO_TOKEN = "no token is possible: every logit is minus infinity"
LARGEST = 3e38  # float32 on the GPU
COLDEST = 1e-30  # there the temperature divides; anything below leaves the best token all the same

# Field -> (key in a GGUF's metadata, our default). The defaults are those of llama.cpp.
_DEFAULTS: dict[str, tuple[str, float]] = {
    "temperature": ("general.sampling.temp", 0.8),
    "top_k": ("general.sampling.top_k", 40),
    "top_p": ("general.sampling.top_p", 0.95),
    "min_p": ("general.sampling.min_p", 0.05),
    "repeat_penalty": ("general.sampling.penalty_repeat", 1.0),
    "repeat_last_n": ("general.sampling.penalty_last_n", 64),
    "presence_penalty": ("", 0.0),
    "frequency_penalty": ("", 0.0),
}

# Field -> (smallest, largest, what is allowed in words).
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, math.inf, "0 (greedy) or above"),
    "top_k": (0, 2**31, "0 (off) or above"),
    "top_p": (0.0, 1.0, "between 0 and 1 (off)"),
    "min_p": (0.0, 1.0, "between 0 (off) and 1"),
    "repeat_penalty": (1e-6, math.inf, "above 0 (1 = off)"),
    "repeat_last_n": (-1, 2**31, "-1 (everything), 0 (off) or above"),
    "presence_penalty": (-100.0, 100.0, "between -100 and 100 (0 = off)"),
    "frequency_penalty": (-100.0, 100.0, "between -100 and 100 (0 = off)"),
    "max_tokens": (0, 2**31, "0 or above"),
    "seed": (0, 2**64 - 1, "between 0 and 2**64 - 1"),
    "logprobs": (0, MAX_LOGPROBS, f"between 0 and {MAX_LOGPROBS}"),
    "talker_temperature": (0.0, math.inf, "0 (greedy) or above"),
    "talker_top_k": (0, 2**31, "0 (off) or above"),
    "talker_top_p": (0.0, 1.0, "between 0 and 1 (off)"),
    "talker_repeat_penalty": (1e-6, math.inf, "above 0 (1 = off)"),
    "talker_max_tokens": (0, 2**31, "0 or above"),
    "predictor_temperature": (0.0, math.inf, "0 (greedy) or above"),
}
_WHOLE = {"top_k", "repeat_last_n", "max_tokens", "seed", "logprobs", "talker_top_k", "talker_max_tokens"}


@dataclass(frozen=True, kw_only=True)
class GenerationConfig:
    """How an answer is generated. None = the model's own default, or ours where the model has none."""

    max_tokens: int | None = None  # None = until the model ends the answer or the context is full
    temperature: float | None = None  # 0 = greedy
    top_k: int | None = None  # 0 = off
    top_p: float | None = None  # 1 = off
    min_p: float | None = None  # 0 = off
    repeat_penalty: float | None = None  # 1 = off
    repeat_last_n: int | None = None  # tokens the penalties look back at; -1 = everything
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None  # None = a new one every time
    stop: Sequence[str] = ()  # texts that end the answer; they are not part of it
    ignore_eos: bool = False  # go on after the model's end-of-answer token
    raw: bool = False  # the prompt is plain text: no chat template
    logprobs: int = 0  # most likely tokens to report for every position
    # Speech: without any these say nothing. `resolved` leaves None here: the talker's own file has its defaults.
    voice: str | None = None  # by name
    talker_temperature: float | None = None  # of the first code of a frame; 0 = greedy
    talker_top_k: int | None = None
    talker_top_p: float | None = None
    talker_repeat_penalty: float | None = None
    talker_max_tokens: int | None = None  # frames of 80 ms
    predictor_temperature: float | None = None  # of the other codes of a frame; 0 = greedy

    def resolved(self, metadata: Mapping[str, Any]) -> "GenerationConfig":
        """The same settings with every None that matters filled in: from a GGUF's `general.sampling.*`, else from ours.

        `seed` None becomes a random one, so that an answer can be repeated from its settings. Raises InvalidRequest for
        values out of range.
        """
        filled: dict[str, Any] = {}
        for name, (key, default) in _DEFAULTS.items():
            if getattr(self, name) is None:
                value = metadata.get(key, default)
                if isinstance(value, bool) or not isinstance(value, int | float):
                    raise InvalidModelFile(f"the model's metadata say {key} = {value!r}, which is not a number")
                filled[name] = int(value) if name in _WHOLE else float(value)
        if self.seed is None:
            filled["seed"] = secrets.randbits(32)
        stop = (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)
        config = replace(self, stop=stop, **filled)
        config._check()
        return config

    def _check(self) -> None:
        for name, (low, high, allowed) in _RANGES.items():
            value = getattr(self, name)
            if value is None:
                continue
            kinds, kind = (int, "a whole number") if name in _WHOLE else ((int, float), "a number")
            # NaN fails the comparison; a bool is an int in Python but never meant as one here.
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high or value == math.inf:
                raise InvalidRequest(f"{name} is {value!r}, but must be {kind} {allowed}")
        if not all(isinstance(text, str) and text for text in self.stop):
            raise InvalidRequest(f"stop is {self.stop!r}, but must be texts that are not empty")
        if self.voice is not None and not (isinstance(self.voice, str) and self.voice.strip()):
            raise InvalidRequest(f"voice is {self.voice!r}, but must be the name of a voice")


class Sampler:
    """Chooses tokens for one answer. `config` must be resolved; `prompt_ids` are the tokens before the answer."""

    def __init__(self, config: GenerationConfig, prompt_ids: Sequence[int]):
        self._temperature = _known(config.temperature)
        self._top_k = int(_known(config.top_k))
        self._top_p = _known(config.top_p)
        self._min_p = _known(config.min_p)
        self._logprobs = config.logprobs
        self._rng = np.random.Generator(np.random.PCG64(int(_known(config.seed))))
        window = int(_known(config.repeat_last_n))
        # (repeat, presence, frequency), as the GPU's penalties read them
        self.penalty_options = tuple(
            map(_known, (config.repeat_penalty, config.presence_penalty, config.frequency_penalty))
        )
        if self.penalty_options == (1, 0, 0):
            window = 0
        self._window: deque[int] = deque(maxlen=None if window == -1 else window)
        self._counts: Counter[int] = Counter()
        for token in prompt_ids:
            self.accept(token)

    @property
    def greedy(self) -> bool:
        """True when the most likely token is always taken."""
        return self._temperature == 0

    @property
    def wanted(self) -> int:
        """How many top candidates `pick` wants from the GPU; 0 = the argmax alone is enough."""
        if self.greedy:
            return self._logprobs
        by_filter = self._top_k if 0 < self._top_k <= MAX_CANDIDATES else MAX_CANDIDATES
        return max(by_filter, self._logprobs)

    @property
    def decided(self) -> bool:
        """True when the `wanted` candidates always tell what all logits would give."""
        return self.greedy or 0 < self._top_k <= MAX_CANDIDATES

    def numbers(self, leaving: int) -> np.ndarray:
        """What the GPU needs for one draw, in the order of ops.pick: float32 [9]. Takes one random number.

        leaving: the token that left the penalties' window since the draw before, or the vocabulary's size.
        """
        # The host works in float64; a number that would be rounded to 1 stays below.
        uniform = min(np.float32(self._rng.random()), np.nextafter(np.float32(1), np.float32(0)))
        floor = math.log(self._min_p) if self._min_p > 0 else -math.inf
        chain = (1, 1, 1, 0) if self.greedy else (max(self._temperature, COLDEST), self._top_k, self._top_p, floor)
        numbers = np.array([*chain, uniform, leaving, *self.penalty_options])
        # Drivers may assume that there are no infinities.
        return np.clip(numbers, -LARGEST, LARGEST).astype(np.float32)

    @property
    def leaving(self) -> int | None:
        """The token that leaves the penalties' window when the next one is accepted."""
        full = 0 < len(self._window) == self._window.maxlen
        return self._window[0] if full else None

    @property
    def penalising(self) -> bool:
        """True when recently used tokens are made less likely."""
        return self._window.maxlen != 0

    def penalties(self) -> tuple[np.ndarray, np.ndarray]:
        """Distinct tokens in the penalties' window and how often each occurs: (ids uint32 [M], counts uint32 [M])."""
        ids = np.fromiter(self._counts.keys(), np.uint32, len(self._counts))
        counts = np.fromiter(self._counts.values(), np.uint32, len(self._counts))
        return ids, counts

    def accept(self, token_id: int) -> None:
        """Tell the sampler which token the answer goes on with."""
        if self._window.maxlen == 0:
            return
        if len(self._window) == self._window.maxlen:
            oldest = self._window[0]
            self._counts[oldest] -= 1
            if not self._counts[oldest]:
                del self._counts[oldest]
        self._window.append(token_id)
        self._counts[token_id] += 1

    def pick(self, ids: np.ndarray, logits: np.ndarray, logsumexp: float, full: Callable[[], np.ndarray]) -> int:
        """The next token, penalties already applied.

        ids [C] and logits float32 [C]: the largest logits, falling; `logsumexp` is over all V logits; `full()` fetches
        all V logits [V] and is called only when the C candidates cannot decide exactly what all of them would.
        Takes one random number, so the draw does not depend on which way was taken.
        """
        if not len(logits) or not math.isfinite(logits[0]):
            raise _broken(logits)
        if self.greedy:
            return int(ids[0])
        count = self._kept(logits, logsumexp, complete=False)
        if count is None:
            every = np.asarray(full(), np.float32)
            ids = np.argsort(-every, kind="stable")  # ties go to the lower id, as on the GPU
            logits = every[ids]
            count = self._kept(logits, logsumexp, complete=True)
        return int(ids[self._draw(logits[:count])])

    def _kept(self, logits: np.ndarray, logsumexp: float, complete: bool) -> int | None:
        """How many of the candidates (falling) pass top_k, top_p and min_p; None when more are needed to know.

        Each filter keeps a prefix of the falling list. `complete` says that no candidate is missing.
        """
        if self._top_k and (complete or self._top_k <= len(logits)):
            logits, complete = logits[: self._top_k], True
            # What follows sees the k best only, as if they were the whole vocabulary.
            logsumexp = _logsumexp(logits)
        total = len(logits)
        by_p, by_min = total, total
        if self._top_p < 1 and (complete or not self._top_k):
            mass = np.cumsum(np.exp(logits.astype(np.float64) - logsumexp))
            by_p = int(np.searchsorted(mass, self._top_p)) + 1
        if self._min_p > 0:
            by_min = int(np.count_nonzero(logits >= logits[0] + math.log(self._min_p)))
        if complete:
            return max(1, min(by_p, by_min, total))
        if self._top_k and self._top_p < 1:
            return None  # the nucleus is a share of the top_k candidates' mass, and not all of them are here
        kept = min(by_p, by_min)
        return kept if kept < total else None

    def _draw(self, logits: np.ndarray) -> int:
        scaled = (logits.astype(np.float64) - float(logits[0])) / self._temperature
        mass = np.cumsum(np.exp(scaled))
        # Strictly below the total even after rounding, so a token without any mass is never drawn.
        target = min(self._rng.random() * mass[-1], np.nextafter(mass[-1], 0))
        return int(np.searchsorted(mass, target, side="right"))


def _known(value: float | None) -> float:
    if value is None:
        raise InvalidRequest("the sampler needs a resolved GenerationConfig: call config.resolved(metadata) first")
    return value


def _logsumexp(falling: np.ndarray) -> float:
    values = falling.astype(np.float64)
    return float(values[0] + np.log(np.sum(np.exp(values - values[0]))))


def _broken(logits: np.ndarray) -> OmniError:
    if len(logits) and logits[0] == -math.inf:
        return InvalidRequest(NO_TOKEN)
    found = "no logits" if not len(logits) else f"a largest logit of {logits[0]}"
    return OmniError(
        f"the model computed {found} instead of finite numbers; damaged weights or a driver fault: "
        "run `qwen3omni doctor`, or try again with QWEN3OMNI_DEBUG=1 to find the op"
    )
