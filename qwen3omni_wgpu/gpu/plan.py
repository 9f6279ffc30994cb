"""A plan: kernels recorded once in order, replayed for every token.

Ops append steps; `finish()` gives the intermediate results their buffers and makes the bind groups. The same list has
three runners: `run` (all steps, few submits), `run_debug` (one submit a step, each result checked), and
`profile.run_profiled` (timestamps around every step).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import OmniError
from .device import Device, ffi
from .kernel import Kernel, Pipeline, pipeline
from .replay import Copy, Submit, encode, record, resolve
from .tensor import Part, Storage, Tensor

# A driver's watchdog kills work of about 2 s. 100 GFLOP is under 0.1 s on any GPU worth the name.
FLOPS_PER_SUBMIT = 1e11
# A plan without a state of its own: nothing is cached, every row counts (a count that kernels may multiply by heads).
ALL_TOKENS = 1 << 20


class NumericalError(OmniError):
    """The debug runner found NaN, Inf, or a result that differs from the op's NumPy twin."""


@dataclass(frozen=True)
class Check:
    """How the debug runner judges an op: its NumPy twin, what the twin reads, and what it should have written.

    `twin(n_past, n_tokens, *inputs)` returns one array for each output; an output may have more rows (padding), which
    are not looked at. `tolerance`, one for all or one for each, bounds |got - expected| / max(1, max|expected|).
    """

    twin: Callable[..., Sequence[np.ndarray]]
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]
    tolerance: float | Sequence[float]


@dataclass
class Step:
    """One dispatch: what runs, on which bytes, over which grid; and what it costs by the op's own formulas."""

    op: str
    kernel: Kernel
    inputs: list[tuple[Tensor, Part]]
    outputs: list[tuple[Tensor, Part]]
    grid: tuple[int, int, int]
    immediates: bytes = b""
    state: Tensor | None = None  # the plan's when this step was added
    nbytes: int = 0
    flops: int = 0
    poison: list[Tensor] = field(default_factory=list)  # debug runner: filled with NaN before this step
    check: Check | None = None  # debug runner: judged after this step
    pipeline: Pipeline | None = None
    group: Any = None
    c_immediates: Any = None

    @property
    def label(self) -> str:
        shapes = " ".join("x".join(map(str, tensor.shape)) for tensor, _ in self.outputs)
        return f"{self.op} {shapes}"


