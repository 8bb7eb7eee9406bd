from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import descent as reference
from unit.rounding.test_gptq import correlated, weight
from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.qparams.grouping import expand
from zeropoint.refine import descent
from zeropoint.rounding import gptq, rtn
from zeropoint.types import Levels, QTensor, Scheme, SecondMoment

Q4_K = Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)


def damped(moment: SecondMoment, damping: float = 0.01) -> torch.Tensor:
    H = moment.matrix.clone()
    H.diagonal().add_(damping * float(H.diagonal().mean()))
    return H


def rounded(w: torch.Tensor, scheme: Scheme, moment: SecondMoment, method: str = "rtn") -> QTensor:
    module = {"rtn": rtn, "gptq": gptq}[method]
    qparams = choose_qparams(w, scheme, "minmax")
    return module.quantize(w, qparams, scheme, {"second_moment": moment}, module.Options())


def lost(w: torch.Tensor, q: QTensor, H: torch.Tensor) -> float:
    error = (w - dequantize(q.codes, q.qparams, q.scheme)).double()
    return float(torch.trace(error @ H.double() @ error.T))


@settings(max_examples=40, deadline=None)
@given(
    rows=st.integers(1, 6),
    cols=st.integers(1, 50),
    bits=st.integers(2, 8),
    symmetric=st.booleans(),
    group_size=st.sampled_from([1, 7, 16, 64, None]),
    method=st.sampled_from(["rtn", "gptq"]),
    scales=st.booleans(),
    seed=st.integers(0, 99),
)
def test_the_error_never_rises_and_scales_stay_storable(
    rows: int, cols: int, bits: int, symmetric: bool, group_size: int | None, method: str, scales: bool, seed: int
) -> None:
    scheme = Scheme(bits, symmetric, "channel" if group_size is None else "group", group_size)
    w, moment = weight(rows, cols, seed=seed), correlated(cols, seed=seed)
    before = rounded(w, scheme, moment, method)
    after = descent.refine(w, before, {"second_moment": moment}, descent.Options(passes=2, scales=scales))
    H = damped(moment)
    assert lost(w, after, H) <= lost(w, before, H) * (1 + 1e-5) + 1e-9
    assert after.codes.dtype == torch.int8
    assert int(after.codes.min()) >= scheme.q_min
    assert int(after.codes.max()) <= scheme.q_max
    scale = after.qparams.scale
    assert bool((scale > 0).all())
    assert torch.equal(scale, scale.to(torch.bfloat16).float())
    assert scales or torch.equal(scale, before.qparams.scale)


def test_what_it_begins_with_stays_as_it_was_for_a_single_row() -> None:
    w, moment = weight(1, 43, seed=62), correlated(43, seed=62)
    before = rounded(w, Scheme(2), moment, "gptq")  # one row, one group: its transpose is no copy
    scale = before.qparams.scale.clone()
    after = descent.refine(w, before, {"second_moment": moment}, descent.Options())
    assert not torch.equal(after.qparams.scale, scale)
    assert torch.equal(before.qparams.scale, scale)


def test_no_single_code_can_be_better_when_it_has_come_to_rest() -> None:
    scheme = Scheme(3, False, "group", 6)
    w, moment = weight(3, 18), correlated(18)
    options = descent.Options(passes=50, scales=False)
    q = descent.refine(w, rounded(w, scheme, moment), {"second_moment": moment}, options)
    H = damped(moment).double().numpy()
    aim, codes = w.double().numpy(), q.codes.double().numpy()
    scale = expand(q.qparams.scale, 3, 18, scheme).double().numpy()
    assert q.qparams.zero_point is not None
    zero = expand(q.qparams.zero_point, 3, 18, scheme).double().numpy()
    grid = np.arange(scheme.q_min, scheme.q_max + 1).astype(float)
    start = rounded(w, scheme, moment).codes.double().numpy()
    better_before = 0
    for place in np.ndindex(3, 18):
        assert reference.best_code(aim, codes, scale, zero, H, place, grid) == codes[place]
        better_before += reference.best_code(aim, start, scale, zero, H, place, grid) != start[place]
    assert better_before > 5  # so that the check can fail


