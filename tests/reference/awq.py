"""AWQ's scale with the weights' part, eq. 4 and 5 of arXiv:2306.00978, in float64, one channel at a time."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def importance(x: Array, weights: Sequence[Array], alpha: float, *, level_weights: bool) -> Array:
    """Return s, of geometric mean 1. x: (tokens, cols). weights: (rows, cols) each, all reading x."""
    s = np.ones(x.shape[1])
    for j in range(x.shape[1]):
        mean_x = sum(abs(float(value)) for value in x[:, j]) / len(x)
        largest_w = max(abs(float(value)) for weight in weights for value in weight[:, j])
        s[j] = mean_x**alpha / (largest_w ** (1 - alpha) if level_weights else 1.0)
    return s / math.exp(sum(math.log(value) for value in s) / len(s))
