"""`zeropoint quantize`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from zeropoint import heap
from zeropoint.cli import console
from zeropoint.cli.options import (
    calibration_option,
    effort_option,
    example,
    json_option,
    limit_torch,
    max_memory_option,
    recipe_option,
    set_option,
    threads_option,
)
from zeropoint.types import Embeddings

if TYPE_CHECKING:
    from zeropoint.evaluation.results import Plan


@click.command(
    epilog=example(
        "zeropoint quantize SmolLM2-135M --output SmolLM2-w4",
        "zeropoint quantize model.gguf -o out --recipe w4a16 --set rounding=rtn --set weights.group_size=32",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@recipe_option
@effort_option
@calibration_option
@set_option
@click.option(
    "--kv",
    "kv_cache",
    type=click.Choice(["float16", "int8"]),
    help="What OUTPUT keeps keys and values as when it is run: short for --set kv_cache=...",
)
@click.option(
    "--embeddings",
    type=click.Choice(get_args(Embeddings)),
    help="What OUTPUT holds of embedding and head: floats as in MODEL, or integers: short for --set embeddings=...",
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists, once the new one is complete.")
@click.option("--restart", is_flag=True, help="Begin anew where an unfinished run of OUTPUT could be gone on with.")
@max_memory_option
@threads_option
@json_option
def command(
    *,
    model: Path,
    output: Path,
    recipe: str,
    effort: int | None,
    calibration: Path | None,
    overrides: tuple[str, ...],
    kv_cache: Literal["float16", "int8"] | None,
    embeddings: Embeddings | None,
    overwrite: bool,
    restart: bool,
    max_memory: int | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Quantize MODEL, a Hugging Face folder or a .gguf file.

    OUTPUT is a folder that transformers and vLLM load; with int8 embeddings vLLM does not, and with int4 embeddings or
    outlier columns only zeropoint does. It appears under its name when it is complete and verified. A run that was
    killed is gone on with by the same command. The exit code is 1 if more than a tenth of the layers had to be rounded
    otherwise than asked.
    """
    from zeropoint.effort import load_at_effort

    if kv_cache is not None:
        overrides += (f"kv_cache={kv_cache}",)
    if embeddings is not None:
        overrides += (f"embeddings={embeddings}",)
    loaded = load_at_effort(recipe, effort, overrides)  # before torch is imported: a wrong key is said at once
    limit_torch(threads)
    from zeropoint.pipeline import quantize

    heap.map_large()
    with console.progress() as progress:
        result = quantize(
            model,
            output,
            recipe=loaded,
            calibration=calibration,
            overwrite=overwrite,
            restart=restart,
            max_memory_bytes=max_memory,
            progress=progress,
            planned=lambda plan: console.tell(_short(plan)),
        )
    if as_json:
        console.show_json(result)
    else:
        from zeropoint.report.planned import outcome
        from zeropoint.report.terminal import quantized

        came = outcome(result)
        console.show(quantized(result))
        if came is not None:
            console.show("", came)
    return 1 if result.fell_back else 0


def _short(plan: Plan) -> str:
    from zeropoint.report.planned import short

    return short(plan)
