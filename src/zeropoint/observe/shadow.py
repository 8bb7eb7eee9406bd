"""The float model beside the quantized one: the same texts, through blocks that nobody rounds.

The walk gives every layer the input that the quantized layers below it make. What the float model has in the same
place is known only to a second walk, which this is: a second set of activations, run on stage by stage or block by
block while the first one is quantized.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from zeropoint.models.parts import Block, Flow, Stage
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import Visit
from zeropoint.types import Drift

DRIFT = "drift"
"""What a rounding names in its NEEDS for `Drift`."""


class Shadow:
    """The float model at the place that the walk has reached. activations: its embedded texts, which it moves on."""

    def __init__(self, activations: Activations) -> None:
        self.activations = activations
        self._block: Block | None = None

    def enter(self, block: Block) -> None:
        """Go on with the next block, float, whose function is that of the block which is being quantized."""
        self._block = block

    def inputs(self, stage: Stage) -> Iterator[Tensor]:
        """Yield what the float stage's linears read, batch by batch: float32 (batch, time, cols)."""
        block = self._at()
        return (stage.enter(block, state) for state in self.activations)

    def finish(self, stage: Stage, flow: Flow) -> None:
        """Run the stage; after the last one of the flow the block is let go."""
        self.activations.map(partial(self._at().finish, stage))
        if stage is flow[-1]:
            self._block = None

    def _at(self) -> Block:
        assert self._block is not None
        return self._block


def drift(visit: Visit, shadow: Shadow) -> Drift:
    """Return how far the stage's input is from the float model's: the mean of (x - x') x'^T over all texts.

    Nothing of an expert: the float model may send it other tokens.
    """
    if visit.stage.expert is not None:
        cols = next(visit.inputs()).shape[-1]
        return Drift(torch.zeros(cols, cols), 0)
    total, count = None, 0
    for moved, original in zip(visit.inputs(), shadow.inputs(visit.stage), strict=True):
        rows = moved.flatten(0, -2)  # (tokens, cols)
        if total is None:
            total = torch.zeros(rows.shape[1], rows.shape[1])
        total.addmm_((original.flatten(0, -2) - rows).T, rows)
        count += len(rows)
    return Drift(torch.zeros(0, 0) if total is None else total.div_(max(1, count)), count)
