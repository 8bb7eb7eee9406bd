from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from unit.rounding.test_gptq import weight
from zeropoint.qparams.affine import dequantize, quantize
from zeropoint.qparams.choose import choose_qparams
from zeropoint.refine.tuned import EDGE, Pulled, RelativeSteps, TunedGain, TunedLinear, summed
from zeropoint.types import QTensor, ScaleDtype, Scheme

Q4_K = Scheme(4, False, "group", 32, scale_dtype="float16", super_size=256)


def quantized(w: torch.Tensor, scheme: Scheme) -> QTensor:
    qparams = choose_qparams(w, scheme, "minmax")
    return QTensor(quantize(w, qparams, scheme), qparams, scheme)


SHAPES = {
    "rows": st.integers(1, 6),
    "cols": st.integers(1, 40),
    "bits": st.integers(2, 8),
    "symmetric": st.booleans(),
    "group_size": st.sampled_from([1, 7, 16, None]),
    "seed": st.integers(0, 99),
}


def scheme_of(bits: int, symmetric: bool, group_size: int | None, dtype: ScaleDtype = "bfloat16") -> Scheme:
    return Scheme(bits, symmetric, "channel" if group_size is None else "group", group_size, scale_dtype=dtype)


@settings(max_examples=60, deadline=None)
@given(**SHAPES, learns=st.booleans())
def test_it_begins_as_the_weight_that_is_there(
    rows: int, cols: int, bits: int, symmetric: bool, group_size: int | None, seed: int, learns: bool
) -> None:
    scheme = scheme_of(bits, symmetric, group_size)
    w = weight(rows, cols, seed=seed)
    q = quantized(w, scheme)
    # an aim far away: the latent begins at the edge, and still rounds to the code that is there
    tuned = TunedLinear(q, 3 * w if learns else None)
    assert torch.equal(tuned.weight(), dequantize(q.codes, q.qparams, scheme))
    assert torch.equal(tuned.qtensor().codes, q.codes)
    assert torch.equal(tuned.qtensor().qparams.scale, q.qparams.scale)
    if tuned.latent is not None:
        assert float((tuned.latent - q.codes).abs().max()) <= EDGE + 1e-4


