"""What of a model is on the device: each part comes with its first use and goes when it is released."""

from __future__ import annotations

from collections.abc import Callable

from .convert.parts import ModelParts
from .engine import Engine
from .errors import InvalidRequest
from .gpu import Device, Tensor
from .weights import load_weights

Progress = Callable[[int, int], None]  # bytes done, bytes in all


class Resident:
    """Parts of one model on one device. `parts`: headers, opened when a part is first needed."""

    def __init__(self, device: Device, parts: ModelParts, load_engine: Callable[[], Engine]):
        self.device = device
        self.parts = parts
        self._load_engine = load_engine
        self._engine: Engine | None = None
        self._weights: dict[str, dict[str, Tensor]] = {}
        self.closed = False

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts whose weights are on the device."""
        return (*(["thinker"] if self._engine is not None else []), *self._weights)

    def engine(self) -> Engine:
        """The thinker, ready to run."""
        self._check_open()
        if self._engine is None:
            self._engine = self._load_engine()
        return self._engine

    def weights(self, part: str, progress: Progress | None = None) -> dict[str, Tensor]:
        """The tensors of another part (mmproj, talker), by name. Raises what load_weights raises."""
        self._check_open()
        if part not in self._weights:
            file = self.parts.need(part)
            self._weights[part] = load_weights(self.device, file, file.tensors, progress)
        return self._weights[part]

    def release(self, part: str) -> None:
        """Free the part's memory on the device; its next use loads it again. The thinker forgets its KV cache."""
        if part == "thinker":
            if self._engine is not None:
                engine, self._engine = self._engine, None
                engine.free()
                engine.model.free()
            return
        for tensor in self._weights.pop(part, {}).values():
            tensor.free()

    def close(self) -> None:
        """Give the device back with all that is on it. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._engine = None
            self._weights.clear()
            self.device.close()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidRequest("this model is closed; load it again with Omni.from_pretrained")
