"""What of a model is on the device: each part comes with its first use and goes when it is released."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .convert.parts import ModelParts
from .encoders.audio import AudioEncoder
from .encoders.vision import VisionEncoder
from .engine import Engine
from .errors import InvalidRequest
from .formats.gguf import GGUFFile
from .gpu import Device, Tensor
from .models.audio import AudioConfig, AudioModel
from .models.vision import VisionModel
from .runner import Runner
from .weights import load_weights

Progress = Callable[[int, int], None]  # bytes done, bytes in all
TOWERS = ("audio", "vision")  # together they are the part "mmproj"


class Resident:
    """Parts of one model on one device. `parts`: headers, opened when a part is first needed.

    fetch: gets a part that is not on this machine yet, where the model came from a hub.
    """

    def __init__(
        self,
        device: Device,
        parts: ModelParts,
        load_engine: Callable[[Runner], Engine],
        *,
        fetch: Callable[[str], GGUFFile] | None = None,
        progress: Progress | None = None,
    ):
        self.device = device
        self.parts = parts
        self.runner = Runner(device)
        self._load_engine = load_engine
        self._fetch = fetch
        self._progress = progress
        self._engine: Engine | None = None
        self._towers: dict[str, Any] = {}
        self._weights: dict[str, dict[str, Tensor]] = {}
        self.closed = False

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts whose weights are on the device; "mmproj" when one of its two towers is."""
        thinker, towers = ["thinker"] if self._engine is not None else [], ["mmproj"] if self._towers else []
        return (*thinker, *self._weights, *towers)

    def part(self, name: str) -> GGUFFile:
        """Headers and metadata of a part, fetched from where the model came from if it is not here.

        Raises ModelNotFound when the model has no such part.
        """
        self._check_open()
        if self._fetch is not None and (name in self.parts.absent or name not in self.parts):
            self.parts.put(name, self._fetch(name))
            self.parts.absent.pop(name, None)
        return self.parts.need(name)

    def engine(self) -> Engine:
        """The thinker, ready to run."""
        self._check_open()
        if self._engine is None:
            self._engine = self._load_engine(self.runner)
        return self._engine

    def audio(self) -> AudioEncoder:
        """The audio tower, ready to run."""
        return self._tower("audio", AudioModel, AudioEncoder)

    def vision(self) -> VisionEncoder:
        """The vision tower, ready to run."""
        return self._tower("vision", VisionModel, VisionEncoder)

    def _tower(self, name: str, model: Any, encoder: Any) -> Any:
        if name not in self._towers:
            file = self.part("mmproj")
            self._towers[name] = encoder(model.load(file, self.device, self._progress), self.runner)
        return self._towers[name]

    def audio_config(self) -> AudioConfig:
        """The audio tower's settings, without its weights."""
        return AudioConfig.from_gguf(self.part("mmproj"))

    def load(self, name: str) -> None:
        """Put a part on the device before its first use would."""
        if name == "thinker":
            self.engine()
        elif name == "mmproj":
            metadata = self.part(name).metadata
            for tower in TOWERS:
                if metadata.get(f"clip.has_{tower}_encoder"):
                    getattr(self, tower)()
        else:
            self.weights(name)

    def weights(self, part: str) -> dict[str, Tensor]:
        """The tensors of another part (talker), by name. Raises what load_weights raises."""
        if part not in self._weights:
            file = self.part(part)
            self._weights[part] = load_weights(self.device, file, file.tensors, self._progress)
        return self._weights[part]

    def release(self, part: str) -> None:
        """Free the part's memory on the device; its next use loads it again. The thinker forgets its KV cache."""
        if part == "thinker" and self._engine is not None:
            engine, self._engine = self._engine, None
            engine.free()
            engine.model.free()
        if part == "mmproj":
            for encoder in self._towers.values():
                encoder.free()
                encoder.model.free()
            self._towers.clear()
        for tensor in self._weights.pop(part, {}).values():
            tensor.free()

    def close(self) -> None:
        """Give the device back with all that is on it. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._engine = None
            self._towers.clear()
            self._weights.clear()
            self.device.close()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidRequest("this model is closed; load it again with Omni.from_pretrained")
