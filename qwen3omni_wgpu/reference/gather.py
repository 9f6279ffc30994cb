"""Twin of ops/gather.py."""

import numpy as np


def embed(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows of the embedding table: table [V, D], ids [N] integers in 0..V-1 -> [N, D]."""
    return table[np.asarray(ids, dtype=np.int64)]


def embed_mean(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """The mean of K rows: table [V, D], ids integers [N, K] -> [N, D]."""
    return table[np.asarray(ids, dtype=np.int64)].mean(axis=1)


def add_rows(x: np.ndarray, table: np.ndarray, ids: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted rows of a table added: x [N, D], table [V, D], ids integers [N, K], weights [N, K] -> [N, D]."""
    return x + np.einsum("nk,nkd->nd", weights, table[np.asarray(ids, dtype=np.int64)])
