from __future__ import annotations

import torch

from unit.rounding.test_gptq import correlated, weight
from zeropoint.qparams.choose import choose_qparams
from zeropoint.rounding import gptq
from zeropoint.rounding.ladder import Rounded, round_weight
from zeropoint.types import Scheme, SecondMoment

SCHEME = Scheme(bits=4, group_size=32)


def climb(moment: SecondMoment | None, method: str = "gptq", options: gptq.Options | None = None) -> Rounded:
    w = weight(16, 64)
    stats = {} if moment is None else {"second_moment": moment}
    return round_weight(w, choose_qparams(w, SCHEME, "minmax", None), SCHEME, stats, method, options or gptq.Options())


def test_a_healthy_layer_gets_what_was_asked_for() -> None:
    got = climb(correlated(64))
    assert (got.rounding, got.fallback) == ("gptq", None)
    assert 0 < got.error < climb(correlated(64), "rtn").error


def test_an_indefinite_moment_is_damped_and_the_result_says_so() -> None:
    matrix = torch.eye(64)
    matrix[0, 1] = matrix[1, 0] = 1.05  # the smallest eigenvalue is -0.05: more than 0.01 mends, less than 0.1
    got = climb(SecondMoment(matrix, 400))
    assert got.rounding == "gptq"
    assert got.fallback is not None
    assert got.fallback.startswith("damping 0.1")
    assert "not positive definite with damping 0.01" in got.fallback


def test_damping_that_never_suffices_ends_at_rounding_to_nearest() -> None:
    matrix = torch.eye(64)
    matrix[0, 1] = matrix[1, 0] = 1e4
    got = climb(SecondMoment(matrix, 400))
    assert got.rounding == "rtn"
    assert got.fallback is not None
    assert "not positive definite with damping 10" in got.fallback


def test_a_layer_that_no_token_reached_is_rounded_to_nearest() -> None:
    got = climb(SecondMoment(torch.zeros(64, 64), 0))
    assert (got.rounding, got.fallback) == ("rtn", "rtn: no calibration token reached it")
    assert got.error > 0  # of the weight itself


def test_a_method_that_comes_out_worse_than_nearest_is_not_taken() -> None:
    # the damping is so large that GPTQ optimizes for another H than the one it is judged by
    moment = SecondMoment(torch.diag(torch.logspace(-6, 6, 64)) + 0.9, 400)
    got = climb(moment, options=gptq.Options(damping=1e6))
    nearest = climb(moment, "rtn")
    assert got.error <= nearest.error
