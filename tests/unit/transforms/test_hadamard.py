from __future__ import annotations

from functools import reduce

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from reference.rotate import sylvester
from zeropoint.transforms.hadamard import hadamard_factors, paley, rotation

# those of real models: SmolLM2 576 and 960, Qwen2 896 and 1536, Llama 2048 and 3072, TinyLlama's heads 64
SIZES = (1, 2, 4, 12, 20, 28, 36, 44, 48, 60, 64, 80, 96, 576, 896, 960, 1536, 2048, 3072)


def kronecker(size: int) -> torch.Tensor:
    factors = hadamard_factors(size)
    assert factors is not None
    return reduce(torch.kron, factors)


@pytest.mark.parametrize("size", SIZES)
def test_the_factors_make_a_hadamard_matrix(size: int) -> None:
    matrix = kronecker(size)
    assert matrix.shape == (size, size)
    assert bool((matrix.abs() == 1).all())
    assert torch.equal(matrix @ matrix.T, size * torch.eye(size, dtype=torch.float64))


@pytest.mark.parametrize("order", [2, 8, 64, 128])
def test_powers_of_two_are_sylvesters(order: int) -> None:
    assert np.array_equal(kronecker(order).numpy(), sylvester(order))


@pytest.mark.parametrize(("order", "constructed"), [(12, True), (28, True), (36, True), (92, False), (18, False)])
def test_paley_constructs_what_a_prime_allows(order: int, constructed: bool) -> None:
    assert (paley(order) is not None) is constructed  # 92 = 91 + 1 = 2 (45 + 1), and neither 91 nor 45 is a prime


@pytest.mark.parametrize("size", [3, 18, 50, 90])
def test_where_no_construction_fits_the_matrix_is_random(size: int) -> None:
    assert hadamard_factors(size) is None
    matrix = rotation(size, 0).matrix()
    assert torch.allclose(matrix @ matrix.T, torch.eye(size, dtype=torch.float64), atol=1e-12)
    assert float(matrix.abs().max()) < 1


@given(size=st.integers(1, 160), rows=st.integers(1, 5), seed=st.integers(0, 2**63 - 1))
@settings(max_examples=60, deadline=None)
def test_a_product_is_that_with_the_matrix_and_can_be_undone(size: int, rows: int, seed: int) -> None:
    q = rotation(size, seed)
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed % 1000))
    gain = torch.linspace(0.5, 2.0, size)
    assert torch.allclose(q.rotate(x).double(), x.double() @ q.matrix(), atol=1e-6)
    assert torch.allclose(q.rotate(x, gain).double(), (x.double() * gain.double()) @ q.matrix(), atol=2e-6)
    assert torch.allclose(q.undo(q.rotate(x)), x, atol=1e-6)


def test_many_rows_are_rotated_slab_by_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(3, 50, 36, generator=torch.Generator().manual_seed(0))
    whole = rotation(36, 0).rotate(x)
    monkeypatch.setattr("zeropoint.transforms.hadamard.SLAB_VALUES", 36 * 7)
    assert torch.allclose(rotation(36, 0).rotate(x), whole, atol=1e-6)
    assert whole.shape == x.shape


def test_an_outlier_is_spread_over_all_channels() -> None:
    x = torch.zeros(1, 576)
    x[0, 7] = 24.0
    assert torch.allclose(rotation(576, 3).rotate(x).abs(), torch.ones(1, 576))


def test_another_seed_is_another_rotation() -> None:
    assert torch.equal(rotation(64, 5).matrix(), rotation(64, 5).matrix())
    assert not torch.equal(rotation(64, 5).signs, rotation(64, 6).signs)
