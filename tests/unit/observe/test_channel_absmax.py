from __future__ import annotations

import torch

from zeropoint.observe.channel_absmax import Observer


def test_each_column_has_its_largest_magnitude() -> None:
    observer = Observer()
    observer.update(torch.tensor([[1.0, -3.0, 0.0], [-2.0, 2.0, 0.0]]))
    observer.update(torch.tensor([[0.5, 2.5, -0.25]]))
    assert observer.result().values.tolist() == [2.0, 3.0, 0.25]
    assert observer.result().count == 3


def test_nothing_seen_has_no_columns_and_no_tokens_has_zeros() -> None:
    observer = Observer()
    assert (observer.result().values.shape, observer.result().count) == ((0,), 0)
    observer.update(torch.zeros(0, 4))
    assert observer.result().values.tolist() == [0.0] * 4
