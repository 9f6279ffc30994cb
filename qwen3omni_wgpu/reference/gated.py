"""Twin of ops/gated.py."""

import numpy as np


def add_gated(x: np.ndarray, extra: np.ndarray, h: np.ndarray, gate: np.ndarray) -> np.ndarray:
    """x + sigmoid(h gate^T) * extra: [N, D] each, gate [1, D]."""
    z = h.astype(np.float64) @ gate.astype(np.float64).T
    return (x + extra / (1 + np.exp(-z))).astype(np.float32)
