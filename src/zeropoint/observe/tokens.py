"""How far apart the tokens are: the largest magnitude of each token, counted in sixteenths of an octave.

A static scale has to serve the largest token and the median one; a dynamic scale is as good for either. How much that
is worth can be read off the distance between the two. Where in the text large tokens stand is no statistic of tokens
but of windows: observe/massive.py.

Memory: 32 KB, plus 8 MB while a batch is counted.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe import _octaves
from zeropoint.observe._finite import check_finite
from zeropoint.types import TokenAbsMax


class Observer:
    """Counts tokens by their largest magnitude."""

    def __init__(self) -> None:
        self._counts = torch.zeros(_octaves.BINS, dtype=torch.float64)
        self._largest = 0.0
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        if x.numel():
            low, high = torch.aminmax(x, dim=1)
            magnitudes = torch.maximum(-low, high).float()  # (tokens,)
            check_finite(magnitudes, x)
            self._counts += _octaves.count_magnitudes(magnitudes)
            self._largest = max(self._largest, float(magnitudes.max()))
        self._count += len(x)

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        self._counts += other._counts
        self._largest = max(self._largest, other._largest)
        self._count += other._count

    def result(self) -> TokenAbsMax:
        """Return the counts so far."""
        return TokenAbsMax(self._counts.clone(), self._largest, self._count)


def quantile(stats: TokenAbsMax, share: float) -> float:
    """Return the largest magnitude that `share` of the tokens do not exceed, to 1/32 of itself."""
    return min(_octaves.quantile(stats.counts, share), stats.largest)
