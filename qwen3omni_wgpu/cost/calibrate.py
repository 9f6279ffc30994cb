"""A profile of the device at hand, from micro-benchmarks: every kind of dispatch at a few sizes, a line through them.

What is timed are layers of random weights with the model's row lengths and heads, but other widths, vocabularies and
numbers of layers, dispatch by dispatch from cold caches. The model that is predicted is never run.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from statistics import median

import gguf
import numpy as np

from ..engine import Engine
from ..errors import InvalidRequest
from ..gpu import Device, Plan, Tensor
from ..gpu.plan import FLOPS_PER_SUBMIT, Step
from ..gpu.replay import Submit, encode, resolve
from ..gpu.tensor import nbytes_of
from ..models.text import TextModel
from ..sampler import GenerationConfig
from .paper import Recorded, Sketch, paper_model, record
from .work import MATVEC_TOKENS, Work, works

# Weights of a model that is timed, or of the whole one if that is smaller: more than a last level cache holds.
STREAMED = 64 << 20
# What any cache holds: such a model is timed with warm caches, as it runs.
WARM_BYTES = 16 << 20
# Layers of a model that is timed: most for steps of few tokens, and all for steps of many.
LAYERS_FEW, LAYERS_MANY = 24, 2
# Keys in the cache while attention is timed.
KEYS_FEW, KEYS_MANY = (64, 1024), (64, 512)
VOCABULARIES = (2048, 16384)
DRAWN = 1 << 20
# Share of a step's tokens that are there when it is timed once more: kernels differ in what the others cost.
PART = 3 / 8
# Rows of the cache: longer ones are attended to in the same way.
MOST_ROWS = 2048
# Tokens of an answer that the engine is timed with.
ANSWER = 24
# Dispatches that are timed together where caches may be warm, and seconds below which a difference is noise.
AT_LEAST = 24
SHORTEST = 1e-7

Key = tuple[str, str, int, bool]


@dataclass(frozen=True)
class Line:
    """seconds = fixed + per * amount; amount: FLOPs, or bytes of what has none."""

    fixed: float
    per: float

    def __call__(self, amount: float) -> float:
        return self.fixed + self.per * amount


@dataclass(frozen=True)
class Calibrated:
    """A device as it was measured just now; see `Costs`."""

    name: str
    about: str
    overlap: bool
    lines: dict[Key, Line]
    switches: dict[int, float]  # tokens of a step -> seconds a dispatch that follows another kind takes longer
    host_step: float
    peak: float = 1.0

    def seconds(self, work: Work) -> float:
        line = self.lines.get(key_of(work)) or self._like(work)
        nearest = min(self.switches, key=lambda tokens: abs(tokens - work.tokens))
        return max(SHORTEST, line(_amount(work)) + self.switches[nearest])

    def _like(self, work: Work) -> Line:
        """Of the same op with another number of tokens or another length of rows."""
        found = [key for key in self.lines if key[:2] == (work.op, work.weight)]
        if not found:
            raise InvalidRequest(f"{work.op} of {work.weight or 'rows'} was not measured on this device; report this")
        return self.lines[min(found, key=lambda key: abs(key[2] - work.tokens))]

    def host_seconds(self, dispatches: int) -> float:
        return self.host_step  # encoding a dispatch is part of its line


def key_of(work: Work) -> Key:
    """What shares a line: the op, the weights' type, the tokens, and whether rows are whole 16-byte words."""
    whole = not work.weight or nbytes_of((work.row,), work.weight) % 16 == 0
    return work.op, work.weight, work.tokens, whole


def _amount(work: Work) -> float:
    return work.flops or float(work.nbytes)


def calibrate(
    device: Device, sketch: Sketch, activations: str, kv_type: str, buckets: Iterable[int], repeat: int = 5,
    note: Callable[[str], None] = lambda text: None, clock: Callable[[], float] = time.perf_counter, context: int = 0,
) -> Calibrated:  # fmt: skip
    """Measure what a model like `sketch` needs for steps of so many tokens, with a cache of `context` rows.

    clock: seconds; time.process_time on a software adapter of a shared machine. Raises what running a plan raises.
    """
    bench = _Bench(device, repeat, clock, sketch.nbytes <= WARM_BYTES, min(context, MOST_ROWS))
    steps: list[float] = []
    for other in others(sketch):
        model = _random_model(other, device, activations)
        try:
            for bucket in sorted(set(buckets)):
                few = bucket <= MATVEC_TOKENS
                layers = other.config.n_layers if few else LAYERS_MANY
                for keys in KEYS_FEW if few else KEYS_MANY:
                    note(f"timing {layers} layers of another width, steps of {bucket} with {keys} keys")
                    bench.measure(_first_layers(model, layers), bucket, keys, kv_type)
            steps.append(bench.step_seconds(_first_layers(model, 1), kv_type))
        finally:
            model.free()
    lines = {key: fitted(points) for key, points in bench.points.items()}
    switches = {bucket: median(found) for bucket, found in bench.switches.items()}
    about = f"{device.info.name}, measured just now"
    return Calibrated("here", about, not device.info.software, lines, switches, median(steps))


