"""What GPTAQ aims at, from the inputs themselves: least squares of the float outputs on the moved inputs, float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def target(weight: Array, x: Array, moved: Array, *, damping: float, strength: float) -> Array:
    """Return T (rows, cols). x, moved: the float and the quantized model's inputs (tokens, cols).

    With strength 1 it is the ridge regression, drawn to W, of the float outputs W x on the moved inputs:
    argmin_T mean |T x' - W x|^2 + lambda |T - W|^2.
    """
    tokens, cols = x.shape
    H = moved.T @ moved / tokens
    lam = damping * np.mean(np.diag(H))
    drift = (x - moved).T @ moved / tokens
    correction = weight @ drift @ np.linalg.inv(H + lam * np.eye(cols))
    return weight + strength * correction
