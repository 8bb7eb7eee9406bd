from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeropoint.errors import NonFiniteError
from zeropoint.observe import second_moment
from zeropoint.observe.second_moment import Observer, diagonal


def tokens(count: int, cols: int, seed: int = 0) -> torch.Tensor:
    spread = torch.logspace(-2, 2, cols)  # columns of very different size, as behind a norm
    return torch.randn(count, cols, generator=torch.Generator().manual_seed(seed)) * spread


@settings(deadline=None, max_examples=30)
@given(count=st.integers(1, 400), cols=st.integers(1, 40), batch=st.integers(1, 200), seed=st.integers(0, 99))
def test_it_is_the_mean_of_x_x_transposed(count: int, cols: int, batch: int, seed: int) -> None:
    x, observer = tokens(count, cols, seed), Observer()
    for part in x.split(batch):
        observer.update(part)
    found = observer.result()
    got, exact = found.matrix, x.double().T @ x.double() / count
    size = (exact.diagonal()[:, None] * exact.diagonal()).sqrt()
    assert bool(((got - exact).abs() <= 1e-5 * size).all())  # the tolerance that the module states
    assert found.count == count


def test_the_matrix_is_exactly_symmetric_and_has_no_negative_eigenvalue_beyond_rounding() -> None:
    observer = Observer()
    observer.update(tokens(50, 96).bfloat16())  # rank 50 of 96
    observer.update(tokens(7, 96, seed=1))
    matrix = observer.result().matrix
    assert matrix.dtype == torch.float32
    assert torch.equal(matrix, matrix.T)
    values = torch.linalg.eigvalsh(matrix.double())
    assert values.min() > -1e-5 * values.max()


def test_a_batch_longer_than_a_chunk_is_summed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    x, whole, parts = tokens(100, 8), Observer(), Observer()
    whole.update(x)
    monkeypatch.setattr(second_moment, "_CHUNK", 30)
    parts.update(x)
    one, other = whole.result(), parts.result()
    assert torch.allclose(one.matrix, other.matrix, rtol=1e-5, atol=1e-4)
    assert one.count == other.count == 100


@pytest.mark.parametrize("cols", [1, 5, 15, 16, 17, 50])
def test_panels_of_rows_cover_the_whole_matrix(cols: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(second_moment, "_PANEL", 16)
    x, observer = torch.randn(40, cols, generator=torch.Generator().manual_seed(0)), Observer()
    observer.update(x)
    found = observer.result().matrix
    assert torch.allclose(found, x.T @ x / 40, atol=1e-5)
    assert torch.equal(found, found.T)


@pytest.mark.parametrize("cols", [192, 577])
def test_the_number_of_threads_does_not_change_a_bit(cols: int) -> None:
    x, before, found = tokens(1024, cols), torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            observer = Observer()
            observer.update(x)
            found.append(observer.result().matrix)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_diagonal_is_the_mean_square_of_each_column() -> None:
    x, observer = tokens(64, 5), Observer()
    observer.update(x)
    moment = observer.result()
    assert torch.allclose(diagonal(moment), x.square().mean(0), rtol=1e-5)
    assert diagonal(moment).data_ptr() == moment.matrix.data_ptr()


def test_no_token_gives_zeros_and_a_count_of_zero() -> None:
    observer = Observer()
    assert (observer.result().matrix.shape, observer.result().count) == ((0, 0), 0)
    observer.update(torch.zeros(0, 3))
    found = observer.result()
    assert torch.equal(found.matrix, torch.zeros(3, 3))
    assert found.count == 0


def test_the_result_is_the_sum_itself_and_the_end_of_the_observer() -> None:
    observer = Observer()
    observer.update(tokens(64, 5))
    summed = observer._sum
    assert summed is not None
    assert observer.result().matrix.data_ptr() == summed.data_ptr()
    assert observer.result().count == 0


def test_a_square_that_overflows_is_named_as_such() -> None:
    with pytest.raises(NonFiniteError, match=r"activations reach 1e\+25, whose square float32 cannot hold"):
        Observer().update(torch.tensor([[1e25, 1.0]]))
