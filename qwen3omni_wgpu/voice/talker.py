"""Rows of a prompt in, frames of 16 codes out: talker and code predictor together, one submit a frame.

All that changes from frame to frame lies in small GPU buffers, so one recorded plan serves every frame; what comes back
to the host are the codes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import ops
from ..errors import InvalidRequest, OmniError
from ..gpu import Plan, ReadBack, Tensor
from ..inputs.talker_prompt import TalkerPrompt
from ..models import code_predictor, talker
from ..models.code_predictor import CodePredictorModel
from ..models.talker import MOST_ROWS, PROJECTIONS, TalkerModel
from ..models.text import KVCache, final_norm, forward, stream
from ..ops.attention import most_keys
from ..ops.choice import Problem, asked_by
from ..runner import Runner
from .settings import SpeechSettings

# Rows a plan is recorded for; a chunk runs in the smallest that holds it.
BUCKETS = (1, 8, 32, MOST_ROWS)
# Rows of the talker's own table that are fetched together; a prompt has six.
CODEC_ROWS = 8


@dataclass
class _Place:
    """Where a step stands: uint32 [n_past, n_tokens], and float32 [n_tokens, 3]."""

    state: Tensor
    positions: Tensor


class Talker:
    """A talker with a KV cache for `ctx_size` rows (its prompt's and one a frame), and the code predictor behind it.

    finish: None while it speaks; then "stop" (the end came) or "length" (max_frames, or a full cache).
    """

    def __init__(
        self, model: TalkerModel, predictor: CodePredictorModel, runner: Runner, *, ctx_size: int, kv_type: str = "f16"
    ) -> None:
        """kv_type "f16" or "f32": the talker's cache. InvalidRequest or OutOfDeviceMemory when ctx_size is too much."""
        c, device = model.config, model.device
        _check_ctx_size(model, ctx_size)
        self.model, self.predictor, self.runner, self.ctx_size = model, predictor, runner, ctx_size
        self.settings = SpeechSettings()
        self.finish: str | None = "stop"  # nothing was started
        self.frames = 0  # of this speech, so far
        self.n_past = 0  # rows in the cache
        self._position = np.zeros(3, np.float32)
        self._pad = np.zeros(c.decoder.dim, np.float32)
        self._random = np.random.default_rng(0)
        self._plans: dict[object, Plan] = {}
        self._reads: dict[object, ReadBack] = {}
        self._mine: list[Tensor] = []
        self._cache = KVCache.empty(device, c.decoder, ctx_size, kv_type)
        self._codes_cache = KVCache.empty(device, predictor.config.decoder, c.groups, "f32")
        self._place = _Place(self._new("state", 2, dtype="u32"), self._new("positions", MOST_ROWS, 3))
        self._one = self._new("state of one row", 2, dtype="u32")
        self._one.write(np.array([0, 1], np.uint32))
        self._places = [self._constant_place(past, 2 if past == 0 else 1) for past in (0, *range(2, c.groups))]
        self._rows = self._new("rows", MOST_ROWS, c.decoder.dim)
        self._thinker_rows = self._new("thinker's rows", MOST_ROWS, c.thinker_dim)
        self._ids = self._new("codec ids", CODEC_ROWS, dtype="u32")
        self._hidden = self._new("hidden", 1, c.decoder.dim)
        self._logits = self._new("logits", 1, c.decoder.vocab_size)
        self._total = self._new("sum of embeddings", 1, c.decoder.dim)
        self._codes = self._new("codes", c.groups, dtype="u32")
        self._seen = self._new("seen", c.decoder.vocab_size, dtype="u32")
        self._uniform = self._new("random numbers", c.groups)
        self._first_settings, self._settings = self._new("settings", 4), self._new("predictor's settings", 4)
        self.residual_logits: list[Tensor] = []  # of the last frame: G - 1 times [1, V]

    def _new(self, name: str, *shape: int, dtype: str = "f32") -> Tensor:
        self._mine.append(Tensor.empty(self.model.device, shape, dtype, f"talker {name}"))
        return self._mine[-1]

    def _constant_place(self, n_past: int, n: int) -> _Place:
        """Of the code predictor's steps, which are the same in every frame."""
        place = _Place(self._new(f"state {n_past}", 2, dtype="u32"), self._new(f"positions {n_past}", n, 3))
        place.state.write(np.array([n_past, n], np.uint32))
        place.positions.write(np.repeat(np.arange(n_past, n_past + n, dtype=np.float32)[:, None], 3, axis=1))
        return place

    # The prompt ----------------------------------------------------------------------------------------------------

    def project_text(self, embeddings: np.ndarray) -> np.ndarray:
        """The thinker's embeddings float32 [n, T] -> the talker's rows float32 [n, D]."""
        return self._project(PROJECTIONS[0], embeddings)

    def project_hidden(self, states: np.ndarray) -> np.ndarray:
        """The thinker's hidden states at media, float32 [n, T] -> the talker's rows float32 [n, D]."""
        return self._project(PROJECTIONS[1], states)

    def embed_codec(self, ids: np.ndarray) -> np.ndarray:
        """Rows of the talker's own table: ids [n] -> float32 [n, D]."""
        most = self._ids.shape[0]
        pieces = [np.zeros((0, self.model.config.decoder.dim), np.float32)]
        for start in range(0, len(ids), most):
            piece = np.asarray(ids[start : start + most], np.uint32)
            self._ids.write(piece)
            key = "codec"
            if key not in self._plans:
                plan = Plan(self.model.device, "codec embeddings")
                self._keep(key, plan, ops.embed(plan, self.model.codes, self._ids))
            pieces.append(self._fetch(key)[: len(piece)])
        return np.concatenate(pieces)

    def rows(self, prompt: TalkerPrompt, text: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        """A prompt's rows float32 [P, D] for `start`.

        text float32 [A, T]: the thinker's embeddings of prompt.text_ids; hidden float32 [M, T]: its hidden states of
        layer accept_layer at the tokens prompt.media_tokens.
        """
        rows = np.zeros((len(prompt), self.model.config.decoder.dim), np.float32)
        rows[prompt.text_at] = self.project_text(text)
        rows[prompt.media_at] = self.project_hidden(hidden)
        rows[prompt.codec_at] += self.embed_codec(prompt.codec_ids)
        return rows

    def start(
        self, rows: np.ndarray, positions: np.ndarray, pad: np.ndarray, settings: SpeechSettings | None = None
    ) -> None:
        """Forget everything and run a prompt: rows float32 [P, D], positions float32 [P, 3].

        pad float32 [D]: the projected <tts_pad>, the text of frames without one. InvalidRequest when they do not fit.
        """
        dim = self.model.config.decoder.dim
        _check("rows", rows, (None, dim))
        _check("positions", positions, (len(rows), 3))
        _check("pad", pad, (dim,))
        if not 0 < len(rows) <= self.ctx_size:
            raise InvalidRequest(
                f"the talker's prompt has {len(rows)} rows and its context holds {self.ctx_size}; shorten the "
                "conversation or give the talker a larger context"
            )
        self.settings = (settings or SpeechSettings()).seeded()
        self._random = np.random.default_rng(self.settings.seed)
        self._seen.write(np.zeros(self._seen.shape, np.uint32))
        for tensor, numbers in zip((self._first_settings, self._settings), self.settings.numbers, strict=True):
            tensor.write(np.array(numbers, np.float32))
        self._pad, self._position = pad, positions[-1]
        self.finish, self.frames, self.n_past = None, 0, 0
        while self.n_past < len(rows):
            piece = slice(self.n_past, min(len(rows), self.n_past + BUCKETS[-1]))
            n = piece.stop - piece.start
            self._rows.write(rows[piece])
            self._place.positions.write(positions[piece])
            self._place.state.write(np.array([self.n_past, n], np.uint32))
            self.runner.run(self._prefill(_bucket(n), piece.stop == len(rows)))
            self.n_past = piece.stop

    # Frames --------------------------------------------------------------------------------------------------------

    def step(self, text: np.ndarray | None = None) -> np.ndarray | None:
        """The next frame: codes int64 [G]; None when the speech is at its end (see `finish`).

        text float32 [D]: projected, what the frame after this one says; None = <tts_pad>.
        OmniError when the model computes no numbers.
        """
        if self.finish:
            return None
        if self.frames >= self.settings.max_frames or self.n_past >= self.ctx_size:
            self.finish = "length"
            return None
        text = self._pad if text is None else text
        _check("a text row", text, self._pad.shape)
        self._position = self._position + np.float32(1)
        self._total.write(text)
        self._place.positions.write(self._position)
        self._place.state.write(np.array([self.n_past, 1], np.uint32))
        self._uniform.write(self._random.random(self._uniform.shape[0], dtype=np.float32))
        codes = self._run_frame().astype(np.int64)
        if codes[0] == self.model.config.codec.eos:
            self.finish = "stop"
            return None
        if codes.max() >= self.model.config.codes:
            raise OmniError(
                "the model computed codes that do not exist; damaged weights or a driver fault: "
                "run `qwen3omni doctor`, or try again with QWEN3OMNI_DEBUG=1 to find the op"
            )
        self.frames += 1
        self.n_past += 1
        return codes

    @property
    def dispatches(self) -> int:
        """Of one frame."""
        return len(self._frame().steps)

    @property
    def next_logits(self) -> np.ndarray:
        """Of the next code 0: float32 [V], before penalty and suppression; waits for the GPU."""
        return self._logits.numpy()[0]

    @property
    def hidden(self) -> np.ndarray:
        """What the code predictor will start from: float32 [D]; waits for the GPU."""
        return self._hidden.numpy()[0]

    # Plans ---------------------------------------------------------------------------------------------------------

    def _frame(self) -> Plan:
        """Code 0 from the logits, the other codes, their embeddings and the text through the talker, new logits."""
        if "frame" in self._plans:
            return self._plans["frame"]
        plan = Plan(self.model.device, "talker frame", self._one, self.predictor.decoder.activations)
        self.residual_logits = self._record_frame(plan)
        self._plans["frame"] = plan.finish(keep=self.residual_logits)
        self._reads["frame"] = ReadBack(self.model.device, [self._codes])
        return plan

    def _record_frame(self, plan: Plan) -> list[Tensor]:
        """The code predictor's logits, G - 1 times [1, V]."""
        c, found = self.model.config, []
        range_out = (c.codes, c.decoder.vocab_size)
        code = ops.sample(
            plan, self._logits, self._uniform, self._first_settings,
            seen=self._seen, left_out=range_out, spared=c.codec.eos, codes=self._codes,
        )  # fmt: skip
        x = ops.embed_code(plan, self.model.codes, code, self._total, self._hidden)
        for group, (place, table) in enumerate(zip(self._places, self.predictor.tables, strict=True), 1):
            plan.state = place.state
            values = code_predictor.logits(plan, self.predictor, group, x, place.positions, self._codes_cache)
            found.append(values)
            code = ops.sample(plan, values, self._uniform, self._settings, draw=group, codes=self._codes, at=group)
            x = ops.embed_code(plan, table, code, self._total)
        plan.state, plan.activations = self._place.state, self.model.decoder.activations
        x = stream(plan, self.model.decoder, self._total, self._place.positions.first(1), self._cache)
        self._finish_forward(plan, ops.rms_norm(plan, x, *final_norm(self.model.decoder)))
        return found

    def _finish_forward(self, plan: Plan, h: Tensor) -> None:
        """The last row's hidden state [1, D] and logits to where the next frame finds them."""
        plan.state = self._one
        ops.store_rows(plan, h, self._hidden)
        talker.logits(plan, self.model, h, self._logits)

    def _run_frame(self) -> np.ndarray:
        plan = self._frame()
        return self.runner.start([plan], self._reads["frame"]).result()[0]

    def _prefill(self, bucket: int, last: bool) -> Plan:
        key = (bucket, last)
        if key not in self._plans:
            name, decoder = f"talker prefill {bucket}", self.model.decoder
            plan = Plan(self.model.device, name, self._place.state, decoder.activations)
            self._record_prefill(plan, bucket, last)
            self._plans[key] = plan.finish()
        return self._plans[key]

    def _record_prefill(self, plan: Plan, bucket: int, last: bool) -> None:
        rows, positions = self._rows.first(bucket), self._place.positions.first(bucket)
        h = forward(plan, self.model.decoder, rows, positions, self._cache)
        if last:
            self._finish_forward(plan, ops.select_row(plan, h) if bucket > 1 else h)

    def rehearse(self) -> list[Problem]:
        """What frames and prompts will ask of the device, before the first plan is recorded (tuner.py)."""
        device = self.model.device

        def record() -> None:
            self._record_frame(Plan(device, "rehearsal", self._one, self.predictor.decoder.activations, dry=True))
            for bucket in BUCKETS:
                plan = Plan(device, "rehearsal", self._place.state, self.model.decoder.activations, dry=True)
                self._record_prefill(plan, bucket, last=True)

        return asked_by(device, record)

    def _project(self, name: str, x: np.ndarray) -> np.ndarray:
        c = self.model.config
        _check("rows", x, (None, c.thinker_dim))
        out = np.empty((len(x), c.decoder.dim), np.float32)
        for start in range(0, len(x), MOST_ROWS):
            piece = x[start : start + MOST_ROWS]
            self._thinker_rows.write(piece)
            key = (name, _bucket(len(piece)))
            if key not in self._plans:
                plan = Plan(self.model.device, f"{name} {key[1]}", activations=self.model.decoder.activations)
                rows = self._thinker_rows.first(key[1])
                self._keep(key, plan, talker.project(plan, self.model, name, rows))
            out[start : start + len(piece)] = self._fetch(key)[: len(piece)]
        return out

    def _keep(self, key: object, plan: Plan, result: Tensor) -> None:
        self._plans[key] = plan.finish(keep=[result])
        self._reads[key] = ReadBack(self.model.device, [result])

    def _fetch(self, key: object) -> np.ndarray:
        return self.runner.start([self._plans[key]], self._reads[key]).result()[0]

    def free(self) -> None:
        """Release all but the models."""
        for plan in self._plans.values():
            plan.free()
        for read in self._reads.values():
            read.free()
        self._cache.free()
        self._codes_cache.free()
        for tensor in self._mine:
            tensor.free()
        self._plans, self._reads = {}, {}


def _bucket(n: int) -> int:
    return next(bucket for bucket in BUCKETS if bucket >= n)


def _check(what: str, values: np.ndarray, shape: tuple[int | None, ...]) -> None:
    fits = len(shape) == values.ndim and all(w is None or w == h for w, h in zip(shape, values.shape, strict=True))
    if not fits or values.dtype != np.float32:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise InvalidRequest(f"{what}: {values.dtype} {list(values.shape)}, but the talker takes float32 [{wanted}]")


def _check_ctx_size(model: TalkerModel, ctx_size: int) -> None:
    c = model.config.decoder
    most = most_keys(model.device, c.n_heads, c.n_kv_heads, c.head_dim)
    if not 0 < ctx_size <= most:
        raise InvalidRequest(
            f"a talker's context of {ctx_size} rows is not possible: {model.device.info.name} can do 1 to {most}"
        )
