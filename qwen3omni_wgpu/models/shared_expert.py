"""A mixture's shared expert [S] as S / F more experts [F] that every token takes: one dispatch serves all of them.

    Down (silu(h Gate^T) * (h Up^T))   Gate and Up in S / F pieces of F rows, Down in S / F pieces of F columns: the
                                       sum over the pieces is the whole

Rows of Gate and Up are the pieces as they lie in the file; columns of Down have to be moved.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from ..errors import UnsupportedModel
from ..formats.gguf import GGUFFile
from ..formats.tensors import read_bytes
from ..gpu import Tensor
from .config import TextConfig

_PARTS = ("gate", "up", "down")


def as_experts(file: GGUFFile, config: TextConfig, names: Mapping[str, str]) -> GGUFFile:
    """The file with each shared matrix in the shape of experts [S / F, rows, columns], so that it can lie behind them.

    names: ours -> the file's. UnsupportedModel where S is no multiple of F or a matrix has another type than the
    experts'.
    """
    c = config
    if c.shared_dim % c.expert_dim:
        raise UnsupportedModel(
            f"{file.path}: the shared expert has {c.shared_dim} hidden values, no multiple of the others' "
            f"{c.expert_dim}, which is not supported; use another model"
        )
    pieces = c.shared_dim // c.expert_dim
    tensors = dict(file.tensors)
    for i, part in _each(c):
        shared, experts = (file.tensors[names[f"blk.{i}.ffn_{part}_{kind}.weight"]] for kind in ("shexp", "exps"))
        if shared.type != experts.type:
            raise UnsupportedModel(
                f"{file.path}: tensor '{shared.name}' has type {shared.type} and '{experts.name}' {experts.type}; "
                "only equal types are supported: convert the model again"
            )
        tensors[shared.name] = replace(shared, shape=(pieces, *experts.shape[1:]))
    return replace(file, tensors=tensors)


def settle(file: GGUFFile, config: TextConfig, names: Mapping[str, str], weights: Mapping[str, Tensor]) -> None:
    """Put the columns of each shared Down where they belong: weights have it row by row behind the experts'."""
    pieces = config.shared_dim // config.expert_dim
    for i in range(config.n_layers):
        info = file.tensors[names[f"blk.{i}.ffn_down_shexp.weight"]]
        raw = np.empty(info.nbytes, np.uint8)
        read_bytes(info, 0, info.nbytes, raw.data)
        moved = np.ascontiguousarray(raw.reshape(config.dim, pieces, -1).transpose(1, 0, 2)).reshape(pieces, -1)
        tensor = weights[f"blk.{i}.ffn_all_down_exps.weight"]
        size = tensor.nbytes // tensor.shape[0]
        for expert, piece in enumerate(moved, config.n_experts):
            part = next(part for part in tensor.parts if part.start <= expert < part.stop)
            offset = part.offset + (expert - part.start) * size
            tensor.device.write_buffer(part.storage.buffer, piece, offset)


def _each(config: TextConfig) -> Iterator[tuple[int, str]]:
    return ((i, part) for i in range(config.n_layers) for part in _PARTS)