def others(sketch: Sketch) -> list[Sketch]:
    """Two models with the sketch's row lengths and heads, but narrower and wider, with few layers and tokens."""
    found = []
    for width, vocabulary in zip((0.5, 2.0), VOCABULARIES, strict=True):
        c = sketch.config
        wanted = replace(
            c,
            n_layers=1,
            ffn_dim=_near(c.ffn_dim, width),
            expert_dim=_near(c.expert_dim, width),
            n_experts=min(c.n_experts, 2 * c.n_experts_used),
            vocab_size=min(vocabulary, c.vocab_size),
        )
        one = Sketch(wanted, sketch.types, sketch.label)
        table = nbytes_of((wanted.vocab_size, c.dim), sketch.types["token_embd.weight"])
        layer = max(1, one.nbytes - table * (1 if c.tied_head else 2))
        layers = max(2, min(c.n_layers, LAYERS_FEW, -(-min(sketch.nbytes, STREAMED) // layer)))
        found.append(replace(one, config=replace(wanted, n_layers=layers)))
    return found


def _first_layers(model: TextModel, count: int) -> TextModel:
    """The same weights, of which fewer are used."""
    return replace(model, config=replace(model.config, n_layers=count))


def _near(length: int, factor: float) -> int:
    """Another row length near factor * length with the same power of two in it: rows are as aligned as before."""
    if length == 0:
        return 0
    power = length & -length
    odd = length // power
    near = max(1, int(odd * factor) | 1)
    return power * (near if near != odd else near + 2)


def fitted(points: Iterable[tuple[float, float]]) -> Line:
    """The line through points (amount, seconds) with the least squares of relative errors; neither part is negative."""
    amounts, seconds = np.array(list(points), np.float64).T
    if amounts.max() <= amounts.min() * 1.01:  # one size says nothing of the slope
        return Line(float(np.median(seconds)), 0.0)
    terms = np.stack([np.ones_like(amounts), amounts], axis=1) / seconds[:, None]
    fixed, per = np.linalg.lstsq(terms, np.ones_like(seconds), rcond=None)[0]
    if fixed < 0:
        return Line(0.0, float((amounts / seconds).sum() / ((amounts / seconds) ** 2).sum()))
    if per < 0:
        return Line(float((1 / seconds).sum() / ((1 / seconds) ** 2).sum()), 0.0)
    return Line(float(fixed), float(per))


def _random_model(sketch: Sketch, device: Device, activations: str) -> TextModel:
    """A model with random weights of variance 1 / D, the same over and over."""
    rng = np.random.default_rng()
    model = paper_model(sketch, device, activations)
    drawn: dict[tuple[str, int], np.ndarray] = {}
    for name, tensor in model.weights.items():
        shape, kind = tensor.shape, tensor.dtype
        if len(shape) == 1:
            model.weights[name] = Tensor.from_numpy(device, np.ones(shape, np.float32), name)
            continue
        if (kind, shape[-1]) not in drawn:
            array = rng.standard_normal((max(1, DRAWN // shape[-1]), shape[-1]), dtype=np.float32)
            scaled = array / np.float32(np.sqrt(shape[-1]))
            drawn[kind, shape[-1]] = gguf.quants.quantize(scaled, gguf.GGMLQuantizationType[kind.upper()])
        raw = np.resize(drawn[kind, shape[-1]].view(np.uint8).reshape(-1), tensor.nbytes)
        model.weights[name] = Tensor.from_bytes(device, raw, shape, kind, name)
    ones = np.ones(2 * sketch.config.head_dim, np.float32)
    model.qk_norms = [Tensor.from_numpy(device, ones, tensor.name) for tensor in model.qk_norms]
    freqs = np.geomspace(1.0, 1e-4, sketch.config.rope_dim // 2).astype(np.float32)
    model.freqs = Tensor.from_numpy(device, freqs, "rope freqs")
    return model


@dataclass
class _Bench:
    """Plans timed kind by kind; points: (amount, seconds) of every kind. clock: as time.perf_counter."""

    device: Device
    repeat: int
    clock: Callable[[], float]
    warm: bool  # caches hold the whole model
    rows: int  # of the cache, at least
    points: dict[Key, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    switches: dict[int, list[float]] = field(default_factory=lambda: defaultdict(list))
    starts: list[float] = field(default_factory=list)  # what a submit took besides its dispatches

    def measure(self, model: TextModel, bucket: int, keys: int, kv_type: str) -> None:
        """A step of `bucket` tokens after `keys` others, and one of fewer by the same plan."""
        made = record(model, bucket, max(self.rows, keys + bucket), kv_type, head=bucket == 1, dry=False)
        try:
            made.inputs.positions.write(np.full((bucket, 3), keys, np.float32))
            for used in dict.fromkeys((bucket, math.ceil(bucket * PART))):
                self._measure(made, model, bucket, used, keys, kv_type)
        finally:
            made.free()

    def _measure(self, made: Recorded, model: TextModel, bucket: int, used: int, keys: int, kv_type: str) -> None:
        """`used` of the recorded tokens: dispatches of one kind and amount at a time."""
        # Bytes and FLOPs of as many keys as the mean token sees.
        asked = record(model, bucket, keys + (used + 1) // 2, kv_type, head=bucket == 1)
        try:
            made.inputs.state.write(np.array([keys, used], np.uint32))
            made.plan.run()  # everything is compiled, and holds numbers
            alike: dict[tuple[Key, float], list[Step]] = defaultdict(list)
            for step, work in zip(made.plan.steps, works(asked.plan, model, bucket, used), strict=True):
                alike[key_of(work), _amount(work)].append(step)
            self.starts.append(start := self._start(made.plan))
            few = bucket <= MATVEC_TOKENS
            turns = [self._turn(made.plan, alike, start, few) for _ in range(self.repeat)]
            for kind in alike:
                self.points[kind[0]].append((kind[1], median(each[kind] for each, _ in turns)))
            self.switches[bucket].append(median(switch for _, switch in turns))
        finally:
            asked.free()

    def _turn(
        self, plan: Plan, alike: dict[tuple[Key, float], list[Step]], start: float, few: bool
    ) -> tuple[dict[tuple[Key, float], float], float]:
        """Seconds of a dispatch of each kind, and what a dispatch takes longer among others.

        The whole plan is timed next to its kinds: what is left is a small difference, and the pace of a machine drifts.
        """
        found = {}
        for (key, amount), steps in alike.items():
            again = self.warm or not key[1]
            often = steps * -(-AT_LEAST // len(steps)) if again and few else steps
            spent = self._seconds(often, plan if few else None) - start
            found[key, amount] = max(SHORTEST, spent / len(often))
        alone = sum(found[kind] * len(steps) for kind, steps in alike.items())
        whole = self._seconds(plan.steps, plan if few else None) - start
        return found, (whole - alone) / len(plan.steps)

    def _seconds(self, steps: list[Step], before: Plan | None = None) -> float:
        """Of the steps; `before` leaves caches as they are in the middle of an answer."""
        if before is not None:
            before.run()
        resolved = [Submit(resolve(steps), 0)]  # as a replay has them
        self.device.wait()
        start = self.clock()
        self.device.submit(encode(self.device, resolved, FLOPS_PER_SUBMIT))
        self.device.wait()
        return self.clock() - start

    def _start(self, plan: Plan) -> float:
        """Of a submit: encoder, pass, and threads that wake up; what one small dispatch takes beyond one of many."""
        probe = plan.steps[:1]  # the embedding
        one = median(self._seconds(probe) for _ in range(4 * self.repeat))
        many = median(self._seconds(probe * AT_LEAST) for _ in range(4 * self.repeat))
        return max(0.0, one - (many - one) / (AT_LEAST - 1))

    def step_seconds(self, model: TextModel, kv_type: str) -> float:
        """Of the engine, from one token of an answer to the next, beside the dispatches; `model` is a small one."""
        engine = Engine(model, ANSWER + 2, kv_type)
        made = record(model, 1, ANSWER + 2, kv_type, head=True, dry=False)
        try:
            made.inputs.state.write(np.array([ANSWER // 2, 1], np.uint32))
            made.plan.run()
            whole = median(self._seconds(made.plan.steps, made.plan) for _ in range(8 * self.repeat))
            tokens = median([self._token(engine) for _ in range(self.repeat + 1)][1:])  # the first one compiles
            return max(SHORTEST, tokens - (whole - median(self.starts)))
        finally:
            made.free()
            engine.free()

    def _token(self, engine: Engine) -> float:
        config = GenerationConfig(temperature=0, max_tokens=ANSWER + 1).resolved({})
        engine.reset()
        start = 0.0
        for index, _ in enumerate(engine.generate([0], config, frozenset())):
            if index == 0:
                start = self.clock()
        return (self.clock() - start) / ANSWER
