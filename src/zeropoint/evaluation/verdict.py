"""One word about a quantized model: whether its perplexity stays within a margin of the reference's.

    EQUIVALENT      the 95 % interval of the ratio ends at or below 1 + margin
    DEGRADED        it begins above
    INCONCLUSIVE    it holds 1 + margin: this text cannot tell

The rule looks at one side only: it is a test of non-inferiority. A model with a perplexity well below the reference's
is EQUIVALENT too, though it differs; KL divergence says by how much. As the interval is two-sided, each of the two
decisive verdicts is wrong in at most 2.5 % of the cases in which the true ratio lies just on the other side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zeropoint.evaluation.perplexity import CONFIDENCE, Estimate, student_quantile
from zeropoint.evaluation.results import Interval95, Verdict

HOPELESS = 100
"""Times as much text from which on the advice is to change the margin."""

MOST_WINDOWS = 1e15
"""Beyond this the mean lies on the margin for all that arithmetic can tell."""


@dataclass(frozen=True)
class Judgement:
    """The verdict, the sentence that explains it, and the numbers in it.

    tokens_needed: tokens that would decide, in all, if mean and spread stay as they are; None when the verdict is
    given, or when nothing can be said because there is one window only, or the mean lies on the margin.
    """

    verdict: Verdict
    explanation: str
    ratio: float
    interval: Interval95 | None
    tokens_needed: int | None


def judge(log_ratio: Estimate, *, margin: float, window_tokens: int) -> Judgement:
    """Judge a model by the logarithm of its perplexity ratio.

    margin: the rise of perplexity that still counts as equivalent, a fraction of the reference's, > 0.
    window_tokens: predictions in one window.
    """
    ratio, interval = log_ratio.exp()
    if interval is None:
        explanation = (
            f"The perplexity is {ratio:.5g} times the reference's, but one window gives no interval; "
            "judge on more text, or on shorter windows."
        )
        return Judgement("INCONCLUSIVE", explanation, ratio, None, None)
    low, high = interval
    found = f"The perplexity is {ratio:.5g} times the reference's (95 % interval {low:.5g} to {high:.5g})"
    if high <= 1 + margin:
        explanation = f"{found}, within the margin of {1 + margin:.5g}."
        return Judgement("EQUIVALENT", explanation, ratio, interval, None)
    if low > 1 + margin:
        return Judgement("DEGRADED", f"{found}, above the margin of {1 + margin:.5g}.", ratio, interval, None)
    windows = _windows_needed(log_ratio, abs(math.log1p(margin) - log_ratio.mean))
    tokens = None if windows is None else windows * window_tokens
    advice = _advice(windows, log_ratio.windows, window_tokens)
    explanation = f"{found}, which holds the margin of {1 + margin:.5g}; {advice}."
    return Judgement("INCONCLUSIVE", explanation, ratio, interval, tokens)


def _advice(needed: int | None, windows: int, window_tokens: int) -> str:
    if needed is None:
        return "it lies on the margin, so that no text would decide: judge against another margin"
    times = needed / windows
    if times > HOPELESS:
        return (
            f"it is so near that about {needed * window_tokens:,} tokens, {times:,.0f} times this text, "
            "would be needed: judge against another margin"
        )
    return f"about {needed * window_tokens:,} tokens, {times:.1f} times this text, would decide"


def _windows_needed(log_ratio: Estimate, distance: float) -> int | None:
    """Return the fewest windows whose interval is no wider than the distance to the margin, if mean and spread stay.

    The half-width goes with t / sqrt(windows). Of few windows t is large, and most of the gain is its becoming smaller.
    """
    if log_ratio.half_width is None or distance == 0:
        return None
    spread = log_ratio.half_width / _width_of_unit_spread(log_ratio.windows)
    few, enough = log_ratio.windows, 2 * log_ratio.windows
    while _width_of_unit_spread(enough) * spread > distance:
        few, enough = enough, 2 * enough
        if enough > MOST_WINDOWS:
            return None
    while enough - few > 1:
        middle = (few + enough) // 2
        if _width_of_unit_spread(middle) * spread > distance:
            few = middle
        else:
            enough = middle
    return enough


def _width_of_unit_spread(windows: int) -> float:
    """Return the half-width of the interval of a mean over `windows` whose standard deviation is 1."""
    return student_quantile(0.5 + CONFIDENCE / 2, windows - 1) / math.sqrt(windows)
