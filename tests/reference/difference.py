"""Intervals of means over windows, of their differences and of ratios, in float64 and from the windows themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Interval = tuple[float, float]


def interval_of_mean(values: NDArray[np.float64]) -> Interval:
    """The 95 % interval of Student's t. values: float64 (windows,)."""
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def interval_of_pairs(first: NDArray[np.float64], second: NDArray[np.float64]) -> Interval:
    """That of the mean of second - first, each window against itself: what cannot be known from two intervals."""
    return interval_of_mean(second - first)
