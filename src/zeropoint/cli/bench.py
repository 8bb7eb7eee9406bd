"""`zeropoint bench`: how fast a model runs, and how near to what the memory allows."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, native_options, threads_option
from zeropoint.types import RunActivations


@click.command(
    epilog=example(
        "zeropoint bench SmolLM2-w4", "zeropoint bench SmolLM2-w4 --against SmolLM2-135M --embeddings int8 --threads 2"
    )
)
@click.argument("model", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--against", type=click.Path(path_type=Path), metavar="DIR", help="A second model, measured in turns with OUT."
)
@click.option(
    "--prompt-tokens",
    type=click.IntRange(min=1),
    default=512,
    show_default=True,
    metavar="N",
    help="Tokens of the prompt whose prefill is measured.",
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=128,
    show_default=True,
    metavar="N",
    help="Tokens that are decoded, one by one.",
)
@click.option(
    "--runs", type=click.IntRange(min=1), default=5, show_default=True, metavar="N", help="Times that all is measured."
)
@native_options
@threads_option
@json_option
def command(
    *,
    model: Path,
    against: Path | None,
    prompt_tokens: int,
    tokens: int,
    runs: int,
    embeddings: Literal["stored", "int8"],
    activations: RunActivations,
    kv_cache: Literal["float16", "int8"] | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Measure the speed and the memory of OUT, a folder or a .gguf file, float or quantized.

    Tokens per second of prefill and decode, peak memory, and the share of the memory's bandwidth that decoding reaches;
    the bandwidth is measured in between. The table is followed by one line of JSON.
    """
    from zeropoint.evaluation.speed import bench

    with console.progress() as progress:
        result = bench(
            model,
            against=against,
            prompt_tokens=prompt_tokens,
            tokens=tokens,
            runs=runs,
            threads=threads,
            embeddings=embeddings,
            activations=activations,
            kv_cache=kv_cache,
            progress=progress,
        )
    if as_json:
        console.show_json(result)
        return
    from zeropoint.report.terminal import benched

    console.show(benched(result))
    console.show_json_line(result)
