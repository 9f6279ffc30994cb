"""Twin of ops/conv.py."""

import numpy as np


def conv_columns(x: np.ndarray, valid: int) -> np.ndarray:
    """What every output of a 3x3 convolution with stride 2 and padding 1 reads, tap by tap.

    x [B, T, F, C] -> [B, ceil(T / 2), ceil(F / 2), 9 C]; value (3 kt + kf) * C + c of a row is
    x[b, 2 t + kt - 1, 2 f + kf - 1, c]. Outside of x, and from column `valid` of T on, there are zeros.
    """
    b, t, f, c = x.shape
    padded = np.zeros((b, t + 3, f + 3, c), np.float32)
    padded[:, 1 : 1 + valid, 1 : 1 + f] = x[:, :valid]
    taps = [padded[:, kt : kt + t : 2, kf : kf + f : 2] for kt in range(3) for kf in range(3)]
    return np.concatenate(taps, axis=-1)
