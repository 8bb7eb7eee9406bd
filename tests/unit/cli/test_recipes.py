from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from zeropoint import cli
from zeropoint.recipe import Recipe, load_recipe, presets

Streams = pytest.CaptureFixture[str]


def test_the_list_has_every_preset_with_its_description(capfd: Streams) -> None:
    assert cli.main(["recipes"]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 1 + len(presets())
    for name, line in zip(presets(), lines[1:], strict=True):
        recipe = load_recipe(name)
        assert line.split()[0] == name
        for part in (recipe.weights.label(), recipe.range.method, recipe.rounding.method, recipe.description):
            assert part in line


def test_the_list_as_json_is_the_recipes_in_full(capfd: Streams) -> None:
    assert cli.main(["recipes", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == [load_recipe(name).to_dict() for name in presets()]


@pytest.mark.parametrize("name", presets())
def test_a_recipe_is_shown_as_a_file_that_means_the_same(name: str, capfd: Streams, tmp_path: Path) -> None:
    assert cli.main(["recipes", "show", name]) == 0
    path = tmp_path / "mine.toml"
    path.write_text(capfd.readouterr().out, encoding="utf-8")
    assert load_recipe(path) == load_recipe(name)


def test_show_takes_overrides_files_and_json(capfd: Streams, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[weights]\nbits = 3\n", encoding="utf-8")
    assert cli.main(["recipes", "show", str(path), "--set", "rounding=rtn"]) == 0
    shown = Recipe.from_dict(tomllib.loads(capfd.readouterr().out))
    assert (shown.name, shown.weights.bits, shown.rounding.method) == ("mine", 3, "rtn")
    assert cli.main(["recipes", "show", str(path), "--set", "rounding=rtn", "--json"]) == 0
    assert json.loads(capfd.readouterr().out) == shown.to_dict()


def test_an_unknown_recipe_is_one_sentence(capfd: Streams) -> None:
    assert cli.main(["recipes", "show", "w4a61"]) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("zeropoint: no recipe is called 'w4a61'")
    assert streams.err.count("\n") == 1
