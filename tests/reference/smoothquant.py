"""SmoothQuant as the paper writes it, eq. 3 and 4 of arXiv:2211.10438, in float64, one channel at a time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def smooth(x: Array, weights: Sequence[Array], alpha: float) -> tuple[Array, Array, list[Array]]:
    """Return s, X diag(s)^-1 and diag(s) W. x: (tokens, cols). weights: (rows, cols) each, all reading x."""
    cols = x.shape[1]
    s = np.ones(cols)
    for j in range(cols):
        largest_x = max(abs(float(value)) for value in x[:, j])
        largest_w = max(abs(float(value)) for weight in weights for value in weight[:, j])
        if largest_x > 0 and largest_w > 0:
            s[j] = largest_x**alpha / largest_w ** (1 - alpha)
    return s, x / s, [weight * s for weight in weights]


def shared(s_of: Sequence[int], x: Array, weights: Sequence[Array], alpha: float) -> Array:
    """Return s of every column where columns with the same number in `s_of` must share one."""
    s = np.ones(x.shape[1])
    for group in set(s_of):
        columns = [j for j, own in enumerate(s_of) if own == group]
        merged_x = np.concatenate([x[:, j] for j in columns])[:, None]
        merged_w = np.concatenate([weight[:, j] for weight in weights for j in columns])[:, None]
        s[columns] = smooth(merged_x, [merged_w], alpha)[0]
    return s
