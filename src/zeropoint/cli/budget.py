"""`zeropoint budget`: size against loss, before anything is written."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import (
    calibration_option,
    choices_options,
    effort_option,
    example,
    json_option,
    limit_torch,
    set_option,
    threads_option,
)


@click.command(
    epilog=example(
        "zeropoint budget SmolLM2-135M",
        "zeropoint budget SmolLM2-135M --like w4a16 --choices 3,4,6 --effort 0",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--like", default="w4a16", show_default=True, metavar="NAME|FILE", help="The recipe whose bits are to be chosen."
)
@choices_options
@effort_option
@set_option
@calibration_option
@click.option("--again", is_flag=True, help="Find the costs anew, though an earlier run has kept them.")
@threads_option
@json_option
def command(
    *,
    model: Path,
    like: str,
    choices: str,
    table_choices: str,
    effort: int | None,
    overrides: tuple[str, ...],
    calibration: Path | None,
    again: bool,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say what each form of each weight of MODEL costs, and which sizes and losses can be had.

    The bits of every layer are chosen for the least loss at each size; nothing is written. The costs are kept, so that
    the next budget of the same model, recipe and text takes seconds. `zeropoint quantize --max-loss 1%` makes a model.
    """
    from zeropoint.effort import load_at_effort

    loaded = load_at_effort(like, effort, overrides)
    limit_torch(threads)
    from zeropoint.budget.run import budget

    with console.progress() as progress:
        found = budget(
            model,
            like=loaded,
            choices=choices,
            embeddings=table_choices,
            calibration=calibration,
            again=again,
            progress=progress,
        )
    if as_json:
        console.show_json(found)
        return
    from zeropoint.report.budget import curve

    console.show(curve(found))
