from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import zeropoint
from tiny import make_llama
from unit.rounding.test_gptq import correlated
from zeropoint.recipe import load_recipe
from zeropoint.rounding import RoundingError, inverse
from zeropoint.rounding.inverse import inverse_of
from zeropoint.types import SecondMoment


@settings(max_examples=60, deadline=None)
@given(
    cols=st.integers(1, 90),
    panel=st.sampled_from([1, 7, 16, 256]),
    piece=st.sampled_from([1, 20, 1024]),
    act_order=st.booleans(),
    seed=st.integers(0, 99),
)
def test_it_is_the_factor_of_the_inverse(cols: int, panel: int, piece: int, act_order: bool, seed: int) -> None:
    moment = correlated(cols, seed=seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inverse, "_PANEL", panel)
        patch.setattr(inverse, "_PIECE", piece)
        found = inverse_of(moment, damping=0.01, act_order=act_order)
    order = found.order.numpy()
    assert sorted(order) == list(range(cols))
    diagonal = moment.matrix.diagonal().numpy()
    assert not act_order or bool((np.diff(diagonal[order]) <= 0).all())
    H = moment.matrix.double().numpy()[np.ix_(order, order)]
    H = H + 0.01 * diagonal.mean() * np.eye(cols)
    # U^T U = H^-1 with U upper triangular is unique: the transpose of the Cholesky factor of the inverse
    expected = np.linalg.cholesky(np.linalg.inv(H)).T
    U = found.U.double().numpy()
    assert bool((np.tril(U, -1) == 0).all())
    assert np.abs(U - expected).max() <= 2e-4 * np.abs(expected).max()
    assert np.allclose(found.cost.numpy(), 1 / np.diag(expected) ** 2, rtol=2e-3)


def test_who_asks_again_gets_the_same_and_the_moment_stays_as_it_was() -> None:
    moment = correlated(40)
    H = moment.matrix.clone()
    found = inverse_of(moment, damping=0.01, act_order=True)
    assert inverse_of(moment, damping=0.01, act_order=True) is found
    other = inverse_of(moment, damping=0.1, act_order=True)
    assert not torch.equal(other.U, found.U)
    assert len(moment.known) == 1
    assert torch.equal(moment.matrix, H)


@pytest.mark.parametrize("cols", [577, 2100])
def test_the_number_of_threads_changes_nothing(cols: int) -> None:
    H, before, found = correlated(cols, tokens=3000).matrix, torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(inverse_of(SecondMoment(H, 3000), damping=0.01, act_order=True).U)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_what_is_not_positive_definite_is_refused_wherever_it_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inverse, "_PANEL", 4)
    for place in range(11):
        H = torch.eye(12)
        H[place, place + 1] = H[place + 1, place] = 2.0
        with pytest.raises(RoundingError, match=r"not positive definite with damping 0\.01"):
            inverse_of(SecondMoment(H, 10), damping=0.01, act_order=False)


def test_linears_that_share_an_input_share_its_inverse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, once = [], inverse._inverse
    monkeypatch.setattr(inverse, "_inverse", lambda *given, **options: calls.append(1) or once(*given, **options))
    recipe = load_recipe("w4a16", ["calibration.samples=8", "calibration.length=32", "weights.group_size=16"])
    result = zeropoint.quantize(make_llama(tmp_path / "model", layers=2), tmp_path / "out", recipe=recipe)
    assert not any(row.fallback for row in result.layers)
    assert len(calls) == 2 * 4  # of 7 linears in each block
