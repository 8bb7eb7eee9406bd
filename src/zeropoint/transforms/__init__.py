"""Stage 5a, REWRITE: a float block becomes one with the same function that is easier to quantize. One file per method.

A method is a file with

    NEEDS: tuple of observer names       the statistics of every stage's input that it works with
    Options                              its knobs, a frozen msgspec.Struct with defaults; strength = 0 changes nothing,
                                         or every switch off; a `seed` of None becomes the calibration's
    transform(block, flow, stats, options, error) -> Rewritten

stats: by stage, from the float block (observe.walk.look_ahead). error: what the output of a block would lose by being
quantized as the recipe says (trial.Trial); a method that searches asks it, and must not end above where it began.
Integers are none of its business: every transform goes with every rounding.

A method that puts the residual stream of the whole model into another basis has one function more,

    residual_rotation(config, options) -> Rotation | None      Q, or None where these options leave the stream alone

and its blocks take x Q to y Q. NEEDS is empty then: what enters a block is in the new basis before the block is. The
tensors outside the blocks follow by themselves (outer.py), and it has to be the first of the transforms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from zeropoint.models.parts import FloatBlock

NOT_CAPABILITIES = ("apply", "fold", "hadamard", "outer", "strengths", "trial")

OutputError: TypeAlias = Callable[[FloatBlock], float]
"""The error of a block's output when the block is quantized, from 0; `trial.Trial` says which."""


@dataclass(frozen=True)
class StageNote:
    """What happened to one stage. strength: 0 where it stayed as it was. fallback: why it had to, or None."""

    linears: tuple[str, ...]
    strength: float
    fallback: str | None = None


@dataclass(frozen=True)
class Rewritten:
    """A block with the same function, and a note for each stage in the order of the flow."""

    block: FloatBlock
    notes: tuple[StageNote, ...]
