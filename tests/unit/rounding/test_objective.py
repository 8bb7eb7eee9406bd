from __future__ import annotations

import pytest
import torch

from zeropoint.rounding.objective import output_error


def test_an_error_along_a_dead_direction_is_not_negative() -> None:
    above_one = 1 + 2**-23  # as float32 sums leave it: the smaller eigenvalue is -2^-23
    moment = torch.tensor([[1.0, above_one], [above_one, 1.0]])
    assert output_error(torch.tensor([[1.0, -1.0]]), moment) == 0.0


@pytest.mark.parametrize("cols", [1, 191, 192, 193, 500])
def test_half_of_a_symmetric_product_gives_all_of_the_error(cols: int) -> None:
    random = torch.Generator().manual_seed(cols)
    error, x = torch.randn(7, cols, generator=random), torch.randn(900, cols, generator=random)
    moment = x.T @ x / len(x)
    exact = float(torch.trace(error.double() @ moment.double() @ error.double().T))
    assert output_error(error, moment) == pytest.approx(exact, rel=1e-5)  # float32 sums of a few hundred terms
    assert output_error(error, None) == pytest.approx(float(error.double().square().sum()), rel=1e-6)
