"""The mean magnitude of each input column: how much the weights that it meets matter, to AWQ. Sums are float64."""

from __future__ import annotations

from typing import Self

from torch import Tensor

from zeropoint.observe.channel_mean import Observer as Mean
from zeropoint.types import ChannelAbsMean


class Observer:
    """Keeps one sum per column."""

    def __init__(self) -> None:
        self._mean = Mean()

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        self._mean.update(x.abs())

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        self._mean.merge(other._mean)

    def result(self) -> ChannelAbsMean:
        """Return the means so far: zeros when no token was seen, of no columns before the first update."""
        mean = self._mean.result()
        return ChannelAbsMean(mean.values, mean.count)
