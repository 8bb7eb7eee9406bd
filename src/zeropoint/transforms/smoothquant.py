"""SmoothQuant: the outliers of an input are divided out of it and multiplied into the weights that read it.

    s_j = max |X_j|^a / max |W_j|^(1 - a)       x_j -> x_j / s_j       W_ij -> W_ij s_j

over the tokens of the input X and over the linears W of one stage. Inputs have a few channels that are a hundred times
larger than the others, and one scale per token rounds the others to nothing; weights have none and can take some.
1 / s goes into what feeds the stage (fold.py): in a Llama block two norms, v_proj for o_proj, up_proj for down_proj.

a, the strength, is searched for each stage: from START in steps, up or down, as long as the error of the block's output
falls, the whole block being quantized. 0 leaves the stage as it is (the formula at 0 would not), so that the search
never ends above where it began.
Source: Xiao et al. 2023, arXiv:2211.10438, eq. 4.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
import torch
from torch import Tensor

from zeropoint.errors import InternalError
from zeropoint.models.parts import FloatBlock, Flow, Stage
from zeropoint.transforms import OutputError, Rewritten, StageNote
from zeropoint.transforms.fold import Fold, find_fold
from zeropoint.types import ChannelAbsMax, Stats

NEEDS: tuple[str, ...] = ("channel_absmax",)

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The strengths that may be tried beside 0; published ones are 0.5 for OPT and 0.8 to 0.85 for Llama."""

START = GRID.index(0.5)


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
    notes: list[StageNote] = []
    lowest = error(block) if options.strength == "search" else 0.0
    for stage in flow:
        if all(f"{name}.weight" in block.dtypes for name in stage.linears):  # nothing here is quantized
            notes.append(StageNote(stage.linears, 0.0))
            continue
        fold = find_fold(block, flow, stage)
        if isinstance(fold, str):
            notes.append(StageNote(stage.linears, 0.0, fold))
            continue
        absmax = stats[stage]["channel_absmax"]
        if not isinstance(absmax, ChannelAbsMax):
            raise InternalError(f"channel_absmax gave {type(absmax).__name__}")
        if options.strength == "search":
            strength, block, lowest = _best(block, fold, absmax.values, error, lowest)
        else:
            strength, block = options.strength, smoothed(block, fold, absmax.values, options.strength)
        notes.append(StageNote(stage.linears, strength))
    return Rewritten(block, tuple(notes))


def _best(
    block: FloatBlock, fold: Fold, absmax: Tensor, error: OutputError, lowest: float
) -> tuple[float, FloatBlock, float]:
    """Return the best strength for one stage, the block with it, and its error. lowest: the error of `block`."""

    def tried(strength: float) -> tuple[float, FloatBlock, float]:
        candidate = smoothed(block, fold, absmax, strength)
        return strength, candidate, error(candidate)

    best = tried(GRID[START])
    upwards, downwards = GRID[START + 1 :], GRID[:START][::-1]
    for way in (upwards, downwards):
        for strength in way:
            found = tried(strength)
            if found[2] >= best[2]:
                break
            best = found
        if best[0] in upwards:
            break
    return best if best[2] < lowest else (0.0, block, lowest)


def smoothed(block: FloatBlock, fold: Fold, absmax: Tensor, strength: float) -> FloatBlock:
    """Return the block with one stage smoothed. absmax: float32 (cols,), of the stage's input."""
    return fold.apply(block, smoothing_scale(block, fold, absmax, strength)) if strength else block


def smoothing_scale(block: FloatBlock, fold: Fold, absmax: Tensor, strength: float) -> Tensor:
    """Return s for each channel of the feeder: float32 (channels,), > 0; 1 where the input or the weights are all zero.

    absmax: float32 (cols,), of the stage's input.
    """
    weights = (block.tensors[f"{name}.weight"] for name in fold.stage.linears)
    columns = torch.stack([weight.abs().amax(0) for weight in weights]).amax(0)
    inputs, weight = fold.largest(absmax), fold.largest(columns)
    scale = inputs.pow(strength) / weight.pow(1 - strength)
    return torch.where((inputs > 0) & (weight > 0), scale, 1.0)
