from __future__ import annotations

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.evaluation.perplexity import Estimate, student_quantile
from zeropoint.evaluation.verdict import judge

MARGIN = math.log(1.01)


def estimate(mean: float, half_width: float | None, windows: int = 60) -> Estimate:
    return Estimate(mean, half_width, windows)


@pytest.mark.parametrize(
    ("mean", "half_width", "verdict"),
    [
        (MARGIN - 0.002, 0.001, "EQUIVALENT"),
        (-0.2, 0.001, "EQUIVALENT"),  # better than the reference: non-inferior all the same
        (0.0, 0.0, "EQUIVALENT"),
        (MARGIN - 0.002, 0.003, "INCONCLUSIVE"),
        (MARGIN + 0.002, 0.003, "INCONCLUSIVE"),
        (MARGIN + 0.002, 0.001, "DEGRADED"),
        (5.0, 0.1, "DEGRADED"),
    ],
)
def test_the_interval_against_the_margin_gives_the_verdict(mean: float, half_width: float, verdict: str) -> None:
    got = judge(estimate(mean, half_width), margin=0.01, window_tokens=511)
    assert got.verdict == verdict
    assert (got.tokens_needed is not None) == (verdict == "INCONCLUSIVE")


@given(
    mean=st.floats(-1, 1),
    half_width=st.floats(0, 0.5),
    windows=st.integers(2, 500),
    margin=st.floats(1e-4, 0.9),
)
def test_the_verdict_agrees_with_the_numbers_beside_it(
    mean: float, half_width: float, windows: int, margin: float
) -> None:
    got = judge(estimate(mean, half_width, windows), margin=margin, window_tokens=100)
    assert got.interval is not None
    low, high = got.interval
    assert low <= got.ratio <= high
    assert (got.verdict == "EQUIVALENT") == (high <= 1 + margin)
    assert (got.verdict == "DEGRADED") == (low > 1 + margin)
    assert got.tokens_needed is None or got.tokens_needed > windows * 100


@pytest.mark.parametrize("windows", [2, 5, 60, 3000])
@pytest.mark.parametrize("side", [-1, 1])
def test_the_tokens_needed_decide_and_a_window_less_does_not(windows: int, side: int) -> None:
    mean, half_width = MARGIN + side * 0.002, 0.003
    got = judge(estimate(mean, half_width, windows), margin=0.01, window_tokens=511)
    assert got.tokens_needed is not None
    needed, rest = divmod(got.tokens_needed, 511)
    assert rest == 0
    assert needed > windows
    spread = half_width * math.sqrt(windows) / student_quantile(0.975, windows - 1)

    def verdict(count: int) -> str:
        width = student_quantile(0.975, count - 1) * spread / math.sqrt(count)
        return judge(estimate(mean, width, count), margin=0.01, window_tokens=511).verdict

    assert verdict(needed) == ("EQUIVALENT" if side < 0 else "DEGRADED")
    assert verdict(needed - 1) == "INCONCLUSIVE"


def test_with_many_windows_the_text_needed_grows_with_the_square_of_the_width() -> None:
    got = judge(estimate(MARGIN - 0.001, 0.004, 2000), margin=0.01, window_tokens=1)
    assert got.tokens_needed == pytest.approx(2000 * 4**2, rel=0.01)
    assert "about" in got.explanation
    assert "16.0 times this text, would decide" in got.explanation


def test_a_ratio_almost_on_the_margin_is_told_to_change_the_margin() -> None:
    got = judge(estimate(MARGIN - 1e-5, 0.004), margin=0.01, window_tokens=511)
    assert got.tokens_needed is not None
    assert got.tokens_needed > 100 * 60 * 511
    assert re.search(r"so near that about [\d,]+ tokens, [\d,]+ times this text", got.explanation)
    assert got.explanation.endswith("judge against another margin.")


def test_a_ratio_on_the_margin_has_no_number() -> None:
    got = judge(estimate(math.log1p(0.01), 0.004), margin=0.01, window_tokens=511)
    assert got.tokens_needed is None
    assert "no text would decide" in got.explanation


def test_one_window_is_inconclusive_and_says_why() -> None:
    got = judge(estimate(0.5, None, 1), margin=0.01, window_tokens=511)
    assert (got.verdict, got.interval, got.tokens_needed) == ("INCONCLUSIVE", None, None)
    assert "one window gives no interval" in got.explanation


@pytest.mark.parametrize(("mean", "half_width"), [(0.004, 0.001), (0.03, 0.001), (0.009, 0.004), (0.5, None)])
def test_the_explanation_is_one_sentence_with_the_numbers(mean: float, half_width: float | None) -> None:
    got = judge(estimate(mean, half_width, 60 if half_width else 1), margin=0.01, window_tokens=511)
    assert f"{got.ratio:.5g} times" in got.explanation
    assert got.explanation.endswith(".")
    assert not re.search(r"\.\s", got.explanation)
    for end in got.interval or ():
        assert f"{end:.5g}" in got.explanation


def test_a_model_just_beyond_the_margin_is_called_equivalent_in_at_most_one_of_forty_texts() -> None:
    random, repetitions = np.random.default_rng(0), 1000
    wrong = 0
    for _ in range(repetitions):
        d = random.normal(MARGIN + 1e-9, 0.01, 20)
        half_width = student_quantile(0.975, 19) * d.std(ddof=1) / math.sqrt(20)
        judged = judge(estimate(float(d.mean()), float(half_width), 20), margin=0.01, window_tokens=511)
        wrong += judged.verdict == "EQUIVALENT"
    assert wrong / repetitions == pytest.approx(0.025, abs=0.015)  # three standard errors
