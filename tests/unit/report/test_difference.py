from __future__ import annotations

import msgspec
import numpy as np
import pytest

from reference.difference import interval_of_mean, interval_of_pairs
from unit.evaluation.made import evaluation
from zeropoint.report import difference


@pytest.mark.parametrize("correlation", [-1.0, -0.7, 0.0, 0.7, 0.999])
@pytest.mark.parametrize("windows", [2, 7, 64])
def test_the_interval_holds_the_one_of_the_pairs_however_they_depend_on_each_other(
    correlation: float, windows: int
) -> None:
    draw = np.random.default_rng(windows)
    for _ in range(50):
        first = draw.normal(0.1, draw.uniform(0.001, 0.1), windows)
        other = draw.normal(0.1, draw.uniform(0.001, 0.1), windows)
        second = correlation * first + np.sqrt(1 - correlation**2) * other
        low, high = difference.difference(interval_of_mean(first), interval_of_mean(second))
        paired = interval_of_pairs(first, second)
        assert low <= paired[0] + 1e-12
        assert high >= paired[1] - 1e-12
        assert (low + high) / 2 == pytest.approx(second.mean() - first.mean(), abs=1e-12)


def test_models_that_err_in_opposite_ways_need_all_of_the_interval() -> None:
    first = np.random.default_rng(0).normal(0.1, 0.02, 16)
    found = difference.difference(interval_of_mean(first), interval_of_mean(-first))
    assert found == pytest.approx(interval_of_pairs(first, -first), rel=1e-12)


def test_the_interval_of_a_ratio_is_that_of_the_difference_of_logarithms() -> None:
    first, second = (1.01, 1.05), (1.10, 1.21)
    logs = difference.difference(*(tuple(np.log(ends)) for ends in (first, second)))  # type: ignore[arg-type]
    assert difference.ratio(first, second) == pytest.approx(tuple(np.exp(logs)), rel=1e-12)


def test_models_judged_on_the_same_windows_can_be_compared() -> None:
    assert difference.incomparable(evaluation(), evaluation(model="other", perplexity=20.0)) is None


@pytest.mark.parametrize("change", [{"sha256": "00"}, {"windows": 59}, {"length": 256}, {"seed": 3}])
def test_other_windows_cannot(change: dict[str, object]) -> None:
    other = evaluation(text=msgspec.structs.replace(evaluation().text, **change))
    assert "different texts or windows" in str(difference.incomparable(evaluation(), other))


def test_another_reference_cannot_but_another_runtime_of_it_can() -> None:
    first = evaluation()
    said = difference.incomparable(first, evaluation(perplexity_reference=15.6))
    assert said is not None
    assert "15.493 and 15.600" in said
    assert difference.incomparable(first, evaluation(perplexity_reference=15.4935)) is None
