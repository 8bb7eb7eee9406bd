"""The lowest and the highest value of each of 256 batches of tokens: what a moving average of ranges runs over.

The moving average of the literature, m <- m + c (m_batch - m), depends on how the text was cut into batches and on
their order; two machines that share the work would find two ranges. Here the token itself says which batch it belongs
to: a hash of its values, modulo 256. The batches are as good as shuffled, and exactly the same however the tokens
arrive and whoever merges them. What differs from the literature: there are 256 batches always, and with more tokens it
is the batches that grow. The average itself is left to qparams/input_ranges/moving_average.py.

Memory: 4 KB.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.observe._row_hash import row_hashes
from zeropoint.types import BatchRanges

BATCHES = 256


class Observer:
    """Keeps two extremes, 0 between them, and a number of tokens for each batch."""

    def __init__(self) -> None:
        self._low = torch.zeros(BATCHES)
        self._high = torch.zeros(BATCHES)
        self._tokens = torch.zeros(BATCHES, dtype=torch.float64)

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        if not x.numel():
            return
        low, high = (end.float() for end in torch.aminmax(x, dim=1))
        check_finite(torch.stack([low, high]), x)
        batch = row_hashes(x) & (BATCHES - 1)  # (tokens,)
        self._low = self._low.scatter_reduce(0, batch, low, "amin")
        self._high = self._high.scatter_reduce(0, batch, high, "amax")
        self._tokens = self._tokens + torch.bincount(batch, minlength=BATCHES)

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        self._low, self._high = torch.minimum(self._low, other._low), torch.maximum(self._high, other._high)
        self._tokens = self._tokens + other._tokens

    def result(self) -> BatchRanges:
        """Return the extremes of each batch so far; 0 and 0 for a batch without tokens."""
        return BatchRanges(self._low.clone(), self._high.clone(), self._tokens.clone(), int(self._tokens.sum()))
