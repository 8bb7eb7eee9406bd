"""Round to nearest: every weight by itself, q = clamp(round(w / S + Z)). Needs no data; the baseline of all others."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
from torch import Tensor

from zeropoint.qparams.affine import quantize as quantize_affine
from zeropoint.types import QParams, QTensor, Scheme, SecondMoment, Stats

NEEDS: tuple[str, ...] = ()


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rounding to nearest has no knobs."""


def importance(stats: Mapping[str, Stats], options: Options) -> Tensor | None:
    """Return what a squared error of each column costs the layer: H_jj, float32 (cols,); None without statistics."""
    moment = stats.get("second_moment")
    return moment.matrix.diagonal() if isinstance(moment, SecondMoment) and moment.count else None


def target(weight: Tensor, stats: Mapping[str, Stats], options: Options) -> Tensor:
    """Return what is rounded: the weight itself."""
    return weight


def weaker(options: Options) -> Iterator[tuple[str, Options]]:
    """There is nothing weaker than rounding to nearest."""
    return iter(())


def quantize(weight: Tensor, qparams: QParams, scheme: Scheme, stats: Mapping[str, Stats], options: Options) -> QTensor:
    """Return the codes nearest to the weight.

    weight: float32 (rows, cols), finite.
    Source: Jacob et al. 2018, arXiv:1712.05877, eq. 2.
    """
    return QTensor(quantize_affine(weight, qparams, scheme), qparams, scheme)
