"""Percentile: the range that keeps a given share of the values inside; the largest few are clipped.

    symmetric    high = the quantile of |x| at percent, low = -high
    asymmetric   what lies outside is cut half at each end: the quantiles of x at (100 - percent) / 2 and the rest

In this way `percent` is the share kept in either case. Between two values the quantile is linear, as in numpy.

A rule for large groups and for activations: with 64 values, 99.99 percent lies between the last two of them, which
is almost min-max.

Source: Wu et al. 2020, arXiv:2004.09602, section 3.1; both tails as in ONNX Runtime's percentile calibration.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.qparams.grouping import Grouped
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Histogram, Scheme

NEEDS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """percent: how many of 100 values stay inside the range; 100 is min-max."""

    percent: Annotated[float, Meta(gt=0, le=100)] = 99.99


def from_values(
    grouped: Grouped, scheme: Scheme, options: Options, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (low, high) of every group: float32 (rows, groups) each.

    grouped: values (rows, groups, size); the filling of a last group is not counted. importance: not used.
    """
    values = grouped.values.float()
    kept = options.percent / 100
    filled = ~grouped.valid
    if scheme.symmetric:
        (reach,) = _quantiles(values.abs().masked_fill_(filled, torch.inf), grouped.valid, kept)
        seen_low, seen_high = minmax.from_values(grouped, scheme, minmax.Options())
        return torch.maximum(-reach, seen_low), torch.minimum(reach, seen_high)
    low, high = _quantiles(values.masked_fill(filled, torch.inf), grouped.valid, (1 - kept) / 2, (1 + kept) / 2)
    return low.clamp_(max=0.0), high.clamp_(min=0.0)


def from_histogram(histogram: Histogram, scheme: Scheme, options: Options) -> tuple[float, float]:
    """Return (low, high) with the values spread evenly over each bin: at most one bin from the exact quantile."""
    kept = options.percent / 100
    edges = histogram.low + torch.arange(len(histogram.counts) + 1, dtype=torch.float64) * histogram.width
    below = torch.cat([histogram.counts.new_zeros(1), histogram.counts.cumsum(0)])  # values below each edge
    if scheme.symmetric:
        reach = (
            torch.cat([edges.abs(), edges.new_zeros(1)]).sort().values
        )  # |x| <= reach, piecewise linear between these
        inside = _interpolate(reach, edges, below) - _interpolate(-reach, edges, below)
        high = _crossing(reach, inside, kept)
        return max(-high, histogram.seen_low), min(high, histogram.seen_high)
    low, high = _crossing(edges, below, (1 - kept) / 2), _crossing(edges, below, (1 + kept) / 2)
    return min(max(low, histogram.seen_low), 0.0), max(min(high, histogram.seen_high), 0.0)


def _quantiles(values: Tensor, valid: Tensor, *shares: float) -> list[Tensor]:
    """Return for each share the value of each group that has that share of the others below it: (rows, groups).

    values: (rows, groups, size) with infinity, which sorts to the end, where valid (groups, size) is False.
    """
    ordered = values.sort(dim=-1).values
    last = valid.sum(dim=-1) - 1  # (groups,)
    found = []
    for share in shares:
        position = share * last.double()
        before = position.floor().long()
        after = torch.minimum(before + 1, last)
        low, high = (
            ordered.gather(-1, at[None, :, None].expand(len(ordered), -1, 1)).squeeze(-1) for at in (before, after)
        )
        found.append(torch.lerp(low, high, (position - before).float()))
    return found


def _crossing(edges: Tensor, below: Tensor, share: float) -> float:
    """Return the x at which the piecewise linear `below` reaches `share` of its last value."""
    wanted = share * below[-1]
    at = int(torch.searchsorted(below, wanted).clamp(1, len(below) - 1))
    rise = below[at] - below[at - 1]
    part = (wanted - below[at - 1]) / rise if rise > 0 else torch.ones(())
    return float(edges[at - 1] + part.clamp(0, 1) * (edges[at] - edges[at - 1]))


def _interpolate(x: Tensor, edges: Tensor, below: Tensor) -> Tensor:
    """Return the piecewise linear `below` at every x, constant outside the edges."""
    at = torch.searchsorted(edges, x).clamp(1, len(edges) - 1)
    part = ((x - edges[at - 1]) / (edges[at] - edges[at - 1])).clamp(0, 1)
    return below[at - 1] + part * (below[at] - below[at - 1])
