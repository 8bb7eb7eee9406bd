"""Coordinate descent as it is written: one code after the other, by trying every value of the grid, in float64."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def loss(aim: Array, codes: Array, scale: Array, zero: Array, H: Array) -> float:
    """Return tr(E H E^T). scale, zero: (rows, cols), one for each weight."""
    error = aim - scale * (codes - zero)
    return float(np.trace(error @ H @ error.T))


def best_code(
    aim: Array, codes: Array, scale: Array, zero: Array, H: Array, place: tuple[int, int], grid: Array
) -> float:
    """Return the value of one code with the smallest loss, all others fixed; the first one of several."""
    losses = []
    for value in grid:
        tried = codes.copy()
        tried[place] = value
        losses.append(loss(aim, tried, scale, zero, H))
    return float(grid[int(np.argmin(losses))])


def best_number(without: Array, u: Array, H: Array) -> float:
    """Return the real number c with the smallest loss of without - c u: least squares on the factor of H.

    without: what one row is to be, less all that c has no part in, (cols,). u: what c is multiplied with, (cols,).
    """
    factor = np.linalg.cholesky(H).T  # |factor e|^2 = e^T H e
    (found,), *_ = np.linalg.lstsq((factor @ u)[:, None], factor @ without, rcond=None)
    return float(found)


def best_scale(aim: Array, codes: Array, scale: Array, zero: Array, H: Array, row: int, columns: slice) -> float:
    """Return the real scale of one group of one row with the smallest loss: least squares on the factor of H."""
    without = scale[row] * (codes[row] - zero[row])
    without[columns] = 0.0
    u = np.zeros(aim.shape[1])
    u[columns] = (codes[row] - zero[row])[columns]
    return best_number(aim[row] - without, u, H)
