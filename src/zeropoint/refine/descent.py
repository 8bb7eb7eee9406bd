"""Coordinate descent: one code after the other takes the best value for what all others are, and scales follow.

With E = T - W' the error and H the second moment of the input, the layer loses tr(E H E^T). For one code, all others
fixed, the best real value is one division away, and so is the best scale of a group for its codes:

    q_ij <- clamp(round(q_ij + (E H)_ij / (H_jj S) ))
    S_ig <- S_ig + (u G) / (u H_gg u^T)         u = q_ig - Z_ig, the codes of row i in group g;  G = (E H)_ig

The scale is rounded to the dtype that it is stored in before it is judged, and taken only if the error falls. On two
levels (qparams/levels.py) S = d k and M = d_min m, and each of the four numbers moves so in its turn, all others fixed:
k and m group by group, d and d_min behind the last group of theirs. What is said of S above holds for each, with what
the values change by when it changes by 1 in the place of u: d u, -d_min, k u and -m. GPTQ
never looks back at a column; this does, and from GPTQ's codes a few passes take off what it has left (docs/log.md). All
rows are worked on at once; H is damped as GPTQ's is.

Source: coordinate descent on this objective is in Behdin et al. 2023, arXiv:2309.01885 (QuantEase); scales by least
squares are ordinary normal equations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.from_range import as_stored
from zeropoint.qparams.levels import MOST, as_half, qparams_of
from zeropoint.types import Levels, QTensor, SecondMoment, Stats

SCOPE = "layer"

_BLOCK = 128
"""Columns between two products with H."""


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs: passes over all columns; damping as in GPTQ; scales: whether they move too."""

    passes: Annotated[int, Meta(ge=1, le=1000)] = 3
    damping: Annotated[float, Meta(gt=0, le=1e6)] = 0.01
    scales: bool = True


def refine(aim: Tensor, qtensor: QTensor, stats: Mapping[str, Stats], options: Options) -> QTensor:
    """Return codes and scales with an error that is not larger; the same without statistics.

    aim: T, what the codes stand for at best: float32 (rows, cols). stats["second_moment"]: of the layer's input.
    """
    moment = stats.get("second_moment")
    if not isinstance(moment, SecondMoment) or moment.count == 0:
        return qtensor
    H = moment.matrix.clone()
    H.diagonal().add_(options.damping * float(H.diagonal().mean()))
    if not bool((H.diagonal() > 0).all()):
        return qtensor
    descent = _Descent(aim, qtensor, H) if qtensor.qparams.levels is None else _DescentOfLevels(aim, qtensor, H)
    for _ in range(options.passes):
        descent.run(scales=options.scales and qtensor.scheme.granularity != "tensor")
    return descent.result()


