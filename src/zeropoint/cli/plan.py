"""`zeropoint plan`: what quantizing a model will take and give, before it starts."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import (
    effort_option,
    example,
    json_option,
    limit_torch,
    max_memory_option,
    recipe_option,
    set_option,
    threads_option,
)


@click.command(
    epilog=example(
        "zeropoint plan SmolLM2-135M --recipe w4a16",
        "zeropoint plan Llama-3.1-8B --effort 1 --max-memory 4GB --no-bench",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@recipe_option
@effort_option
@set_option
@click.option("--no-bench", is_flag=True, help="Do not measure this machine: no times, no speeds, and no torch.")
@max_memory_option
@threads_option
@json_option
def command(
    *,
    model: Path,
    recipe: str,
    effort: int | None,
    overrides: tuple[str, ...],
    no_bench: bool,
    max_memory: int | None,
    threads: int | None,
    as_json: bool,
) -> None:
    """Say what quantizing MODEL will take and give: memory, disk, time, size, speed, and what becomes of each layer.

    Only config.json and the headers of the weights are read; for times and speeds this machine is measured for about
    ten seconds.
    """
    from zeropoint.effort import load_at_effort
    from zeropoint.planning.plan import BENCH_S, plan

    loaded = load_at_effort(recipe, effort, overrides)
    limit_torch(threads)
    found = plan(
        model, recipe=loaded, max_memory_bytes=max_memory, threads=threads, bench_s=0.0 if no_bench else BENCH_S
    )
    if as_json:
        console.show_json(found)
        return
    from zeropoint.report.planned import planned

    console.show(planned(found))
