"""Which kernels the report is about: the real model's plans and the true-shape cases of the table, in all variants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from qwen3omni_wgpu.gpu import Device, Kernel, Part, Plan, Tensor
from qwen3omni_wgpu.gpu.plan import Step
from qwen3omni_wgpu.gpu.tensor import BLOCK
from qwen3omni_wgpu.ops.cases import CASES, Case
from qwen3omni_wgpu.ops.choice import Problem, candidates

from .models import model_plans

# A dimension from here on says that the case has a real model's shape; smaller ones probe borders.
TRUE_DIM = 768
# Plans of a token of the thinker; with packed activations, as GPUs have it unless asked, its candidates are looked at.
DECODE = "thinker decode"
PACKED_DECODE = f"{DECODE} q8"
# Of the candidates of a problem, evenly spread, where not all are wanted: they compile for a minute.
FEW = 12
VARIANTS = ("rule", "decode", "all")
_LAYER = re.compile(r"\w+\.\d+\.")
Record = Callable[[Device], Plan]


@dataclass(frozen=True)
class Job:
    """A kernel to compile, and what is known of the dispatch that it was recorded for.

    use: which plan or case, and which of its steps. choice: "rule", or what is chosen instead. streamed: bindings that
    the dispatch reads the bulk of its bytes from (weights; the cache in attention). streamed_bytes: how many of them.
    stored: these are weights or a cache, not what other dispatches have just written.
    block: weights and bytes of one block of the streamed type. flops: of the dispatch, by the op's formula.
    """

    kernel: Kernel
    n_in: int
    n_out: int
    immediate_bytes: int
    use: str
    choice: str
    grid: tuple[int, int, int]
    streamed: tuple[int, ...]
    streamed_bytes: int
    stored: bool
    block: tuple[int, int]
    flops: int

    @property
    def identity(self) -> tuple[Kernel, int, int, int]:
        return self.kernel, self.n_in, self.n_out, self.immediate_bytes

    @property
    def variant(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.kernel.params)


def jobs(device: Device, variants: str = "all") -> list[Job]:
    """Every kernel once, under the first use that was found; those that the rules choose come first.

    variants: "rule" for these alone, "decode" with some of all that the thinker's packed decoding may choose, "all".
    """
    found: dict[tuple[Kernel, int, int, int], Job] = {}
    recorded = [*model_plans(), *((case.name, case.dry) for case in CASES if _true_shape(case))]
    asked: list[tuple[str, Record, list[Problem]]] = []
    for name, record in recorded:
        device.asked.clear()
        for job in _of(name, "rule", record(device)):
            found.setdefault(job.identity, job)
        asked.append((name, record, list(device.asked.values())))
    if variants != "rule":
        few = variants == "decode"
        for job in _others(device, [each for each in asked if not few or each[0] == PACKED_DECODE], few):
            found.setdefault(job.identity, job)
    return list(found.values())


def _others(device: Device, asked: list[tuple[str, Record, list[Problem]]], few: bool) -> Iterator[Job]:
    """What else could have been chosen, problem by problem, each where it is first met. few: FEW of a problem."""
    done: set[Problem] = set()
    for name, record, problems in asked:
        for problem in problems:
            if problem in done:
                continue
            done.add(problem)
            options = candidates(device, problem)[1:]
            for option in options[:: -(-len(options) // FEW) if few and options else 1]:
                device.tuned = {problem.key: asdict(option)}
                yield from _of(name, _shown(option), record(device))
    device.tuned = {}


def _shown(option: object) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(option).items())  # type: ignore[call-overload]


def _true_shape(case: Case) -> bool:
    if "variant" in case.params:
        return False
    numbers = [value for value in case.params.values() if isinstance(value, int) and not isinstance(value, bool)]
    return case.large or max(numbers, default=0) >= TRUE_DIM or case.params.get("hd", 0) >= 64


def _of(name: str, choice: str, plan: Plan) -> Iterator[Job]:
    written: set[int] = set()
    met: dict[str, list[Kernel]] = {}  # steps of one name, such as two matrices of one shape
    for step in plan.steps:
        use = f"{name}: {re.sub(_LAYER, '', step.label)}"
        alike = met.setdefault(use, [])
        if step.kernel not in alike:
            alike.append(step.kernel)
        number = alike.index(step.kernel) + 1
        streamed, nbytes, dtype = _streamed(step)
        stored = all(_is_cache(tensor) or id(part.storage) not in written for _, tensor, part in streamed)
        written |= {id(part.storage) for _, part in step.outputs}
        yield Job(
            kernel=step.kernel,
            n_in=len(step.inputs),
            n_out=len(step.outputs),
            immediate_bytes=len(step.immediates),
            use=use if number == 1 else f"{use} #{number}",
            choice=choice,
            grid=step.grid,
            streamed=tuple(number for number, _, _ in streamed),
            streamed_bytes=nbytes,
            stored=stored,
            block=BLOCK[dtype],
            flops=step.flops,
        )


def _bindings(step: Step) -> list[tuple[int, Tensor, Part]]:
    """What the dispatch may read much of: its inputs; a cache that it reads as a whole, though it may write to it."""
    bound = [*step.inputs, *step.outputs]
    numbered = [(i, tensor, part) for i, (tensor, part) in enumerate(bound)]
    caches = [each for each in numbered if _is_cache(each[1]) and each[2].nbytes <= step.nbytes]
    return caches or [each for each in numbered[: len(step.inputs)] if not _is_cache(each[1])]


def _is_cache(tensor: Tensor) -> bool:
    return tensor.name.startswith("cache")


def _streamed(step: Step) -> tuple[list[tuple[int, Tensor, Part]], int, str]:
    """Bindings with the bulk of what is read; how many bytes the dispatch reads there; their type."""
    found = _bindings(step)
    if not found:
        return [], 0, "f32"
    most = max(part.nbytes for _, _, part in found)
    dtype = next(tensor.dtype for _, tensor, part in found if part.nbytes == most)
    alike = [each for each in found if each[1].dtype == dtype and 2 * each[2].nbytes > most]
    return alike, min(sum(part.nbytes for _, _, part in alike), step.nbytes), dtype
