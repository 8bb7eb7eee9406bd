"""The search of qparams/ranges/mse.py with torch, all groups of a weight at once: bit for bit what native code gives.

The sums are in the order of torch.sum over a first dimension. Where there is one group of one row torch adds in another
order, and with another p than 2 it has its own power function: then errors are equal to 1e-5, not ranges.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from zeropoint.errors import InputError
from zeropoint.qparams.affine import nearest_codes, values_of
from zeropoint.qparams.from_range import from_range
from zeropoint.types import Scheme


def search(
    values: Tensor, weights: Tensor | None, scheme: Scheme, *, grid: int, maxshrink: float, p: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(low, high, error) of the best range of each group: (rows, groups) each.

    values: float32 (rows, groups, size). weights: float32 (groups, size), largest 1 in each group, or None.
    """
    low, high = values.amin(-1).clamp(max=0.0), values.amax(-1).clamp(min=0.0)
    per_value = None if weights is None else weights.T.unsqueeze(-1).contiguous()
    found = _Search(
        values.permute(2, 1, 0).contiguous(), per_value, low.T.contiguous(), high.T.contiguous(), scheme=scheme, p=p
    )
    found.run([1 - i / grid for i in range(math.floor(maxshrink * grid) + 1)], grid)
    return found.low.T, found.high.T, found.smallest.T


def error(values: Tensor, low: Tensor, high: Tensor, scheme: Scheme, *, p: float) -> Tensor:
    """The error of each group under its range: (rows, groups), in units of the group's largest magnitude."""
    seen = values.amin(-1).clamp(max=0.0), values.amax(-1).clamp(min=0.0)
    groups = _Search(
        values.permute(2, 1, 0).contiguous(), None, *(end.T.contiguous() for end in seen), scheme=scheme, p=p
    )
    return groups.error(low.T.contiguous(), high.T.contiguous()).T


class _Search:
    """The best range so far of many groups at once, and the loop over candidates.

    The groups are the last two dimensions: what is one number per group is then read as vectors by every operation,
    which is twice as fast as (rows, groups, size).

    values: (size, groups, rows). weights: (size, groups, 1) or None. low, high: float32 (groups, rows), the seen range.
    """

    def __init__(
        self, values: Tensor, weights: Tensor | None, low: Tensor, high: Tensor, *, scheme: Scheme, p: float
    ) -> None:
        # Each group is brought to a largest magnitude in [0.5, 1) by a power of two, so that the squares of tiny
        # errors do not underflow: the choice must not depend on the unit in which a weight is measured.
        self._unit = _power_of_two(torch.maximum(-low, high))
        self._values = values * self._unit
        self._weights, self._scheme, self._p = weights, scheme, p
        self._buffer = torch.empty_like(self._values)
        self.low, self.high = low, high
        self.smallest = self.error(low, high)

    def run(self, fractions: Sequence[float], grid: int) -> None:
        """Search the seen range times `fractions`, and what else pays: see the module's docstring."""
        low, high = self.low, self.high
        self._sweep((low * f, high * f) for f in (*self._wider(grid), *fractions))
        if not self._scheme.symmetric:
            ends = fractions[::2]  # half the grid is enough: 0.5925 instead of 0.5923 of min-max's error
            fixed_high = self.high
            self._sweep((low * f, fixed_high) for f in ends)
            fixed_low = self.low
            self._sweep((fixed_low, high * f) for f in ends)

    def _sweep(self, candidates: Iterable[tuple[Tensor, Tensor]]) -> None:
        """Keep for each group the best of what it has and all candidates; of equally good ones the first."""
        for low, high in candidates:
            error = self.error(low, high)
            better = error < self.smallest
            self.smallest = torch.where(better, error, self.smallest)
            self.low, self.high = torch.where(better, low, self.low), torch.where(better, high, self.high)

    def error(self, low: Tensor, high: Tensor) -> Tensor:
        """Return the weighted error of each group under its range: (groups, rows), in units of the group's maximum."""
        qparams = from_range(low, high, self._scheme)
        scale = qparams.scale * self._unit
        # float: adding int32 converts it again for every value, which is a quarter of the asymmetric search
        zero_point = None if qparams.zero_point is None else qparams.zero_point.float()
        codes = nearest_codes(self._values, scale, zero_point, self._scheme, out=self._buffer)
        error = values_of(codes, scale, zero_point, out=codes).sub_(self._values)
        error = error.square_() if self._p == 2 else error.abs_().pow_(self._p)
        return (error if self._weights is None else error.mul_(self._weights)).sum(dim=0)

    def _wider(self, grid: int) -> list[float]:
        """Return the fractions above 1, descending: up to the range whose highest code is the largest magnitude."""
        if not self._scheme.symmetric:
            return []
        widest = (self._scheme.q_max - self._scheme.q_min) / 2 / self._scheme.q_max
        try:
            from_range(self.low * widest, self.high * widest, self._scheme)
        except InputError:  # it is min-max that has to fit into the scale's dtype, not half a step more
            return []
        steps = math.ceil((widest - 1) * grid)
        return [widest - i * (widest - 1) / steps for i in range(steps)]


def _power_of_two(magnitude: Tensor) -> Tensor:
    """Return the power of two that brings `magnitude` into [0.5, 1), or near it where 2^k is no normal float32."""
    _, exponent = torch.frexp(magnitude)
    return torch.ldexp(torch.ones_like(magnitude), -exponent.clamp(-126, 126))
