"""SmoothQuant: the outliers of an input are divided out of it and multiplied into the weights that read it.

    s_j = max |X_j|^a / max |W_j|^(1 - a)       x_j -> x_j / s_j       W_ij -> W_ij s_j

over the tokens of the input X and over the linears W of one stage. Inputs have a few channels that are a hundred times
larger than the others, and one scale per token rounds the others to nothing; weights have none and can take some.
1 / s goes into what feeds the stage (fold.py): in a Llama block two norms, v_proj for o_proj, up_proj for down_proj.

a, the strength, is searched for each stage (strengths.py); published ones are 0.5 for OPT and 0.8 to 0.85 for Llama.
Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
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
from zeropoint.types import ChannelAbsMax, Stats

NEEDS: tuple[str, ...] = ("channel_absmax",)


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """strength: a above, the same for every stage, or "search"."""

    strength: Annotated[float, msgspec.Meta(ge=0, le=1)] | Literal["search"] = "search"


def transform(
    block: FloatBlock,
    flow: Flow,
    stats: Mapping[Stage, Mapping[str, Stats]],
    options: Options,
    error: OutputError,
) -> Rewritten:
    """Return the block with smoother inputs; a stage whose scale can go nowhere has a note that says why."""

    def scale(block: FloatBlock, fold: Fold, strength: float) -> Tensor:
        absmax = of_type(stats[fold.stage], "channel_absmax", ChannelAbsMax).values
        return smoothing_scale(fold.largest(absmax), column_maxima(block, fold), strength)

    return rescale(block, flow, options.strength, error, scale)


def smoothing_scale(inputs: Tensor, weights: Tensor, strength: float) -> Tensor:
    """Return s, > 0; 1 where the input or the weights are all zero. inputs, weights: largest magnitudes (channels,)."""
    scale = inputs.pow(strength) / weights.pow(1 - strength)
    return torch.where((inputs > 0) & (weights > 0), scale, 1.0)
