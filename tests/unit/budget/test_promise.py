"""When a promise counts as kept: as often wrong as is said, on windows like those of real text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from zeropoint.budget.promise import ALPHA, FIRST, Bound, Look, Seen, decide, look, looks_at, verdict
from zeropoint.evaluation.perplexity import estimate


def windows_like_text(random: np.random.Generator, count: int) -> NDArray[np.float64]:
    """Return losses of windows with the mean 1: skewed, and each like the one before, as parts of one text are."""
    noise = random.normal(size=count + 1)
    correlated = noise[1:] + 0.2 * noise[:-1]  # lag 1: 0.19
    spread = 0.4
    return np.exp(spread * correlated / math.sqrt(1.04) - spread**2 / 2)


def drawn(random: np.random.Generator, values: NDArray[np.float64]) -> list[Seen]:
    """Return windows in the order in which a budget reads them."""
    return [Seen(int(place), (float(values[place]),)) for place in random.permutation(len(values))]


def in_order(values: NDArray[np.float64]) -> Iterator[Seen]:
    return iter([Seen(3 * place, (float(value),)) for place, value in enumerate(values)])


def test_a_promise_that_is_just_broken_is_seldom_said_to_be_kept() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        seen = drawn(random, windows_like_text(random, 128))
        found = decide(iter(seen), [Bound("KL", 0.9999)], 128, alpha=ALPHA)
        wrong += found[0].kept == "KEPT"
    assert wrong / 1000 <= ALPHA + 0.015  # of 1,000 draws the share itself is known to 0.007


def test_looking_with_the_whole_error_each_time_would_be_wrong_more_often() -> None:
    random = np.random.default_rng(0)
    wrong = 0
    for _ in range(1000):
        seen = drawn(random, windows_like_text(random, 128))
        looks = (look(seen[:count], 0, 0.9999, alpha=ALPHA) for count in looks_at(128))
        wrong += any(each.kept == "KEPT" for each in looks)
    assert wrong / 1000 > ALPHA


def test_bounds_of_all_windows_are_as_often_wrong_as_they_say() -> None:
    random = np.random.default_rng(2)
    above = below = 0
    for _ in range(1000):
        found = look(drawn(random, windows_like_text(random, 128)), 0, 1.0, alpha=0.05)
        above, below = above + (found.low > 1), below + (found.high < 1)
    assert 0.02 <= above / 1000 <= 0.075
    assert 0.02 <= below / 1000 <= 0.075


def test_the_interval_of_a_paired_mean_covers_as_often_as_it_says() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(1000):
        interval = estimate(random.permutation(windows_like_text(random, 64)), 64).interval
        assert interval is not None
        covered += interval[0] <= 1 <= interval[1]
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
    rows = iter([Seen(3 * i, (1.0 + 0.01 * i, 5.0 + 0.01 * i)) for i in range(16)])
    found = decide(rows, [Bound("KL", 2.0), Bound("loss", 1.0)], 16, alpha=ALPHA)
    assert [each.kept for each in found] == ["KEPT", "BROKEN"]


def test_no_window_is_read_that_is_not_needed() -> None:
    read = itertools.count()
    rows = (Seen(3 * at, (1.0 + 0.001 * at,)) for at in read)
    decide(rows, [Bound("KL", 9.0)], 500, alpha=ALPHA)
    assert next(read) == FIRST


@pytest.mark.parametrize(("windows", "wanted"), [(3, (3,)), (16, (16,)), (17, (16, 17)), (128, (16, 32, 64, 128))])
def test_the_looks(windows: int, wanted: tuple[int, ...]) -> None:
    assert looks_at(windows) == wanted
