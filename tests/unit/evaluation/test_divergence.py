from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from reference.divergence import compare as reference_compare
from zeropoint.errors import NonFiniteError
from zeropoint.evaluation.divergence import TokenScores, compare


def logits(
    tokens: int, vocabulary: int, *, noise: float, peak: float = 5.0, shift: float = 0.0, seed: int = 0
) -> list[Tensor]:
    """Logits of two models and the targets. peak: how far a target stands out. shift: a constant, to change nothing."""
    random = torch.Generator().manual_seed(seed)
    targets = torch.randint(vocabulary, (tokens,), generator=random)
    reference = 3 * torch.randn(tokens, vocabulary, generator=random)
    reference[torch.arange(tokens), targets] += peak
    quantized = reference + noise * torch.randn(tokens, vocabulary, generator=random) + shift
    return [reference, quantized, targets]


def expected(reference: Tensor, quantized: Tensor, targets: Tensor) -> tuple[np.ndarray, ...]:
    return reference_compare(reference.double().numpy(), quantized.double().numpy(), targets.tolist())  # type: ignore[return-value]


@settings(max_examples=60, deadline=None)
@example(tokens=6, vocabulary=581, noise=0.1, peak=0.0, shift=-100.0, seed=0)
@example(tokens=10, vocabulary=18, noise=60.0, peak=5.0, shift=7.3, seed=75)
@given(
    tokens=st.integers(1, 12),
    vocabulary=st.integers(1, 700),
    noise=st.sampled_from([0.0, 1e-3, 0.1, 1.0, 10.0, 60.0]),
    peak=st.sampled_from([0.0, 5.0, 40.0]),
    shift=st.sampled_from([0.0, 7.3, -100.0]),
    seed=st.integers(0, 99),
)
def test_scores_equal_their_definitions(
    *, tokens: int, vocabulary: int, noise: float, peak: float, shift: float, seed: int
) -> None:
    case = logits(tokens, vocabulary, noise=noise, peak=peak, shift=shift, seed=seed)
    got = compare(*case)
    kl, nll_reference, nll_quantized, agrees = expected(*case)
    # float32 logits near 100 are 4e-6 apart, and what is lost in m - l there is lost in the losses too
    precision = 1e-5 if abs(shift) > 10 else 3e-6
    np.testing.assert_allclose(got.kl, kl, rtol=1e-4, atol=precision)
    np.testing.assert_allclose(got.nll_reference, nll_reference, rtol=1e-6, atol=3e-6)
    # half a step of m - l at the target, half a step in its mean, and as much again where they are put together: a step
    # is 1.5e-5 where noise of 60 makes them 128 and more
    step = float(np.spacing((case[1] - case[0]).abs().max().numpy()))
    np.testing.assert_allclose(got.nll_quantized, nll_quantized, rtol=1e-6, atol=max(2 * precision, 2 * step))
    assert bool((got.nll_quantized >= 0).all())
    assert got.agrees.tolist() == agrees
    assert bool((got.kl >= 0).all())


@pytest.mark.parametrize("noise", [1e-4, 1e-3, 1e-2])
def test_small_divergences_keep_their_digits_where_the_textbook_form_gives_noise(noise: float) -> None:
    reference, quantized, targets = logits(16, 49_152, noise=noise)
    kl = expected(reference, quantized, targets)[0]
    assert kl.max() < 100 * noise**2
    got = compare(reference, quantized, targets).kl.double().numpy()
    np.testing.assert_allclose(got, kl, rtol=1e-3, atol=1e-13)  # atol: the definition's own cancellation in float64
    log_p, log_q = reference.log_softmax(-1), quantized.log_softmax(-1)
    textbook = (log_p.exp() * (log_p - log_q)).sum(-1).double().numpy()
    assert np.abs(got - kl).max() < 0.01 * np.abs(textbook - kl).max()


def test_losses_of_a_large_vocabulary_are_exact_to_the_last_digits() -> None:
    # the sum inside torch's softmax is off by 2e-5 here
    case = logits(8, 262_144, noise=0.1, peak=0.0, shift=7.3)
    got = compare(*case)
    _, nll_reference, nll_quantized, _ = expected(*case)
    np.testing.assert_allclose(got.nll_reference, nll_reference, rtol=1e-6)
    np.testing.assert_allclose(got.nll_quantized, nll_quantized, rtol=1e-6)


def test_equal_models_differ_in_nothing() -> None:
    reference, _, targets = logits(9, 500, noise=0.0)
    got = compare(reference, reference.clone(), targets)
    assert not got.kl.any()
    assert torch.equal(got.nll_reference, got.nll_quantized)
    assert bool(got.agrees.all())


def test_a_token_that_only_the_ruined_model_believes_in_is_not_lost() -> None:
    # its probability is e^-200 in the reference, which float32 cannot hold, and 1/2 in the quantized model
    reference, quantized = torch.zeros(2, 50), torch.zeros(2, 50)
    reference[0, 7], quantized[0, 7] = -200.0, math.log(49)
    got = compare(reference, quantized, torch.tensor([7, 0]))
    np.testing.assert_allclose(got.kl, [math.log(2), 0.0], rtol=1e-6)
    np.testing.assert_allclose(got.nll_quantized, [math.log(2), math.log(50)], rtol=1e-6)
    np.testing.assert_allclose(got.nll_reference, [200 + math.log(49), math.log(50)], rtol=1e-6)


def test_of_equal_logits_the_first_counts_as_the_likeliest() -> None:
    got = compare(
        torch.tensor([[1.0, 1.0, 0.0]] * 2), torch.tensor([[2.0, 2.0, 0.0], [1.0, 2.0, 0.0]]), torch.tensor([0, 0])
    )
    assert got.agrees.tolist() == [True, False]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_compared_in_float32(dtype: torch.dtype) -> None:
    reference, quantized, targets = logits(5, 300, noise=0.5)
    got = compare(reference.to(dtype), quantized.to(dtype), targets)
    assert torch.equal(got.kl, compare(reference.to(dtype).float(), quantized.to(dtype).float(), targets).kl)


def test_the_logits_are_left_as_they_are() -> None:
    case = logits(7, 300, noise=1.0)
    copies = [tensor.clone() for tensor in case]
    compare(*case)
    assert all(torch.equal(a, b) for a, b in zip(case, copies, strict=True))


def test_chunks_joined_equal_the_whole_and_are_plain_arrays() -> None:
    reference, quantized, targets = logits(11, 262_144, noise=0.3)  # more rows than are worked on at once
    whole = compare(reference, quantized, targets)
    parts = [compare(reference[s], quantized[s], targets[s]) for s in (slice(0, 3), slice(3, 11))]
    joined = TokenScores.join(parts)
    assert len(joined) == len(whole) == 11
    for name in ("kl", "nll_reference", "nll_quantized"):
        np.testing.assert_allclose(getattr(joined, name).numpy(), getattr(whole, name).numpy(), rtol=1e-6, atol=1e-7)
    assert joined.agrees.numpy().tolist() == whole.agrees.tolist()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("model", "name"), [(0, "reference"), (1, "quantized")])
def test_logits_that_are_not_finite_are_refused_with_model_and_position(bad: float, model: int, name: str) -> None:
    case = logits(6, 40, noise=0.1)
    case[model][4, 3] = bad
    with pytest.raises(NonFiniteError, match=f"the {name} model's logits at position 4 of 6"):
        compare(*case)
