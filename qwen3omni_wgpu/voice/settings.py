"""How codes are drawn: the settings of the talker and of the code predictor."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from typing import Any

from ..errors import InvalidRequest
from ..formats.gguf import GGUFFile
from ..models import code_predictor
from ..models.config import Keys
from ..models.talker import ARCHITECTURE

# Field -> (smallest, largest, what is allowed in words).
_RANGES: dict[str, tuple[float, float, str]] = {
    "temperature": (0.0, 100.0, "between 0 (greedy) and 100"),
    "top_k": (0, 2**31, "0 (off) or above"),
    "top_p": (0.0, 1.0, "between 0 and 1 (off)"),
    "repeat_penalty": (1e-3, 1e3, "between 0.001 and 1000 (1 = off)"),
    "max_frames": (0, 2**31, "0 or above"),
    "seed": (0, 2**64 - 1, "between 0 and 2**64 - 1"),
}
_WHOLE = ("top_k", "max_frames", "seed")


@dataclass(frozen=True, kw_only=True)
class SpeechSettings:
    """Of code 0 of every frame, and (predictor_...) of the codes behind it. Temperature 0 takes the best one.

    repeat_penalty: for codes 0 of this speech. max_frames: 12.5 a second. seed: None = a new one every time. greedy:
    all temperatures are 0.
    """

    temperature: float = 0.9
    top_k: int = 50
    top_p: float = 1.0
    repeat_penalty: float = 1.05
    max_frames: int = 4095
    predictor_temperature: float = 1.0
    predictor_top_k: int = 50
    predictor_top_p: float = 0.8
    seed: int | None = None
    greedy: bool = False

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if name == "greedy" or (name == "seed" and value is None):
                continue
            plain = name.removeprefix("predictor_")
            low, high, allowed = _RANGES[plain]
            kinds, kind = (int, "a whole number") if plain in _WHOLE else ((int, float), "a number")
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                raise InvalidRequest(f"{name} is {value!r}, but must be {kind} {allowed}")

    @classmethod
    def from_gguf(cls, file: GGUFFile, **changes: Any) -> SpeechSettings:
        """What a talker file recommends; `changes` that are not None come instead.

        UnsupportedModel for a recommendation we cannot follow, InvalidRequest for a value out of range.
        """
        talker, predictor = Keys(file, ARCHITECTURE), Keys(file, code_predictor.KEYS)
        found: dict[str, Any] = {}
        for keys, prefix in ((talker, ""), (predictor, "predictor_")):
            for name in ("temperature", "top_k", "top_p"):
                key = f"sampling.{name}"
                value = keys.get(key)
                if value is not None:
                    found[f"{prefix}{name}"] = value
        if talker.get("sampling.repetition_penalty") is not None:
            found["repeat_penalty"] = talker.get("sampling.repetition_penalty")
        if talker.get("sampling.max_new_tokens") is not None:
            # One of them is the end of the speech.
            found["max_frames"] = talker.integer("sampling.max_new_tokens") - 1
        if predictor.get("sampling.repetition_penalty") not in (None, 1, 1.0):
            raise predictor.unsupported("sampling.repetition_penalty", "is not 1, which is not supported")
        found["greedy"] = talker.get("sampling.do_sample") is False
        return cls(**found | {name: value for name, value in changes.items() if value is not None})

    def seeded(self) -> SpeechSettings:
        """With a seed that says how to draw the same again."""
        return self if self.seed is not None else replace(self, seed=secrets.randbits(32))

    @property
    def numbers(self) -> tuple[list[float], list[float]]:
        """(temperature, top_k, top_p, repeat penalty) of code 0 and of the others, as the op `sample` takes them."""
        first = [self.temperature, self.top_k, self.top_p, self.repeat_penalty]
        others = [self.predictor_temperature, self.predictor_top_k, self.predictor_top_p, 1.0]
        if self.greedy:
            first[0] = others[0] = 0.0
        return [float(value) for value in first], [float(value) for value in others]
