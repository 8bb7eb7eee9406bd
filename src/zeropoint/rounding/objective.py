"""The error that rounding is judged by: what the layer's output loses on the calibration tokens.

With E = W' - W and H = mean of x x^T, the mean squared error of the outputs, summed over rows, is tr(E H E^T). H is
symmetric: what lies below its diagonal counts twice and what lies above is not multiplied.
"""

from __future__ import annotations

import torch
from torch import Tensor

_PANEL = 192
"""Columns of H at once: the product is then 9/16 of the whole for 1536 columns, and 2/3 for 576."""


def output_error(error: Tensor, second_moment: Tensor | None) -> float:
    """Return tr(E H E^T), or the squared norm of E when there are no statistics (H = I).

    error: float32 (rows, cols). second_moment: float32 (cols, cols).
    """
    if second_moment is None:
        return float(torch.sum(error * error, dtype=torch.float64))
    total, cols = 0.0, error.shape[1]
    for start in range(0, cols, _PANEL):
        end = min(start + _PANEL, cols)
        here = error[:, start:end]
        product = here @ second_moment[start:end, start:end]
        product.addmm_(error[:, end:], second_moment[end:, start:end], alpha=2)
        total += float(torch.sum(product.mul_(here), dtype=torch.float64))
    # H is positive semidefinite, its float32 sums only nearly: an error along a dead direction came out as -1e-11
    return max(0.0, total)


def relative_output_error(weight: Tensor, restored: Tensor, second_moment: Tensor | None) -> float:
    """Return tr(E H E^T) / tr(W H W^T), the squared relative error of the layer's output; 0.0 for a zero weight.

    weight, restored: float32 (rows, cols). second_moment: float32 (cols, cols) or None for H = I.
    """
    total = output_error(weight, second_moment)
    return output_error(restored - weight, second_moment) / total if total > 0 else 0.0
