"""A few tokens that stand for all: what the error of a layer's output is measured on when a range is chosen.

512 different tokens in two strata, by the hash of their values, so that batches and merging change nothing:

    the largest    64 tokens with the largest magnitudes, each standing for itself and its equals
    of the rest    the 448 with the smallest hashes: a sample without replacement, standing for all others

Outputs are dominated by few large tokens, and it is these that a range clips: a plain sample of 512 would miss most of
them. A token that is kept at the end was kept since it first came, so that its count of equals is exact.

Memory: 512 rows of float32, twice while a batch is taken in.
Source: keeping the smallest hashes is bottom-k sampling, Cohen and Kaplan 2007, "Summarizing data using bottom-k
sketches".
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from zeropoint.observe._finite import check_finite
from zeropoint.observe._row_hash import row_hashes
from zeropoint.types import TokenSample

LARGEST = 64
OTHERS = 448
_NOBODY = torch.iinfo(torch.int64).max


class Observer:
    """Keeps LARGEST + OTHERS tokens."""

    def __init__(self) -> None:
        # Once the number of columns is known: rows (LARGEST + OTHERS, cols), those of a stratum in its own order.
        self._rows: Tensor | None = None
        self._hashes = torch.full((LARGEST + OTHERS,), _NOBODY)
        self._equals = torch.zeros(LARGEST + OTHERS, dtype=torch.float64)  # 0: the place is empty
        self._count = 0

    def update(self, x: Tensor) -> None:
        """Take in activations (tokens, cols), float32 or bfloat16.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        self._reserve(x.shape[1])
        if x.numel():
            check_finite(torch.stack(torch.aminmax(x)), x)
            hashes, index, equals = torch.unique(row_hashes(x), return_inverse=True, return_counts=True)
            at = torch.full(hashes.shape, len(x)).scatter_reduce(0, index, torch.arange(len(x)), "amin")
            magnitudes = torch.linalg.vector_norm(x, torch.inf, dim=1).float()[at]
            largest = torch.argsort(magnitudes, descending=True, stable=True)[:LARGEST]
            for stratum, few in ((slice(LARGEST), largest), (slice(LARGEST, None), slice(OTHERS))):
                self._take(stratum, x.detach()[at[few]].float(), hashes[few], equals[few].double())
        self._count += len(x)

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        if other._rows is not None:
            self._reserve(other._rows.shape[1])
            for stratum in (slice(LARGEST), slice(LARGEST, None)):
                there = other._equals[stratum] > 0
                rows, hashes, equals = (t[stratum][there] for t in (other._rows, other._hashes, other._equals))
                self._take(stratum, rows, hashes, equals)
            self._count += other._count

    def result(self) -> TokenSample:
        """Return the tokens kept so far; of no columns before the first update."""
        if self._rows is None:
            return TokenSample(torch.zeros(0, 0), torch.zeros(0, dtype=torch.float64), 0)
        largest = torch.arange(LARGEST)[self._equals[:LARGEST] > 0]
        others = LARGEST + torch.nonzero(self._equals[LARGEST:] > 0).flatten()
        others = others[~torch.isin(self._hashes[others], self._hashes[largest])]
        weights = self._equals.clone()
        if len(others):
            weights[others] *= (self._count - weights[largest].sum()) / weights[others].sum()
        kept = torch.cat([largest, others])
        return TokenSample(self._rows[kept], weights[kept], self._count)

    def _reserve(self, cols: int) -> None:
        if self._rows is None:
            self._rows = torch.zeros(LARGEST + OTHERS, cols)

    def _take(self, stratum: slice, rows: Tensor, hashes: Tensor, equals: Tensor) -> None:
        """Keep of a stratum and the tokens given, each once, as many as there are places for."""
        assert self._rows is not None
        there = self._equals[stratum] > 0
        rows = torch.cat([self._rows[stratum][there], rows])
        hashes, index = torch.unique(torch.cat([self._hashes[stratum][there], hashes]), return_inverse=True)
        at = torch.full(hashes.shape, len(rows)).scatter_reduce(0, index, torch.arange(len(rows)), "amin")
        merged = torch.zeros(len(hashes), dtype=torch.float64)
        merged.scatter_add_(0, index, torch.cat([self._equals[stratum][there], equals]))
        order = torch.arange(len(hashes))
        if stratum.start is None:
            order = torch.argsort(torch.linalg.vector_norm(rows[at], torch.inf, dim=1), descending=True, stable=True)
        order = order[: len(there)]
        places = (stratum.start or 0) + torch.arange(len(order))
        self._rows[places] = rows[at[order]]
        self._hashes[places] = hashes[order]
        self._equals[places] = merged[order]
