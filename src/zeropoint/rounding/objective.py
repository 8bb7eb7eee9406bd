"""The error that rounding is judged by: what the layer's output loses on the calibration tokens.

With E = W' - W and H = mean of x x^T, the mean squared error of the outputs, summed over rows, is tr(E H E^T).
"""

from __future__ import annotations

import torch
from torch import Tensor


def output_error(error: Tensor, second_moment: Tensor | None) -> float:
    """Return tr(E H E^T), or the squared norm of E when there are no statistics (H = I).

    error: float32 (rows, cols). second_moment: float32 (cols, cols).
    """
    product = error if second_moment is None else error @ second_moment
    # H is positive semidefinite, its float32 sums only nearly: an error along a dead direction came out as -1e-11
    return max(0.0, float(torch.sum(product * error, dtype=torch.float64)))


def relative_output_error(
    weight: Tensor, restored: Tensor, second_moment: Tensor | None, *, total: float | None = None
) -> float:
    """Return tr(E H E^T) / tr(W H W^T), the squared relative error of the layer's output; 0.0 for a zero weight.

    weight, restored: float32 (rows, cols). second_moment: float32 (cols, cols) or None for H = I. total: the
    denominator, where it is known.
    """
    total = output_error(weight, second_moment) if total is None else total
    return output_error(restored - weight, second_moment) / total if total > 0 else 0.0
