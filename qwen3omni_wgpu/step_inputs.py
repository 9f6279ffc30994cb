"""What changes from one forward pass to the next: small GPU buffers that the recorded plans read."""

from __future__ import annotations

import numpy as np

from .errors import InvalidRequest
from .gpu import Device, Tensor
from .inputs.prompt import Step
from .models.config import TextConfig


class StepInputs:
    """Counts, ids, positions and media rows of a step of up to `most` tokens."""

    def __init__(self, device: Device, config: TextConfig, most: int) -> None:
        self.device = device
        self._config = config
        self._most = most
        self.state = Tensor.empty(device, (2,), "u32", "state")
        self.ids = Tensor.empty(device, (most,), "u32", "ids")
        self.positions = Tensor.empty(device, (most, 3), "f32", "positions")
        self._media: list[Tensor] = []  # rows and flags, made with the first medium
        self._deepstack: list[Tensor] = []

    def write(self, step: Step, n_past: int) -> int | None:
        """Bring a step to the device; the number of deepstack maps it adds, None for a step of text alone."""
        self.state.write(np.array([n_past, len(step.ids)], np.uint32))
        self.ids.write(np.asarray(step.ids, np.uint32))
        self.positions.write(step.positions)
        if step.rows is None or step.flags is None:
            return None
        taps = 0 if step.deepstack is None else len(step.deepstack)
        self._check(step.rows.shape[1], taps)
        for tensor, values in zip(self.media(), (step.rows, step.flags), strict=True):
            tensor.write(values)
        for i in range(taps):
            if i == len(self._deepstack):
                shape = (self._most, self._config.dim)
                self._deepstack.append(Tensor.empty(self.device, shape, "f32", f"deepstack.{i}"))
            assert step.deepstack is not None
            self._deepstack[i].write(step.deepstack[i])
        return taps

    def write_next(self, n_past: int, position: np.ndarray) -> None:
        """One token whose id the GPU has chosen itself, at position float32 [3]."""
        self.state.write(np.array([n_past, 1], np.uint32))
        self.positions.write(position[None])

    def media(self) -> tuple[Tensor, Tensor]:
        """Rows that replace embeddings, float32 [most, D], and where they do, uint32 [most]."""
        if not self._media:
            rows = Tensor.empty(self.device, (self._most, self._config.dim), "f32", "media rows")
            self._media = [rows, Tensor.empty(self.device, (self._most,), "u32", "media flags")]
        return self._media[0], self._media[1]

    def deepstack(self, taps: int, rows: int) -> list[Tensor]:
        """The first `taps` maps, each [rows, D]; written before."""
        return [tensor.first(rows) for tensor in self._deepstack[:taps]]

    def _check(self, width: int, taps: int) -> None:
        c = self._config
        if width != c.dim or taps > c.n_layers:
            raise InvalidRequest(
                f"media come as rows of {width} with {taps} deepstack maps, and the model has width {c.dim} and "
                f"{c.n_layers} layers: the towers belong to another model; name the right file with --mmproj"
            )

    def free(self) -> None:
        for tensor in (self.state, self.ids, self.positions, *self._media, *self._deepstack):
            tensor.free()
