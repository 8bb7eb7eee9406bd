"""`zeropoint verify`: whether a folder is what was computed."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, max_memory_option


@click.command(
    epilog=example(
        "zeropoint verify SmolLM2-w4",
        "zeropoint verify SmolLM2-w4 --reference SmolLM2-135M",
    )
)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="MODEL", help="The float model that OUTPUT was made from."
)
@max_memory_option
@json_option
def command(*, output: Path, reference: Path | None, max_memory: int | None, as_json: bool) -> int:
    """Verify OUTPUT, a folder that `quantize` has made: every tensor by its hash, the logits of a few tokens.

    The exit code is 1 if anything is not as it was computed. `quantize` ends with this itself, before OUTPUT appears.
    """
    from zeropoint.verification import verify

    with console.progress() as progress:
        result = verify(output, reference=reference, max_memory_bytes=max_memory, progress=progress)
    if as_json:
        console.show_json(result)
    else:
        from zeropoint.report.verified import verified

        console.show(verified(result, str(output)))
    return 1 if result.problems else 0
