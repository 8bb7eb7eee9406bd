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

Candidates are judged with the scale that will be stored, rounded to its dtype as `from_range` does. The loop over them
is native code (native/rounding.h); what it computes is defined here and by tests/reference/range_search.py.

Source: the shrinking grid with maxshrink is that of the GPTQ authors' code (Frantar et al. 2022, arXiv:2210.17323).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

import msgspec
import numpy as np
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint import _native
from zeropoint.errors import InputError
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import Grouped
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Histogram, Scheme

NEEDS = ("second_moment",)

_CHUNK = 1 << 22
"""Values of one call, which nothing can interrupt: a tenth of a second."""

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
    seen = minmax.from_values(grouped, scheme, minmax.Options())
    weights = torch.ones(grouped.values.shape[1:]) if importance is None else _normalised(importance)
    return _search(grouped.values, weights, seen, scheme, fractions, grid=options.grid, p=options.p)


def from_histogram(histogram: Histogram, scheme: Scheme, options: Options) -> tuple[float, float]:
    """Return the range with the smallest sum of counts_i * |Q(c_i) - c_i|^p over the centres c_i of the bins."""
    centres = histogram.low + (torch.arange(len(histogram.counts), dtype=torch.float64) + 0.5) * histogram.width
    filled = histogram.counts > 0
    if not bool(filled.any()):  # nothing but zeros was seen
        return histogram.seen_low, histogram.seen_high
    values, weights = centres[filled][None, None].float(), _normalised(histogram.counts[filled][None])
    seen = torch.tensor([[histogram.seen_low]]), torch.tensor([[histogram.seen_high]])
    low, high = _search(values, weights, seen, scheme, _HISTOGRAM_FRACTIONS, grid=_HISTOGRAM_GRID, p=options.p)
    return low.item(), high.item()


def _search(
    values: Tensor,
    weights: Tensor,
    seen: tuple[Tensor, Tensor],
    scheme: Scheme,
    fractions: Sequence[float],
    *,
    grid: int,
    p: float,
) -> tuple[Tensor, Tensor]:
    """Return the best of the seen range times `fractions`, and of what else pays: see the module's docstring.

    values: (rows, groups, size). weights: float32 (groups, size). seen: low and high, float32 (rows, groups) each.
    """
    from_range(*seen, scheme)  # refuses values that no scale can hold
    both = [*_wider(seen, scheme, grid), *fractions]
    # half the grid is enough for one end alone: 0.5925 instead of 0.5923 of min-max's error
    single = () if scheme.symmetric else fractions[::2]
    low, high = (end.clone(memory_format=torch.contiguous_format) for end in seen)
    rows = max(1, _CHUNK // values[0].numel())
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        _native.search_ranges(
            values[part].float().contiguous().numpy(),
            weights.contiguous().numpy(),
            np.array(both, np.float32),
            np.array(single, np.float32),
            low[part].numpy(),
            high[part].numpy(),
            scheme.q_min,
            scheme.q_max,
            scheme.symmetric,
            scheme.scale_dtype,
            p,
        )
    return low, high


def _wider(seen: tuple[Tensor, Tensor], scheme: Scheme, grid: int) -> list[float]:
    """Return the fractions above 1, descending: up to the range whose highest code is the largest magnitude."""
    if not scheme.symmetric:
        return []
    widest = (scheme.q_max - scheme.q_min) / 2 / scheme.q_max
    try:
        from_range(seen[0] * widest, seen[1] * widest, scheme)
    except InputError:  # it is min-max that has to fit into the scale's dtype, not half a step more
        return []
    steps = math.ceil((widest - 1) * grid)
    return [widest - i * (widest - 1) / steps for i in range(steps)]


def _normalised(importance: Tensor) -> Tensor:
    """Return importance as float32 with a largest value of 1 in each group, where it is not 0: only ratios count."""
    largest = importance.amax(dim=-1, keepdim=True)
    return (importance / torch.where(largest > 0, largest, 1.0)).float()
