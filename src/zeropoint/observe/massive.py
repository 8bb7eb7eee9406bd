"""Massive activations: the few places (position in the window, channel) with values far beyond all others.

In many models one or two channels carry values a thousand times the median at the first token of whatever they read,
and everything static has to serve them. They are no statistic of single tokens: a position is known only where whole
windows come. So this is no `Observer`, which takes rows: it takes windows.

Of every place the value with the largest magnitude counts, and the 64 largest places are kept. A place that is one of
the 64 at the end has been one since its largest value came, so that neither batches nor merging change the result.

Memory: some kilobytes, and 4 bytes for each position, plus a batch's magnitudes while it is looked at.
Source: Sun et al. 2024, arXiv:2402.17762.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from zeropoint.observe import _octaves
from zeropoint.observe._finite import check_finite
from zeropoint.types import MASSIVE_RATIO

_KEPT = 64


@dataclass(frozen=True)
class Place:
    """One place and its largest value. ratio: of its magnitude to the median magnitude of all values, 0 if that is 0.

    position: of the token in its window, from 0. channel: the column of the linear's input.
    """

    position: int
    channel: int
    value: float
    ratio: float

    @property
    def massive(self) -> bool:
        """Whether the value is called a massive activation."""
        return self.ratio >= MASSIVE_RATIO


class MassiveActivations:
    """Keeps the largest places, the mean of the largest magnitude at each position, and the median of all."""

    def __init__(self) -> None:
        self._values = torch.zeros(0)  # (kept,), by falling magnitude
        self._places = torch.zeros(0, 2, dtype=torch.int64)  # (kept, position and channel)
        self._counts = torch.zeros(_octaves.BINS, dtype=torch.float64)
        self._by_position = torch.zeros(0, dtype=torch.float64)  # (time,), sums over windows
        self._windows = 0

    def update(self, x: Tensor) -> None:
        """Take in whole windows (batch, time, cols), float32 or bfloat16, all of one length.

        Raises: NonFiniteError for NaN or infinity; nothing of `x` is kept then.
        """
        low, high = (end.float() for end in torch.aminmax(x, dim=0))  # (time, cols)
        check_finite(torch.stack([low, high]), x)
        extreme = torch.where(-low > high, low, high)
        largest = torch.topk(extreme.abs().flatten(), min(_KEPT, extreme.numel())).indices
        places = torch.stack([largest // x.shape[-1], largest % x.shape[-1]], dim=1)
        self._keep(extreme.flatten()[largest], places)
        self._counts += _octaves.count_magnitudes(x)
        of_tokens = torch.linalg.vector_norm(x.float(), torch.inf, dim=-1)  # (batch, time)
        self._add_positions(of_tokens.double().sum(dim=0), len(x))

    def merge(self, other: Self) -> None:
        """Take in all that `other` has seen."""
        self._keep(other._values, other._places)
        self._counts += other._counts
        if other._windows:
            self._add_positions(other._by_position, other._windows)

    def median(self) -> float:
        """Return the median magnitude of all values, to 1/32 of itself."""
        return _octaves.quantile(self._counts, 0.5)

    def largest(self, count: int) -> tuple[Place, ...]:
        """Return the largest places by falling magnitude, at most 64."""
        median = self.median()
        return tuple(
            Place(position, channel, value, abs(value) / median if median else 0.0)
            for (position, channel), value in zip(
                self._places[:count].tolist(), self._values[:count].tolist(), strict=True
            )
        )

    def first_token_ratio(self) -> float | None:
        """Return the mean largest magnitude of first tokens over that of all others; None if there are no others."""
        others = self._by_position[1:]
        return float(self._by_position[0] / others.mean()) if bool(others.any()) else None

    def _keep(self, values: Tensor, places: Tensor) -> None:
        values, places = torch.cat([self._values, values]), torch.cat([self._places, places])
        found = zip(values.tolist(), map(tuple, places.tolist()), strict=True)
        ordered = sorted(found, key=lambda one: (-abs(one[0]), one[1], -one[0]))
        first: dict[tuple[int, ...], float] = {}
        for value, place in ordered:
            first.setdefault(place, value)
        self._values = torch.tensor(list(first.values())[:_KEPT])
        self._places = torch.tensor(list(first)[:_KEPT], dtype=torch.int64).view(-1, 2)

    def _add_positions(self, sums: Tensor, windows: int) -> None:
        self._by_position = self._by_position + sums if self._windows else sums.clone()
        self._windows += windows
