"""MSE: the range whose grid has the smallest (weighted) error on the values themselves, found by search.

Clipping a few large values makes the steps finer for all others. The candidates are the seen range [low, high] times
f = 1 - i / grid, down to 1 - maxshrink. Min-max itself is always one, so the error is never above min-max's:

    error(f) = sum_j importance_j * |x_j - Q_f(x_j)|^p

Choices that were measured on SmolLM2-135M (rounding to nearest, bfloat16 scales, groups of 64, importance = E[x_j^2] of
the calibration text; layers 5, 15 and 29, asymmetric only 15; error of the outputs relative to min-max's):

- Without importance the search hardly helps, and per channel it harms: 0.92 instead of 0.61 at 4 bits.
- Symmetric ranges begin half a step above the seen range. S = max / 7.5 sends a positive maximum to code 7.5, which
  does not exist; S = max / 7 restores it exactly. 0.55 instead of 0.60 at 4 bits, 0.42 instead of 0.47 at 2.
- Asymmetric: after both ends together, each end is searched alone with the other one fixed. 0.605 instead of 0.625 at
  4 bits, and as good as the best of all pairs (scale, zero point).
- A range cut to less than half pays only below 4 bits: maxshrink 0.4 -> 0.8 brings 0.61 -> 0.59 at 4 bits, but
  0.56 -> 0.47 at 2. Under GPTQ, with its own importance, 0.5 and 0.8 are alike at 2 bits too (docs/log.md).
- A grid of 100 instead of 50 brings 0.7 % at 4 bits, and nothing under GPTQ; a finer one than 100 brings nothing.

Candidates are judged with the scale that will be stored, rounded to its dtype by `from_range`.

Source: the shrinking grid with maxshrink is that of the GPTQ authors' code (Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.errors import InputError
from zeropoint.qparams.affine import nearest_codes, values_of
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import Grouped
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Histogram, Scheme

NEEDS = ("second_moment",)

_CHUNK = 1 << 18  # values at once: 1 MB, twice, which stays in the cache for all passes over all candidates

# For histograms, whose tails can be a thousand times as long as their bulk: steps of 4 % down to 1/4096 of the range.
_HISTOGRAM_GRID = 16
_HISTOGRAM_FRACTIONS = tuple(2.0 ** (-i / _HISTOGRAM_GRID) for i in range(12 * _HISTOGRAM_GRID + 1))


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How finely and how far to search the groups of a weight, and what counts as error.

    grid: candidates per length of the seen range. maxshrink: the largest part of the range that may be cut away.
    p: the power of the error; 2 is the mean square. Of a histogram, only p is used: it is searched further down.
    """

    grid: Annotated[int, Meta(ge=1, le=10_000)] = 50
    maxshrink: Annotated[float, Meta(ge=0, lt=1)] = 0.6
    p: Annotated[float, Meta(gt=0, le=16)] = 2.0


def from_values(
    grouped: Grouped, scheme: Scheme, options: Options, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the best (low, high) of every group: float32 (rows, groups) each.

    grouped: values (rows, groups, size). importance: float32 (groups, size), >= 0, the weight of each value's error;
    1 for all when None. A group whose importance is 0 everywhere keeps its min-max range.
    """
    fractions = [1 - i / options.grid for i in range(math.floor(options.maxshrink * options.grid) + 1)]
    weights = None if importance is None else _normalised(importance).T.unsqueeze(-1).contiguous()  # (size, groups, 1)
    rows = max(1, _CHUNK // grouped.values[0].numel())
    found = []
    for values in torch.split(grouped.values, rows):
        seen_low, seen_high = minmax.from_values(Grouped(values, grouped.valid), scheme, minmax.Options())
        transposed = values.permute(2, 1, 0).float().contiguous()  # (size, groups, rows)
        search = _Search(
            transposed, weights, seen_low.T.contiguous(), seen_high.T.contiguous(), scheme=scheme, p=options.p
        )
        search.run(fractions, options.grid)
        found.append((search.low.T, search.high.T))
    low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
    return low, high


def from_histogram(histogram: Histogram, scheme: Scheme, options: Options) -> tuple[float, float]:
    """Return the range with the smallest sum of counts_i * |Q(c_i) - c_i|^p over the centres c_i of the bins."""
    centres = histogram.low + (torch.arange(len(histogram.counts), dtype=torch.float64) + 0.5) * histogram.width
    low, high = (torch.tensor([[end]], dtype=torch.float32) for end in (histogram.seen_low, histogram.seen_high))
    filled = histogram.counts > 0
    values, weights = centres[filled][:, None, None], histogram.counts[filled][:, None, None]
    search = _Search(values, weights, low, high, scheme=scheme, p=options.p)
    search.run(_HISTOGRAM_FRACTIONS, _HISTOGRAM_GRID)
    return search.low.item(), search.high.item()


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
        self._smallest = self._error(low, high)

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
            error = self._error(low, high)
            better = error < self._smallest
            self._smallest = torch.where(better, error, self._smallest)
            self.low, self.high = torch.where(better, low, self.low), torch.where(better, high, self.high)

    def _error(self, low: Tensor, high: Tensor) -> Tensor:
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


def _normalised(importance: Tensor) -> Tensor:
    """Return importance with a largest value of 1 in each group, where it is not 0: only ratios count."""
    largest = importance.float().amax(dim=-1, keepdim=True)
    return importance / torch.where(largest > 0, largest, 1.0)


def _power_of_two(magnitude: Tensor) -> Tensor:
    """Return the power of two that brings `magnitude` into [0.5, 1), or near it where 2^k is no normal float32."""
    _, exponent = torch.frexp(magnitude)
    return torch.ldexp(torch.ones_like(magnitude), -exponent.clamp(-126, 126))
