from __future__ import annotations

import torch

from zeropoint.rounding.objective import output_error


def test_an_error_along_a_dead_direction_is_not_negative() -> None:
    above_one = 1 + 2**-23  # as float32 sums leave it: the smaller eigenvalue is -2^-23
    moment = torch.tensor([[1.0, above_one], [above_one, 1.0]])
    assert output_error(torch.tensor([[1.0, -1.0]]), moment) == 0.0
