from __future__ import annotations

import pytest
import torch

from zeropoint.errors import InputError
from zeropoint.runtime.sampler import Sampler

LOGITS = torch.log(torch.tensor([0.5, 0.3, 0.15, 0.05]))


def drawn(sampler: Sampler, times: int = 2000) -> torch.Tensor:
    return torch.bincount(torch.tensor([sampler.choose(LOGITS) for _ in range(times)]), minlength=4) / times


def test_temperature_zero_takes_the_likeliest() -> None:
    assert {Sampler().choose(LOGITS) for _ in range(5)} == {0}


def test_temperature_one_draws_with_the_models_probabilities() -> None:
    assert torch.allclose(drawn(Sampler(temperature=1.0)), LOGITS.exp(), atol=0.05)  # 4 standard errors


def test_a_low_temperature_sharpens() -> None:
    assert drawn(Sampler(temperature=0.5))[0] > 0.6


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    frequencies = drawn(Sampler(temperature=1.0, top_p=0.6))
    assert torch.equal(frequencies[2:], torch.zeros(2))
    assert torch.allclose(frequencies[:2], torch.tensor([0.625, 0.375]), atol=0.05)


def test_a_seed_gives_the_same_tokens_again() -> None:
    many = [[s.choose(LOGITS) for _ in range(50)] for s in (Sampler(temperature=1.0, seed=seed) for seed in (3, 3, 4))]
    assert many[0] == many[1]
    assert many[0] != many[2]


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1.0}, {"temperature": float("nan")}, {"top_p": 0.0}, {"top_p": 1.1}]
)
def test_values_out_of_range_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Sampler(**wrong)
