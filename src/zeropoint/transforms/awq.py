"""AWQ: the weights that meet large inputs are scaled up before rounding, and their inputs down.

    s_j = mean |X_j|^a / max |W_j|^(1 - a)      x_j -> x_j / s_j       W_ij -> W_ij s_j

over the tokens of the input X and over the linears W of one stage. Rounding adds about the same error to every weight
of a group; a column that meets large inputs then has less of it, relative to itself, for a little more in the others.
1 / s goes into what feeds the stage (fold.py), so that the file and its speed stay the same.

a, the strength, is searched for each stage by the error of the block's output (strengths.py); a block whose output gets
no better stays as it was. The paper's scale is mean |X_j|^a alone; the weights' part levels the columns of a group, as
in SmoothQuant.
Source: Lin et al. 2023, arXiv:2306.00978, eq. 4 and 5. The search for clipping there is the range rule mse here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from zeropoint.models.parts import FloatBlock, Flow, Stage
from zeropoint.qparams.statistics import of_type
from zeropoint.transforms import OutputError, Rewritten
from zeropoint.transforms.fold import Fold
from zeropoint.transforms.strengths import column_maxima, rescale
from zeropoint.types import ChannelAbsMean, Stats

NEEDS: tuple[str, ...] = ("channel_absmean",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The knobs of AWQ.

    strength: a above, the same for every stage, or "search". level_weights: divide by the weights' magnitudes too.
    """

    strength: Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["search"] = "search"
    level_weights: bool = True


def transform(
    block: FloatBlock,
    flow: Flow,
    stats: Mapping[Stage, Mapping[str, Stats]],
    options: Options,
    error: OutputError,
) -> Rewritten:
    """Return the block with its important weights scaled up; a stage that cannot be scaled has a note that says why."""

    def scale(block: FloatBlock, fold: Fold, strength: float) -> Tensor:
        mean = fold.largest(of_type(stats[fold.stage], "channel_absmean", ChannelAbsMean).values.float())
        weights = column_maxima(block, fold) if options.level_weights else torch.ones(len(mean))
        return importance_scale(mean, weights, strength)

    return rescale(block, flow, options.strength, error, scale)


def importance_scale(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return s, > 0, with a geometric mean of 1; 1 where the input or the weights are all zero.

    inputs, weights: magnitudes float32 (channels,).
    """
    used = (inputs > 0) & (weights > 0)
    logarithm = strength * torch.log(inputs.where(used, 1.0)) - (1 - strength) * torch.log(weights.where(used, 1.0))
    middle = logarithm[used].mean() if bool(used.any()) else 0.0
    return torch.where(used, torch.exp(logarithm - middle), 1.0)
