from __future__ import annotations

import torch

from zeropoint.observe.channel_mean import Observer


def test_each_column_has_its_mean_over_all_tokens() -> None:
    observer = Observer()
    observer.update(torch.tensor([[1.0, -3.0], [2.0, 3.0]]))
    observer.update(torch.tensor([[6.0, 1.5]]).bfloat16())
    assert observer.result().values.tolist() == [3.0, 0.5]
    assert observer.result().values.dtype == torch.float64
    assert observer.result().count == 3


def test_a_small_value_is_not_lost_beside_a_large_one() -> None:
    observer = Observer()
    observer.update(torch.tensor([[1e8], [0.25], [-1e8], [0.25]]))
    assert observer.result().values.tolist() == [0.125]


def test_nothing_seen_has_no_columns_and_no_tokens_has_zeros() -> None:
    observer = Observer()
    assert (observer.result().values.shape, observer.result().count) == ((0,), 0)
    observer.update(torch.zeros(0, 4))
    assert observer.result().values.tolist() == [0.0] * 4
