"""The walk: a model block by block over a set of texts, with the weights of one block in memory at a time.

`walk` stops at every stage of every block and hands its caller a `Visit`: the linears that are about to run, and their
input over all texts. Whatever the caller puts in the place of their weights is what runs next, so that the inputs of
later linears come from the quantized earlier ones, within a block as well as between blocks, in a single forward pass.
Memory holds one block and what lives between two stages, whatever the depth of the model.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from zeropoint import find
from zeropoint.errors import NonFiniteError
from zeropoint.models.parts import Block, Flow, Model, Stage, State
from zeropoint.observe._finite import check_finite
from zeropoint.observe.activations import Activations
from zeropoint.observe.glance import Glance
from zeropoint.types import Stats


@dataclass(frozen=True)
class Visit:
    """One stage of one block, just before its linears run.

    index: of the block, from 0. least_tokens: an expert that is sent fewer is observed with all of them.
    """

    index: int
    stage: Stage
    block: Block
    activations: Activations
    least_tokens: int = 0

    @cached_property
    def sent(self) -> int | None:
        """How many tokens the stage's expert is sent; None where all go through, or where no text is read."""
        if self.stage.expert is None or not len(self.activations):
            return None
        return sum(int(self.stage.enter(self.block, state).shape[1]) for state in self.activations)

    @property
    def from_all(self) -> bool:
        """Whether so few tokens are sent here that `inputs` are those of all."""
        return self.sent is not None and self.sent < self.least_tokens

    def inputs(self) -> Iterator[Tensor]:
        """Yield what the stage's linears read, batch by batch: float32 (batch, time, cols), or (1, sent, cols)."""
        enter = self.stage.of_all if self.from_all else self.stage.enter
        assert enter is not None
        return (enter(self.block, state) for state in self.activations)


def walk(
    model: Model, load_block: Callable[[int], Block], activations: Activations, *, least_tokens: int = 0
) -> Iterator[Visit]:
    """Visit every stage of every block; after each visit run the stage over all activations.

    activations: the embedded texts; afterwards the outputs of the last block. load_block: returns block `index`; its
    weights may be replaced during the visit. least_tokens: as `Visit` has it.
    """
    for index in range(model.config.layers):
        yield from visits(load_block(index), index, model.flow_of(index), activations, least_tokens=least_tokens)


def visits(block: Block, index: int, flow: Flow, activations: Activations, *, least_tokens: int = 0) -> Iterator[Visit]:
    """Visit every stage of one block, in order, and run it over all activations, which are behind the block at last."""
    for stage in flow:
        yield Visit(index, stage, block, activations, least_tokens)
        activations.map(partial(_finish, block, index, stage, last=stage is flow[-1]))


def _finish(block: Block, index: int, stage: Stage, state: State, *, last: bool) -> State:
    state = block.finish(stage, state)
    if last:
        require_finite_output(state.x, index)
    return state


def require_finite_output(x: Tensor, index: int) -> Tensor:
    """Return what leaves a block if it is finite, whether anybody observes it or not.

    Raises: NonFiniteError naming the block.
    """
    try:
        check_finite(torch.stack(torch.aminmax(x)), x)
    except NonFiniteError as error:
        raise NonFiniteError(f"block {index}, output: {error}") from error
    return x


def run_blocks(model: Model, load_block: Callable[[int], Block], activations: Activations) -> Iterator[int]:
    """Run every block over all activations and yield its index: the walk of a judge, who changes nothing."""
    for visit in walk(model, load_block, activations):
        if visit.stage is model.flow_of(visit.index)[-1]:
            yield visit.index


def observe(
    visit: Visit, needs: frozenset[str], *, without: Sequence[int] = (), glance: Glance | None = None
) -> Mapping[str, Stats]:
    """Return the statistics `needs` (names of files in this folder) of the stage's input over all texts.

    without: columns that count as 0. glance: sees all batches too, if there are needs.
    Raises: NonFiniteError naming the block and the linears whose input holds NaN or infinity.
    """
    if not needs:
        return {}
    observers = _observers(needs)
    columns = torch.tensor(without, dtype=torch.long)
    for x in visit.inputs():
        _update(observers, x.index_fill(-1, columns, 0) if without else x, visit.index, visit.stage)
        if glance is not None:
            glance.update(x)
    return {name: observer.result() for name, observer in observers.items()}


def look_ahead(
    block: Block, index: int, flow: Flow, states: Iterable[State], needs: frozenset[str]
) -> Mapping[Stage, Mapping[str, Stats]]:
    """Return the statistics `needs` of every stage's input while `block`, still float, runs over all texts.

    Nothing of what the block computes is kept, so that the walk goes on from where it was: what rewrites a block must
    know the inputs of its last linears before the first ones are quantized. states: those at the block's beginning.
    Raises: NonFiniteError, as `observe`.
    """
    if not needs:
        return {stage: {} for stage in flow}
    observers = {stage: _observers(needs) for stage in flow}
    for at_start in states:
        state = at_start
        for stage in flow:
            _update(observers[stage], stage.enter(block, state), index, stage)
            if stage is not flow[-1]:
                state = block.finish(stage, state)
    return {stage: {name: o.result() for name, o in found.items()} for stage, found in observers.items()}


def _observers(needs: frozenset[str]) -> dict[str, Any]:
    return {name: find.load("observe", name).Observer() for name in sorted(needs)}


def _update(observers: Mapping[str, Any], x: Tensor, index: int, stage: Stage) -> None:
    rows = x.flatten(0, -2)  # (tokens, cols)
    try:
        for observer in observers.values():
            observer.update(rows)
    except NonFiniteError as error:
        raise NonFiniteError(f"block {index}, input of {', '.join(stage.linears)}: {error}") from error