@settings(max_examples=60, deadline=None)
@given(**SHAPES)
def test_gradients_are_those_of_the_formula(
    rows: int, cols: int, bits: int, symmetric: bool, group_size: int | None, seed: int
) -> None:
    """Against autograd on w = S_0 (1 + a) (u - Z), the function whose rounding is passed over."""
    scheme = scheme_of(bits, symmetric, group_size, "float32")
    w = weight(rows, cols, seed=seed)
    q = quantized(w, scheme)
    tuned = TunedLinear(q, w)
    slope = weight(rows, cols, seed=seed + 1)
    tuned.take(slope)

    size = cols if group_size is None else group_size
    a = torch.zeros_like(q.qparams.scale, requires_grad=True)
    u = q.codes.float().requires_grad_()
    scale = (q.qparams.scale * (1 + a)).repeat_interleave(size, dim=1)[:, :cols]
    zero = torch.zeros(1) if q.qparams.zero_point is None else q.qparams.zero_point.repeat_interleave(size, dim=1)
    ((u - (zero if zero.ndim == 1 else zero[:, :cols])) * scale * slope).sum().backward()
    assert a.grad is not None
    assert tuned.latent is not None
    torch.testing.assert_close(tuned.change.grad, a.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuned.latent.grad, u.grad, rtol=1e-5, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(**SHAPES, rate=st.floats(0, 2))
def test_however_far_it_moves_it_can_be_stored(
    rows: int, cols: int, bits: int, symmetric: bool, group_size: int | None, seed: int, rate: float
) -> None:
    scheme = scheme_of(bits, symmetric, group_size)
    w = weight(rows, cols, seed=seed)
    tuned = TunedLinear(quantized(w, scheme), w)
    steps = RelativeSteps([tuned.change], rate=0.4, steps=5)
    for seed_ in range(5):
        tuned.take(weight(rows, cols, seed=seed_))
        steps.step()
        tuned.move_codes(rate)
    q = tuned.qtensor()
    assert int(q.codes.min()) >= scheme.q_min
    assert int(q.codes.max()) <= scheme.q_max
    assert bool((q.qparams.scale > 0).all())
    assert torch.equal(q.qparams.scale, q.qparams.scale.to(torch.bfloat16).float())
    assert torch.equal(dequantize(q.codes, q.qparams, scheme), tuned.weight())


def test_a_gain_is_always_one_that_can_be_written() -> None:
    gain = TunedGain(torch.tensor([1.0, 0.3, 0.0]), torch.bfloat16)
    gain.take(torch.tensor([1.0, -1.0, 1.0]))
    steps = RelativeSteps([gain.change], rate=0.01, steps=3)
    steps.step()
    found = gain.weight()
    assert torch.equal(found, found.to(torch.bfloat16).float())
    assert float(found[0]) < 1.0
    assert float(found[1]) > 0.3
    assert float(found[2]) == 0.0
    state = gain.state()
    gain.change.add_(1.0)
    gain.restore(state)
    assert torch.equal(gain.weight(), found)


def test_windows_are_summed_in_their_order() -> None:
    big, small = torch.tensor([1e8]), torch.tensor([1.0])
    total = summed(Pulled(small, {"w": each.clone()}) for each in (big, small, -big))
    assert float(total["w"]) == pytest.approx(float((big + small) - big))


def test_a_gain_that_is_stored_less_an_offset_changes_with_it() -> None:
    stored = torch.tensor([0.0, -0.75, 0.5])
    gain = TunedGain(stored, torch.bfloat16, offset=1.0)
    assert torch.equal(gain.weight(), stored)
    gain.change.copy_(torch.tensor([0.5, 0.5, -0.25]))
    assert torch.equal(gain.weight() + 1, (stored + 1) * (1 + gain.change))
    gain.take(torch.tensor([2.0, 2.0, 2.0]))
    assert gain.change.grad is not None
    assert torch.equal(gain.change.grad, 2 * (stored + 1))


@pytest.mark.parametrize("learns", [False, True])
def test_on_two_levels_it_begins_as_the_weight_that_is_there(learns: bool) -> None:
    w = weight(3, 512)
    q = quantized(w, Q4_K)
    tuned = TunedLinear(q, 3 * w if learns else None)
    assert torch.equal(tuned.weight(), dequantize(q.codes, q.qparams, Q4_K))
    assert torch.equal(tuned.qtensor().codes, q.codes)


def test_on_two_levels_gradients_are_those_of_the_formula() -> None:
    """Against autograd on w = d (1 + a) k (u - q_min) - d_min (1 + b) m."""
    w = weight(3, 512)
    q = quantized(w, Q4_K)
    levels = q.qparams.levels
    assert levels is not None
    tuned = TunedLinear(q, w)
    slope = weight(3, 512, seed=9)
    tuned.take(slope)
    a, b = (torch.zeros(3, 2, requires_grad=True) for _ in range(2))
    u = q.codes.float().requires_grad_()
    d, d_min = (levels.d * (1 + a)).repeat_interleave(8, 1), (levels.d_min * (1 + b)).repeat_interleave(8, 1)
    scale, minimum = ((unit * small).repeat_interleave(32, 1) for unit, small in ((d, levels.k), (d_min, levels.m)))
    ((scale * (u + 8) - minimum) * slope).sum().backward()
    assert a.grad is not None
    assert b.grad is not None
    assert tuned.latent is not None
    torch.testing.assert_close(tuned.change.grad, torch.stack([a.grad, b.grad]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(tuned.latent.grad, u.grad, rtol=1e-5, atol=1e-6)


def test_on_two_levels_however_far_it_moves_it_can_be_stored() -> None:
    w = weight(4, 256)
    tuned = TunedLinear(quantized(w, Q4_K), w)
    before = tuned.qtensor().qparams.levels
    steps = RelativeSteps([tuned.change], rate=0.4, steps=5)
    for seed in range(5):
        tuned.take(weight(4, 256, seed=seed))
        steps.step()
        tuned.move_codes(0.5)
    levels = tuned.qtensor().qparams.levels
    assert levels is not None
    assert before is not None
    for unit, was in ((levels.d, before.d), (levels.d_min, before.d_min)):
        assert torch.equal(unit, unit.half().float())
        assert not torch.equal(unit, was)
    assert bool((levels.d > 0).all())
    assert torch.equal(levels.k, before.k)
    q = tuned.qtensor()
    assert torch.equal(dequantize(q.codes, q.qparams, Q4_K), tuned.weight())
