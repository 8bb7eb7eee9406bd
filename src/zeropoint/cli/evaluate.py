"""`zeropoint evaluate`: what a quantized model lost, measured on the file that was written."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from zeropoint.cli import console
from zeropoint.cli.options import (
    Share,
    example,
    json_option,
    limit_torch,
    native_options,
    runtime_option,
    text_option,
    threads_option,
)
from zeropoint.types import RunActivations


@click.command(
    epilog=example(
        "zeropoint evaluate SmolLM2-w4 --reference SmolLM2-135M --text held-out.txt",
        "zeropoint evaluate out --reference model.gguf --margin 2% --fail-on degraded --fail-on inconclusive",
    )
)
@click.argument("output", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=click.Path(path_type=Path), required=True, metavar="MODEL", help="The model OUT was made from."
)
@text_option
@click.option(
    "--margin",
    type=Share(),
    default="1%",
    show_default=True,
    help="The rise of perplexity that still counts as equivalent.",
)
@click.option(
    "--length", type=click.IntRange(min=2), default=512, show_default=True, metavar="N", help="Tokens in a window."
)
@click.option(
    "--max-windows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Judge on N windows at most. Default: the whole text.",
)
@click.option(
    "--fail-on",
    type=click.Choice(["degraded", "inconclusive"]),
    multiple=True,
    help="End with exit code 1 on this verdict; can be given again.",
)
@runtime_option
@native_options
@threads_option
@json_option
def command(
    *,
    output: Path,
    reference: Path,
    text: Path | None,
    margin: float,
    length: int,
    max_windows: int | None,
    fail_on: tuple[str, ...],
    runtime: Literal["native", "torch"],
    embeddings: Literal["stored", "int8"],
    activations: RunActivations,
    kv_cache: Literal["float16", "int8"] | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Compare OUT with the model it was made from, and give a verdict.

    EQUIVALENT: the 95 % interval of the perplexity ratio ends at or below 1 + margin. DEGRADED: it begins above.
    INCONCLUSIVE: it holds 1 + margin, and the verdict says how much more text would decide. The numbers are written to
    OUT/results.json. --runtime native judges what runs when OUT is used; torch the float32 that its integers stand for,
    block by block. --embeddings, --activations and --kv are of OUT alone.
    """
    limit_torch(threads)
    from zeropoint.evaluation.run import evaluate

    if text is None:
        from zeropoint.observe.data import bundled_text

        text = bundled_text("judge")
    with console.progress() as progress:
        result = evaluate(
            output,
            reference=reference,
            text=text,
            margin=margin,
            length=length,
            max_windows=max_windows,
            runtime=runtime,
            embeddings=embeddings,
            activations=activations,
            kv_cache=kv_cache,
            threads=threads,
            progress=progress,
        )
    if as_json:
        console.show_json(result)
    else:
        from zeropoint.report.terminal import evaluated

        console.show(evaluated(result))
    return int(result.verdict.lower() in fail_on)
