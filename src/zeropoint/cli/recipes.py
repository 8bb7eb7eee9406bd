"""`zeropoint recipes`: the recipes that come with zeropoint, and what a recipe says in full."""

from __future__ import annotations

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option


@click.group(invoke_without_command=True, epilog=example("zeropoint recipes", "zeropoint recipes show w4a16"))
@json_option
@click.pass_context
def command(ctx: click.Context, as_json: bool) -> None:
    """List the recipes that `quantize --recipe` knows by name."""
    if ctx.invoked_subcommand is not None:
        return
    from zeropoint import recipe as recipes

    loaded = [recipes.load_recipe(name) for name in recipes.presets()]
    if as_json:
        console.show_json([recipe.to_dict() for recipe in loaded])
        return
    from rich.table import Table

    table = Table("recipe", "weights", "inputs", "range", "rounding", "what it is for", box=None, pad_edge=False)
    for recipe in loaded:
        inputs = "float" if recipe.activations is None else recipe.activations.label()
        methods = recipe.range.method, recipe.rounding.method
        table.add_row(recipe.name, recipe.weights.label(), inputs, *methods, recipe.description)
    console.show(table)


@command.command(
    epilog=example("zeropoint recipes show w4a16 > mine.toml", "zeropoint recipes show w4a16 --set weights.bits=3")
)
@click.argument("name", metavar="NAME|FILE")
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace one value; can be given again.")
@json_option
def show(name: str, overrides: tuple[str, ...], as_json: bool) -> None:
    """Print a recipe with every value spelled out, as TOML to start your own from."""
    from zeropoint.recipe import load_recipe

    recipe = load_recipe(name, overrides)
    if as_json:
        console.show_json(recipe.to_dict())
    else:
        console.show_text(recipe.to_toml())
