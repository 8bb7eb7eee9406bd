"""When a promise counts as kept: as often wrong as is said, on windows like those of real text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.budget.promise import ALPHA, FIRST, Bound, Look, decide, look, looks_at, verdict
from zeropoint.evaluation.perplexity import estimate


def a_text(random: np.random.Generator) -> NDArray[np.float64]:
    """Return KL of the windows of a text as measured on the bundled one: skewed, each much like the one before.

    There the deviation of its logarithm is 0.32, the skewness 0.9, and neighbours are correlated by 0.9.
    """
    level, noise = 0.0, []
    for step in random.normal(size=320):
        level = 0.9 * level + math.sqrt(1 - 0.9**2) * step
        noise.append(level)
    return np.exp(0.32 * np.array(noise))


def shuffled(random: np.random.Generator, values: NDArray[np.float64]) -> list[tuple[float]]:
    """Return windows in the order in which a budget reads them."""
    return [(float(value),) for value in random.permutation(values)]


def in_order(values: NDArray[np.float64]) -> Iterator[tuple[float]]:
    return iter([(float(value),) for value in values])


def test_a_promise_that_is_just_broken_is_seldom_said_to_be_kept() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        text = a_text(random)
        limit = 0.9999 * float(text.mean())
        wrong += decide(iter(shuffled(random, text)), [Bound("KL", limit)], 128, alpha=ALPHA)[0].kept == "KEPT"
    assert wrong / 1000 <= ALPHA


def test_looking_with_the_whole_error_each_time_would_be_wrong_more_often() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        text = a_text(random)
        seen, limit = shuffled(random, text), 0.9999 * float(text.mean())
        wrong += any(look(seen[:count], 0, limit, alpha=ALPHA).kept == "KEPT" for count in looks_at(128))
    assert wrong / 1000 > ALPHA


def test_bounds_are_as_often_wrong_as_they_say_on_either_side() -> None:
    random = np.random.default_rng(2)
    above = below = 0
    for _ in range(1000):
        text = a_text(random)
        found = look(shuffled(random, text)[:32], 0, 1.0, alpha=0.05)
        above, below = above + (found.low > text.mean()), below + (found.high < text.mean())
    assert 0.03 <= above / 1000 <= 0.07
    assert 0.03 <= below / 1000 <= 0.07


def test_the_interval_of_a_paired_mean_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        text = a_text(random)
        interval = estimate(random.permutation(text)[:32], 32).interval
        assert interval is not None
        covered += interval[0] <= text.mean() <= interval[1]
    assert 0.93 <= covered / 1000 <= 0.97


@pytest.mark.parametrize(("limit", "wanted"), [(2.0, "KEPT"), (0.5, "BROKEN")])
def test_what_is_clear_is_decided_early(limit: float, wanted: str) -> None:
    values = np.linspace(0.9, 1.1, 64)
    found = decide(in_order(values), [Bound("KL", limit)], 64, alpha=ALPHA)
    assert (found[0].kept, found[0].windows, found[0].looks) == (wanted, FIRST, 1)


def test_what_cannot_be_told_is_inconclusive_after_all_windows() -> None:
    values = np.array([0.0, 2.0] * 20)
    found = decide(in_order(values), [Bound("KL", 1.0)], 40, alpha=ALPHA)
    assert (found[0].kept, found[0].windows) == ("INCONCLUSIVE", 40)
    assert found[0].low < 1.0 < found[0].high


def test_one_broken_bound_breaks_the_promise_and_both_must_be_kept() -> None:
    kept, broken, open_ = (Look(each, 0, 0, 0, 8, 1) for each in ("KEPT", "BROKEN", "INCONCLUSIVE"))
    assert verdict([kept, broken]) == "BROKEN"
    assert verdict([kept, open_]) == "INCONCLUSIVE"
    assert verdict([kept, kept]) == "KEPT"
    rows = iter([(1.0 + 0.01 * i, 5.0 + 0.01 * i) for i in range(16)])
    found = decide(rows, [Bound("KL", 2.0), Bound("loss", 1.0)], 16, alpha=ALPHA)
    assert [each.kept for each in found] == ["KEPT", "BROKEN"]


def test_no_window_is_read_that_is_not_needed() -> None:
    read = itertools.count()
    rows = ((1.0 + 0.001 * at,) for at in read)
    decide(rows, [Bound("KL", 9.0)], 500, alpha=ALPHA)
    assert next(read) == FIRST


@pytest.mark.parametrize(("windows", "wanted"), [(3, (3,)), (16, (16,)), (17, (16, 17)), (128, (16, 32, 64, 128))])
def test_the_looks(windows: int, wanted: tuple[int, ...]) -> None:
    assert looks_at(windows) == wanted
