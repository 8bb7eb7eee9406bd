"""One linear, from the statistics of its input to its codes: the aim, the ranges for it, the rounding in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from zeropoint import find
from zeropoint.qparams.choose import choose_qparams
from zeropoint.recipe import LayerPlan
from zeropoint.rounding.ladder import Rounded, aim, round_weight
from zeropoint.types import Stats


@dataclass(frozen=True)
class RoundedLinear:
    """A weight, rounded as a plan says.

    aimed: what was rounded in its place, float32 (rows, cols). other_aim: why that is not what the method aims at, or
    None. weighed: whether the ranges were chosen by what the inputs are like.
    """

    rounded: Rounded
    aimed: Tensor
    other_aim: str | None
    weighed: bool


def round_linear(weight: Tensor, plan: LayerPlan, stats: Mapping[str, Stats]) -> RoundedLinear:
    """Round a weight as its plan says.

    weight: float32 (rows, cols). stats: by observer name, those of the linear's input.
    Raises: NonFiniteError or SchemeError if there are no ranges for it.
    """
    method, options = plan.rounding.method, plan.rounding.load_options("rounding")
    importance = find.load("rounding", method).importance(stats, options)
    aimed, other_aim = aim(weight, stats, method, options)
    range_options = plan.range.load_options("qparams.ranges")
    qparams = choose_qparams(aimed, plan.scheme, plan.range.method, range_options, importance)
    rounded = round_weight(aimed, qparams, plan.scheme, stats, method, options)
    return RoundedLinear(rounded, aimed, other_aim, weighed=importance is not None)
