"""Devices and models on paper: what plans need to be recorded, without a GPU and without weights."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from .. import ops
from ..engine import BUCKETS, BUCKETS_GPU
from ..errors import InvalidRequest
from ..formats.gguf import GGUFFile
from ..gpu import AdapterInfo, Device, Plan, Tensor
from ..gpu.tensor import nbytes_of
from ..models.config import TextConfig, tensor_shapes, text_config
from ..models.text import TOGETHER, KVCache, TextModel
from ..models.text import logits as logits_of
from ..ops.guard import WEIGHTS
from ..step_inputs import StepInputs

# The dimensions of published models, for predictions without a file.
MODELS = Path(__file__).resolve().parent.parent / "profiles" / "models"
# Rows of a recorded cache at least: with fewer, one dispatch does for attention, which a longer context would not get.
FEWEST_ROWS = 33


class PaperDevice(Device):
    """A device that plans can be recorded for: it has features, limits and tuned choices, but no memory."""

    def __init__(self, info: AdapterInfo, features: Iterable[str], limits: Mapping[str, int]) -> None:
        handle = SimpleNamespace(features=frozenset(features), limits=dict(limits), destroy=lambda: None)
        super().__init__(info, None, handle)

    @classmethod
    def like(cls, device: Device) -> PaperDevice:
        """As an open device is, with the choices of kernels that were tuned for it."""
        paper = cls(device.info, device.features, device.limits)
        paper.tuned = device.tuned
        return paper

    @classmethod
    def described(cls, facts: Mapping[str, Any]) -> PaperDevice:
        """From a profile: name, driver, kind, features and limits as the driver reports them."""
        info = AdapterInfo(0, facts["name"], facts["driver"], "Vulkan", facts["kind"], 0, 0)
        return cls(info, facts["features"], facts["limits"])

    def create_buffer(self, nbytes: int, label: str = "", *, usage: int | None = None, mapped: bool = False) -> Any:
        return None

    def write_buffer(self, buffer: Any, data: Any, offset: int = 0) -> None:
        pass


@dataclass(frozen=True)
class Sketch:
    """A text model without its weights: dimensions, and the element type of every tensor. label: as bench shows it."""

    config: TextConfig
    types: Mapping[str, str]
    label: str

    @classmethod
    def of_file(cls, file: GGUFFile) -> Sketch:
        """From a file's header. InvalidModelFile or UnsupportedModel as `text_config` raises them."""
        config = text_config(file)
        types = {name: file.tensors[name].type for name in tensor_shapes(config)}
        size = file.metadata.get("general.size_label", "")
        matrices = [file.tensors[name].type for name, shape in tensor_shapes(config).items() if len(shape) > 1]
        label = (config.architecture, size, max(matrices, key=Counter(matrices).__getitem__))
        return cls(config, types, " ".join(filter(None, label)))

    @classmethod
    def shipped(cls, name: str = "qwen3-omni-30b-a3b", type: str = "q8_0") -> Sketch:
        """Of a model whose dimensions come with the package; matrices of one type, vectors and routers float32.

        InvalidRequest for a type that no kernel reads.
        """
        if type not in WEIGHTS:
            raise InvalidRequest(f"--type {type} is not one of {', '.join(WEIGHTS)}")
        facts = json.loads((MODELS / f"{name}.json").read_text(encoding="utf-8"))
        sections = facts["config"]["mrope_sections"]
        config = TextConfig(**facts["config"] | {"mrope_sections": tuple(sections) if sections else None})
        shapes = tensor_shapes(config).items()
        types = {key: "f32" if len(shape) == 1 or "gate_inp" in key else type for key, shape in shapes}
        return cls(config, types, f"{config.architecture} {facts['size_label']} {type}")

    @property
    def nbytes(self) -> int:
        """Bytes of all weights of the text model."""
        return sum(nbytes_of(shape, self.types[name]) for name, shape in tensor_shapes(self.config).items())

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in tensor_shapes(self.config).values())


