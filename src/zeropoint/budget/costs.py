"""From costs to choices: the calibrated sum, the curve, and the forms for what was asked.

The sum of the costs is a forecast. The checks say what it is worth: whole models in one form, of which the sum and the
measured KL are known. Between two of them, in the order of their sums, the factor measured / expected goes on a
straight line over the logarithm of the sum; outside it stays that of the nearest. What an attempt measures later counts
as one more factor on top.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from zeropoint.budget.allocate import Limit, least
from zeropoint.evaluation.budgets import CurvePoint, FormCost, Sensitivities, UnitCosts

POINTS = 17
"""Of a curve, with both ends."""

SMALLEST = 1e-12
"""Nats: below it a cost is nothing."""


@dataclass(frozen=True)
class Limits:
    """Of a choice; None for no limit. kl: forecast, nats. bits: mean of a weight of the linears, scales included."""

    kl: float | None = None
    size_bytes: int | None = None
    bits: float | None = None


class Costs:
    """The forms of everything, and what they cost."""

    def __init__(self, found: Sensitivities) -> None:
        self.found = found
        self._weights = sum(unit.weights for unit in found.units)
        self._units: tuple[UnitCosts, ...] = found.units if found.tables is None else (*found.units, found.tables)
        self._kl = [[form.kl for form in unit.forms] for unit in self._units]
        self._bytes = [[float(form.size_bytes) for form in unit.forms] for unit in self._units]
        rows = sorted((check.expected, check.measured) for check in found.checks if check.expected > SMALLEST)
        self._sums = [math.log(expected) for expected, _ in rows]
        self._factors = [math.log(max(measured, SMALLEST) / expected) for expected, measured in rows]

    def forecast(self, kl: float, *, factor: float = 1.0) -> float:
        """Return the KL that is to be expected of a sum of costs."""
        return factor * kl * math.exp(self._factor(kl))

    def sum_of(self, kl: float, *, factor: float = 1.0) -> float:
        """Return the largest sum whose forecast is `kl` at most."""
        low, high = math.log(SMALLEST), math.log(max(kl, SMALLEST)) + 20
        for _ in range(200):
            middle = (low + high) / 2
            if self.forecast(math.exp(middle), factor=factor) <= kl:
                low = middle
            else:
                high = middle
        return math.exp(low)

    def _factor(self, kl: float) -> float:
        if not self._sums or kl <= SMALLEST:
            return 0.0
        return float(np.interp(math.log(kl), self._sums, self._factors))

    @cached_property
    def spread(self) -> tuple[float, float]:
        """The factors by which a forecast may be off, low and high: what the checks say when they are left out."""
        if len(self._sums) < 3:
            return (0.5, 2.0)
        off = []
        for index in range(len(self._sums)):
            others = [k for k in range(len(self._sums)) if k != index]
            told = float(
                np.interp(self._sums[index], [self._sums[k] for k in others], [self._factors[k] for k in others])
            )
            off.append(self._factors[index] - told)
        return math.exp(min(0.0, *off)), math.exp(max(0.0, *off))

    def smallest(self, limits: Limits, *, factor: float = 1.0) -> tuple[FormCost, ...] | None:
        """Return the forms of the fewest bytes within the limits, the tables' last; None if there are none."""
        return self._least(self._bytes, limits, factor)

    def best(self, limits: Limits, *, factor: float = 1.0) -> tuple[FormCost, ...] | None:
        """Return the forms of the least cost within the limits, the tables' last; None if there are none."""
        return self._least(self._kl, limits, factor)

    def _least(self, aims: Sequence[Sequence[float]], limits: Limits, factor: float) -> tuple[FormCost, ...] | None:
        rows = []
        if limits.kl is not None:
            rows.append(Limit(self._kl, self.sum_of(limits.kl, factor=factor)))
        if limits.size_bytes is not None:
            rows.append(Limit(self._bytes, float(limits.size_bytes - self.found.rest_bytes)))
        if limits.bits is not None:
            of_linears = [row if k < len(self.found.units) else [0.0] * len(row) for k, row in enumerate(self._bytes)]
            rows.append(Limit(of_linears, limits.bits * self._weights / 8))
        chosen = least(aims, rows)
        return None if chosen is None else tuple(u.forms[i] for u, i in zip(self._units, chosen, strict=True))

    def point(self, forms: Sequence[FormCost], *, factor: float = 1.0) -> CurvePoint:
        """Return what a choice comes to."""
        linears = list(zip(self.found.units, forms, strict=False))
        counts: Counter[str] = Counter()
        for unit, form in linears:
            counts[form.form] += unit.weights
        kl = self.forecast(sum(form.kl for form in forms), factor=factor)
        low, high = self.spread
        return CurvePoint(
            size_bytes=self.found.rest_bytes + sum(form.size_bytes for form in forms),
            bits=8 * sum(form.size_bytes for _, form in linears) / self._weights,
            kl=kl,
            kl_low=kl * low,
            kl_high=kl * high,
            forms=dict(sorted(counts.items())),
            embeddings="stored" if self.found.tables is None else forms[-1].form,
        )

    def curve(self) -> tuple[CurvePoint, ...]:
        """Return the best choice of some sizes between the smallest and the largest, evenly in the logarithm."""
        ends = [self.found.rest_bytes + int(sum(pick(row) for row in self._bytes)) for pick in (min, max)]
        points: dict[int, CurvePoint] = {}
        for share in np.linspace(0, 1, POINTS):
            size = round(ends[0] * (ends[1] / ends[0]) ** float(share))
            forms = self.best(Limits(size_bytes=max(size, ends[0])))
            if forms is not None:
                point = self.point(forms)
                points[point.size_bytes] = point
        return tuple(points[size] for size in sorted(points))


def knee(points: Sequence[CurvePoint]) -> int:
    """Return the index of the point that lies furthest below the line between both ends, log KL over log size.

    Source: Satopaa et al. 2011 (Kneedle), with one pass and no smoothing.
    """
    usable = [k for k, point in enumerate(points) if point.kl > SMALLEST]
    if len(usable) < 3:
        return usable[-1] if usable else 0
    x = np.log([points[k].size_bytes for k in usable])
    y = np.log([points[k].kl for k in usable])
    line = y[0] + (y[-1] - y[0]) * (x - x[0]) / (x[-1] - x[0])
    return usable[int(np.argmax(line - y))]
