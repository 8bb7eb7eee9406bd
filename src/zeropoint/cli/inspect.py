"""`zeropoint inspect`: what is in a checkpoint, layer by layer."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, limit_torch, threads_option


@click.command(
    epilog=example("zeropoint inspect SmolLM2-w4 --headers", "zeropoint inspect SmolLM2-w4 --reference SmolLM2-135M")
)
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--headers", is_flag=True, help="Read the headers of the files only: names, shapes, dtypes; no torch.")
@click.option(
    "--reference",
    type=click.Path(path_type=Path),
    metavar="MODEL",
    help="The model PATH was made from: adds the error of every layer.",
)
@click.option("--by-kind", is_flag=True, help="One line for all layers of a kind: lowest, median and highest.")
@threads_option
@json_option
def command(
    *, path: Path, headers: bool, reference: Path | None, by_kind: bool, threads: int | None, as_json: bool
) -> None:
    """Show the layers of PATH, a folder or a .gguf file, float or quantized."""
    if headers and reference is not None:
        raise click.UsageError("--headers reads no weights and --reference compares them; leave one of them out.")
    limit_torch(threads)
    from zeropoint.inspection import inspect

    with console.progress() as progress:
        result = inspect(path, headers=headers, reference=reference, progress=progress)
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.terminal import inspected

    console.show(inspected(result, all_rows=not by_kind))