def paper_model(sketch: Sketch, device: Device, activations: str = "auto") -> TextModel:
    """The model with weights that have shapes, types and parts, but no bytes. activations: as TextModel.load."""
    if activations == "auto":
        activations = "f32" if device.info.software else "q8"
    c = sketch.config
    weights: dict[str, Tensor] = {}
    for name, (shape, kind) in _joined(sketch).items():
        vector = "f32" if len(shape) == 1 else kind
        weights[name] = Tensor.split(device, shape, vector, name, lambda _size, _label: None)
    norms = [Tensor.pending(device, (2 * c.head_dim,), "f32", f"blk.{i}.attn_qk_norm") for i in range(c.n_layers)]
    freqs = Tensor.pending(device, (c.rope_dim // 2,), "f32", "rope freqs")
    return TextModel(device, c, weights, norms if c.qk_norm else [], freqs, activations)


def _joined(sketch: Sketch) -> dict[str, tuple[tuple[int, ...], str]]:
    """Name on the device -> shape and type; matrices that read the same input lie in one tensor, as loading does it."""
    found = {name: (shape, sketch.types[name]) for name, shape in tensor_shapes(sketch.config).items()}
    for i in range(sketch.config.n_layers):
        for joined, leaves in TOGETHER.items():
            members = [f"blk.{i}.{leaf}.weight" for leaf in leaves]
            if not all(member in found for member in members):
                continue
            if len({(found[member][0][1:], found[member][1]) for member in members}) == 1:
                shapes = [found.pop(member) for member in members]
                rows = sum(shape[0] for shape, _ in shapes)
                found[f"blk.{i}.{joined}.weight"] = (rows, *shapes[0][0][1:]), shapes[0][1]
    return found


def buckets(device: Device) -> tuple[int, ...]:
    """Tokens that the engine records plans for on a device."""
    return BUCKETS if device.info.software else BUCKETS_GPU


def decode_plan(model: TextModel, cached: int, context: int, kv_type: str = "f16") -> Plan:
    """One token after `cached` others in a cache of `context` rows, and the choice of the most likely: recorded dry.

    The cache that is recorded ends where the token stands, so bytes and FLOPs of attention are those of this depth.
    """
    return record(model, 1, max(cached + 1, min(context, FEWEST_ROWS)), kv_type, head=True).plan


def prefill_plan(model: TextModel, cached: int, n: int, context: int, kv_type: str = "f16", head: bool = False) -> Plan:
    """A chunk of n tokens after `cached` others, in the bucket that the engine would take; head: with its last logits.

    Half of the chunk's own keys are hidden from its mean token: as many rows has the cache that is recorded.
    """
    bucket = next(size for size in buckets(model.device) if size >= n)
    rows = max(cached + (n + 1) // 2, min(context, FEWEST_ROWS))
    return record(model, bucket, rows, kv_type, head).plan


@dataclass
class Recorded:
    """A plan with what it reads besides the weights."""

    plan: Plan
    inputs: StepInputs
    cache: KVCache
    logits: Tensor

    def free(self) -> None:
        self.plan.free()
        self.inputs.free()
        self.cache.free()
        self.logits.free()


def record(model: TextModel, bucket: int, rows: int, kv_type: str, head: bool, dry: bool = True) -> Recorded:
    """What the engine records for a step of `bucket` tokens with a cache of so many rows (engine.py).

    head: with the logits of the last token, and for a single one the choice of the next. dry: only to be looked at.
    """
    inputs = StepInputs(model.device, model.config, bucket)
    cache = KVCache.empty(model.device, model.config, rows, kv_type)
    logits = Tensor.empty(model.device, (1, model.config.vocab_size), "f32", "logits")
    plan = Plan(model.device, f"step of {bucket}", inputs.state, model.activations, dry=dry)
    ids = inputs.ids.first(bucket)
    where = inputs.positions.first(bucket)
    logits_of(plan, model, ids, where, cache, "last" if head else "none", logits if head else None)
    if head and bucket == 1:
        ops.argmax(plan, logits, out=ids)
    return Recorded(plan if dry else plan.finish(), inputs, cache, logits)
