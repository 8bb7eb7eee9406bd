"""GPTAQ: GPTQ that aims at what the layer gave before the layers below it were quantized.

GPTQ keeps W' x' near W x', where x' is the input that the quantized layers below give. The float model has W x there.
With H = mean(x' x'^T) and the drift C = mean((x - x') x'^T), completing the square says what to round instead of W:

    mean |W' x' - W x|^2 = tr((W' - T) H (W' - T)^T) + what no W' changes        T = W + W C H^-1

T is found with the damped H, and of the correction a part `strength` is taken: all of it fits the calibration tokens,
and other tokens less. The codes of T are those of GPTQ, so that this file is the target alone. The paper adds the same
term to GPTQ's update column by column, for the columns still to come; here it is solved for all columns at once.

Symbols: H second moment, C drift, T target.
Source: Li et al. 2025, arXiv:2504.02692, eq. 5 and 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from zeropoint.qparams.statistics import of_type
from zeropoint.rounding import gptq
from zeropoint.rounding.inverse import inverse_of
from zeropoint.types import Drift, SecondMoment, Stats

NEEDS = ("second_moment", "drift")


class Options(gptq.Options, frozen=True, forbid_unknown_fields=True):
    """The knobs of GPTQ, and strength: the part of the correction that is taken, 0 for GPTQ, 1 for all of it."""

    strength: Annotated[float, Meta(ge=0, le=1)] = 0.5


def weaker(options: Options) -> Iterator[tuple[str, Options]]:
    """Yield what to try when H is not positive definite: GPTQ's rungs."""
    for given_up, rung in gptq.weaker(options):
        yield given_up, msgspec.structs.replace(options, damping=rung.damping, act_order=rung.act_order)


def importance(stats: Mapping[str, Stats], options: Options) -> Tensor | None:
    """Return what a squared rounding error of each column costs the layer, as under GPTQ."""
    return gptq.importance(stats, options)


def target(weight: Tensor, stats: Mapping[str, Stats], options: Options) -> Tensor:
    """Return T, float32 (rows, cols).

    weight: float32 (rows, cols). stats: "second_moment" and "drift" of the input, float32 (cols, cols) each.
    Raises: RoundingError if no token was seen or the damped H is not positive definite.
    """
    drift = of_type(stats, "drift", Drift)
    moment = of_type(stats, "second_moment", SecondMoment)
    inverse = inverse_of(moment, damping=options.damping, act_order=options.act_order)
    moved = (weight @ drift.matrix)[:, inverse.order] @ inverse.U.T @ inverse.U  # W C (H + lambda I)^-1, in that order
    moved[:, inverse.order] = moved.clone()
    return torch.add(weight, moved, alpha=options.strength)


quantize = gptq.quantize
