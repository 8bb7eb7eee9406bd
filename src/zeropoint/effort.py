"""Effort: how much work the weights of a recipe are worth, from 0, seconds and no text, to 3, the least error.

    0   ranges of the least squared error, weighed by what random tokens give; round to nearest
    1   scales moved between inputs and weights, then GPTQ
    2   GPTAQ, coordinate descent, and a few steps on the whole model's output
    3   GPTAQ on more text, coordinate descent, and learned rounding of each block

Distillation after learned rounding gained nothing on the demo model (docs/log.md), so that effort 3 leaves it out.

An effort replaces how codes are found, nothing else: schemes, rules, inputs, format and so the bytes of the file stay.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from zeropoint.recipe import Calibration, Choice, Recipe, load_recipe, override

EFFORTS = (0, 1, 2, 3)


def at_effort(recipe: Recipe, effort: int) -> Recipe:
    """Return the recipe with the methods of an effort, one of EFFORTS. Transforms that it has itself stay."""
    calibration = recipe.calibration
    transforms = recipe.transforms or (Choice("smoothquant"),)
    if effort == 0:
        calibration = msgspec.structs.replace(calibration, tokens="random", samples=2, held_out=0)
        return _replaced(recipe, "rtn", (), recipe.transforms, calibration)
    if effort == 1:
        return _replaced(recipe, "gptq", (), transforms, msgspec.structs.replace(calibration, samples=32))
    last = "distill" if effort == 2 else "learned"
    calibration = msgspec.structs.replace(calibration, samples=32 if effort == 2 else 128)
    return _replaced(recipe, "gptaq", (Choice("descent"), Choice(last)), transforms, calibration)


def load_at_effort(recipe: str | Path, effort: int | None, overrides: Sequence[str] = ()) -> Recipe:
    """Return a recipe as `load_recipe` does, with the methods of an effort if one is given; overrides come last."""
    if effort is None:
        return load_recipe(recipe, overrides)
    return override(at_effort(load_recipe(recipe), effort), overrides)


def _replaced(
    recipe: Recipe,
    rounding: str,
    refine: tuple[Choice, ...],
    transforms: tuple[Choice, ...],
    calibration: Calibration,
) -> Recipe:
    return msgspec.structs.replace(
        recipe,
        rounding=Choice(rounding),
        range=Choice("mse"),
        refine=refine,
        transforms=transforms,
        calibration=calibration,
    )
