"""The lowest and the highest activation: two numbers, exact whatever the batches."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.types import MinMax


class Observer:
    """Keeps the extremes of all values seen, 0 among them."""

    def __init__(self) -> None:
        self._low = torch.zeros(())
        self._high = torch.zeros(())
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        if x.numel():
            low, high = torch.aminmax(x)
            check_finite(torch.stack([low, high]), x)
            self._low, self._high = torch.minimum(self._low, low.float()), torch.maximum(self._high, high.float())
        self._count += len(x)

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        self._low, self._high = torch.minimum(self._low, other._low), torch.maximum(self._high, other._high)
        self._count += other._count

    def result(self) -> MinMax:
        """Return the extremes so far; 0 and 0 before anything was seen."""
        return MinMax(self._low.clone(), self._high.clone(), self._count)
