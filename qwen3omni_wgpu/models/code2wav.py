"""Code2Wav: frames of codec ids to a waveform, as a stream.

    x = mean of the codes' embeddings
    h = x + ls1 * Attention(RMSNorm(x));  x = h + ls2 * SwiGLU(RMSNorm(h))      a window of keys, 8 layers
    x = ConvNeXt(longer(RMSNorm(x)))                                              once for every ratio
    x = conv7(x);  x = units(longer(snake(x)))                                    a block for every rate
    unit: x + conv1(snake(conv7(snake(x)))), dilated by 1, 3 and 9
    y = clamp(conv7(snake(x)))

Everything is causal but for one row of look-ahead in each block, so a chunk of frames continues where the last one
ended: the rows that a convolution reads before its first, and the last keys and values, are kept in a `Memory`. Blocks
run without look-ahead, each late by one of its rows; what that makes too early at the start of a stream is set to zero.

Dims: N frames, D model, C channels; rows of time, channels last; `rate` rows a frame. Weights keep their GGUF names,
but the convolutions become matrices [F, taps * C], transposed ones [stride * F, 2 * C]. What follows a convolution
(bias, snake) lies with it under `.after`. Source: transformers Qwen3OmniMoeCode2Wav.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from .. import ops
from ..formats.gguf import GGUFFile
from ..formats.tensors import dequantize
from ..gpu import Device, Plan, Tensor
from ..reference.rope import rope_frequencies
from ..weights import load_weights
from .code2wav_config import DILATIONS, PREFIX, TAPS, Code2WavConfig, kernel_shapes, plain_shapes

_TOGETHER = {"attn_qkv": ("attn_q", "attn_k", "attn_v"), "ffn_gate_up": ("ffn_gate", "ffn_up")}


@dataclass
class Code2WavModel:
    """Weights on a device; freqs: radians per position of every rotated pair."""

    device: Device
    config: Code2WavConfig
    weights: dict[str, Tensor]
    freqs: Tensor

    @classmethod
    def load(cls, file: GGUFFile, device: Device, progress: Callable[[int, int], None] | None = None) -> Code2WavModel:
        """Check metadata and shapes, then read the tensors; progress(bytes done, bytes in all) of the file."""
        c = Code2WavConfig.from_gguf(file)
        names = [name for name, _ in plain_shapes(c)]
        kernels = sum(file.tensors[name].nbytes for name, _ in kernel_shapes(c))

        def report(done: int, total: int) -> None:
            if progress:
                progress(done, total + kernels)

        joined = {
            f"{PREFIX}.tfm.blk.{i}.{name}.weight": [f"{PREFIX}.tfm.blk.{i}.{member}.weight" for member in members]
            for i in range(c.n_layers)
            for name, members in _TOGETHER.items()
        }
        weights = load_weights(device, file, names, report, joined)
        try:
            _load_kernels(file, device, c, weights)
            freqs = Tensor.from_numpy(device, rope_frequencies(c.head_dim, c.rope_theta), f"{PREFIX} freqs")
        except BaseException:
            for tensor in weights.values():
                tensor.free()
            raise
        if progress:
            total = kernels + sum(file.tensors[name].nbytes for name in names)
            progress(total, total)
        return cls(device, c, weights, freqs)

    def __getitem__(self, name: str) -> Tensor:
        return self.weights[f"{PREFIX}.{name}"]

    def layer(self, i: int, name: str) -> Tensor:
        return self[f"tfm.blk.{i}.{name}.weight"]

    def together(self, i: int, name: str) -> list[Tensor]:
        """Matrices that read the same input: one tensor where the file's types allowed joining them."""
        if f"{PREFIX}.tfm.blk.{i}.{name}.weight" in self.weights:
            return [self.layer(i, name)]
        return [self.layer(i, member) for member in _TOGETHER[name]]

    def free(self) -> None:
        for tensor in (*self.weights.values(), self.freqs):
            tensor.free()
        self.weights = {}


