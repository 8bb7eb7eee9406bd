from __future__ import annotations

import torch

from zeropoint.observe.minmax import Observer


def test_the_extremes_of_all_batches_are_exact_and_include_zero() -> None:
    observer = Observer()
    observer.update(torch.tensor([[1.5, 3.0], [2.0, 7.25]]))
    assert (observer.result().low.item(), observer.result().high.item()) == (0.0, 7.25)
    observer.update(torch.tensor([[-0.125, 0.0]]))
    result = observer.result()
    assert (result.low.item(), result.high.item(), result.count) == (-0.125, 7.25, 3)
    assert result.low.dtype == torch.float32


def test_nothing_seen_is_an_empty_range() -> None:
    result = Observer().result()
    assert (result.low.item(), result.high.item(), result.count) == (0.0, 0.0, 0)
