"""Whether a loss stays within a limit: more and more windows of text, until it is sure, with one error for all looks.

Each window gives one number d_w, of which the mean is the loss: KL, or the difference of the two models' losses. After
n_1 < n_2 < ... < n_K windows there is a look, with one-sided bounds of the mean. KEPT if the upper one is within the
limit, BROKEN if the lower one is above it; otherwise there is another look, and after the last one INCONCLUSIVE.

Each bound has the error alpha / K. Whatever the loss really is, a wrong KEPT then has at most the probability alpha, by
Bonferroni: whoever looks K times with the whole alpha each time is wrong more often than he says. A model that was
changed because of what windows said is judged on other ones, and attempt j of a search has alpha / 2^j.

What is judged is the loss on the text that was given: its windows come in a random order, so that any number of them is
a random sample of it, however alike neighbours are (in the bundled text the KL of one window is correlated by 0.9 with
that of the next). What another text loses is another question, which no number of windows of this one answers.

The usual interval of a mean is too narrow on one side here. KL of windows is skewed: a few windows lose most, and a
sample without them looks better than it is. With g the skewness of the sample and T = (mean - true mean) / s, what is
distributed as Student's t is not T but

    y(T) = T + g T^2 / 3 + g^2 T^3 / 27 + g / (6 n)

which is inverted.

Source: Hall 1992 (transformations to remove skewness), J. R. Stat. Soc. B 54, 221.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from zeropoint.evaluation.budgets import Kept
from zeropoint.evaluation.perplexity import student_quantile

ALPHA = 0.05
"""The probability, at most, with which a promise that is said to be kept is broken."""

FIRST = 16
"""Windows before the first look; each look has twice as many."""


@dataclass(frozen=True)
class Bound:
    """A loss that is to stay within a limit. name: "KL", or "log perplexity ratio"."""

    name: str
    limit: float


@dataclass(frozen=True)
class Look:
    """What is known at the last look. low, high: one-sided bounds of the mean. looks: so far."""

    kept: Kept
    mean: float
    low: float
    high: float
    windows: int
    looks: int


def looks_at(windows: int) -> tuple[int, ...]:
    """Return after how many windows there are looks, if there are so many windows in all."""
    found = []
    count = FIRST
    while count < windows:
        found.append(count)
        count *= 2
    return (*found, windows)


def decide(read: Iterator[Sequence[float]], bounds: Sequence[Bound], windows: int, *, alpha: float) -> list[Look]:
    """Read windows until every bound is decided, and return what is known of each.

    read: yields for each window one number for each bound. windows: at most, 3 or more. One broken bound decides.
    """
    seen: list[Sequence[float]] = []
    schedule = looks_at(windows)
    for number, count in enumerate(schedule):
        seen += islice(read, count - len(seen))
        found = [
            look(seen, column, bound.limit, alpha=alpha / len(schedule), looks=number + 1)
            for column, bound in enumerate(bounds)
        ]
        if verdict(found) != "INCONCLUSIVE":
            return found
    return found


def look(seen: Sequence[Sequence[float]], column: int, limit: float, *, alpha: float, looks: int = 1) -> Look:
    """Return what windows say of one bound. seen: as `decide` reads them. alpha: of this look, for each side."""
    values = np.array([each[column] for each in seen], np.float64)
    count, mean, spread = len(values), float(values.mean()), float(values.std(ddof=1))
    if spread == 0:
        low = high = mean
    else:
        t = student_quantile(1 - alpha, count - 1) / math.sqrt(count)
        skewness = float((((values - mean) / spread) ** 3).mean())
        low, high = (mean - spread * _unskewed(side * t, skewness, count) for side in (1, -1))
    kept: Kept = "KEPT" if high <= limit else "BROKEN" if low > limit else "INCONCLUSIVE"
    return Look(kept, mean, low, high, count, looks)


def _unskewed(y: float, skewness: float, count: int) -> float:
    """Return the T of which y(T) is `y`."""
    g = skewness
    if abs(g) < 1e-6:
        return y
    inner = 1 + g * (y - g / (6 * count))
    return 3 / g * (math.copysign(abs(inner) ** (1 / 3), inner) - 1)


def verdict(looks: Sequence[Look]) -> Kept:
    """Return the verdict over all bounds."""
    if any(each.kept == "BROKEN" for each in looks):
        return "BROKEN"
    return "KEPT" if all(each.kept == "KEPT" for each in looks) else "INCONCLUSIVE"
