"""The table of op cases: the real models' shapes and the borders of every kernel.

Tests, the micro-benchmarks, `doctor`'s self-test, the tuner and the instruction report all read this table. A new op is
one builder and its lines in the module of its family.
"""

from . import attention, convolutions, cpu_rows, experts, matmul, rows, sampling
from .case import BUILDERS, Builder, Case, CaseResult, timed
from .convolutions import AFTER, TILES
from .make import FUSED, GROUPED, PAIRS, QUANTISED, TYPES, VARIANTS, normal, weight

_FAMILIES = (matmul, cpu_rows, experts, attention, rows, convolutions, sampling)
for _family in _FAMILIES:
    BUILDERS |= _family.BUILDERS
CASES: tuple[Case, ...] = tuple(case for family in _FAMILIES for case in family.CASES)

__all__ = [
    "AFTER",
    "BUILDERS",
    "CASES",
    "FUSED",
    "GROUPED",
    "PAIRS",
    "QUANTISED",
    "TILES",
    "TYPES",
    "VARIANTS",
    "Builder",
    "Case",
    "CaseResult",
    "normal",
    "timed",
    "weight",
]
