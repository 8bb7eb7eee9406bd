"""`zeropoint report`: what quantizing made and cost, as one page for a browser."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option


@click.command(
    epilog=example(
        "zeropoint report SmolLM2-w4 --output report.html",
        "zeropoint report SmolLM2-w4 SmolLM2-w3 --output both.html",
    )
)
@click.argument("models", nargs=-1, required=True, metavar="OUT...", type=click.Path(path_type=Path))
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FILE", help="The .html file to make."
)
@click.option("--overwrite", is_flag=True, help="Replace FILE if it exists, once the new one is complete.")
@json_option
def command(*, models: tuple[Path, ...], output: Path, overwrite: bool, as_json: bool) -> None:
    """Write the page of OUT, a folder that `quantize` has made; of several, side by side with their differences.

    The page is one file that needs no network. It shows what is kept beside the weights: how they were made and, where
    they are there, what `evaluate` found, the budget, and the speed in OUT/bench.json (`bench OUT --json`).
    """
    from zeropoint.report.page import write_report

    file = write_report(models, output=output, overwrite=overwrite)
    size_bytes = file.stat().st_size
    if as_json:
        console.show_json({"output": file, "size_bytes": size_bytes})
    else:
        console.show_text(f"{file}: {size_bytes:,} bytes; open it in a browser\n")
