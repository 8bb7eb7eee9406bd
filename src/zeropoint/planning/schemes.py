"""Which weights become integers and how, and what is refused before any weight is read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import ModuleType
from typing import Literal, TypeAlias

from zeropoint import find
from zeropoint.errors import InputError, RecipeError, SchemeError
from zeropoint.models.parts import Model, linear_names
from zeropoint.recipe import Choice, LayerPlan, Recipe, resolve
from zeropoint.runtime.weights import Weights
from zeropoint.types import InputScheme, Scheme, divisors

Plans: TypeAlias = Mapping[str, LayerPlan | None]
"""What is asked of each linear, by its full name; None for one that stays float."""

Scope: TypeAlias = Literal["layer", "block", "model"]
"""What a method of `refine` works on at once."""

GROUP_SIZE = 64
"""Columns of an int4 table that share a scale, where that divides them."""


def planned(weights: Weights, recipe: Recipe) -> tuple[Plans, ModuleType]:
    """Return the plan of every linear and the format's module.

    A linear that the format cannot store by its scheme has the recipe's fallback, if there is one: see `fallen_back`.
    Raises: InputError for a model that is quantized already; RecipeError for rules that match nothing; SchemeError for
    a scheme that the format cannot store, with the name of the linear.
    """
    plans = _without_bias(weights, resolve(recipe, linear_names(weights.model)))
    plans = {**plans, **dict.fromkeys(routers(weights.model))}
    file_format = find.load("formats", recipe.format, error=RecipeError)
    if weights.is_quantized:
        raise InputError(
            f"{weights.checkpoint.path} is quantized already; quantize the float model that it was made from"
        )
    plans = {name: _that_fits(name, plan, weights, recipe, file_format) for name, plan in plans.items()}
    return plans, file_format


def _that_fits(
    name: str, plan: LayerPlan | None, weights: Weights, recipe: Recipe, file_format: ModuleType
) -> LayerPlan | None:
    """Return the plan of a linear with a scheme that the format can store. Raises: SchemeError if there is none."""
    if plan is None:
        return None
    rows, cols = weights.checkpoint.tensors[f"{name}.weight"].shape
    reason = file_format.supports(plan.scheme, (rows, cols))
    whole = plan.scheme.super_size or plan.scheme.group_size or cols
    if reason is not None and recipe.fallback is not None and file_format.supports(plan.scheme, (rows, whole)) is None:
        plan = replace(plan, scheme=recipe.fallback)
        reason = file_format.supports(plan.scheme, (rows, cols))
    if reason is None and plan.scheme.super_size is not None and plan.activations is not None:
        reason = (
            f"{plan.scheme.label()} weights with {plan.activations.label()} inputs: nothing runs them; use weights "
            "without super_size, or write activations = 'float'"
        )
    if reason is not None:
        raise SchemeError(f"{name}: {reason}")
    return plan


def fallen_back(weights: Weights, plans: Plans, recipe: Recipe) -> dict[str, Scheme]:
    """Return the linears that have the recipe's fallback instead of the scheme they were to have: that one, by name."""
    wanted = resolve(recipe, linear_names(weights.model))
    return {
        name: asked.scheme
        for name, plan in plans.items()
        if plan is not None and (asked := wanted[name]) is not None and asked.scheme != plan.scheme
    }


def routers(model: Model) -> Iterator[str]:
    """Yield the linears that stay float in every recipe: a token that is sent elsewhere is lost whole."""
    for index in range(model.config.layers):
        for stage in model.flow_of(index):
            if stage.router:
                yield from (f"{model.block_name(index)}.{name}" for name in stage.linears)


def schemes_of(plans: Plans) -> dict[str, Scheme | None]:
    """Return the scheme of every linear, None where it stays float."""
    return {name: None if plan is None else plan.scheme for name, plan in plans.items()}


def inputs_of(plans: Plans) -> dict[str, InputScheme | None]:
    """Return how the input of every linear is to be rounded, None where it stays float."""
    return {name: None if plan is None else plan.activations for name, plan in plans.items()}


def table_schemes(weights: Weights, recipe: Recipe, file_format: ModuleType) -> dict[str, Scheme]:
    """Return the scheme of every table that the recipe wants as integers, by name; a tied one under both of its names.

    Raises: SchemeError if the format cannot store it.
    """
    if recipe.embeddings == "stored":
        return {}
    shape = weights.model.config.vocab_size, weights.model.config.hidden_size
    scheme = int8() if recipe.embeddings == "int8" else int4(shape[1])
    reason = file_format.supports_table(scheme, shape)
    if reason is not None:
        raise SchemeError(f"{weights.tables[0].name}: {reason}")
    return {name: scheme for table in weights.tables for name in (table.name, table.also) if name is not None}


def int8() -> Scheme:
    """Return the scheme of an int8 table."""
    return Scheme(8, granularity="channel", group_size=None)


def int4(cols: int) -> Scheme:
    """Return the scheme of an int4 table: the widest groups up to GROUP_SIZE, multiples of 32 columns if there are."""
    widths = [width for width in divisors(cols) if width <= GROUP_SIZE]
    return Scheme(4, group_size=max(widths, key=lambda width: (width % 32 == 0, width)))


def needed(plans: Plans) -> frozenset[str]:
    """Return the names of the statistics that the ranges and roundings of the plans need."""
    found: set[str] = set()
    for plan in plans.values():
        if plan is not None:
            found.update(find.constant("qparams.ranges", plan.range.method, "NEEDS"))
            found.update(find.constant("rounding", plan.rounding.method, "NEEDS"))
    return frozenset(found)


def scope_of(choice: Choice) -> Scope:
    """Return what a method of `refine` works on at once."""
    scope: Scope = find.constant("refine", choice.method, "SCOPE")
    return scope


def scopes(recipe: Recipe) -> tuple[Scope, ...]:
    """Return what each method of the recipe's `refine` works on at once."""
    return tuple(map(scope_of, recipe.refine))


def reads_text(plans: Plans, recipe: Recipe) -> bool:
    """Say whether tokens run through the model at all: for statistics of weights or inputs, or to learn from."""
    of_inputs = any(
        plan.bias_correction or _is_observed(plan.activations) for plan in plans.values() if plan is not None
    )
    return bool(recipe.transforms or recipe.refine or needed(plans) or of_inputs)


def _is_observed(scheme: InputScheme | None) -> bool:
    """Say whether something about an input is found by calibration: its scale, or its outlier columns."""
    return scheme is not None and not (scheme.dynamic and scheme.outlier_threshold is None)


def has_shadow(plans: Plans, recipe: Recipe) -> bool:
    """Say whether the float model has to run beside the quantized one."""
    return "drift" in needed(plans) or any(scope != "layer" for scope in scopes(recipe))


def stores_of(plans: Plans, recipe: Recipe) -> int:
    """Return how many sets of activations a run keeps: of the walk, the float model, and a block's beginning."""
    return 1 + has_shadow(plans, recipe) + ("block" in scopes(recipe))


def _without_bias(weights: Weights, plans: Plans) -> Plans:
    """Return the plans, with no correction of a bias where a layer has none."""
    model = weights.model
    tensors = {name for index in range(model.config.layers) for name in model.block_tensors(index)}
    return {
        name: plan if plan is None or f"{name}.bias" in tensors else replace(plan, bias_correction=False)
        for name, plan in plans.items()
    }
