import torch

from zeropoint.observe._row_hash import row_hashes
from zeropoint.observe.moving_average import BATCHES, Observer


def test_each_batch_has_the_extremes_of_its_tokens_and_all_batches_get_some() -> None:
    x = torch.randn(4000, 5, generator=torch.Generator().manual_seed(0)) + 0.5
    one = Observer()
    one.update(x)
    found = one.result()
    batch = row_hashes(x) % BATCHES
    for index in range(BATCHES):
        rows = x[batch == index]
        assert found.tokens[index] == len(rows) > 0
        assert found.low[index] == rows.min().clamp(max=0)
        assert found.high[index] == rows.max().clamp(min=0)


def test_equal_rows_have_equal_hashes_and_others_have_others() -> None:
    x = torch.randn(5000, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert torch.equal(row_hashes(x), row_hashes(x.float()))
    assert torch.equal(row_hashes(torch.tensor([[0.0, 1.0]])), row_hashes(torch.tensor([[-0.0, 1.0]])))
    assert len(row_hashes(x).unique()) == len(x.unique(dim=0))
    assert row_hashes(x[:, [1, 0, 2]])[0] != row_hashes(x)[0]
