from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from reference.gptq import gptq as reference_gptq
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.from_range import from_range
from zeropoint.qparams.grouping import expand
from zeropoint.rounding import RoundingError, gptq
from zeropoint.rounding.objective import output_error
from zeropoint.types import QTensor, Scheme, SecondMoment


def inputs(cols: int, *, tokens: int = 400, seed: int = 0) -> Tensor:
    """Inputs (tokens, cols) with correlated columns of very different size, as a real layer has."""
    random = torch.Generator().manual_seed(seed)
    mix = torch.randn(cols, cols, generator=random) / cols**0.5 + torch.eye(cols)
    return torch.randn(tokens, cols, generator=random) @ mix * torch.logspace(-1, 1, cols)


def correlated(cols: int, *, tokens: int = 400, seed: int = 0) -> SecondMoment:
    x = inputs(cols, tokens=tokens, seed=seed)
    return SecondMoment(x.T @ x / tokens, tokens)


def weight(rows: int, cols: int, *, seed: int = 3) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def run(w: Tensor, moment: SecondMoment, scheme: Scheme, options: gptq.Options | None = None) -> QTensor:
    qparams = choose_qparams(w, scheme, "minmax", None)
    return gptq.quantize(w, qparams, scheme, {"second_moment": moment}, options or gptq.Options())


def restore(q: QTensor) -> Tensor:
    rows, cols = q.shape
    scale = expand(q.qparams.scale, rows, cols, q.scheme)
    zero = 0 if q.qparams.zero_point is None else expand(q.qparams.zero_point, rows, cols, q.scheme)
    return scale * (q.codes.float() - zero)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("damping", [0.01, 0.3])
def test_codes_equal_the_equations_of_the_paper(act_order: bool, symmetric: bool, damping: float) -> None:
    scheme = Scheme(bits=4, symmetric=symmetric, group_size=16)
    w, moment = weight(24, 72), correlated(72)
    got = run(w, moment, scheme, gptq.Options(damping=damping, act_order=act_order))
    scale = expand(got.qparams.scale, 24, 72, scheme).double().numpy()
    zero = np.zeros((24, 72))
    if got.qparams.zero_point is not None:
        zero = expand(got.qparams.zero_point, 24, 72, scheme).double().numpy()
    expected = reference_gptq(
        w.double().numpy(), moment.matrix.double().numpy(), scale, zero, -8, 7, damping=damping, act_order=act_order
    )
    # a value that lies on a rounding boundary may fall to the other side in float32 and shift later columns of its row
    same_rows = (got.codes.numpy() == expected).all(axis=1).mean()
    assert same_rows >= 0.9


@pytest.mark.parametrize("block", [1, 7, 64, 1000])
def test_the_block_size_does_not_change_the_codes(block: int) -> None:
    scheme = Scheme(bits=3, group_size=32)
    w, moment = weight(16, 96), correlated(96)
    expected = run(w, moment, scheme).codes
    got = run(w, moment, scheme, gptq.Options(block=block)).codes
    assert (got == expected).all(dim=1).float().mean() >= 0.9  # float32 sums in another order, as above


def test_a_dead_column_is_rounded_to_nearest_and_changes_no_other() -> None:
    scheme = Scheme(bits=4, granularity="channel", group_size=None)
    w, moment = weight(8, 40), correlated(40)
    dead = moment.matrix.clone()
    dead[5], dead[:, 5] = 0, 0
    got = run(w, SecondMoment(dead, 400), scheme)
    kept = [j for j in range(40) if j != 5]
    without = gptq.quantize(
        w[:, kept],
        got.qparams,
        scheme,
        {"second_moment": SecondMoment(dead[kept][:, kept], 400)},
        gptq.Options(damping=0.01 * 39 / 40),  # the same lambda: the dead column's 0 counts in the mean
    )
    assert torch.equal(got.codes[:, kept], without.codes)
    assert torch.equal(got.codes[:, 5], torch.round(w[:, 5] / got.qparams.scale[:, 0]).clamp(-8, 7).to(torch.int8))


