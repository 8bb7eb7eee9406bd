from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from zeropoint.errors import InputError, NonFiniteError
from zeropoint.runtime.sampler import FIRST_LOOK, Sampler, _nucleus

PROBABILITIES = np.array([0.5, 0.3, 0.15, 0.05])
LOGITS = np.log(PROBABILITIES).astype(np.float32)


def drawn(sampler: Sampler, times: int = 2000) -> NDArray[np.float64]:
    return np.bincount([sampler.choose(LOGITS) for _ in range(times)], minlength=4) / times


def test_temperature_zero_takes_the_likeliest() -> None:
    assert {Sampler().choose(LOGITS) for _ in range(5)} == {0}


def test_temperature_one_draws_with_the_models_probabilities() -> None:
    assert np.allclose(drawn(Sampler(temperature=1.0)), PROBABILITIES, atol=0.05)  # 4 standard errors


def test_a_low_temperature_sharpens() -> None:
    assert drawn(Sampler(temperature=0.5))[0] > 0.6


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_lowest_temperature_is_greedy(top_p: float) -> None:
    assert Sampler(temperature=1e-310, top_p=top_p).choose(LOGITS[::-1].copy()) == 3


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    frequencies = drawn(Sampler(temperature=1.0, top_p=0.6))
    assert frequencies[2:].tolist() == [0, 0]
    assert np.allclose(frequencies[:2], [0.625, 0.375], atol=0.05)


def test_a_small_top_p_keeps_the_likeliest() -> None:
    assert {Sampler(temperature=1.0, top_p=1e-9, seed=seed).choose(LOGITS) for seed in range(9)} == {0}


@settings(max_examples=100, deadline=None)
@given(
    size=st.sampled_from([1, 5, FIRST_LOOK, FIRST_LOOK + 1, 5000]),
    spread=st.sampled_from([0.0, 0.1, 1.0, 4.0]),
    top_p=st.floats(0.01, 0.999),
    seed=st.integers(0, 1000),
)
def test_the_nucleus_is_that_of_the_whole_vocabulary_sorted(size: int, spread: float, top_p: float, seed: int) -> None:
    weights = np.exp(spread * np.random.default_rng(seed).standard_normal(size))
    expected = np.sort(weights)[::-1]
    before = expected.cumsum() - expected
    wanted = top_p * weights.sum()
    assume(np.abs(before - wanted).min() > 1e-9 * wanted)  # sums in another order may fall on the other side
    assert np.array_equal(weights[_nucleus(weights, top_p)], expected[before < wanted])


def test_a_seed_gives_the_same_tokens_again() -> None:
    many = [[s.choose(LOGITS) for _ in range(50)] for s in (Sampler(temperature=1.0, seed=seed) for seed in (3, 3, 4))]
    assert many[0] == many[1]
    assert many[0] != many[2]


def test_a_token_of_no_probability_is_never_drawn() -> None:
    logits = np.array([-np.inf, 0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    sampler = Sampler(temperature=1.0)
    assert {sampler.choose(logits) for _ in range(200)} == {1, 3}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_refused(temperature: float, bad: float) -> None:
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        Sampler(temperature=temperature).choose(np.array([0.0, bad, 1.0], dtype=np.float32))


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}, {"seed": -1}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampler(**wrong)