class _Descent:
    """The codes and scales of one weight on their way down. Works on transposes: a column is a row."""

    def __init__(self, aim: Tensor, qtensor: QTensor, H: Tensor) -> None:
        self._qtensor, self._H, self._scheme = qtensor, H, qtensor.scheme
        rows, cols = qtensor.shape
        groups = qtensor.qparams.scale.shape[1]
        self._size = self._scheme.group_cols(cols)
        self._codes = qtensor.codes.float().T.contiguous()  # (cols, rows)
        scale = qtensor.qparams.scale.expand(rows, groups).T
        self._scale = scale.clone(memory_format=torch.contiguous_format)  # (groups, rows), never the caller's own
        zero_point = qtensor.qparams.zero_point
        self._zero = torch.zeros_like(self._scale) if zero_point is None else zero_point.expand(rows, groups).T.float()
        self._error = (aim - dequantize(qtensor.codes, qtensor.qparams, self._scheme)).T.contiguous()  # (cols, rows)

    def run(self, *, scales: bool) -> None:
        """Go once over all columns."""
        for group, start in enumerate(range(0, len(self._codes), self._size)):
            end = min(start + self._size, len(self._codes))
            for first in range(start, end, _BLOCK):
                self._move_codes(group, first, min(first + _BLOCK, end))
            if scales:
                self._move_scales(group, start, end)

    def result(self) -> QTensor:
        """Return the weight as it is now."""
        qparams = self._qtensor.qparams
        scale = self._scale.T.contiguous() if self._scheme.granularity != "tensor" else qparams.scale
        return replace(
            self._qtensor,
            codes=self._codes.T.to(torch.int8).contiguous(),
            qparams=replace(qparams, scale=scale),
        )

    def _move_codes(self, group: int, start: int, end: int) -> None:
        scale, scheme = self._scale[group], self._scheme
        H = self._H[start:end, start:end]
        slope = self._H[start:end] @ self._error  # (E H)^T of these columns
        for j in range(end - start):
            codes = self._codes[start + j]
            wanted = (slope[j] / (H[j, j] * scale)).add_(codes).round_().clamp_(scheme.q_min, scheme.q_max)
            moved = (wanted - codes).mul_(scale)
            self._codes[start + j] = wanted
            self._error[start + j] -= moved
            slope.addr_(H[j], moved, alpha=-1)

    def _move_scales(self, group: int, start: int, end: int) -> None:
        """Move what the values of the columns start..end, the last ones whose codes have moved, are made with."""

        def stored(scale: Tensor) -> Tensor:
            return _positive(as_stored(scale, self._scheme))

        u = self._codes[start:end] - self._zero[group]
        self._scale[group] = self._moved(self._scale[group], u, start, stored)

    def _moved(self, number: Tensor, u: Tensor, start: int, stored: Callable[[Tensor], Tensor]) -> Tensor:
        """Return one number of each row, (rows,), where the error is least, as it can be stored.

        u: what the values of the columns from `start` on change by when it changes by 1, (columns, rows).
        stored: what a number is stored as; NaN where it cannot be, and then it stays as it was.
        """
        end = start + len(u)
        slope = (u * (self._H[start:end] @ self._error)).sum(0)  # u G
        curvature = (u * (self._H[start:end, start:end] @ u)).sum(0)
        found = stored(number + torch.where(curvature > 0, slope / curvature, 0.0))
        moved = found - number
        moved = torch.where(moved * (2 * slope - moved * curvature) > 0, moved, 0.0)
        self._error[start:end] -= u * moved
        return number + moved


class _DescentOfLevels(_Descent):
    """The same where scales and minima are on two levels."""

    def __init__(self, aim: Tensor, qtensor: QTensor, H: Tensor) -> None:
        super().__init__(aim, qtensor, H)
        levels = qtensor.qparams.levels
        assert levels is not None
        self._d, self._d_min, self._k, self._m = (
            part.float().T.contiguous() for part in (levels.d, levels.d_min, levels.k, levels.m)
        )  # (supers or groups, rows)
        self._per_super = len(self._k) // len(self._d)

    def result(self) -> QTensor:
        levels = Levels(self._d.T.contiguous(), self._d_min.T.contiguous(), _small(self._k), _small(self._m))
        return replace(
            self._qtensor,
            codes=self._codes.T.to(torch.int8).contiguous(),
            qparams=qparams_of(levels, self._scheme),
        )

    def _move_scales(self, group: int, start: int, end: int) -> None:
        at = group // self._per_super
        u = self._codes[start:end] - self._scheme.q_min
        self._k[group] = self._moved(self._k[group], self._d[at] * u, start, lambda k: k.round().clamp(1, MOST))
        lower = (-self._d_min[at]).expand_as(u)
        self._m[group] = self._moved(self._m[group], lower, start, lambda m: m.round().clamp(0, MOST))
        groups = slice(at * self._per_super, (at + 1) * self._per_super)
        if group + 1 == groups.stop:
            self._move_units(at, groups, end)
        self._scale[groups] = self._d[at] * self._k[groups]

    def _move_units(self, at: int, groups: slice, end: int) -> None:
        """Move d and d_min of a super-block whose last column is the one before `end`."""
        start = end - self._per_super * self._size
        u = self._codes[start:end] - self._scheme.q_min
        k, m = (part[groups].repeat_interleave(self._size, dim=0) for part in (self._k, self._m))  # (columns, rows)
        self._d[at] = self._moved(self._d[at], k * u, start, lambda d: _positive(as_half(d)))
        self._d_min[at] = self._moved(self._d_min[at], -m, start, lambda d: as_half(d).clamp(min=0.0))


def _positive(numbers: Tensor) -> Tensor:
    return torch.where(numbers > 0, numbers, torch.nan)


def _small(numbers: Tensor) -> Tensor:
    """Return k or m as Levels has them."""
    return numbers.T.to(torch.uint8).contiguous()
