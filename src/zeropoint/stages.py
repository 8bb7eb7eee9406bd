"""What each stage of the work is worth: a few windows that no method has seen, through one model for each stage.

The models are "float", "nearest" (the chosen scales, codes rounded to nearest), the rounding, and what every method of
`refine` made of it. While a block is at hand it is put together once for each of them and runs over the same windows;
behind the last block the KL divergence from the float model says what is lost. The blocks before a stage are those of
the same stage, but they were quantized for the inputs that the finished blocks give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from zeropoint.evaluation.divergence import compare
from zeropoint.models.parts import Block, Flow

FLOAT = "float"
NEAREST = "nearest"

ROWS = 256
"""Tokens whose logits are in memory at once."""


class Stages:
    """names: of the stages without "float", in their order. inputs: the embedded windows (windows, time, hidden)."""

    def __init__(self, names: Sequence[str], inputs: Tensor) -> None:
        self.names = tuple(names)
        self.states = dict.fromkeys((FLOAT, *names), inputs)
        """Where each model is: (windows, time, hidden) by name."""

    @classmethod
    def at(cls, states: Mapping[str, Tensor]) -> Stages:
        """Return stages that go on from `states`."""
        names = [name for name in states if name != FLOAT]
        found = cls(names, states[FLOAT])
        found.states |= states
        return found

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return len(self.states[FLOAT])

    def advance(self, blocks: Mapping[str, Callable[[], Block]], flow: Flow) -> None:
        """Run every model's own version of the next block; each is made when it is its turn."""
        for name, make in blocks.items():
            block = make()
            self.states[name] = torch.cat([block.run(flow, x) for x in torch.split(self.states[name], 1)])
            del block  # before the next one is made

    def outputs(self, name: str) -> Tensor:
        """Return what the last block gave: (windows, time, hidden)."""
        return self.states[name]

    def divergences(self, head: Callable[[Tensor], Tensor]) -> dict[str, float]:
        """Return the mean KL(float || stage) of every stage, in nats per token.

        head: returns the logits (tokens, vocabulary) of (tokens, hidden).
        """
        return {name: divergence(head, self.states[FLOAT], self.states[name]) for name in self.names}


def divergence(head: Callable[[Tensor], Tensor], reference: Tensor, other: Tensor) -> float:
    """Return the mean KL(reference || other) over all tokens, in nats; both (windows, time, hidden)."""
    total, count = 0.0, 0
    for wanted, found in zip(_chunks(reference), _chunks(other), strict=True):
        scores = compare(head(wanted), head(found), torch.zeros(len(wanted), dtype=torch.long))
        total += float(scores.kl.sum(dtype=torch.float64))
        count += len(scores)
    return total / count


def _chunks(windows: Tensor) -> tuple[Tensor, ...]:
    return torch.split(windows.flatten(0, -2), ROWS)
