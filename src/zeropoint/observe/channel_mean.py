"""The mean of each input column: with the weights, what the layer's output is on average. Sums are float64."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.types import ChannelMean


class Observer:
    """Keeps one sum per column."""

    def __init__(self) -> None:
        self._sums: Tensor | None = None  # float64 (cols,), once the number of columns is known
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        sums = x.detach().sum(dim=0, dtype=torch.float64)
        check_finite(sums, x)
        self._take(sums, len(x))

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        if other._sums is not None:
            self._take(other._sums, other._count)

    def result(self) -> ChannelMean:
        """Return the means so far: zeros when no token was seen, of no columns before the first update."""
        sums = torch.zeros(0, dtype=torch.float64) if self._sums is None else self._sums
        return ChannelMean(sums / max(1, self._count), self._count)

    def _take(self, sums: Tensor, count: int) -> None:
        self._sums = sums.clone() if self._sums is None else self._sums + sums
        self._count += count
