"""The errors of one weight by their definitions, in float64, with the output error from the inputs themselves."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def sqnr_db(weight: Array, restored: Array) -> float:
    return float(10 * np.log10(np.sum(weight**2) / np.sum((restored - weight) ** 2)))


def cosine(weight: Array, restored: Array) -> float:
    return float(np.sum(weight * restored) / np.linalg.norm(weight) / np.linalg.norm(restored))


def output_error(weight: Array, restored: Array, inputs: Array) -> float:
    """Return |X W'^T - X W^T|^2 / |X W^T|^2 for inputs (tokens, cols)."""
    return float(np.sum((inputs @ (restored - weight).T) ** 2) / np.sum((inputs @ weight.T) ** 2))
