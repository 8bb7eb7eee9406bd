"""Scales and minima on two levels: small integers times two float16 numbers of a super-block, as in GGUF's Q4_K.

    r' = S * u - M        u = q - q_min        S = d * k, k in 1..63        M = d_min * m, m in 0..63

d and d_min belong to super_size columns of a row, k and m to each of their groups. What is stored has to be found
together: a scale that is best for its group by itself is no multiple of the d that the others need. The search makes
the weighted squared error small,

    error(d, d_min, k, m) = sum_j importance_j * (x_j - S * u_j + M)^2        u_j = clamp(round((x_j + M) / S))

1. Group by group, S and M are real. From the range that a rule gives, and from all pairs of FRACTIONS of the ends of
   the seen range, codes are rounded, S and M solved for them by least squares (M >= 0), and that again; the best of all
   is kept.
2. d = max(S) / 63 and d_min = max(M) / 63, each as float16; k and m to nearest. Then, ROUNDS times: of the nine pairs
   (k - 1..k + 1, m - 1..m + 1) each group takes the best, and d and d_min are solved by least squares for the codes, k
   and m that are there, and taken where the error, with new codes, falls.

Every step is judged by the error of what would be stored, so that none makes it larger. k = 0 is left out: it says
nothing that M does not. docs/log.md has what each step is worth.

Source: the layout is ggml's (ggml-common.h, block_q4_K); least squares between two roundings is coordinate descent on
the error above.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import torch
from torch import Tensor

from zeropoint.errors import SchemeError
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import Grouped
from zeropoint.types import Levels, QParams, Scheme

MOST = 63
"""The largest k and m: 6 bits."""

FRACTIONS = (1.1, 1.0, 0.9, 0.8, 0.7)
REFITS = 2
ROUNDS = 3

_CHUNK = 1 << 17
"""Values that are searched at once, so that a dozen tensors of them stay in the second cache."""

_TINY = 1e-30
"""What a group of zeros has for a real scale, beside values of about 1."""

LEAST = 2.0**-24
"""The smallest float16 number above 0."""


def qparams_of(levels: Levels, scheme: Scheme) -> QParams:
    """Return scale and zero point of every group: S, exact, and q_min + M / S, rounded to float32."""
    scale = per_group(levels.d, levels.k)
    return QParams(scale, scheme.q_min + minimum_of(levels) / scale, levels)


def minimum_of(levels: Levels) -> Tensor:
    """Return M of every group: float32 (rows, groups), exact."""
    return per_group(levels.d_min, levels.m)


def per_group(unit: Tensor, times: Tensor) -> Tensor:
    """Return unit * times, float32 (rows, groups). unit: (rows, supers). times: (rows, groups)."""
    return unit.repeat_interleave(times.shape[1] // unit.shape[1], dim=1) * times


def as_half(values: Tensor) -> Tensor:
    """Return float32 numbers as float16 would hold them, at most its largest number."""
    return values.clamp(max=torch.finfo(torch.float16).max).half().float()


def fit(grouped: Grouped, low: Tensor, high: Tensor, scheme: Scheme, importance: Tensor | None) -> QParams:
    """Return the scales and minima for a weight whose groups a rule wants to reach from `low` to `high`.

    grouped: values (rows, groups, size), finite. low, high: (rows, groups), low <= 0 <= high. importance: float32
    (groups, size), >= 0, or None for 1.
    Raises: SchemeError if super_size does not divide the columns, or for values that float16 scales cannot hold.
    """
    rows, groups, size = grouped.values.shape
    per_super = (scheme.super_size or 0) // size
    if not per_super or groups % per_super or not bool(grouped.valid.all()):
        cols = int(grouped.valid.sum())
        raise SchemeError(f"{cols} columns do not split into super-blocks of {scheme.super_size}; use another scheme")
    from_range(low, high, scheme)  # refuses what no scale can hold
    weights = torch.ones(groups, size) if importance is None else _normalised(importance)
    step = max(1, _CHUNK // (groups * size))
    parts = [
        _Search(grouped.values[at : at + step], weights, scheme, per_super).run(
            low[at : at + step], high[at : at + step]
        )
        for at in range(0, rows, step)
    ]
    joined = Levels(*(torch.cat([getattr(part, name) for part in parts]) for name in ("d", "d_min", "k", "m")))
    return qparams_of(joined, scheme)


def _normalised(importance: Tensor) -> Tensor:
    """Return importance with a largest value of 1, and nowhere 0: a group that never counts is stored well too."""
    largest = float(importance.max())
    return (importance / largest if largest > 0 else torch.ones_like(importance)).float().clamp(min=1e-8)


class _Search:
    """The search for some rows. Groups are the last two dimensions, so that a sum over a group is one of vectors.

    values: (rows, groups, size). weights: float32 (groups, size).
    """

    def __init__(self, values: Tensor, weights: Tensor, scheme: Scheme, per_super: int) -> None:
        self._per_super, self._top = per_super, float(scheme.q_max - scheme.q_min)
        x = values.float().permute(2, 0, 1)  # (size, rows, groups)
        largest = self._supers(x.abs().amax(0)).amax(-1)
        # powers of two, so that squares of tiny errors do not underflow, and what is stored is the same number
        _, exponent = torch.frexp(largest)
        self._unit = torch.ldexp(torch.ones_like(largest), -exponent.clamp(-126, 126))  # (rows, supers)
        self._empty = largest == 0
        self._x = (x * self._repeated(self._unit)).contiguous()
        self._w = weights.T.unsqueeze(1).contiguous()  # (size, 1, groups)
        self._weight = self._w.sum(0)
        self._sum = (self._x * self._w).sum(0)

    def run(self, low: Tensor, high: Tensor) -> Levels:
        """Return the levels found from the ranges (low, high): (rows, groups) each."""
        unit = self._repeated(self._unit)
        scale, minimum = self._free(low * unit, high * unit)
        d = self._stored(self._supers(scale).amax(-1) / MOST, least=LEAST)
        d_min = self._stored(self._supers(minimum).amax(-1) / MOST, least=0.0)
        k = (scale / self._repeated(d)).round_().clamp_(1, MOST)
        m = _quotient(minimum, self._repeated(d_min)).round_().clamp_(0, MOST)
        for _ in range(ROUNDS):
            k, m = self._neighbours(d, d_min, k, m)
            d, d_min = self._solved(d, d_min, k, m)
        d = torch.where(self._empty, 1.0, d / self._unit)
        return Levels(d, d_min / self._unit, k.to(torch.uint8), m.to(torch.uint8))

    def _free(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """Return the best real S > 0 and M >= 0 of each group."""
        best = ((high - low) / self._top).clamp_(min=_TINY), -low
        least = self._error(*best)
        for start in self._starts(low, high):
            tried = start
            for refit in range(REFITS + 1):
                tried = self._least_squares(*tried) if refit else tried
                error = self._error(*tried)
                better = error < least  # never where it is not finite
                least = torch.where(better, error, least)
                best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
        return best

    def _starts(self, low: Tensor, high: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        yield ((high - low) / self._top).clamp_(min=_TINY), -low
        seen_low, seen_high = self._x.amin(0).clamp_(max=0.0), self._x.amax(0).clamp_(min=0.0)
        for below, above in product(FRACTIONS, repeat=2):
            yield ((seen_high * above - seen_low * below) / self._top).clamp_(min=_TINY), seen_low * -below

    def _least_squares(self, scale: Tensor, minimum: Tensor) -> tuple[Tensor, Tensor]:
        """Return S and M that are best for the codes that (scale, minimum) give; not finite where there are none."""
        codes = self._codes(scale, minimum)
        weighted = codes * self._w
        once, twice, with_x = weighted.sum(0), (weighted * codes).sum(0), (weighted * self._x).sum(0)
        found = (with_x - once * self._sum / self._weight) / (twice - once * once / self._weight)
        lower = (found * once - self._sum) / self._weight
        through_zero = lower < 0
        found = torch.where(through_zero, with_x / twice, found)
        # what is not above 0 is no scale: an error that is not finite is never taken
        return torch.where(found > 0, found, torch.nan), torch.where(through_zero, 0.0, lower)

    def _neighbours(self, d: Tensor, d_min: Tensor, k: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Return for each group the best of the integers around k and m."""
        d, d_min = self._repeated(d), self._repeated(d_min)
        best, least = (k, m), self._error(d * k, d_min * m)
        for more_k, more_m in product((-1, 0, 1), repeat=2):
            tried = (k + more_k).clamp_(1, MOST), (m + more_m).clamp_(0, MOST)
            error = self._error(d * tried[0], d_min * tried[1])
            better = error < least
            least = torch.where(better, error, least)
            best = torch.where(better, tried[0], best[0]), torch.where(better, tried[1], best[1])
        return best

    def _solved(self, d: Tensor, d_min: Tensor, k: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        """Return d and d_min by least squares for the codes that are there, where that makes the error smaller."""
        scale, minimum = self._repeated(d) * k, self._repeated(d_min) * m
        codes = self._codes(scale, minimum)
        weighted = codes * self._w
        total = {
            "kk": k * k * (weighted * codes).sum(0),
            "km": k * m * weighted.sum(0),
            "mm": m * m * self._weight,
            "kx": k * (weighted * self._x).sum(0),
            "mx": m * self._sum,
        }
        kk, km, mm, kx, mx = (self._supers(each).sum(-1) for each in total.values())
        both = kk * mm - km * km  # x = d * (k u) - d_min * m
        new_d = torch.where(both > 0, (kx * mm - km * mx) / both, kx / kk)
        new_d_min = torch.where(both > 0, (kx * km - kk * mx) / both, 0.0)
        new_d = torch.where(new_d_min < 0, kx / kk, new_d)
        tried = self._stored(new_d, least=LEAST), self._stored(new_d_min, least=0.0)
        before = self._supers(self._error(scale, minimum)).sum(-1)
        after = self._supers(self._error(self._repeated(tried[0]) * k, self._repeated(tried[1]) * m)).sum(-1)
        return torch.where(after < before, tried[0], d), torch.where(after < before, tried[1], d_min)

    def _codes(self, scale: Tensor, minimum: Tensor) -> Tensor:
        return (self._x + minimum).div_(scale).round_().clamp_(0, self._top)

    def _error(self, scale: Tensor, minimum: Tensor) -> Tensor:
        """Return the weighted squared error of each group: (rows, groups)."""
        error = self._codes(scale, minimum).mul_(scale).sub_(minimum).sub_(self._x)
        return error.square_().mul_(self._w).sum(0)

    def _stored(self, values: Tensor, *, least: float) -> Tensor:
        """Return (rows, supers) as float16 would hold it, in the unit of the search."""
        return as_half((values / self._unit).clamp(min=least)) * self._unit

    def _repeated(self, per_super: Tensor) -> Tensor:
        return per_super.repeat_interleave(self._per_super, dim=1)

    def _supers(self, per_group: Tensor) -> Tensor:
        """Return (rows, groups) as (rows, supers, groups of one)."""
        return torch.unflatten(per_group, 1, (-1, self._per_super))


def _quotient(values: Tensor, divisor: Tensor) -> Tensor:
    """Return values / divisor, 0 where the divisor is 0."""
    return torch.where(divisor > 0, values / divisor, 0.0)
