"""What is shown of a linear's input: some tokens, and how far its mean squares depend on the windows that were drawn.

With a_j and b_j the mean squares of column j in the even and in the odd windows of the calibration,

    disagreement = |a - b| / |a + b|        Euclidean norms over the columns

which falls like the root of the number of windows. It takes one more look at each batch while statistics see it, and
no other pass; memory: SAMPLE_VALUES floats, and two numbers for each column.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAMPLE_VALUES = 1 << 15
"""Of the tokens that are kept, at most, but for the first of them."""

SAMPLE_TOKENS = 64
"""Tokens that are kept, at most."""


class Glance:
    """Looks at the batches as they come. batches: how many there will be."""

    def __init__(self, batches: int) -> None:
        self._batches = max(1, batches)
        self._squares = [np.zeros(0), np.zeros(0)]
        self._windows = self._seen = 0
        self._tokens = [0, 0]
        self._kept: list[Tensor] = []

    def update(self, x: Tensor) -> None:
        """Take in a batch: float32 or bfloat16 (windows, time, cols), finite."""
        windows, time, cols = x.shape
        squares = _squares(x)  # (windows, cols)
        for half in (0, 1):
            mine = squares[(half + self._windows) % 2 :: 2]
            self._squares[half] = mine.sum(axis=0) + (self._squares[half] if self._squares[half].size else 0.0)
            self._tokens[half] += len(mine) * time
        self._windows += windows
        rows = x.detach().reshape(-1, cols)
        tokens = max(1, min(SAMPLE_TOKENS, SAMPLE_VALUES // cols))
        few = (self._seen + 1) * tokens // self._batches - self._seen * tokens // self._batches
        generator = torch.Generator().manual_seed(self._seen)
        self._kept.append(rows[torch.randperm(len(rows), generator=generator)[:few]].float())
        self._seen += 1

    @property
    def sample(self) -> Tensor:
        """Some of the tokens, as many of each batch: float32 (kept, cols), kept = 0 before the first one."""
        return torch.cat(self._kept) if self._kept else torch.zeros(0, 0)

    def mean_squares(self) -> NDArray[np.float64] | None:
        """Return the mean square of each column, float64 (cols,); None before the first token."""
        tokens = sum(self._tokens)
        both: NDArray[np.float64] = self._squares[0] + self._squares[1]
        return both / tokens if tokens else None

    def disagreement(self) -> float | None:
        """Return how far even and odd windows are apart, in [0, 1]; None unless there are both."""
        if not all(self._tokens):
            return None
        even, odd = (squares / tokens for squares, tokens in zip(self._squares, self._tokens, strict=True))
        together = float(np.linalg.norm(even + odd))
        return float(np.linalg.norm(even - odd)) / together if together > 0 else 0.0


def _squares(x: Tensor) -> NDArray[np.float64]:
    """Return the sum of squares of each column of each window: float64 (windows, cols)."""
    values = x.detach().float().numpy()
    # float32 and one thread: a third of the time of torch's sum of squares, and an order that no thread changes
    found: NDArray[np.float64] = np.einsum("wtc,wtc->wc", values, values).astype(np.float64)
    if not np.isfinite(found).all():
        found = np.einsum("wtc,wtc->wc", values, values, dtype=np.float64)
    return found
