"""The mean of x x^T over tokens: H of GPTQ up to a factor, and on its diagonal the importance of each input column.

Memory: one matrix (cols, cols) of float32, whatever the number of tokens; it becomes the result.

Sums are float32. Splitting into batches or merging in another order changes entry (i, j) by less than
1e-5 * sqrt(H_ii H_jj), the rounding of float32 sums; the number of threads changes nothing. The matrix is exactly
symmetric.

Only the upper triangle is computed, in panels of rows. OpenBLAS's syrk, which numpy calls for `a.T @ a`, halves the
work as well and is 10 to 30 % faster, but its last bits depend on the number of threads, and so would the codes of
GPTQ. (AMD EPYC with AVX2, one thread, 8192 x 1536 bfloat16, in GFLOP/s of the full product: torch `a.T @ a` 70,
panels of 192 90 to 107, syrk 119; the machine was shared.)
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.types import SecondMoment

_CHUNK = 8192  # tokens in float32 at once, when x is bfloat16
_PANEL = 192  # rows of the matrix


class Observer:
    """Accumulates x^T x."""

    def __init__(self) -> None:
        # float32 (cols, cols), once the number of columns is known. Below the panels on the diagonal it stays zero.
        self._sum: Tensor | None = None
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity, or values whose squares float32 cannot hold; nothing of `x` is kept
        then.
        """
        # one fast pass: if the square of the largest magnitude, once per token, is finite, so is every sum
        if len(x):
            bound = torch.stack(torch.aminmax(x)).float().square() * len(x)
            check_finite(bound, x)
        cols = x.shape[1]
        if self._sum is None:
            self._sum = torch.zeros(cols, cols)
        for chunk in torch.split(x.detach(), _CHUNK):
            a = chunk.float()
            for start in range(0, cols, _PANEL):
                end = min(start + _PANEL, cols)
                self._sum[start:end, start:].addmm_(a[:, start:end].T, a[:, start:])
        self._count += len(x)

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        if other._sum is not None:
            self._sum = other._sum.clone() if self._sum is None else self._sum.add_(other._sum)
            self._count += other._count

    def result(self) -> SecondMoment:
        """Hand over the mean: zeros when no token was seen, of no columns before the first update.

        No second matrix is made for it: the observer is at its end, and has seen nothing if it is asked again.
        """
        total, count = self._sum, self._count
        self._sum, self._count = None, 0
        if total is None:
            return SecondMoment(torch.zeros(0, 0), 0)
        cols = len(total)
        for start in range(0, cols, _PANEL):
            end = min(start + _PANEL, cols)
            square, right = total[start:end, start:end], total[start:end, end:]
            square.copy_(square.triu().div_(max(1, count)))
            square.add_(square.triu(1).T)
            total[end:, start:end] = right.div_(max(1, count)).T
        return SecondMoment(total, count)


def diagonal(moment: SecondMoment) -> Tensor:
    """Return the mean square of each column, float32 (cols,): the `importance` of choose_qparams. A view."""
    return moment.matrix.diagonal()
