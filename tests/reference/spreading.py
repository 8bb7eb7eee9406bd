"""How a weight and an input are spread, by the definitions: value by value, with float64 sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from zeropoint.evaluation.results import Bar

Array = NDArray[np.float64]


def split_error(
    weight: NDArray[np.float32],
    restored: NDArray[np.float32],
    scale: NDArray[np.float32],
    zero_point: NDArray[np.float32],
    q_min: int,
    q_max: int,
) -> tuple[float, float]:
    """Return the relative squared error outside the grid and inside; scale and zero_point: (rows, cols), by value."""
    clipped = rounded = signal = 0.0
    for w, r, s, z in zip(*(each.ravel() for each in (weight, restored, scale, zero_point)), strict=True):
        error = (float(r) - float(w)) ** 2
        signal += float(w) ** 2
        if q_min - 0.5 <= float(w / s + z) <= q_max + 0.5:  # float32, as codes are found
            rounded += error
        else:
            clipped += error
    return (clipped / signal, rounded / signal) if signal else (0.0, 0.0)


def counted(values: Sequence[float], bars: Sequence[Bar]) -> list[int]:
    """Return how many of the values each bar should have."""
    return [sum(bar.low <= value < bar.high for value in values) for bar in bars]


def disagreement(windows: Array) -> float:
    """Return |a - b| / |a + b| of the mean squares of even and odd windows; windows: (windows, time, cols)."""
    a, b = (np.mean(windows[half::2] ** 2, axis=(0, 1)) for half in (0, 1))
    return float(np.sqrt(np.sum((a - b) ** 2)) / np.sqrt(np.sum((a + b) ** 2)))