def _load_kernels(file: GGUFFile, device: Device, c: Code2WavConfig, weights: dict[str, Tensor]) -> None:
    """The convolutions in the form that ops.conv1d takes, and what comes after them, into `weights`."""

    def values(name: str) -> np.ndarray:
        return dequantize(file.tensors[f"{PREFIX}.{name}"])

    def put(name: str, array: np.ndarray, kind: type = np.float32) -> None:
        full = f"{PREFIX}.{name}"
        weights[full] = Tensor.from_numpy(device, np.ascontiguousarray(array, kind), full)

    def kernel(name: str, stride: int = 0) -> None:
        half, array = file.tensors[f"{PREFIX}.{name}.weight"].type == "f16", values(f"{name}.weight")
        array = _transposed(array, stride) if stride else _taps(array)
        put(f"{name}.weight", array, np.float16 if half else np.float32)

    def after(name: str, snake: str | None = None, repeat: int = 1) -> None:
        rows = [values(f"{name}.bias")]
        if snake:
            alpha, beta = (np.exp(values(f"{snake}.{part}")) for part in ("alpha", "beta"))
            rows += [alpha, 1 / (beta + np.float32(c.snake_eps))]
        put(f"{name}.after", np.tile(np.stack(rows), repeat))

    for u, ratio in enumerate(c.ratios):
        up = f"up.blk.{u}"
        kernel(f"{up}.conv", ratio)
        after(f"{up}.conv", repeat=ratio)
        put(f"{up}.dwconv.weight", values(f"{up}.dwconv.weight")[:, 0].T)
        after(f"{up}.pw1")
        put(f"{up}.pw2.after", np.stack([values(f"{up}.pw2.bias"), values(f"{up}.gamma")]))
    kernel("dac.entry")
    after("dac.entry", "dac.blk.0.snake")
    for b, rate in enumerate(c.rates):
        block = f"dac.blk.{b}"
        kernel(f"{block}.conv", rate)
        after(f"{block}.conv", f"{block}.res.0.act1", rate)
        following = f"dac.blk.{b + 1}.snake" if b + 1 < len(c.rates) else "dac.post_snake"
        for r in range(len(DILATIONS)):
            unit = f"{block}.res.{r}"
            kernel(f"{unit}.conv1")
            kernel(f"{unit}.conv2")
            after(f"{unit}.conv1", f"{unit}.act2")
            after(f"{unit}.conv2", f"{block}.res.{r + 1}.act1" if r + 1 < len(DILATIONS) else following)
    kernel("dac.post_conv")
    after("dac.post_conv")


def _taps(kernel: np.ndarray) -> np.ndarray:
    """[F, C, taps] -> [F, taps * C]."""
    return kernel.transpose(0, 2, 1).reshape(len(kernel), -1)


