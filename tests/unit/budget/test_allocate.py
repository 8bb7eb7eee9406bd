"""The choice of forms: as good as trying them all."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.budget.allocate import Limit, least

Table = list[list[float]]


@st.composite
def problems(draw: st.DrawFn) -> tuple[Table, Table, Table, float, float]:
    """Aims and two kinds of costs of a few units, with limits that may be too tight."""
    counts = draw(st.lists(st.integers(1, 4), min_size=1, max_size=5))

    def table() -> Table:
        return [[float(draw(st.integers(0, 50))) for _ in range(count)] for count in counts]

    return table(), table(), table(), float(draw(st.integers(0, 150))), float(draw(st.integers(0, 250)))


def total(table: Sequence[Sequence[float]], chosen: Sequence[int]) -> float:
    return sum(row[index] for row, index in zip(table, chosen, strict=True))


@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_is_the_best_of_all_choices(problem: tuple[Table, Table, Table, float, float]) -> None:
    aims, first, second, most_first, most_second = problem
    allowed = [
        chosen
        for chosen in itertools.product(*(range(len(row)) for row in aims))
        if total(first, chosen) <= most_first and total(second, chosen) <= most_second
    ]
    found = least(aims, [Limit(first, most_first), Limit(second, most_second)])
    if not allowed:
        assert found is None
        return
    assert found in allowed
    assert total(aims, found) == min(total(aims, chosen) for chosen in allowed)


def test_without_limits_each_unit_has_its_least() -> None:
    assert least([[3.0, 1.0], [0.0, 5.0, 2.0]], []) == (1, 0)


def test_bytes_of_a_large_model_and_tiny_losses_are_no_trouble() -> None:
    aims = [[1e-3, 1e-5, 1e-9, 0.0] for _ in range(300)]
    size = [[2e8, 4e8, 8e8, 16e8] for _ in range(300)]
    found = least(aims, [Limit(size, 300 * 4e8)])
    assert found is not None
    assert total(size, found) <= 300 * 4e8
    assert total(aims, found) <= total(aims, [1] * 300)
