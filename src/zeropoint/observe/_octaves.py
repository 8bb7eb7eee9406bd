"""Magnitudes counted in sixteenths of an octave: every float32 has its bin, and nothing has ever to be rebinned.

The upper 12 bits of |x| as a float32 are its exponent and the first 4 bits of its fraction. They are the number of the
bin, so that bins are at most 1/16 wide, relative to what they hold, from the smallest number to the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

BINS = 1 << 12
_SHIFT = 31 - 12
_CHUNK = 1 << 20  # values counted at once; their indices are 8 bytes each


def count_magnitudes(x: Tensor) -> Tensor:
    """Return how many of the values, finite and of any shape, have their magnitude in each bin: float64 (BINS,)."""
    counts = torch.zeros(BINS, dtype=torch.float64)
    for chunk in torch.split(x.detach().flatten(), _CHUNK):
        counts += torch.bincount(chunk.float().abs().view(torch.int32) >> _SHIFT, minlength=BINS)
    return counts


def quantile(counts: Tensor, share: float) -> float:
    """Return the magnitude that `share` of the values do not exceed, to 1/32 of itself; 0 where there are no values."""
    if not bool(counts.any()):
        return 0.0
    at = int(torch.searchsorted(counts.cumsum(0), share * counts.sum()).clamp(max=BINS - 1))
    low, high = (float((torch.tensor(edge, dtype=torch.int32) << _SHIFT).view(torch.float32)) for edge in (at, at + 1))
    return (low + high) / 2 if at else 0.0
