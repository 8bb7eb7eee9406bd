"""Apply the transforms of a recipe to one float block, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from zeropoint import find
from zeropoint.errors import RecipeError
from zeropoint.models.parts import FloatBlock, Flow, Ops
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import look_ahead
from zeropoint.recipe import Choice, LayerPlan
from zeropoint.transforms import Rewritten, StageNote
from zeropoint.transforms.hadamard import Rotation
from zeropoint.transforms.trial import Trial, trial_inputs


@dataclass(frozen=True)
class Applied:
    """One transform of one block. error_before, error_after: of the quantized block's output, as a trial finds it."""

    block: str
    method: str
    notes: tuple[StageNote, ...]
    error_before: float
    error_after: float


def apply(
    block: FloatBlock,
    index: int,
    flow: Flow,
    *,
    ops: Ops,
    activations: Activations,
    choices: Sequence[Choice],
    plans: Mapping[str, LayerPlan | None],
    seed: int,
    rotation: Rotation | None = None,
) -> tuple[FloatBlock, tuple[Applied, ...]]:
    """Return block `index` rewritten by all of `choices`, and what each of them did.

    activations: at the block's beginning; they stay as they are. plans: by local name. seed: of the windows of a trial,
    and of options without one. rotation: of the activations' basis against the block's, which the first of the choices
    brings the block into.
    """
    inputs = trial_inputs(activations, seed=seed)
    schemes = {name: None if plan is None else plan.scheme for name, plan in plans.items()}
    input_schemes = {name: None if plan is None else plan.activations for name, plan in plans.items()}
    own_inputs = inputs if rotation is None else [rotation.undo(x) for x in inputs]
    trial = Trial(block, flow, ops, own_inputs, schemes, input_schemes)
    done: list[Applied] = []
    for choice in choices:
        module = find.load("transforms", choice.method, error=RecipeError)
        before = trial.error(block)
        stats = look_ahead(block.prepare(ops, flow), index, flow, activations, frozenset(module.NEEDS))
        rewritten: Rewritten = module.transform(block, flow, stats, options_of(choice, seed), trial.error)
        block = rewritten.block
        if rotation is not None and not done:
            trial = Trial(block, flow, ops, inputs, schemes, input_schemes)
        done.append(Applied(block.name, choice.method, rewritten.notes, before, trial.error(block)))
    return block, tuple(done)


def options_of(choice: Choice, seed: int) -> msgspec.Struct:
    """Return the options of a transform; its own `seed`, where it has one that is not given, is `seed`."""
    options = choice.load_options("transforms")
    return msgspec.structs.replace(options, seed=seed) if getattr(options, "seed", seed) is None else options