def _transposed(kernel: np.ndarray, stride: int) -> np.ndarray:
    """[C, F, taps * stride] -> [stride * F, taps * C]: the rows that one row of input leads to, side by side.

    Row stride * t + m is the sum over j of x[t - j] times kernel column j * stride + m; ours begin with the oldest x.
    """
    c, f, width = kernel.shape
    columns = kernel.reshape(c, f, width // stride, stride)[:, :, ::-1]
    return columns.transpose(3, 1, 2, 0).reshape(stride * f, -1)


@dataclass
class Memory:
    """What a stream keeps between chunks: keys and values [S, KV * HD] a layer, rows before convolutions by name."""

    device: Device
    keys: list[Tensor]
    values: list[Tensor]
    rows: dict[str, Tensor] = field(default_factory=dict)

    @classmethod
    def empty(cls, device: Device, c: Code2WavConfig, frames: int) -> Memory:
        """Room for the keys and values of so many frames."""
        memory = cls(device, [], [])
        try:
            for i in range(c.n_layers):
                for kind, cache in (("k", memory.keys), ("v", memory.values)):
                    shape = (frames, c.n_kv_heads * c.head_dim)
                    cache.append(Tensor.empty(device, shape, "f32", f"wav.cache.{kind}.{i}"))
        except BaseException:
            memory.free()
            raise
        return memory

    def carry(self, plan: Plan, name: str, x: ops.Rows, rate: int) -> ops.Rows:
        """x with the rows of the chunk before in front of it; its own last ones are kept."""
        if name not in self.rows:
            self.rows[name] = Tensor.empty(self.device, (x.lead, x.whole.shape[1]), "f32", f"{name} kept")
        return ops.carry_rows(plan, x, self.rows[name], rate)

    def clear(self) -> None:
        """Forget all rows; keys and values are forgotten by counting from 0."""
        for tensor in self.rows.values():
            tensor.fill(0)

    def free(self) -> None:
        for tensor in (*self.keys, *self.values, *self.rows.values()):
            tensor.free()
        self.rows = {}


def forward(plan: Plan, model: Code2WavModel, codes: Tensor, positions: Tensor, memory: Memory, out: Tensor) -> Tensor:
    """Codes uint32 [N, codebooks], each counted on from the codebook before, at positions [N, 3] -> samples in `out`.

    plan.state: cached keys, valid frames, frames of the stream before these. out [N * samples_per_frame, 1] is late by
    `lost_samples`: what comes first at the start of a stream stands for nothing.
    """
    x = ops.embed_mean(plan, model["embd.weight"], codes)
    h = transformer(plan, model, x, positions, memory)
    return decoder(plan, model, upsample(plan, model, h, memory), memory, out)


def transformer(plan: Plan, model: Code2WavModel, x: Tensor, positions: Tensor, memory: Memory) -> Tensor:
    """x [N, D] through all layers -> normalised hidden states [N, D]."""
    c = model.config
    h = ops.rms_norm(plan, x, model.layer(0, "ln1"), c.norm_eps)
    for i in range(c.n_layers):
        plan.scope = f"wav.blk.{i}."
        update = attention(plan, model, i, h, positions, memory)
        x, h = ops.add_rms_norm(plan, update, x, model.layer(i, "ln2"), c.norm_eps, model.layer(i, "ls1"))
        hidden = ops.matmul_swiglu(plan, h, model.together(i, "ffn_gate_up"))  # [N, F]
        update = ops.matmul(plan, hidden, model.layer(i, "ffn_down"))
        norm = model["tfm.output_norm.weight"] if i + 1 == c.n_layers else model.layer(i + 1, "ln1")
        x, h = ops.add_rms_norm(plan, update, x, norm, c.norm_eps, model.layer(i, "ls2"))
    plan.scope = ""
    return h


def attention(plan: Plan, model: Code2WavModel, i: int, h: Tensor, positions: Tensor, memory: Memory) -> Tensor:
    """Causal self-attention to the last `window` frames: h [N, D] -> [N, D]."""
    c, keys, values = model.config, memory.keys[i], memory.values[i]
    qkv = ops.matmul_joined(plan, h, model.together(i, "attn_qkv"))  # [N, (H + 2 KV) * HD]
    q = ops.rope_qkv(plan, qkv, positions, model.freqs, c.n_heads, c.n_kv_heads, keys, values, style="neox")
    mixed = ops.attention(plan, q, keys, values, c.n_heads, c.n_kv_heads, c.head_dim**-0.5, c.window)
    return ops.matmul(plan, mixed, model.layer(i, "attn_out"))


def upsample(plan: Plan, model: Code2WavModel, h: Tensor, memory: Memory) -> ops.Rows:
    """Hidden states [N, D] -> rows [N * product of ratios, D], with room in front for the decoder's convolution."""
    c, n, rate, x = model.config, h.shape[0], 1, h
    rows = ops.Rows(h, h)
    for u, ratio in enumerate(c.ratios):
        name = f"up.blk.{u}"
        plan.scope = f"wav.{name}."
        longer = ops.empty_rows(plan, n * rate * ratio, c.dim, TAPS - 1, f"{name}.conv")
        out = longer.body.view(n * rate, ratio * c.dim)
        ops.conv1d(plan, x, model[f"{name}.conv.weight"], model[f"{name}.conv.after"], per_token=rate, out=out)
        rate *= ratio
        memory.carry(plan, f"{name}.dwconv", longer, rate)
        # ConvNeXt
        y = ops.conv1d_depthwise(plan, longer, model[f"{name}.dwconv.weight"], model[f"{name}.dwconv.bias"], rate)
        y = ops.layer_norm(plan, y, model[f"{name}.norm.weight"], model[f"{name}.norm.bias"], c.layer_norm_eps, rate)
        y = ops.conv1d(
            plan, y, model[f"{name}.pw1.weight"], model[f"{name}.pw1.after"], per_token=rate, act="gelu"
        )  # [N * rate, 4 D]
        rows = ops.empty_rows(plan, n * rate, c.dim, TAPS - 1 if u + 1 == len(c.ratios) else 0, f"{name}.out")
        x = ops.conv1d(
            plan, y, model[f"{name}.pw2.weight"], model[f"{name}.pw2.after"], per_token=rate, scale=True,
            residual=longer.body, out=rows.body,
        )  # fmt: skip
    plan.scope = ""
    return rows


def decoder(plan: Plan, model: Code2WavModel, x: ops.Rows, memory: Memory, out: Tensor) -> Tensor:
    """Rows [N * rate, D] to samples in `out` [N * samples_per_frame, 1]."""
    c, n = model.config, out.shape[0] // model.config.samples_per_frame
    rate = x.body.shape[0] // n
    plan.scope = "wav.entry."
    memory.carry(plan, "entry", x, rate)
    wide = ops.empty_rows(plan, n * rate, c.decoder_dim, 1, "entry")
    ops.conv1d(
        plan, x, model["dac.entry.weight"], model["dac.entry.after"], taps=TAPS, per_token=rate, snake=True,
        out=wide.body,
    )  # fmt: skip
    x = wide
    for b in range(len(c.rates)):
        x = block(plan, model, b, x, rate, memory)
        rate *= c.rates[b]
    plan.scope = "wav.post."
    memory.carry(plan, "post", x, rate)
    kernel, after = model["dac.post_conv.weight"], model["dac.post_conv.after"]
    ops.conv1d(plan, x, kernel, after, taps=TAPS, per_token=rate, act="clamp", out=out)
    plan.scope = ""
    return out


def block(plan: Plan, model: Code2WavModel, b: int, x: ops.Rows, rate: int, memory: Memory) -> ops.Rows:
    """A transposed convolution and three residual units: x [N * rate, C], after its snake -> [N * rate * s, C / 2].

    The result has gone through the snake of what follows; residual units need what there was before it, too.
    """
    c, name, s = model.config, f"dac.blk.{b}", model.config.rates[b]
    rows, channels, n = x.body.shape[0] * s, c.channels(b + 1), x.body.shape[0]
    plan.scope = f"wav.{name}."
    memory.carry(plan, f"{name}.conv", x, rate)
    snaked = ops.empty_rows(plan, rows, channels, TAPS - 1, f"{name}.snaked")
    plain: Tensor | None = plan.empty((rows, channels), "f32", f"{name}.plain")
    kernel, after = model[f"{name}.conv.weight"], model[f"{name}.conv.after"]
    ops.conv1d(
        plan, x, kernel, after, taps=2, per_token=rate, snake=True, hidden=c.hidden[b] + 1,
        out=snaked.body.view(n, s * channels), plain=plain.view(n, s * channels),
    )  # fmt: skip
    rate *= s
    for r, dilation in enumerate(DILATIONS):
        unit = f"{name}.res.{r}"
        plan.scope = f"wav.{unit}."
        memory.carry(plan, unit, snaked, rate)
        kernel, after = model[f"{unit}.conv1.weight"], model[f"{unit}.conv1.after"]
        y = ops.conv1d(plan, snaked, kernel, after, taps=TAPS, dilation=dilation, per_token=rate, snake=True)
        last = r + 1 == len(DILATIONS)
        before = (TAPS - 1) * DILATIONS[r + 1] if not last else 1 if b + 1 < len(c.rates) else TAPS - 1
        snaked = ops.empty_rows(plan, rows, channels, before, f"{unit}.snaked")
        total = None if last else plan.empty((rows, channels), "f32", f"{unit}.plain")
        ops.conv1d(
            plan, y, model[f"{unit}.conv2.weight"], model[f"{unit}.conv2.after"], per_token=rate, residual=plain,
            snake=True, hidden=c.hidden[b + 1], out=snaked.body, plain=total,
        )  # fmt: skip
        plain = total
    plan.scope = ""
    return snaked
