"""Coordinate descent: one code after the other takes the best value for what all others are, and scales follow.

With E = T - W' the error and H the second moment of the input, the layer loses tr(E H E^T). For one code, all others
fixed, the best real value is one division away, and so is the best scale of a group for its codes:

    q_ij <- clamp(round(q_ij + (E H)_ij / (H_jj S) ))
    S_ig <- S_ig + (u G) / (u H_gg u^T)         u = q_ig - Z_ig, the codes of row i in group g;  G = (E H)_ig

The scale is rounded to the dtype that it is stored in before it is judged, and taken only if the error falls. GPTQ
never looks back at a column; this does, and from GPTQ's codes a few passes take off what it has left (docs/log.md). All
rows are worked on at once; H is damped as GPTQ's is.

Source: coordinate descent on this objective is in Behdin et al. 2023, arXiv:2309.01885 (QuantEase); scales by least
squares are ordinary normal equations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.qparams.affine import dequantize
from zeropoint.qparams.from_range import as_stored
from zeropoint.types import QTensor, SecondMoment, Stats

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
    descent = _Descent(aim, qtensor, H)
    for _ in range(options.passes):
        descent.run(scales=options.scales and qtensor.scheme.granularity != "tensor")
    return descent.result()


class _Descent:
    """The codes and scales of one weight on their way down. Works on transposes: a column is a row."""

    def __init__(self, aim: Tensor, qtensor: QTensor, H: Tensor) -> None:
        self._qtensor, self._H, self._scheme = qtensor, H, qtensor.scheme
        rows, cols = qtensor.shape
        groups = qtensor.qparams.scale.shape[1]
        self._size = cols if groups == 1 else self._scheme.group_size or cols
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
                self._move_scale(group, start, end)

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

    def _move_scale(self, group: int, start: int, end: int) -> None:
        u = self._codes[start:end] - self._zero[group]
        slope = (u * (self._H[start:end] @ self._error)).sum(0)  # u G
        curvature = (u * (self._H[start:end, start:end] @ u)).sum(0)
        scale = self._scale[group]
        step = torch.where(curvature > 0, slope / curvature, 0.0)
        stored = as_stored(scale + step, self._scheme)
        moved = stored - scale
        falls = (stored > 0) & (moved * (2 * slope - moved * curvature) > 0)
        moved = torch.where(falls, moved, 0.0)
        self._scale[group] = scale + moved
        self._error[start:end] -= u * moved
