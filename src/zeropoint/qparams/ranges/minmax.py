"""Min-max: the whole range that was seen. Nothing is clipped; one outlier makes the steps of its group coarse."""

from __future__ import annotations

import msgspec
from torch import Tensor

from zeropoint.qparams.grouping import Grouped
from zeropoint.types import Histogram, Scheme

NEEDS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Min-max has nothing to choose."""


def from_values(
    grouped: Grouped, scheme: Scheme, options: Options, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (low, high) of every group, extended to 0: float32 (rows, groups) each.

    grouped: values (rows, groups, size). scheme, options, importance: not used; a wish of other rules.
    """
    values = grouped.values
    return values.amin(dim=-1).float().clamp_(max=0.0), values.amax(dim=-1).float().clamp_(min=0.0)


def from_histogram(histogram: Histogram, scheme: Scheme, options: Options) -> tuple[float, float]:
    """Return the exact extremes that the histogram has seen, low <= 0 <= high."""
    return histogram.seen_low, histogram.seen_high
