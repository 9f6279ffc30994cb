"""Twin of ops/gather.py."""

import numpy as np


def embed(table: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Rows of the embedding table: table [V, D], ids [N] integers in 0..V-1 -> [N, D]."""
    return table[np.asarray(ids, dtype=np.int64)]
