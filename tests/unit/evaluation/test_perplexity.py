from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.errors import InternalError
from zeropoint.evaluation.perplexity import (
    EXACT_UP_TO,
    Estimate,
    estimate,
    log_ratio,
    perplexity,
    student_quantile,
    window_means,
)

# scipy 1.17.1: scipy.stats.t.ppf(0.975, degrees)
TABLE = {
    1: 12.706204736174694,
    2: 4.302652729749462,
    3: 3.1824463052837078,
    4: 2.7764451051977934,
    5: 2.5705818356363146,
    10: 2.228138851986274,
    30: 2.0422724563012378,
    100: 1.9839715185235518,
    1000: 1.9623390808264083,
}


@pytest.mark.parametrize(("degrees", "quantile"), TABLE.items())
def test_students_quantile_equals_the_tables(degrees: int, quantile: float) -> None:
    assert student_quantile(0.975, degrees) == pytest.approx(quantile, rel=1e-11)


@pytest.mark.parametrize("probability", [0.6, 0.9, 0.975, 0.995])
def test_students_quantile_has_its_closed_forms_for_one_two_and_four_degrees(probability: float) -> None:
    a = 4 * probability * (1 - probability)
    assert student_quantile(probability, 1) == pytest.approx(math.tan(math.pi * (probability - 0.5)), rel=1e-11)
    assert student_quantile(probability, 2) == pytest.approx(2 * (probability - 0.5) * math.sqrt(2 / a), rel=1e-11)
    q = math.cos(math.acos(math.sqrt(a)) / 3) / math.sqrt(a)
    assert student_quantile(probability, 4) == pytest.approx(2 * math.sqrt(q - 1), rel=1e-9)


def test_the_expansion_takes_over_without_a_step() -> None:
    below, above = (student_quantile(0.975, EXACT_UP_TO + i) for i in (0, 1))
    assert 0 < below - above < 3e-6
    assert above == pytest.approx(2 * below - student_quantile(0.975, EXACT_UP_TO - 1), rel=1e-8)
    assert student_quantile(0.975, 10**12) == pytest.approx(1.959963984540054, rel=1e-10)


@given(degrees=st.integers(1, 3000), probability=st.floats(0.55, 0.999))
def test_students_quantile_falls_with_the_degrees_and_rises_with_the_probability(
    degrees: int, probability: float
) -> None:
    here = student_quantile(probability, degrees)
    assert student_quantile(probability, degrees + 1) < here
    assert here < student_quantile(probability + 5e-4, degrees)


def test_the_interval_of_a_mean_is_the_textbooks() -> None:
    got = estimate([1.0, 3.0, 4.0, 6.0, 5.0, 5.0], 3)  # windows of two tokens: 2, 5, 5
    assert got.mean == 4.0
    assert got.half_width == pytest.approx(TABLE[2] * math.sqrt(3) / math.sqrt(3))
    assert got.interval == (got.mean - got.half_width, got.mean + got.half_width)
    assert got.windows == 3


def test_one_window_has_no_interval() -> None:
    got = log_ratio([1.0, 2.0], [1.5, 2.0], 1)
    assert got == Estimate(0.25, None, 1)
    assert got.interval is None
    assert got.clipped(0, 1) is None
    assert got.exp() == (math.exp(0.25), None)


def test_an_interval_is_clipped_to_what_can_be() -> None:
    assert Estimate(0.99, 0.02, 5).clipped(0, 1) == (0.97, 1)
    assert Estimate(0.01, 0.02, 5).clipped(0, math.inf) == (0, 0.03)


@given(windows=st.integers(1, 9), tokens=st.integers(1, 9), seed=st.integers(0, 99))
def test_the_ratio_is_exactly_that_of_the_two_perplexities(windows: int, tokens: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    reference, quantized = random.exponential(3, (2, windows * tokens))
    ratio, interval = log_ratio(reference, quantized, windows).exp()
    assert ratio == pytest.approx(perplexity(quantized.mean()) / perplexity(reference.mean()), rel=1e-12)
    assert interval is None or interval[0] <= ratio <= interval[1]


def test_what_both_models_find_hard_does_not_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    reference, difference = random.normal(3, 1, 600), random.normal(0.02, 0.01, 600)
    easy = log_ratio(reference, reference + difference, 20)
    hard_windows = np.repeat(random.normal(0, 5, 20), 30)
    hard = log_ratio(reference + hard_windows, reference + difference + hard_windows, 20)
    assert easy.half_width is not None
    assert hard.half_width == pytest.approx(easy.half_width, rel=1e-9)
    unpaired = estimate(reference + hard_windows, 20)
    assert unpaired.half_width is not None
    assert unpaired.half_width > 100 * easy.half_width


@pytest.mark.parametrize("windows", [3, 8, 40])
def test_95_of_100_intervals_hold_the_true_ratio(windows: int) -> None:
    # losses as they are: skewed, texts of different difficulty, tokens of a window that share part of their change
    random, truth, repetitions = np.random.default_rng(windows), 0.03, 4000
    held = 0
    for _ in range(repetitions):
        reference = random.exponential(3, (windows, 32)) + random.normal(0, 1, (windows, 1))
        change = truth + random.normal(0, 0.02, (windows, 1)) + random.laplace(0, 0.1, (windows, 32))
        interval = log_ratio(reference.ravel(), (reference + change).ravel(), windows).interval
        assert interval is not None
        held += interval[0] <= truth <= interval[1]
    assert held / repetitions == pytest.approx(0.95, abs=0.0138)  # four standard errors


@pytest.mark.parametrize(("tokens", "windows"), [(10, 3), (0, 1), (4, 0), (4, -2)])
def test_tokens_that_do_not_make_equal_windows_are_refused(tokens: int, windows: int) -> None:
    with pytest.raises(InternalError, match=f"{tokens} tokens do not make {windows} windows"):
        window_means(np.zeros(tokens), windows)


def test_a_loss_beyond_all_floats_gives_the_largest() -> None:
    assert perplexity(710.0) == sys.float_info.max
    assert perplexity(math.log(15.0)) == pytest.approx(15.0)
