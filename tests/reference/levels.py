"""Scales and minima on two levels as they are written, in float64, group by group."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def values(x: Array, scale: float, minimum: float, top: int = 15) -> Array:
    """The numbers nearest to x among scale * u - minimum, u in 0..top."""
    return scale * np.clip(np.round((x + minimum) / scale), 0, top) - minimum


def error(x: Array, weights: Array, d: Array, d_min: Array, k: NDArray[np.uint8], m: NDArray[np.uint8]) -> float:
    """The weighted squared error of one row with the nearest codes.

    x, weights: (groups, size). d, d_min: (supers,). k, m: (groups,).
    """
    per_super = len(k) // len(d)
    total = 0.0
    for group in range(len(k)):
        scale, minimum = d[group // per_super] * k[group], d_min[group // per_super] * m[group]
        total += float(np.sum(weights[group] * (x[group] - values(x[group], scale, minimum)) ** 2))
    return total


def nearest_levels(x: Array) -> tuple[Array, Array, NDArray[np.uint8], NDArray[np.uint8]]:
    """d, d_min, k and m of one super-block without a search: seen ranges, all numbers to nearest. x: (groups, size)."""
    low, high = np.minimum(x.min(1), 0), np.maximum(x.max(1), 0)
    scale, minimum = (high - low) / 15, -low
    d, d_min = (np.float64(np.float16(each.max() / 63)) for each in (scale, minimum))
    k = np.clip(np.round(scale / d), 1, 63)
    m = np.clip(np.round(minimum / d_min), 0, 63) if d_min > 0 else np.zeros(len(x))
    return np.array([d]), np.array([d_min]), k.astype(np.uint8), m.astype(np.uint8)


def best_real(x: Array, weights: Array, steps: int = 60) -> float:
    """The least weighted squared error of one group with any real scale and any minimum >= 0, by trying a fine grid.

    x, weights: (size,).
    """
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    found = np.inf
    for below, above in itertools.product(np.linspace(0.4, 1.15, steps), repeat=2):
        scale, minimum = (high * above - low * below) / 15, -low * below
        found = min(found, float(np.sum(weights * (x - values(x, scale, minimum)) ** 2)))
    return found
