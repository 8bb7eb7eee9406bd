"""`zeropoint inspect`: what is in a checkpoint; with --layer what layers read, with --tensor a matrix step by step."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import click

from zeropoint import find, heap
from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, limit_torch, threads_option
from zeropoint.types import Granularity, Scheme

OF_LAYERS = ("calibration", "rules", "samples", "length", "symmetric")
"""Parameters that mean something beside --layer only."""

OF_TENSOR = ("bits", "group_size", "granularity", "asymmetric", "range_rule", "row", "group")
"""Parameters that mean something beside --tensor only."""


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


def _range(ctx: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    known = find.names("qparams.ranges")
    if value is not None and value not in known:
        near = find.nearest(value, known)
        raise click.BadParameter(f"no range rule is called {value!r}; there are {', '.join(known)}{near}")
    return value


@click.command(
    epilog=example(
        "zeropoint inspect SmolLM2-w4 --headers",
        "zeropoint inspect SmolLM2-w4 --reference SmolLM2-135M",
        "zeropoint inspect SmolLM2-135M --layer '*.0.mlp.down_proj' --calibration mine.txt",
        "zeropoint inspect SmolLM2-135M --tensor model.layers.0.mlp.down_proj --bits 4 --group-size 64",
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
@click.option("--tensor", metavar="NAME", help="Show one matrix step by step: scale, codes, restored values, ranges.")
@click.option("--bits", type=click.IntRange(2, 8), metavar="N", help="With --tensor: of a code, 2 to 8. Default: 4.")
@click.option(
    "--group-size", type=click.IntRange(min=1), metavar="N", help="With --tensor: columns per scale. Default: 64."
)
@click.option(
    "--granularity",
    type=click.Choice(get_args(Granularity)),
    help="With --tensor: one scale for each group, row (channel), or for all. Default: group.",
)
@click.option("--asymmetric", is_flag=True, help="With --tensor: with zero points.")
@click.option(
    "--range", "range_rule", metavar="NAME", callback=_range, help="With --tensor: of the excerpt. Default: minmax."
)
@click.option("--row", type=click.IntRange(min=0), metavar="N", help="With --tensor: of the excerpt. Default: 0.")
@click.option("--group", type=click.IntRange(min=0), metavar="N", help="With --tensor: of the excerpt. Default: 0.")
@threads_option
@json_option
def command(
    *,
    path: Path,
    headers: bool,
    reference: Path | None,
    by_kind: bool,
    layer: str | None,
    tensor: str | None,
    threads: int | None,
    as_json: bool,
    **others: object,
) -> None:
    """Show the layers of PATH, a folder or a .gguf file, float or quantized."""
    given, of_tensor = (
        {name: others[name] for name in names if others[name] is not None and others[name] is not False}
        for names in (OF_LAYERS, OF_TENSOR)
    )
    if headers and reference is not None:
        raise click.UsageError("--headers reads no weights and --reference compares them; leave one of them out.")
    if layer is not None and (headers or by_kind or reference is not None):
        raise click.UsageError("--layer runs the model; leave --headers, --reference and --by-kind out.")
    if layer is None and given:
        raise click.UsageError(f"--{next(iter(given))} is about the inputs of layers; name them with --layer.")
    _require_tensor_alone(tensor, of_tensor, headers or by_kind or layer is not None or reference is not None)
    limit_torch(threads)
    if tensor is not None:
        _show_tensor(path, tensor, of_tensor, as_json=as_json)
        return
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


def _require_tensor_alone(tensor: str | None, given: dict[str, Any], others: bool) -> None:
    if tensor is not None and others:
        raise click.UsageError("--tensor shows one matrix; leave --headers, --reference, --by-kind and --layer out.")
    if tensor is None and given:
        option = next(iter(given)).replace("_", "-").removesuffix("-rule")
        raise click.UsageError(f"--{option} is about one matrix; name it with --tensor.")
    if "group_size" in given and given.get("granularity", "group") != "group":
        raise click.UsageError(f"--granularity {given['granularity']} has no groups; leave --group-size out.")


def _show_tensor(path: Path, tensor: str, given: dict[str, Any], *, as_json: bool) -> None:
    from zeropoint.anatomy import inspect_tensor

    scheme = None
    if given.keys() & {"bits", "group_size", "granularity", "asymmetric"}:
        granularity = given.get("granularity", "group")
        scheme = Scheme(
            bits=given.get("bits", 4),
            symmetric="asymmetric" not in given,
            granularity=granularity,
            group_size=given.get("group_size", 64) if granularity == "group" else None,
        )
    place = {name: given[name] for name in ("range_rule", "row", "group") if name in given}
    with console.progress() as progress:
        result = inspect_tensor(path, tensor=tensor, scheme=scheme, progress=progress, **place)
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.anatomy import tensor_inspected

    console.show(tensor_inspected(result))


def _show_inputs(path: Path, layer: str, given: dict[str, Any], *, as_json: bool) -> None:
    from zeropoint.laboratory import inspect_inputs

    with console.progress() as progress:
        result = inspect_inputs(path, layer=layer, progress=progress, **given)
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.inputs import inputs_inspected

    console.show(inputs_inspected(result))
