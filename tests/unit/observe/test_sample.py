import pytest
import torch

from zeropoint.observe.sample import LARGEST, OTHERS, Observer


def heavy(tokens: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(tokens, 4, generator=torch.Generator().manual_seed(seed)).pow(3)


def test_few_tokens_are_all_kept_and_equal_ones_counted() -> None:
    x = heavy(100)
    one = Observer()
    one.update(torch.cat([x, x[:30], x[:1]]))
    found = one.result()
    assert len(found.rows) == 100
    order = [int((found.rows == row).all(1).nonzero()) for row in x]
    assert found.weights[order].tolist() == [3.0] + [2.0] * 29 + [1.0] * 70


def test_of_many_tokens_the_largest_are_kept_and_the_weights_are_all_of_them() -> None:
    x = heavy(20_000)
    one = Observer()
    for part in x.split(777):
        one.update(part)
    found = one.result()
    assert LARGEST + OTHERS - LARGEST <= len(found.rows) <= LARGEST + OTHERS
    assert float(found.weights.sum()) == pytest.approx(20_000)
    magnitudes = x.abs().amax(1)
    assert torch.equal(found.rows[:LARGEST].abs().amax(1), magnitudes.sort(descending=True).values[:LARGEST])
    assert (found.weights[:LARGEST] == 1).all()
    energy = float(found.rows.double().square().sum(1) @ found.weights) / 20_000
    assert energy == pytest.approx(float(x.double().square().sum(1).mean()), rel=0.15)  # the plain sample: 40 %
    assert len(found.rows.unique(dim=0)) == len(found.rows)
