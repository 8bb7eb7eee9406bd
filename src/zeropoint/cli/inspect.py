"""`zeropoint inspect`: what is in a checkpoint, layer by layer; and with --layer what the layers read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from zeropoint import find, heap
from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, limit_torch, threads_option

OF_LAYERS = ("calibration", "rules", "samples", "length", "symmetric")
"""Parameters that mean something beside --layer only."""


def _pattern(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None and value.startswith("re:"):
        try:
            re.compile(value.removeprefix("re:"))
        except re.error as error:
            raise click.BadParameter(f"{value!r} is no regular expression: {error}") from error
    return value


def _rules(ctx: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    if value is None:
        return None
    known = find.choices("qparams.input_ranges")
    rules = tuple(dict.fromkeys(part.strip() for part in value.split(",")))
    for rule in rules:
        if rule not in known:
            near = find.nearest(rule, known)
            raise click.BadParameter(f"no range rule is called {rule!r}; there are {', '.join(known)}{near}")
    return rules


@click.command(
    epilog=example(
        "zeropoint inspect SmolLM2-w4 --headers",
        "zeropoint inspect SmolLM2-w4 --reference SmolLM2-135M",
        "zeropoint inspect SmolLM2-135M --layer '*.0.mlp.down_proj' --calibration mine.txt",
    )
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
@click.option(
    "--layer",
    metavar="PATTERN",
    callback=_pattern,
    help="Run the float model PATH over a text and compare static 8-bit ranges for the inputs of these layers: "
    "a glob, or re: and a regular expression.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="With --layer: a .txt or .jsonl file. Default: the bundled text.",
)
@click.option("--rules", metavar="NAMES", callback=_rules, help="With --layer: range rules, by commas. Default: all.")
@click.option("--samples", type=click.IntRange(min=5), metavar="N", help="With --layer: windows of text. Default: 64.")
@click.option("--length", type=click.IntRange(min=1), metavar="N", help="With --layer: tokens in each. Default: 512.")
@click.option("--symmetric", is_flag=True, help="With --layer: ranges without a zero point.")
@threads_option
@json_option
def command(
    *,
    path: Path,
    headers: bool,
    reference: Path | None,
    by_kind: bool,
    layer: str | None,
    threads: int | None,
    as_json: bool,
    **of_layers: object,
) -> None:
    """Show the layers of PATH, a folder or a .gguf file, float or quantized."""
    given = {name: of_layers[name] for name in OF_LAYERS if of_layers[name] not in (None, False)}
    if headers and reference is not None:
        raise click.UsageError("--headers reads no weights and --reference compares them; leave one of them out.")
    if layer is not None and (headers or by_kind or reference is not None):
        raise click.UsageError("--layer runs the model; leave --headers, --reference and --by-kind out.")
    if layer is None and given:
        raise click.UsageError(f"--{next(iter(given))} is about the inputs of layers; name them with --layer.")
    limit_torch(threads)
    if layer is not None:
        heap.map_large()
        _show_inputs(path, layer, given, as_json=as_json)
        return
    from zeropoint.inspection import inspect

    with console.progress() as progress:
        result = inspect(path, headers=headers, reference=reference, progress=progress)
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.terminal import inspected

    console.show(inspected(result, all_rows=not by_kind))


def _show_inputs(path: Path, layer: str, given: dict[str, Any], *, as_json: bool) -> None:
    from zeropoint.laboratory import inspect_inputs

    with console.progress() as progress:
        result = inspect_inputs(path, layer=layer, progress=progress, **given)
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.inputs import inputs_inspected

    console.show(inputs_inspected(result))
