"""The mean of x x^T over tokens: H of GPTQ up to a factor, and on its diagonal the importance of each input column.

Memory: a matrix (cols, cols) of float32, and two more during an update, whatever the number of tokens.

Sums are float32, over chunks of a fixed number of tokens, so memory for a bfloat16 batch in float32 is bounded.
Splitting into batches or merging in another order changes entry (i, j) by less than 1e-5 * sqrt(H_ii H_jj), the
rounding of float32 sums. The matrix is exactly symmetric.
"""

from __future__ import annotations

from typing import Self

import numpy as np
import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.types import SecondMoment

_CHUNK = 8192  # tokens


class Observer:
    """Accumulates x^T x."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None  # float32 (cols, cols), once the number of columns is known
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity, or values whose squares float32 cannot hold; nothing of `x` is kept
        then.
        """
        first, *others = torch.split(x, _CHUNK)
        product = _gram(first)
        for chunk in others:
            product.add_(_gram(chunk))
        check_finite(product.diagonal(), x)
        self._take(product, len(x))

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        if other._sum is not None:
            self._take(other._sum.clone(), other._count)

    def result(self) -> SecondMoment:
        """Return the mean so far: zeros when no token was seen, of no columns before the first update."""
        if self._sum is None:
            return SecondMoment(torch.zeros(0, 0), 0)
        return SecondMoment(self._sum / max(1, self._count), self._count)

    def _take(self, product: Tensor, count: int) -> None:
        self._sum = product if self._sum is None else self._sum.add_(product)
        self._count += count


def diagonal(moment: SecondMoment) -> Tensor:
    """Return the mean square of each column, float32 (cols,): the `importance` of choose_qparams. A view."""
    return moment.matrix.diagonal()


def _gram(x: Tensor) -> Tensor:
    """Return x^T x, float32 (cols, cols), exactly symmetric.

    numpy's `a.T @ a` and not torch's: numpy recognises the product of a matrix with its own transpose and calls
    BLAS's syrk, which computes one triangle and mirrors it: half the work.
    """
    a = x.detach().float().numpy()
    with np.errstate(all="ignore"):  # NaN and overflow are found, and named, by the caller
        product: np.ndarray[tuple[int, int], np.dtype[np.float32]] = a.T @ a
    return torch.from_numpy(product)
