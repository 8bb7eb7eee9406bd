"""From losses per token to perplexity, and from windows to intervals.

The two models read the same windows, and most of the spread of a loss comes from the text, not from the model. So the
differences are taken window by window, and their spread alone decides how sure the ratio is:

    d_w = mean loss of the quantized model - mean loss of the reference, in window w
    perplexity ratio = exp(mean of d_w), its 95 % interval = exp(mean +- t * s / sqrt(windows))

with s the standard deviation of d_w and t the quantile of Student's distribution. All windows have equally many tokens,
so that exp(mean of d_w) is exactly the ratio of the two perplexities. The windows are taken as independent draws from
the text; tokens within a window need not be independent of each other.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from zeropoint.errors import InternalError
from zeropoint.evaluation.results import Interval95

CONFIDENCE = 0.95
EXACT_UP_TO = 1000
"""Degrees of freedom above which the quantile comes from its expansion, which is right to 1e-11 there."""


@dataclass(frozen=True)
class Estimate:
    """A mean over windows and how sure it is.

    half_width: of the 95 % interval mean +- half_width; None for a single window, which says nothing about it.
    """

    mean: float
    half_width: float | None
    windows: int

    @property
    def interval(self) -> Interval95 | None:
        """(mean - half_width, mean + half_width), or None."""
        return None if self.half_width is None else (self.mean - self.half_width, self.mean + self.half_width)

    def clipped(self, low: float, high: float) -> Interval95 | None:
        """Return the interval without what cannot be, such as a share above 1 or a KL below 0."""
        return None if self.interval is None else (max(low, self.interval[0]), min(high, self.interval[1]))

    def exp(self) -> tuple[float, Interval95 | None]:
        """Return the exponential of the mean and of both ends: a ratio and its interval, of a log-ratio."""
        ends = self.interval
        return perplexity(self.mean), None if ends is None else (perplexity(ends[0]), perplexity(ends[1]))


def estimate(per_token: ArrayLike, windows: int) -> Estimate:
    """Return the mean of a quantity and its 95 % interval over windows.

    per_token: (windows * tokens of a window,), window after window.
    Raises: InternalError if it is empty or does not split into that many windows of equal length.
    """
    means = window_means(per_token, windows)
    mean = float(means.mean())
    if windows == 1:
        return Estimate(mean, None, 1)
    standard_error = float(means.std(ddof=1)) / math.sqrt(windows)
    return Estimate(mean, student_quantile(0.5 + CONFIDENCE / 2, windows - 1) * standard_error, windows)


def log_ratio(nll_reference: ArrayLike, nll_quantized: ArrayLike, windows: int) -> Estimate:
    """Return the logarithm of quantized perplexity / reference perplexity, from the differences on each window.

    Both: nats, (windows * tokens of a window,), window after window.
    Raises: as `estimate`.
    """
    difference = np.asarray(nll_quantized, np.float64) - np.asarray(nll_reference, np.float64)
    return estimate(difference, windows)


def window_means(per_token: ArrayLike, windows: int) -> NDArray[np.float64]:
    """Return the mean of each window: float64 (windows,). Raises: as `estimate`."""
    values = np.asarray(per_token, np.float64)
    if windows < 1 or not values.size or values.size % windows:
        raise InternalError(f"{values.size} tokens do not make {windows} windows of equal length")
    means: NDArray[np.float64] = values.reshape(windows, -1).mean(axis=1)
    return means


def perplexity(nll: float) -> float:
    """Return exp of a mean loss in nats, or the largest float where that would overflow, above 709 nats."""
    try:
        return math.exp(nll)
    except OverflowError:
        return sys.float_info.max


@cache
def student_quantile(probability: float, degrees: int) -> float:
    """Return the t that a variable of Student's distribution stays below with `probability`.

    probability: in [0.5, 1). degrees: of freedom, at least 1. Right to 1e-10 of itself.
    Source: Abramowitz and Stegun 1964, 26.7.3 and 26.7.4 (finite sums, solved by bisection); 26.7.5 (expansion).
    """
    if degrees > EXACT_UP_TO:
        return _expansion(NormalDist().inv_cdf(probability), degrees)
    low, high = 0.0, math.pi / 2
    while True:
        angle = (low + high) / 2
        if angle in (low, high):  # neighbouring floats: nothing is left between them
            return math.sqrt(degrees) * math.tan(angle)
        if _two_sided(angle, degrees) < 2 * probability - 1:
            low = angle
        else:
            high = angle


def _two_sided(angle: float, degrees: int) -> float:
    """Return P(|t| < sqrt(degrees) * tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    total, term = 0.0, cosine if degrees % 2 else 1.0
    for power in range(3 if degrees % 2 else 2, degrees + 1, 2):
        total += term
        term *= cosine * cosine * (power - 1) / power
    return 2 / math.pi * (angle + sine * total) if degrees % 2 else sine * total


def _expansion(z: float, degrees: int) -> float:
    """Return the quantile from that of the normal distribution, for many degrees of freedom."""
    n = degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )
