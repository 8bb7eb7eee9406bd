"""A scale for the input of each stage that grows with a strength, and the search for the strength.

What SmoothQuant and AWQ have in common; they differ in the scale. The strength of a stage is searched from START in
steps, up or down, as long as the error of the block's output falls, the whole block being quantized. 0 leaves the stage
as it is, so that the search never ends above where it began.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from zeropoint.models.parts import FloatBlock, Flow
from zeropoint.transforms import OutputError, Rewritten, StageNote
from zeropoint.transforms.fold import Fold, find_fold

GRID = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""The strengths that may be tried beside 0."""

START = GRID.index(0.5)

Scale: TypeAlias = Callable[[FloatBlock, Fold, float], Tensor]
"""(block, fold, strength) -> what the input of the fold's stage is divided by: float32 (channels,), > 0."""


def rescale(
    block: FloatBlock, flow: Flow, strength: float | Literal["search"], error: OutputError, scale: Scale
) -> Rewritten:
    """Return the block with the inputs of all its stages scaled, one after the other.

    A stage whose scale can go nowhere has a note that says why; one that has nothing to quantize stays as it is.
    """
    notes: list[StageNote] = []
    lowest = error(block) if strength == "search" else 0.0
    for stage in flow:
        if all(f"{name}.weight" in block.dtypes for name in stage.linears):
            notes.append(StageNote(stage.linears, 0.0))
            continue
        fold = find_fold(block, flow, stage)
        if isinstance(fold, str):
            notes.append(StageNote(stage.linears, 0.0, fold))
            continue
        if strength == "search":
            found, block, lowest = _best(block, fold, error, lowest, scale)
        else:
            found, block = strength, scaled(block, fold, strength, scale)
        notes.append(StageNote(stage.linears, found))
    return Rewritten(block, tuple(notes))


def scaled(block: FloatBlock, fold: Fold, strength: float, scale: Scale) -> FloatBlock:
    """Return the block with one stage scaled."""
    return fold.apply(block, scale(block, fold, strength)) if strength else block


def column_maxima(block: FloatBlock, fold: Fold) -> Tensor:
    """Return the largest magnitude of each column over the weights of the fold's stage: float32 (channels,)."""
    weights = (block.tensors[f"{name}.weight"] for name in fold.stage.linears)
    return fold.largest(torch.stack([weight.abs().amax(0) for weight in weights]).amax(0))


def _best(
    block: FloatBlock, fold: Fold, error: OutputError, lowest: float, scale: Scale
) -> tuple[float, FloatBlock, float]:
    """Return the best strength for one stage, the block with it, and its error. lowest: the error of `block`."""

    def tried(strength: float) -> tuple[float, FloatBlock, float]:
        candidate = scaled(block, fold, strength, scale)
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
