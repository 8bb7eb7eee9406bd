"""The range rules as their sources define them: float64 and loops, one group or one histogram at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from reference import affine

Array = NDArray[np.float64]


def error(
    values: Array,
    weights: Array,
    low: float,
    high: float,
    bits: int,
    *,
    symmetric: bool,
    p: float,
    stored: Callable[[float], float],
) -> float:
    """Sum of weights * |x - Q(x)|^p when [low, high] is the range; stored rounds the scale to its dtype."""
    scale = stored(affine.scale_of(low, high, bits, symmetric=symmetric))
    zero_point = 0 if symmetric else affine.zero_point_of(low, scale, bits)
    back = [affine.dequantize(affine.quantize(x, scale, zero_point, bits), scale, zero_point) for x in values]
    return float(sum(w * abs(x - y) ** p for w, x, y in zip(weights, values, back, strict=True)))


def mse(
    values: Array,
    weights: Array,
    bits: int,
    *,
    symmetric: bool,
    fractions: Sequence[float],
    p: float = 2.0,
    stored: Callable[[float], float] = float,
) -> tuple[float, float, float]:
    """(low, high, error) of the best of the seen range times each fraction."""
    low, high = min(values.min(), 0.0), max(values.max(), 0.0)
    best = (np.inf, 0.0, 0.0)
    for f in fractions:
        e = error(values, weights, low * f, high * f, bits, symmetric=symmetric, p=p, stored=stored)
        if e < best[0]:
            best = (e, low * f, high * f)
    return best[1], best[2], best[0]


def percentile(values: Array, percent: float, *, symmetric: bool) -> tuple[float, float]:
    if symmetric:
        high = float(np.percentile(np.abs(values), percent))
        return max(-high, min(values.min(), 0.0)), min(high, max(values.max(), 0.0))
    outside = (100 - percent) / 2
    return min(float(np.percentile(values, outside)), 0.0), max(float(np.percentile(values, 100 - outside)), 0.0)


def entropy(counts: Array, levels: int, below: int = 0) -> tuple[int, int]:
    """The window [first, last) of bins with the smallest KL(P || Q); of equally good ones the widest.

    below: bins below 0. With below = 0, a histogram of magnitudes, this is the calibration of TensorRT.
    """
    bins = len(counts)
    best, window = np.inf, (0, bins)
    for width in range(levels, bins + 1):
        first = (bins - width) * below // bins
        last = first + width
        inside = counts[first:last]
        P = inside.copy()
        P[0] += counts[:first].sum()
        P[-1] += counts[last:].sum()
        divergence = kl(P, merged(inside, levels))
        if divergence <= best * (1 + 1e-12) + 1e-15:
            best, window = divergence, (first, last)
    return window


def merged(inside: Array, levels: int) -> Array:
    """Q: the bins merged to levels of equal width, each spread evenly over those of its bins that are not empty."""
    Q = np.zeros(len(inside))
    level_of = np.array([j * levels // len(inside) for j in range(len(inside))])
    for level in range(levels):
        members = (level_of == level) & (inside > 0)
        if members.any():
            Q[members] = inside[level_of == level].sum() / members.sum()
    return Q


def kl(P: Array, Q: Array) -> float:
    """KL(P || Q) of two histograms of any total; infinite where P has something and Q nothing."""
    if Q.sum() == 0 or ((P > 0) & (Q == 0)).any():
        return np.inf
    p, q = P / P.sum(), Q / Q.sum()
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True) if a > 0))


def moving_average(ends: Sequence[float], c: float) -> float:
    """m <- m + c (m_batch - m), from m = the first."""
    m = ends[0]
    for end in ends[1:]:
        m = m + c * (end - m)
    return m


def output_errors(
    x: Array, counts: Array, weight: Array, scale: float, zero_point: int, bits: int
) -> tuple[float, float, float]:
    """(whole, clipping, rounding): squared errors of W x, one value at a time, relative to sum |W x|^2."""
    q_min, q_max = affine.limits(bits)
    clipping, rounding = np.zeros_like(x), np.zeros_like(x)
    for t, k in np.ndindex(*x.shape):
        back = affine.dequantize(affine.quantize(x[t, k], scale, zero_point, bits), scale, zero_point)
        outside = not q_min - 0.501 <= x[t, k] / scale + zero_point <= q_max + 0.501
        (clipping if outside else rounding)[t, k] = back - x[t, k]
    energies = [
        float(((part @ weight.T) ** 2).sum(1) @ counts) for part in (x, clipping + rounding, clipping, rounding)
    ]
    return energies[1] / energies[0], energies[2] / energies[0], energies[3] / energies[0]
