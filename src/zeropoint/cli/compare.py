"""`zeropoint compare`: what each of several recipes makes of a model, side by side."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import calibration_option, example, json_option, limit_torch, text_option, threads_option


@click.command(
    epilog=example(
        "zeropoint compare SmolLM2-135M --recipes w8a16,w4a16,mine.toml --keep models",
        "zeropoint compare model.gguf --recipes w4a16 --recipes w4a16_asym --no-speed",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--recipes",
    multiple=True,
    required=True,
    metavar="NAME|FILE,...",
    help="Presets and your own .toml files, with commas between them; can be given again.",
)
@calibration_option
@text_option
@click.option(
    "--max-windows",
    type=click.IntRange(min=1),
    default=32,
    show_default=True,
    metavar="N",
    help="Judge on N windows of 512 tokens at most, spread over the text.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    default=5,
    show_default=True,
    metavar="N",
    help="Times that speeds are measured.",
)
@click.option(
    "--speed/--no-speed",
    default=True,
    help="Measure speed and memory, with all models in memory at once, or do not.  [default: speed]",
)
@click.option(
    "--keep",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Keep the model of each recipe as FOLDER/RECIPE, and use it again where it is. Default: remove them.",
)
@threads_option
@json_option
def command(
    *,
    model: Path,
    recipes: tuple[str, ...],
    calibration: Path | None,
    text: Path | None,
    max_windows: int,
    runs: int,
    speed: bool,
    keep: Path | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Quantize MODEL, a Hugging Face folder or a .gguf file, by several recipes and show side by side what came out.

    What each lost, its size, its memory, its speed, and the time it took, beside the float model. All recipes are
    checked before the first one is at work. One that fails is a row that says why, and the exit code is 1. The table is
    followed by one line of JSON.
    """
    from zeropoint.recipe import load_recipes

    given = [name for names in recipes for part in names.split(",") if (name := part.strip())]
    load_recipes(given)  # before torch is imported: a wrong name is said at once
    limit_torch(threads)
    from zeropoint.comparison import compare

    with console.progress() as progress:
        result = compare(
            model,
            recipes=given,
            calibration=calibration,
            text=text,
            max_windows=max_windows,
            runs=runs,
            speed=speed,
            threads=threads,
            keep=keep,
            progress=progress,
        )
    if as_json:
        console.show_json(result)
    else:
        from zeropoint.report.terminal import compared

        console.show(compared(result))
        console.show_json_line(result)
    return int(not result.complete)