def test_uncorrelated_inputs_make_it_rounding_to_nearest() -> None:
    scheme = Scheme(bits=4, group_size=32)
    w = weight(8, 64)
    got = run(w, SecondMoment(torch.eye(64), 10), scheme)
    scale = expand(got.qparams.scale, 8, 64, scheme)
    assert torch.equal(got.codes, torch.round(w / scale).clamp(-8, 7).to(torch.int8))


def test_the_output_error_is_far_below_rounding_to_nearest() -> None:
    scheme = Scheme(bits=4, group_size=32)
    w, moment = weight(64, 128), correlated(128)
    got = run(w, moment, scheme)
    scale = expand(got.qparams.scale, 64, 128, scheme)
    nearest = torch.round(w / scale).clamp(-8, 7) * scale
    assert output_error(restore(got) - w, moment.matrix) < 0.6 * output_error(nearest - w, moment.matrix)


def test_no_tokens_and_an_indefinite_moment_are_refused_with_the_reason() -> None:
    scheme = Scheme(bits=4, group_size=32)
    with pytest.raises(RoundingError, match="no calibration token"):
        run(weight(4, 32), SecondMoment(torch.zeros(32, 32), 0), scheme)
    indefinite = torch.eye(32)
    indefinite[0, 1] = indefinite[1, 0] = 2.0
    with pytest.raises(RoundingError, match=r"not positive definite with damping 0\.01"):
        run(weight(4, 32), SecondMoment(indefinite, 10), scheme)
    run(weight(4, 32), SecondMoment(indefinite, 10), scheme, gptq.Options(damping=2.0))  # enough damping mends it


def test_the_error_is_the_sum_of_each_columns_rounding_error_times_its_importance() -> None:
    # hardly any damping, and a range so wide that nothing is clipped: what is left is uniform in half a step
    scheme = Scheme(bits=8, granularity="channel", group_size=None, scale_dtype="float32")
    w, moment = weight(200, 48), correlated(48)
    options = gptq.Options(damping=1e-9)
    qparams = from_range(3 * w.amin(1, keepdim=True), 3 * w.amax(1, keepdim=True), scheme)
    got = gptq.quantize(w, qparams, scheme, {"second_moment": moment}, options)
    cost = gptq.importance({"second_moment": moment}, options)
    assert cost is not None
    uniform = qparams.scale.square().sum() / 12
    expected = float(uniform * cost.sum())
    assert output_error(restore(got) - w, moment.matrix) == pytest.approx(expected, rel=0.05)


def test_importance_is_what_later_columns_cannot_explain() -> None:
    moment = correlated(24)
    cost = gptq.importance({"second_moment": moment}, gptq.Options(damping=1e-9))
    assert cost is not None
    H = moment.matrix.double()
    order = torch.argsort(H.diagonal(), descending=True)
    for place, j in enumerate(order):
        later = order[place + 1 :]
        explained = H[j, later] @ torch.linalg.solve(H[later][:, later], H[later, j]) if len(later) else 0.0
        assert float(cost[j]) == pytest.approx(float(H[j, j] - explained), rel=1e-3)


def test_importance_without_tokens_or_definiteness_is_none_or_the_diagonal() -> None:
    assert gptq.importance({"second_moment": SecondMoment(torch.zeros(3, 3), 0)}, gptq.Options()) is None
    indefinite = torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    cost = gptq.importance({"second_moment": SecondMoment(indefinite, 5)}, gptq.Options())
    assert cost is not None
    assert torch.equal(cost, torch.ones(2))
    dead = torch.tensor([[1.0, 0.0], [0.0, 0.0]])
    cost = gptq.importance({"second_moment": SecondMoment(dead, 5)}, gptq.Options())
    assert cost is not None
    assert float(cost[1]) == 0
