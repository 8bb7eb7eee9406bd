"""`zeropoint quantize`: a checkpoint goes in, a smaller one comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

import click

from zeropoint import heap
from zeropoint.cli import console
from zeropoint.cli.options import (
    Bytes,
    Share,
    Speed,
    calibration_option,
    choices_options,
    effort_option,
    example,
    json_option,
    limit_torch,
    max_memory_option,
    recipe_option,
    set_option,
    text_option,
    threads_option,
)
from zeropoint.types import Embeddings

if TYPE_CHECKING:
    from zeropoint.evaluation.results import Plan


@click.command(
    epilog=example(
        "zeropoint quantize SmolLM2-135M --output SmolLM2-w4",
        "zeropoint quantize model.gguf -o out --recipe w4a16 --set rounding=rtn --set weights.group_size=32",
        "zeropoint quantize SmolLM2-135M -o small --max-loss 1% --effort 1",
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
@click.option(
    "--max-loss", type=Share(), metavar="SHARE", help="Choose bits so that perplexity rises by at most 1%, say."
)
@click.option(
    "--max-kl", type=click.FloatRange(min=0, min_open=True), metavar="NATS", help="The same for KL per token."
)
@click.option("--max-size", type=Bytes(), metavar="SIZE", help="Choose bits so that the files take at most so much.")
@click.option(
    "--max-bits",
    type=click.FloatRange(min=0, min_open=True),
    metavar="BITS",
    help="The same for the bits of a weight in the linears, scales included.",
)
@click.option(
    "--min-speed", type=Speed(), metavar="SPEED", help="The same for 20tok/s, say, at this machine's memory bandwidth."
)
@click.option("--like", metavar="NAME|FILE", help="With a budget: another word for --recipe, whose bits are chosen.")
@choices_options
@text_option
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists, once the new one is complete.")
@click.option("--restart", is_flag=True, help="Begin anew where an unfinished run of OUTPUT could be gone on with.")
@click.option(
    "--report",
    "page",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the page of what was made, too: an .html file, replaced if --overwrite is given.",
)
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
    max_loss: float | None,
    max_kl: float | None,
    max_size: int | None,
    max_bits: float | None,
    min_speed: float | None,
    like: str | None,
    choices: str,
    table_choices: str,
    text: Path | None,
    overwrite: bool,
    restart: bool,
    page: Path | None,
    max_memory: int | None,
    threads: int | None,
    as_json: bool,
) -> int:
    """Quantize MODEL, a Hugging Face folder or a .gguf file.

    OUTPUT is a folder that transformers and vLLM load; with int8 embeddings vLLM does not, and with int4 embeddings or
    outlier columns only zeropoint does. It appears under its name when it is complete and verified. A run that was
    killed is gone on with by the same command. The exit code is 1 if more than a tenth of the layers had to be rounded
    otherwise than asked.

    With a budget (--max-loss, --max-kl, --max-size, --max-bits, --min-speed) the recipe's bits are chosen layer by
    layer, from --choices: the smallest model that keeps the loss, or the best one within the size. A loss is judged on
    --text until it is sure with 95 % confidence; the exit code is 1 if the promise is not kept.
    """
    from zeropoint.effort import load_at_effort

    if kv_cache is not None:
        overrides += (f"kv_cache={kv_cache}",)
    if embeddings is not None:
        overrides += (f"embeddings={embeddings}",)
    loaded = load_at_effort(like or recipe, effort, overrides)  # before torch is imported: a wrong key is said at once
    if page is not None:
        _require_free(page, overwrite=overwrite)
    limit_torch(threads)
    if any(limit is not None for limit in (max_loss, max_kl, max_size, max_bits, min_speed)):
        from zeropoint.budget.run import quantize_within
        from zeropoint.evaluation.budgets import Asked

        with console.progress() as progress:
            made = quantize_within(
                model,
                output,
                Asked(
                    max_loss=max_loss,
                    max_kl=max_kl,
                    max_size_bytes=max_size,
                    max_bits=max_bits,
                    min_speed=min_speed,
                ),
                like=loaded,
                choices=choices,
                embeddings=table_choices,
                calibration=calibration,
                text=text,
                overwrite=overwrite,
                max_memory_bytes=max_memory,
                threads=threads,
                progress=progress,
            )
        if page is not None and made.output is not None:
            _write_page(output, page)
        if as_json:
            console.show_json(made)
        else:
            from zeropoint.report.budget import budgeted

            console.show(budgeted(made))
        return 0 if made.possible and made.verdict in (None, "KEPT") else 1
    if like is not None:
        raise click.UsageError(
            "--like is for a budget; give --max-loss, --max-kl, --max-size, --max-bits or --min-speed"
        )
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
    if page is not None:
        _write_page(output, page)
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


def _require_free(page: Path, *, overwrite: bool) -> None:
    """Refuse a page that could not be written after hours of work."""
    from zeropoint.report.page import require_free

    require_free(page, overwrite=overwrite)


def _write_page(output: Path, page: Path) -> None:
    from zeropoint.report.page import write_report

    write_report(output, output=page, overwrite=True)


def _short(plan: Plan) -> str:
    from zeropoint.report.planned import short

    return short(plan)