@dataclass
class Plan:
    """Steps for one phase and shape bucket of a model."""

    device: Device
    name: str = "plan"
    # uint32 [n_past, n_tokens], read by every kernel; another one for the steps that follow may be set between ops
    state: Tensor = None  # type: ignore[assignment]
    activations: str = "f32"  # "q8": matmuls with quantised weights quantise their input, too
    steps: list[Step] = field(default_factory=list)
    memo: dict[Any, Any] = field(default_factory=dict)  # results that several ops share, such as quantised activations
    _scratch: list[Any] = field(default_factory=list)
    _replay: list[Submit] | None = None
    _finished: bool = False
    scope: str = ""  # prefix of op names, so that profiles can be read by part of the model
    dry: bool = False  # recorded to be looked at: nothing is compiled, and it never runs

    def __post_init__(self) -> None:
        if self.state is None:
            if "all tokens" not in self.device.cache:
                state = np.array([0, ALL_TOKENS], np.uint32)
                self.device.cache["all tokens"] = Tensor.from_numpy(self.device, state, "state")
            self.state = self.device.cache["all tokens"]

    def empty(self, shape: tuple[int, ...], dtype: str = "f32", name: str = "") -> Tensor:
        """An intermediate result; its memory is shared with others once it is no longer read."""
        return Tensor.pending(self.device, shape, dtype, name)

    def lasting(self, shape: tuple[int, ...], dtype: str, name: str) -> Tensor:
        """Memory of the plan's own, one for a name and shape: zeros at first, then what replays leave there."""
        key = "lasting", name, shape, dtype
        if key not in self.memo:
            tensor = self.empty(shape, dtype, name) if self.dry else Tensor.empty(self.device, shape, dtype, name)
            self._scratch += [part.storage.buffer for part in tensor.parts if not self.dry]
            self.memo[key] = tensor
        return self.memo[key]

    def add(
        self,
        op: str,
        kernel: Kernel,
        inputs: Sequence[Tensor | tuple[Tensor, Part]],
        outputs: Sequence[Tensor | tuple[Tensor, Part]],
        grid: tuple[int, int, int],
        *,
        immediates: Sequence[int | float] = (),
        nbytes: int = 0,
        flops: int = 0,
    ) -> Step:
        """Append one dispatch. A tuple (tensor, part) binds one part of a split tensor."""
        limit = self.device.limits["max-compute-workgroups-per-dimension"]
        if self._finished:
            raise ValueError(f"plan {self.name} is finished; record a new one")
        if any(not 0 < size <= limit for size in grid):
            raise ValueError(f"{op}: grid {grid} is empty or exceeds the device's {limit} workgroups an axis")
        packed = b"".join(struct.pack("<f" if isinstance(value, float) else "<I", value) for value in immediates)
        step = Step(
            f"{self.scope}{op}",
            kernel,
            [_binding(item) for item in inputs],
            [_binding(item) for item in outputs],
            grid,
            packed,
            self.state,
            nbytes,
            flops,
        )
        if not self.dry:
            step.pipeline = pipeline(self.device, kernel, len(step.inputs), len(step.outputs), len(packed))
        self.steps.append(step)
        return step

    def check(
        self,
        twin: Callable[..., Sequence[np.ndarray]],
        inputs: Sequence[Tensor],
        outputs: Sequence[Tensor],
        tolerance: float | Sequence[float],
        steps: int = 1,
    ) -> None:
        """Tell the debug runner what the last `steps` dispatches should have computed."""
        group = self.steps[-steps:]
        group[0].poison = [tensor for tensor in outputs if all(tensor is not item for item in inputs)]
        group[-1].check = Check(twin, inputs, outputs, tolerance)

    # Memory -------------------------------------------------------------------------------------------------------

    def finish(self, keep: Iterable[Tensor] = ()) -> Plan:
        """Give intermediate results their buffers and make the bind groups. `keep` are read after the plan ran."""
        if self.dry:
            raise ValueError(f"plan {self.name} was recorded dry; it cannot run")
        self._assign_buffers({id(tensor.storage) for tensor in keep})
        for step in self.steps:
            self._bind(step)
        self._finished = True
        return self

    def _assign_buffers(self, kept: set[int]) -> None:
        last_use: dict[int, int] = {}
        pending: dict[int, Storage] = {}
        for index, step in enumerate(self.steps):
            for storage in _touched(step):
                if storage.buffer is None:
                    last_use[id(storage)] = index
                    pending[id(storage)] = storage
        free: list[Any] = []
        for index, step in enumerate(self.steps):
            for _, part in step.outputs:
                if part.storage.buffer is None:
                    part.storage.buffer = self._take(free, part.storage)
            for _, part in step.inputs:
                if part.storage.buffer is None:
                    raise ValueError(f"{step.op} reads {part.storage.label!r} before anything wrote it")
            for key, storage in {id(storage): storage for storage in _touched(step)}.items():
                if key in pending and last_use[key] == index and key not in kept:
                    free.append(storage.buffer)

    def _take(self, free: list[Any], storage: Storage) -> Any:
        # The smallest free buffer that is large enough, else a new one.
        fitting = [buffer for buffer in free if buffer.size >= storage.nbytes]
        if fitting:
            best = min(fitting, key=lambda buffer: buffer.size)
            free.remove(best)
            return best
        buffer = self.device.create_buffer(storage.nbytes, f"{self.name} scratch")
        self._scratch.append(buffer)
        return buffer

    def _bind(self, step: Step) -> None:
        assert step.pipeline is not None
        entries = []
        for i, (_, part) in enumerate((*step.inputs, *step.outputs)):
            # Whole 16-byte words, as buffers are: a kernel may load wider than its elements.
            size = min(-(-part.nbytes // 16) * 16, part.storage.buffer.size - part.offset)
            entries.append(
                {"binding": i, "resource": {"buffer": part.storage.buffer, "offset": part.offset, "size": size}}
            )
        step.group = self.device.handle.create_bind_group(layout=step.pipeline.layout, entries=entries)
        step.c_immediates = ffi.new("char[]", step.immediates) if step.immediates else ffi.NULL

    def free(self) -> None:
        """Release the scratch memory; the plan cannot run afterwards."""
        self._replay = None
        for step in self.steps:
            step.group = None
        for buffer in self._scratch:
            self.device.free_buffer(buffer)
        self._scratch.clear()

    # Runners ------------------------------------------------------------------------------------------------------

    def encode(self) -> list[Any]:
        """Command buffers for one replay, one a submit."""
        return encode(self.device, self.replay(), FLOPS_PER_SUBMIT)

    def replay(self) -> list[Submit]:
        """`submits` as the C interface takes them; resolved once."""
        if self._replay is None:
            self._replay = [Submit(resolve(steps), sum(step.flops for step in steps)) for steps in self.submits()]
        return self._replay

    def submits(self) -> list[list[Step]]:
        """The steps, cut so that each submit stays far below a driver's watchdog."""
        cut: list[list[Step]] = [[]]
        flops = 0
        for step in self.steps:
            if cut[-1] and flops + step.flops > FLOPS_PER_SUBMIT:
                cut.append([])
                flops = 0
            cut[-1].append(step)
            flops += step.flops
        return cut

    def run(self) -> None:
        """Submit every step; does not wait."""
        for command in self.encode():
            self.device.submit([command])

    def run_debug(self, values: Callable[[Tensor], np.ndarray] = Tensor.numpy) -> list[tuple[str, float, float]]:
        """One submit a step; returns (label, error, tolerance) of every checked op.

        Outputs are filled with NaN first. NumericalError at the first result that is not finite or differs from its
        NumPy twin. `values` turns a tensor into float32 (the ops know how to dequantise).
        """
        results = []
        for step in self.steps:
            for tensor in step.poison:
                tensor.fill(0xFF)
            arrays = [values(tensor) for tensor in step.check.inputs] if step.check else []
            assert step.state is not None
            n_past, n_tokens = (int(value) for value in step.state.numpy()[:2])
            self.device.submit(encode(self.device, [Submit(resolve([step]), step.flops)], FLOPS_PER_SUBMIT))
            if step.check:
                expected = step.check.twin(n_past, n_tokens, *arrays)
                results.append((step.label, *_largest_error(step, expected, values)))
        return results

    @property
    def nbytes(self) -> int:
        return sum(step.nbytes for step in self.steps)

    @property
    def flops(self) -> int:
        return sum(step.flops for step in self.steps)


def _largest_error(
    step: Step, expected: Sequence[np.ndarray], values: Callable[[Tensor], np.ndarray]
) -> tuple[float, float]:
    """The error that is nearest to its tolerance, and that."""
    check = step.check
    assert check is not None
    limits = check.tolerance if isinstance(check.tolerance, Sequence) else [check.tolerance] * len(expected)
    found = []
    for tensor, want, limit in zip(check.outputs, expected, limits, strict=True):
        got = values(tensor).reshape(-1)[: want.size].reshape(want.shape).astype(np.float64)
        if not np.isfinite(got).all():
            raise NumericalError(f"{step.label}: {step.kernel.label} wrote NaN or Inf into {tensor.name}")
        error = np.abs(got - want) / max(1.0, float(np.abs(want).max(initial=0)))
        if error.max(initial=0) > limit:
            at = np.unravel_index(int(error.argmax()), error.shape)
            raise NumericalError(
                f"{step.label}: {step.kernel.label} differs from its NumPy twin: {error.max():.2e} > "
                f"{limit:.1e} at {tuple(map(int, at))} (got {got[at]:.6g}, expected {want[at]:.6g}; "
                f"{int((error > limit).sum())} of {error.size} values)"
            )
        found.append((float(error.max(initial=0)), limit))
    # Exact ones have a tolerance of 0.
    return max(found, key=lambda pair: pair[0] / pair[1] if pair[1] else 0.0)


def _touched(step: Step) -> list[Storage]:
    """What a step, or the debug runner's check of it, reads or writes."""
    storages = [part.storage for _, part in (*step.inputs, *step.outputs)]
    # A packed matmul reads quants, but its twin reads what they were made of.
    return storages + [part.storage for tensor in (step.check.inputs if step.check else ()) for part in tensor.parts]


def _binding(item: Tensor | tuple[Tensor, Part]) -> tuple[Tensor, Part]:
    if isinstance(item, Tensor):
        if len(item.parts) != 1:
            raise ValueError(f"{item.name} is split into {len(item.parts)} parts; bind them one by one")
        return item, item.parts[0]
    return item


def encode_steps(compute: Any, steps: list[Step]) -> None:
    """Record the steps of a finished plan into a compute pass (the C interface's pointer)."""
    record(compute, resolve(steps))


def encode_plans(device: Device, plans: Sequence[Plan], copies: Sequence[Copy]) -> list[Any]:
    """Command buffers for plans in a row and copies after them, in as few submits as the watchdog allows.

    A submit costs some 20 us, and so does each command buffer in it.
    """
    return encode(device, [submit for plan in plans for submit in plan.replay()], FLOPS_PER_SUBMIT, copies)
