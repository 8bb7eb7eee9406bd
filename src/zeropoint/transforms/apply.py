"""Apply the transforms of a recipe to one float block, one after the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from zeropoint import find
from zeropoint.errors import RecipeError
from zeropoint.models.parts import FloatBlock, Flow, Ops
from zeropoint.observe.activations import Activations
from zeropoint.observe.walk import look_ahead
from zeropoint.recipe import Choice, LayerPlan
from zeropoint.transforms import Rewritten, StageNote
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
) -> tuple[FloatBlock, tuple[Applied, ...]]:
    """Return block `index` rewritten by all of `choices`, and what each of them did.

    activations: at the block's beginning; they stay as they are. plans: by local name. seed: of the windows of a trial.
    """
    trial = Trial(
        block,
        flow,
        ops,
        trial_inputs(activations, seed=seed),
        {name: None if plan is None else plan.scheme for name, plan in plans.items()},
        {name: None if plan is None else plan.activations for name, plan in plans.items()},
    )
    done: list[Applied] = []
    for choice in choices:
        module = find.load("transforms", choice.method, error=RecipeError)
        before = trial.error(block)
        stats = look_ahead(block.prepare(ops, flow), index, flow, activations, frozenset(module.NEEDS))
        rewritten: Rewritten = module.transform(block, flow, stats, choice.load_options("transforms"), trial.error)
        block = rewritten.block
        done.append(Applied(block.name, choice.method, rewritten.notes, before, trial.error(block)))
    return block, tuple(done)
