"""What a weight may become, and the recipe that a choice is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tiny import make_llama
from zeropoint.budget.forms import FLOAT, forms_of, parse, parse_embeddings, recipe_of, units
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import RecipeError
from zeropoint.models.parts import linear_names
from zeropoint.planning.plan import Prepared, prepare
from zeropoint.recipe import Recipe, load_recipe, resolve
from zeropoint.runtime.weights import Weights

RULED = (
    "weights.group_size=32",
    "rules=[{layers = ['*.o_proj'], keep_float = true}, {layers = ['*.0.*.v_proj'], weights = {bits = 8}}]",
)


def prepared(folder: Path, recipe: Recipe | None = None) -> Prepared:
    model = make_llama(folder / "model")
    return prepare(Weights(open_checkpoint(model)), recipe or load_recipe("w4a16", ["weights.group_size=32"]))


@pytest.mark.parametrize(("text", "wanted"), [("8, 3,float", (3, 8, None)), ("4", (4,)), ("float,4,4", (4, None))])
def test_choices(text: str, wanted: tuple[int | None, ...]) -> None:
    assert parse(text) == wanted


@pytest.mark.parametrize("text", ["", "7", "1", "4,", "four", "4;8", "٤"])
def test_what_is_no_choice_is_said(text: str) -> None:
    with pytest.raises(RecipeError, match="with commas between them"):
        parse(text)


def test_embedding_choices() -> None:
    assert parse_embeddings("int8, stored") == ("int8", "stored")
    with pytest.raises(RecipeError, match="'int7' is none; write stored, int8, int4"):
        parse_embeddings("int7")


def test_linears_that_read_the_same_have_one_form(tmp_path: Path) -> None:
    found = units(prepared(tmp_path), (3, 4, None))
    assert [name.rpartition(".")[2] for name in found[0].names] == ["q_proj", "k_proj", "v_proj"]
    assert len(found) == 8
    assert {tuple(form.name for form in unit.forms) for unit in found} == {("int3 g32 sym", "int4 g32 sym", FLOAT)}
    assert [form.bits for form in found[0].forms] == [3, 4, None]


def test_a_rule_has_decided_already(tmp_path: Path) -> None:
    ready = prepared(tmp_path, load_recipe("w4a16", RULED))
    found = units(ready, (3, 4))
    by_name = {name: unit for unit in found for name in unit.names}
    assert not any(name.endswith("o_proj") for name in by_name)
    assert [form.name for form in by_name["model.layers.0.self_attn.v_proj"].forms] == ["int8 g32 sym"]
    assert len(by_name["model.layers.0.self_attn.q_proj"].forms) == 2


def test_the_recipe_says_what_was_chosen(tmp_path: Path) -> None:
    ready = prepared(tmp_path, load_recipe("w4a16", RULED))
    found = units(ready, (3, 4, 8, None))
    chosen = {unit.names: unit.forms[index % len(unit.forms)] for index, unit in enumerate(found)}
    recipe = recipe_of(ready.recipe, chosen, "int8")
    plans = resolve(recipe, linear_names(ready.weights.model))
    for names, form in chosen.items():
        for name in names:
            assert plans[name] == form.plan
    assert plans["model.layers.0.self_attn.o_proj"] is None
    assert recipe.embeddings == "int8"
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_bits_that_the_format_has_not_are_said(tmp_path: Path) -> None:
    ready = prepared(tmp_path)
    plan = ready.plans["model.layers.0.mlp.up_proj"]
    assert plan is not None
    assert [form.name for form in forms_of(plan, (5, None))] == ["int5 g32 sym", FLOAT]
