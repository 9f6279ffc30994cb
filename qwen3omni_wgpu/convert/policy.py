"""Which type each tensor gets when a model is quantised: a table of rules, the first that fits decides.

What is small and felt everywhere (norms, biases, routers, positions) stays float32; what llama.cpp can run in one type
only gets that type; the rest becomes what was asked for.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Literal

from ..formats.tensors import BLOCKS

_HALVES = ("f16", "bf16")
_FLOATS = ("f32", *_HALVES)

# f32:    always float32.
# conv:   f16, or f32 when that is asked for: no bf16, which llama.cpp's convolutions do not take.
# float:  the wanted type where it is a float, else f16.
# wide:   as float, but f32 instead of f16.
# wanted: the wanted type.
Keep = Literal["f32", "conv", "float", "wide", "wanted"]


@dataclass(frozen=True)
class Rule:
    """`what` names the tensors in words; `reason` says why they are kept so.

    components: those it is for, all when empty. name: a regular expression for the whole GGUF name. min_dims: fewest
    dimensions. ragged: only rows that are no whole number of blocks. vector: only one dimension longer than 1.
    """

    what: str
    keep: Keep
    reason: str
    components: tuple[str, ...] = ()
    name: str = ".*"
    min_dims: int = 1
    ragged: bool = False
    vector: bool = False

    def fits(self, name: str, shape: tuple[int, ...], component: str, wanted: str) -> bool:
        return (
            (not self.components or component in self.components)
            and len(shape) >= self.min_dims
            and (not self.vector or prod(shape) == max(shape, default=1))
            and (not self.ragged or shape[-1] % BLOCKS[wanted][0] != 0)
            and re.fullmatch(self.name, name) is not None
        )

    def type_for(self, wanted: str) -> str:
        """What a tensor under this rule becomes when `wanted` is asked for."""
        if self.keep == "wanted":
            return wanted
        if self.keep == "f32" or wanted == "f32":
            return "f32"
        if self.keep == "conv":
            return "f16"
        half = wanted if wanted in _HALVES else "f16"
        return "f32" if self.keep == "wide" and half == "f16" else half


_CODE_PREDICTOR = (
    Rule(
        "code predictor: ffn_down",
        "wide",
        "its inputs reach 1.5e5, beyond f16, and llama.cpp rounds a product's inputs to the type of the weights",
        components=("code_predictor",),
        name=r".*\.ffn_down\.weight",
    ),
    Rule(
        "code predictor: the rest",
        "float",
        "quantising it is known to degrade long speech, and it is 0.4 % of the model",
        components=("code_predictor",),
    ),
)

POLICY: tuple[Rule, ...] = (
    Rule(
        "norms, biases, scales and other vectors",
        "f32",
        "a few bytes that touch every value; llama.cpp reads them as f32 only",
        vector=True,
    ),
    Rule(
        "routers",
        "f32",
        "a small error here chooses other experts; llama.cpp keeps them f32 too",
        name=r".*\.ffn_gate_inp(_shexp)?\.weight",
    ),
    Rule(
        "position tables of the towers",
        "f32",
        "added to every token, and llama.cpp interpolates and slices them as f32 only",
        name=r"[av]\.position_embd\.weight",
    ),
    Rule(
        "convolutions of the towers",
        "conv",
        "few bytes, first in line, and llama.cpp's convolutions take f16 or f32 kernels only",
        components=("audio_encoder", "vision_encoder"),
        min_dims=3,
    ),
    Rule(
        "projection behind the audio convolutions",
        "conv",
        "llama.cpp keeps it with the convolutions, in f16",
        components=("audio_encoder",),
        name=r"a\.conv_out\.weight",
    ),
    Rule(
        "Code2Wav: convolutions",
        "conv",
        "their rows are too short for blocks (1 to 16 taps), and llama.cpp's convolutions have no bf16",
        components=("code2wav",),
        min_dims=3,
    ),
    Rule(
        "Code2Wav: the rest",
        "float",
        "its errors are heard as noise, and quantising it would save 0.15 GB",
        components=("code2wav",),
    ),
    *_CODE_PREDICTOR,
    Rule(
        "rows that are no whole number of blocks",
        "float",
        "a quantised row is made of whole blocks (Q8_0: 32 weights)",
        ragged=True,
    ),
    Rule("all other matrices, embeddings and heads", "wanted", "nearly all of the model's bytes"),
)


def rule_for(
    name: str, shape: tuple[int, ...], component: str, wanted: str, *, quantize_code_predictor: bool = False
) -> Rule:
    """The rule that decides about a tensor: GGUF name, row-major shape, component as in `convert.names`."""
    rules = _rules(wanted, quantize_code_predictor)
    return next(rule for rule in rules if rule.fits(name, shape, component, wanted))


def out_type(
    name: str, shape: tuple[int, ...], component: str, wanted: str, *, quantize_code_predictor: bool = False
) -> str:
    """The type (key of BLOCKS) a tensor is stored in when the model is to become `wanted`."""
    rule = rule_for(name, shape, component, wanted, quantize_code_predictor=quantize_code_predictor)
    return rule.type_for(wanted)


def describe(wanted: str, *, quantize_code_predictor: bool = False) -> list[tuple[str, str, str]]:
    """The table for printing: (which tensors, their type, why), in the order of the rules."""
    rules = _rules(wanted, quantize_code_predictor)
    return [(rule.what, rule.type_for(wanted), rule.reason) for rule in rules if not _idle(rule, wanted)]


def _rules(wanted: str, quantize_code_predictor: bool) -> Iterator[Rule]:
    spared = () if quantize_code_predictor and wanted not in _FLOATS else _CODE_PREDICTOR
    return (rule for rule in POLICY if rule in spared or rule not in _CODE_PREDICTOR)


def _idle(rule: Rule, wanted: str) -> bool:
    """No row is ragged where a block is one weight."""
    return rule.ragged and BLOCKS[wanted][0] == 1
