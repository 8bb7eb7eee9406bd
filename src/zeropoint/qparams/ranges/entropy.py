"""Entropy: the range after whose quantization the distribution has lost the least information.

Of a histogram, every window of i bins around 0 is a candidate, from as many bins as there are levels to all bins:

    P    the bins of the window, with what lies outside added to its first and last bin (clipping puts it there)
    Q    the bins of the window merged into as many levels as the integers have, and each level spread again evenly
         over those of its bins that were not empty
    the window with the smallest KL(P || Q) wins; of equally good ones the widest

Symmetric schemes take the histogram of magnitudes and 2^(bits-1) levels, and only the upper end moves. Asymmetric ones
take 2^bits levels, and both ends move in proportion to their distance from 0. A bin with outliers in P and nothing in
Q makes KL infinite, so a window does not end in an empty bin unless it is the whole range.

Made for activations at 8 bits. It clips heavy tails hard (25 % of the values of one BERT layer), so its range belongs
beside the share that it clips. It needs many more bins than levels: with as many, all that can be chosen is min-max.

Instead of building Q for every window, KL is taken apart into sums over levels of cumulative counts:
sum_j P_j log Q_j is mass * log(mass / non-empty bins) for each level, so a window costs `levels`, not `bins`.

Source: Migacz 2017, "8-bit inference with TensorRT" (GTC), slides 38-40; levels of equal width, as in NVIDIA's
pytorch-quantization.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.errors import SchemeError
from zeropoint.qparams.grouping import Grouped
from zeropoint.qparams.ranges import minmax
from zeropoint.types import Histogram, Scheme

NEEDS: tuple[str, ...] = ()

_ELEMENTS = 1 << 21  # (groups, windows, levels) at once: 16 MB each


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """bins: of the histogram of each group of a weight.

    A group with fewer values gets as many bins as it has values, but at least twice as many as there are levels.
    A histogram of activations has its own bins.
    """

    bins: Annotated[int, Meta(ge=8, le=65536)] = 2048


def from_values(
    grouped: Grouped, scheme: Scheme, options: Options, importance: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return (low, high) of every group: float32 (rows, groups) each.

    grouped: values (rows, groups, size); the filling of a last group is not counted. importance: not used.
    """
    seen_low, seen_high = minmax.from_values(grouped, scheme, minmax.Options())
    levels = _levels(scheme)
    bins = max(2 * levels, min(options.bins, grouped.values.shape[-1]))
    windows = bins - levels + 1
    groups = grouped.values.shape[1]
    rows = max(1, _ELEMENTS // (groups * windows * levels))
    found = []
    for values, low, high in zip(*(torch.split(t, rows) for t in (grouped.values, seen_low, seen_high)), strict=True):
        if scheme.symmetric:
            counted, start, extent = values.float().abs(), torch.zeros_like(low), torch.maximum(-low, high)
        else:
            counted, start, extent = values.float(), low, high - low
        width = extent / bins  # (rows, groups)
        width = torch.where(width > 0, width, 1.0)
        counts = _counts(counted, grouped.valid, start, width, bins)  # (rows, groups, bins)
        below = (-start / width).long()  # whole bins below 0
        first, last = (edge.view(low.shape) for edge in _best_window(counts.flatten(0, 1), below.flatten(), levels))
        upper = start + last * width
        lower = -upper if scheme.symmetric else start + first * width
        found.append((lower.clamp(max=0.0).maximum(low), upper.clamp(min=0.0).minimum(high)))
    low, high = (torch.cat(ends) for ends in zip(*found, strict=True))
    return low, high


def from_histogram(histogram: Histogram, scheme: Scheme, options: Options) -> tuple[float, float]:
    """Return (low, high), each at an edge of a bin or at an extreme that was seen.

    Raises: SchemeError when the values seen lie in fewer than two bins per level; then there is nothing to choose.
    """
    low, high, width = histogram.seen_low, histogram.seen_high, histogram.width
    if low == high:
        return low, high
    centres = histogram.low / width + torch.arange(len(histogram.counts), dtype=torch.float64) + 0.5  # in bins from 0
    levels = _levels(scheme)
    index = (centres.abs() if scheme.symmetric else centres).floor().long()
    occupied = index[histogram.counts > 0]
    reach_below = max(0, -int(occupied.min()))  # bins below 0: none when symmetric
    used = reach_below + max(0, int(occupied.max()) + 1)
    index += reach_below
    if used < 2 * levels:
        raise SchemeError(
            f"entropy with {scheme.bits} bits has {levels} levels, and the values seen lie in {used} bins of the "
            f"histogram; it needs at least {2 * levels}: observe with more bins, or use another range rule"
        )
    inside = (index >= 0) & (index < used)
    counts = torch.zeros(used, dtype=torch.float64).scatter_add_(0, index[inside], histogram.counts[inside])
    first, last = _best_window(counts[None], torch.tensor([reach_below]), levels)
    upper = (float(last) - reach_below) * width
    lower = -upper if scheme.symmetric else (float(first) - reach_below) * width
    return min(max(lower, low), 0.0), max(min(upper, high), 0.0)


def _counts(values: Tensor, valid: Tensor, start: Tensor, width: Tensor, bins: int) -> Tensor:
    """Return how many values of each group lie in each of its bins: float64 (rows, groups, bins).

    values: (rows, groups, size). valid: (groups, size). start, width: (rows, groups), of the group's bins.
    """
    index = ((values - start.unsqueeze(-1)) / width.unsqueeze(-1)).long().clamp_(0, bins - 1)
    counts = torch.zeros(*start.shape, bins, dtype=torch.float64)
    return counts.scatter_add_(-1, index, valid.double().expand(index.shape))


def _levels(scheme: Scheme) -> int:
    """Return how many magnitudes (symmetric) or values (asymmetric) the integers can tell apart."""
    return scheme.q_max + 1 if scheme.symmetric else scheme.q_max - scheme.q_min + 1


_TIE = 1e-12
"""Nats: windows that differ by less are alike, what differs is the rounding of their sums."""


def _best_window(counts: Tensor, below: Tensor, levels: int) -> tuple[Tensor, Tensor]:
    """Return (first, last): the window [first, last) of bins with the smallest KL divergence, of ties the widest.

    counts: float64 (groups, bins), bins >= levels. below: int64 (groups,), the bins below 0. Returns int64 (groups,).
    """
    bins = counts.shape[1]
    width = torch.arange(levels, bins + 1)  # (windows,), in bins
    first = (bins - width) * below.unsqueeze(-1) // bins  # (groups, windows)
    last = first + width
    level_edges = -(-torch.arange(levels + 1) * width.unsqueeze(-1) // levels)  # (windows, levels + 1), rounded up
    edges = (first.unsqueeze(-1) + level_edges).flatten(1)

    def differences(per_bin: Tensor) -> Tensor:
        at_edges = torch.unflatten(_cumulative(per_bin).gather(1, edges), 1, level_edges.shape)
        return at_edges.diff(dim=-1)  # (groups, windows, levels)

    mass, filled = differences(counts), differences((counts > 0).double())
    log_q = torch.log(mass / filled.clamp(min=1.0))  # -inf where a level is empty
    p_log_q = torch.special.xlogy(mass, mass / filled.clamp(min=1.0)).sum(dim=-1)  # (groups, windows)
    p_log_p = _between(torch.special.xlogy(counts, counts), first, last)
    inside = _between(counts, first, last)
    total = counts.sum(dim=-1, keepdim=True)
    for bin_, level, outside in (
        (first, 0, _cumulative(counts).gather(1, first)),
        (last - 1, -1, total - _cumulative(counts).gather(1, last)),
    ):
        there = counts.gather(1, bin_)
        p_log_p += torch.special.xlogy(there + outside, there + outside) - torch.special.xlogy(there, there)
        q_there = torch.where(there > 0, log_q[..., level], -torch.inf)
        p_log_q += torch.where(outside > 0, outside * q_there, 0.0)
    divergence = (p_log_p - p_log_q) / total - torch.log(total) + torch.log(inside)
    divergence = divergence.nan_to_num(nan=torch.inf)
    tied = divergence <= divergence.amin(dim=1, keepdim=True) + _TIE
    best = bins - levels - torch.argmax(tied.flip(1).byte(), dim=1)  # the first of the ones, from the widest on
    return first.gather(1, best[:, None]).squeeze(1), last.gather(1, best[:, None]).squeeze(1)


def _cumulative(per_bin: Tensor) -> Tensor:
    """Return the sums below each edge: (groups, bins + 1)."""
    return torch.nn.functional.pad(per_bin.cumsum(dim=-1), (1, 0))


def _between(per_bin: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Return the sum over bins [first, last) of each window: (groups, windows)."""
    cumulative = _cumulative(per_bin)
    return cumulative.gather(1, last) - cumulative.gather(1, first)