def test_scales_are_those_of_least_squares() -> None:
    scheme = Scheme(4, True, "group", 8, scale_dtype="float32")
    w, moment = weight(4, 8), correlated(8)
    q = descent.refine(w, rounded(w, scheme, moment), {"second_moment": moment}, descent.Options(passes=30))
    H = damped(moment).double().numpy()
    scale = expand(q.qparams.scale, 4, 8, scheme).double().numpy()
    for row in range(4):
        best = reference.best_scale(
            w.double().numpy(), q.codes.double().numpy(), scale, np.zeros((4, 8)), H, row, slice(0, 8)
        )
        assert q.qparams.scale[row, 0].item() == pytest.approx(best, rel=1e-4)


def test_it_takes_off_what_gptq_leaves() -> None:
    scheme = Scheme(2, False, "group", 16)
    w, moment = weight(40, 64), correlated(64)
    before = rounded(w, scheme, moment, "gptq")
    after = descent.refine(w, before, {"second_moment": moment}, descent.Options())
    assert lost(w, after, damped(moment)) < 0.9 * lost(w, before, damped(moment))


def test_without_tokens_nothing_changes() -> None:
    w = weight(4, 8)
    before = rounded(w, Scheme(4, True, "group", 8), SecondMoment(torch.zeros(8, 8), 0))
    assert descent.refine(w, before, {"second_moment": SecondMoment(torch.zeros(8, 8), 0)}, descent.Options()) is before
    assert descent.refine(w, before, {}, descent.Options()) is before


@settings(max_examples=15, deadline=None)
@given(rows=st.integers(1, 4), supers=st.integers(1, 2), scales=st.booleans(), seed=st.integers(0, 99))
def test_on_two_levels_the_error_never_rises_and_all_numbers_can_be_stored(
    rows: int, supers: int, scales: bool, seed: int
) -> None:
    w, moment = weight(rows, 256 * supers, seed=seed), correlated(256 * supers, seed=seed)
    before = rounded(w, Q4_K, moment, "gptq")
    after = descent.refine(w, before, {"second_moment": moment}, descent.Options(passes=2, scales=scales))
    H = damped(moment)
    assert lost(w, after, H) <= lost(w, before, H) * (1 + 1e-5)
    old, new = before.qparams.levels, after.qparams.levels
    assert isinstance(old, Levels)
    assert isinstance(new, Levels)
    for unit in (new.d, new.d_min):
        assert torch.equal(unit, unit.half().float())
    assert bool((new.d > 0).all())
    assert bool((new.d_min >= 0).all())
    assert bool(((new.k >= 1) & (new.k <= 63) & (new.m <= 63)).all())
    assert new.k.dtype == new.m.dtype == torch.uint8
    assert scales or torch.equal(new.d, old.d)


def test_on_two_levels_every_number_is_that_of_least_squares() -> None:
    w, moment = weight(2, 256), correlated(256)
    options = descent.Options(passes=60)
    q = descent.refine(w, rounded(w, Q4_K, moment, "gptq"), {"second_moment": moment}, options)
    H = damped(moment).double().numpy()
    levels = q.qparams.levels
    assert levels is not None
    u = q.codes.double().numpy() + 8
    d, d_min, k, m = (part.double().numpy() for part in (levels.d, levels.d_min, levels.k, levels.m))
    for row in range(2):
        k_of, m_of = (np.repeat(part[row], 32) for part in (k, m))
        scaled, lowered = d[row] * k_of * u[row], d_min[row] * m_of
        aim = w[row].double().numpy()
        # half a step of float16 is 2^-12 of a number
        assert reference.best_number(aim + lowered, k_of * u[row], H) == pytest.approx(d[row, 0], rel=1.01 * 2**-11)
        assert reference.best_number(aim - scaled, -m_of, H) == pytest.approx(d_min[row, 0], rel=1.01 * 2**-11)
        for group in range(8):
            here = np.arange(256) // 32 == group
            others = aim - scaled + lowered
            best_k = reference.best_number(others + scaled * here, d[row] * u[row] * here, H)
            best_m = reference.best_number(others - lowered * here, -d_min[row] * here, H)
            assert abs(np.clip(best_k, 1, 63) - k[row, group]) <= 0.5 + 1e-3
            assert abs(np.clip(best_m, 0, 63) - m[row, group]) <= 0.5 + 1e-3


def test_on_two_levels_moving_scales_is_worth_something() -> None:
    w, moment = weight(16, 256), correlated(256)
    before = rounded(w, Q4_K, moment, "gptq")
    found = [
        lost(w, descent.refine(w, before, {"second_moment": moment}, descent.Options(scales=scales)), damped(moment))
        for scales in (False, True)
    ]
    assert found[1] < 0.99 * found[0] < 0.99 * lost(w, before, damped(moment))
