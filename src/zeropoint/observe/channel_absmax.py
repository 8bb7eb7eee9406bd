"""The largest magnitude in each input column: what SmoothQuant balances against the weights, exact."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.types import ChannelAbsMax


class Observer:
    """Keeps one magnitude per column."""

    def __init__(self) -> None:
        self._values: Tensor | None = None  # float32 (cols,), once the number of columns is known
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        if len(x):
            low, high = torch.aminmax(x, dim=0)
            values = torch.maximum(-low, high).float()
            check_finite(values, x)
        else:
            values = torch.zeros(x.shape[1])
        self._take(values, len(x))

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        if other._values is not None:
            self._take(other._values, other._count)

    def result(self) -> ChannelAbsMax:
        """Return the magnitudes so far; of no columns before anything was seen."""
        return ChannelAbsMax(torch.zeros(0) if self._values is None else self._values.clone(), self._count)

    def _take(self, values: Tensor, count: int) -> None:
        self._values = values.clone() if self._values is None else torch.maximum(self._values, values)
        self._count += count
