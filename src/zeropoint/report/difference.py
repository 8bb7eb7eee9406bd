"""How far two results lie apart, when all that is known are their own intervals.

With a and b the means of two models over the same n windows, h_a and h_b the halves of their 95 % intervals, each a
quantile of Student's t times a standard error:

    s(b - a) <= s(a) + s(b)        so the interval of b - a from the windows' pairs lies in        b - a +- (h_a + h_b)

whatever the correlation between them is: what holds 95 % of the cases holds at least as many here. The two were judged
on the same windows and mostly rise and fall together, so that the interval could be much narrower; it cannot be had
from the two alone. A ratio of perplexities is the same on the logarithms. Between different texts there is no
difference of models to speak of.
"""

from __future__ import annotations

import math

from zeropoint.evaluation.results import Evaluation, Interval95

SAME_REFERENCE = 1e-3
"""Relative difference of the reference's perplexity that its runtime, native or torch, may make."""


def difference(first: Interval95, second: Interval95) -> Interval95:
    """Return the interval that holds second - first in at least 95 % of the cases. Both are about their means."""
    return second[0] - first[1], second[1] - first[0]


def ratio(first: Interval95, second: Interval95) -> Interval95:
    """Return the interval that holds second / first in at least 95 % of the cases.

    Both are intervals of ratios, about their means on the logarithm; all ends > 0.
    """
    return second[0] / first[1], second[1] / first[0]


def incomparable(first: Evaluation, second: Evaluation) -> str | None:
    """Return why the losses of two models cannot be subtracted, a sentence; None where they can."""
    one, other = first.text, second.text
    if (one.sha256, one.windows, one.length, one.seed) != (other.sha256, other.windows, other.length, other.seed):
        return (
            "They were judged on different texts or windows: their losses cannot be subtracted; "
            "evaluate both with the same --text, --length and --max-windows."
        )
    before, after = first.perplexity_reference, second.perplexity_reference
    if not math.isclose(before, after, rel_tol=SAME_REFERENCE):
        return (
            f"Their references have a perplexity of {before:,.3f} and {after:,.3f} on that text, so they are different "
            "models: what each lost of its own cannot be subtracted."
        )
    return None
