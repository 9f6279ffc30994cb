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
from .gpu import Device
from .models.audio import AudioConfig, AudioModel
from .models.code2wav import Code2WavModel
from .models.code_predictor import CodePredictorModel
from .models.talker import TalkerConfig, TalkerModel
from .models.vision import VisionModel
from .ops.choice import Problem
from .runner import Runner
from .voice.code2wav import Vocoder
from .voice.talker import Talker

Progress = Callable[[int, int], None]  # bytes done, bytes in all
Settle = Callable[[Callable[[], list[Problem]]], None]
TOWERS = ("audio", "vision")  # together they are the part "mmproj"


class Resident:
    """Parts of one model on one device. `parts`: headers, opened when a part is first needed.

    fetch: gets a part that is not on this machine yet, where the model came from a hub. settle: chooses the kernels of
    a part before it records its first plan, given what says which problems it will ask.
    """

    def __init__(
        self,
        device: Device,
        parts: ModelParts,
        load_engine: Callable[[Runner], Engine],
        *,
        fetch: Callable[[str], GGUFFile] | None = None,
        progress: Progress | None = None,
        activations: str = "f32",
        talker_context: int = 4096,
        settle: Settle | None = None,
    ):
        self.device = device
        self.parts = parts
        self.runner = Runner(device)
        self._load_engine = load_engine
        self._fetch = fetch
        self._progress = progress
        self._activations = activations
        self._talker_context = talker_context
        self._settle: Settle = settle or (lambda rehearse: None)
        self._engine: Engine | None = None
        self._towers: dict[str, Any] = {}
        self._voice: dict[str, Any] = {}
        self.closed = False

    @property
    def loaded(self) -> tuple[str, ...]:
        """Names of the parts whose weights are on the device; a part of several is when one of them is."""
        there = {"thinker": self._engine is not None, "mmproj": self._towers, "talker": self._voice}
        return tuple(part for part, found in there.items() if found)

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

    def talker_config(self) -> TalkerConfig:
        """The talker's settings, without its weights."""
        return TalkerConfig.from_gguf(self.part("talker"))

    def talker(self) -> Talker:
        """Talker and code predictor, ready to run."""
        if "talker" not in self._voice:
            file = self.part("talker")
            model = TalkerModel.load(file, self.device, self._activations, self._progress)
            predictor = CodePredictorModel.load(file, self.device, self._activations, self._progress)
            talker = Talker(model, predictor, self.runner, ctx_size=self._talker_context)
            self._settle(talker.rehearse)
            self._voice["talker"] = talker
        return self._voice["talker"]

    def vocoder(self) -> Vocoder:
        """Code2Wav, ready to run."""
        if "vocoder" not in self._voice:
            model = Code2WavModel.load(self.part("talker"), self.device, self._progress)
            self._voice["vocoder"] = Vocoder(model, self.runner)
        return self._voice["vocoder"]

    def load(self, name: str) -> None:
        """Put a part on the device before its first use would."""
        if name == "thinker":
            self.engine()
        elif name == "mmproj":
            metadata = self.part(name).metadata
            for tower in TOWERS:
                if metadata.get(f"clip.has_{tower}_encoder"):
                    getattr(self, tower)()
        elif name == "talker":
            self.talker()
            self.vocoder()
        else:
            self.part(name)

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
        if part == "talker":
            if "talker" in self._voice:
                self._voice["talker"].predictor.free()
            for running in self._voice.values():
                running.free()
                running.model.free()
            self._voice.clear()

    def close(self) -> None:
        """Give the device back with all that is on it. Closing twice is fine."""
        if not self.closed:
            self.closed = True
            self._engine = None
            self._towers.clear()
            self._voice.clear()
            self.device.close()

    def _check_open(self) -> None:
        if self.closed:
            raise InvalidRequest("this model is closed; load it again with Omni.from_pretrained")
