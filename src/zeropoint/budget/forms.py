"""What each weight may become: the recipe's own scheme at other bits, or the float that it is.

A recipe bounds the choices: group size, symmetric or not, range, rounding, what its rules say. Of the layers that no
rule speaks of, each may have any of the bits, or stay float. Layers that read the same input have one form, so that an
engine that fuses them can load the file; all experts have one, as transformers reads them so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast, get_args

import msgspec

from zeropoint.errors import RecipeError
from zeropoint.planning.plan import Prepared
from zeropoint.recipe import LayerPlan, Recipe, Rule
from zeropoint.types import Embeddings

FLOAT = "float"

BITS = (2, 3, 4, 5, 6, 8)


@dataclass(frozen=True)
class Form:
    """What a weight may become. plan: None where it stays float."""

    name: str
    plan: LayerPlan | None

    @property
    def bits(self) -> int | None:
        """The bits of a code; None for floats."""
        return None if self.plan is None else self.plan.scheme.bits


@dataclass(frozen=True)
class Unit:
    """Linears that have one form: full names, and the forms they may have."""

    names: tuple[str, ...]
    forms: tuple[Form, ...]


def parse(text: str) -> tuple[int | None, ...]:
    """Return the choices that a text names, "3,4,8,float": bits, and None for floats; ascending, floats last.

    Raises: RecipeError for anything else.
    """
    found: set[int | None] = set()
    for part in text.split(","):
        word = part.strip()
        if word == FLOAT:
            found.add(None)
        elif word in map(str, BITS):
            found.add(int(word))
        else:
            raise RecipeError(
                f"choices = {text!r}: {word!r} is none; write bits of {', '.join(map(str, BITS))}, and float, with "
                "commas between them"
            )
    return tuple(sorted(found, key=lambda bits: 99 if bits is None else bits))


def parse_embeddings(text: str) -> tuple[Embeddings, ...]:
    """Return what embedding and head may be, "int8,stored" for one. Raises: RecipeError for anything else."""
    allowed = get_args(Embeddings)
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for word in found:
        if word not in allowed:
            raise RecipeError(f"embedding choices = {text!r}: {word!r} is none; write {', '.join(allowed)}")
    return cast("tuple[Embeddings, ...]", found)


def forms_of(plan: LayerPlan, choices: Sequence[int | None]) -> tuple[Form, ...]:
    """Return the forms of a linear that may be chosen freely."""
    found = []
    for bits in choices:
        if bits is None:
            found.append(Form(FLOAT, None))
        else:
            scheme = replace(plan.scheme, bits=bits)
            found.append(Form(scheme.label(), replace(plan, scheme=scheme)))
    return tuple(found)


def units(prepared: Prepared, choices: Sequence[int | None]) -> tuple[Unit, ...]:
    """Return all linears that become integers, those with one form together; a rule's layers have the rule's form.

    Raises: RecipeError if the format cannot store one of the choices.
    """
    model, recipe, plans = prepared.weights.model, prepared.recipe, prepared.plans
    ruled = {name for name in plans if any(rule.matches(name) for rule in recipe.rules)}
    groups: dict[tuple[object, ...], list[str]] = {}
    for index in range(model.config.layers):
        for number, stage in enumerate(model.flow_of(index)):
            for local in stage.linears:
                name = f"{model.block_name(index)}.{local}"
                if plans[name] is None:
                    continue
                key: tuple[object, ...] = ("experts",) if stage.expert is not None else (index, number)
                groups.setdefault((*key, name in ruled, repr(plans[name])), []).append(name)
    found = []
    for (*_, fixed, _), names in groups.items():
        plan = plans[names[0]]
        assert plan is not None
        allowed = (Form(plan.scheme.label(), plan),) if fixed else forms_of(plan, choices)
        found.append(Unit(tuple(names), allowed))
    _require_stored(prepared, found)
    return tuple(found)


def _require_stored(prepared: Prepared, found: Sequence[Unit]) -> None:
    for unit in found:
        for form in unit.forms:
            if form.plan is None:
                continue
            for name in unit.names:
                rows, cols = prepared.weights.checkpoint.tensors[f"{name}.weight"].shape
                reason = prepared.file_format.supports(form.plan.scheme, (rows, cols))
                if reason is not None:
                    raise RecipeError(f"{name} as {form.name}: {reason}; leave these bits out of the choices")


def recipe_of(recipe: Recipe, chosen: Mapping[tuple[str, ...], Form], embeddings: str) -> Recipe:
    """Return the recipe in which every unit, by the names of its linears, has the form that was chosen for it."""
    by_form: dict[str, tuple[Form, list[str]]] = {}
    for names, form in chosen.items():
        by_form.setdefault(form.name, (form, []))[1].extend(names)
    rules = list(recipe.rules)
    for form, members in by_form.values():
        own = tuple(name for name in members if not any(rule.matches(name) for rule in recipe.rules))
        if not own or (form.plan is not None and form.plan.scheme == recipe.weights):
            continue
        if form.plan is None:
            rules.append(Rule(layers=own, keep_float=True))
        else:
            rules.append(Rule(layers=own, weights={"bits": form.plan.scheme.bits}))
    return msgspec.structs.replace(recipe, name=f"{recipe.name}-budget", rules=tuple(rules), embeddings=embeddings)
