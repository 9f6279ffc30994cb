"""Which kernels the report is about: the real model's plans and the true-shape cases of the table, in all variants."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

from qwen3omni_wgpu.gpu import Device, Kernel, Plan
from qwen3omni_wgpu.gpu.plan import Step
from qwen3omni_wgpu.gpu.tensor import BLOCK
from qwen3omni_wgpu.ops.cases import CASES, Case
from qwen3omni_wgpu.ops.choice import Problem, candidates

from .models import model_plans

# A dimension from here on says that the case has a real model's shape; smaller ones probe borders.
TRUE_DIM = 768
DECODE = "thinker decode"
VARIANTS = ("rule", "decode", "all")
_LAYER = re.compile(r"\w+\.\d+\.")
Record = Callable[[Device], Plan]


@dataclass(frozen=True)
class Job:
    """A kernel to compile, and what is known of the dispatch that it was recorded for.

    use: which plan or case, and which of its steps. choice: "rule", or what is chosen instead. streamed: bindings that
    the dispatch reads the bulk of its bytes from (weights; the cache in attention). streamed_bytes: how many of them.
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

    variants: "rule" for these alone, "decode" with everything that the thinker's decoding may choose, "all".
    """
    found: dict[tuple[Kernel, int, int, int], Job] = {}
    recorded = [*model_plans(), *((case.name, case.dry) for case in CASES if _true_shape(case))]
    asked: list[tuple[str, Record, list[str]]] = []
    for name, record in recorded:
        device.asked.clear()
        for job in _of(name, "rule", record(device)):
            found.setdefault(job.identity, job)
        asked.append((name, record, list(device.asked)))
    if variants != "rule":
        for job in _others(device, [each for each in asked if variants == "all" or each[0].startswith(DECODE)]):
            found.setdefault(job.identity, job)
    return list(found.values())


def _others(device: Device, asked: list[tuple[str, Record, list[str]]]) -> Iterator[Job]:
    """What else could have been chosen, problem by problem, each where it is first met."""
    done: set[str] = set()
    for name, record, keys in asked:
        for key in keys:
            if key in done:
                continue
            done.add(key)
            problem = _problem(device, record, key)
            for option in candidates(device, problem)[1:]:
                device.tuned = {key: asdict(option)}
                yield from _of(name, _shown(option), record(device))
    device.tuned = {}


def _problem(device: Device, record: Record, key: str) -> Problem:
    device.asked.clear()
    record(device)
    return device.asked[key]


def _shown(option: object) -> str:
    return " ".join(f"{name}={value}" for name, value in asdict(option).items())  # type: ignore[call-overload]


def _true_shape(case: Case) -> bool:
    if "variant" in case.params:
        return False
    numbers = [value for value in case.params.values() if isinstance(value, int) and not isinstance(value, bool)]
    return case.large or max(numbers, default=0) >= TRUE_DIM or case.params.get("hd", 0) >= 64


def _of(name: str, choice: str, plan: Plan) -> Iterator[Job]:
    met: dict[str, list[Kernel]] = {}  # steps of one name, such as two matrices of one shape
    for step in plan.steps:
        use = f"{name}: {re.sub(_LAYER, '', step.label)}"
        alike = met.setdefault(use, [])
        if step.kernel not in alike:
            alike.append(step.kernel)
        number = alike.index(step.kernel) + 1
        streamed, nbytes, dtype = _streamed(step)
        yield Job(
            kernel=step.kernel,
            n_in=len(step.inputs),
            n_out=len(step.outputs),
            immediate_bytes=len(step.immediates),
            use=use if number == 1 else f"{use} #{number}",
            choice=choice,
            grid=step.grid,
            streamed=streamed,
            streamed_bytes=nbytes,
            block=BLOCK[dtype],
            flops=step.flops,
        )


def _streamed(step: Step) -> tuple[tuple[int, ...], int, str]:
    """Bindings with the bulk of what is read; how many bytes the dispatch reads there; their type."""
    sizes = [part.nbytes for _, part in step.inputs]
    if not sizes:
        return (), 0, "f32"
    dtype = step.inputs[sizes.index(max(sizes))][0].dtype
    alike = [i for i, (tensor, _) in enumerate(step.inputs) if tensor.dtype == dtype and 2 * sizes[i] > max(sizes)]
    return tuple(alike), min(sum(sizes[i] for i in alike), step.nbytes), dtype
