"""`zeropoint verify`: whether a folder is what was computed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from zeropoint.cli import console
from zeropoint.cli.options import example, json_option, max_memory_option

if TYPE_CHECKING:
    from zeropoint.evaluation.results import Engines, Verification
    from zeropoint.progress import ProgressCallback


@click.command(
    epilog=example(
        "zeropoint verify SmolLM2-w4",
        "zeropoint verify SmolLM2-w4 --reference SmolLM2-135M",
        "zeropoint verify SmolLM2-w4 --with transformers",
        "zeropoint verify SmolLM2-w4.gguf --with llama.cpp --python llama.cpp=llama/bin/python",
    )
)
@click.argument("output", type=click.Path(path_type=Path))
@click.option(
    "--reference", type=click.Path(path_type=Path), metavar="MODEL", help="The float model that OUTPUT was made from."
)
@click.option(
    "--with",
    "engines",
    metavar="ENGINE,...",
    help="Compare its logits with ours in these: transformers, vllm, llama.cpp, onnxruntime.",
)
@click.option(
    "--python",
    "pythons",
    multiple=True,
    metavar="ENGINE=PATH",
    help="The interpreter that has an engine installed; can be given again. Default: the one that runs this.",
)
@max_memory_option
@json_option
def command(
    *,
    output: Path,
    reference: Path | None,
    engines: str | None,
    pythons: tuple[str, ...],
    max_memory: int | None,
    as_json: bool,
) -> int:
    """Verify OUTPUT, a folder that `quantize` has made: every tensor by its hash, the logits of a few tokens.

    The exit code is 1 if anything is not as it was computed. `quantize` ends with this itself, before OUTPUT appears.
    With --with, OUTPUT may be what `export` has made, too; a layout that only others read needs the folder it was made
    from as --reference. An engine that is not installed, or computes something else, makes the exit code 1.
    """
    from zeropoint.verification import is_recorded, verify

    result: Verification | None = None
    with console.progress() as progress:
        if engines is None or is_recorded(output):
            result = verify(output, reference=reference, max_memory_bytes=max_memory, progress=progress)
        compared = None if engines is None else _compare(output, engines, pythons, reference, result, progress)
    if as_json:
        console.show_json(result if compared is None else compared)
    else:
        from zeropoint.report import verified

        if result is not None:
            console.show(verified.verified(result, str(output)))
        if compared is not None:
            console.show(verified.compared(compared))
    wrong = compared is not None and any(row.problem is not None for row in compared.rows)
    return 1 if wrong or (result is not None and result.problems) else 0


def _compare(
    output: Path,
    engines: str,
    pythons: tuple[str, ...],
    reference: Path | None,
    result: Verification | None,
    progress: ProgressCallback,
) -> Engines:
    from zeropoint.engines import hold_against
    from zeropoint.evaluation.results import Engines

    places = dict(each.split("=", 1) for each in pythons if "=" in each)
    wrong = [each for each in pythons if "=" not in each]
    if wrong:
        raise click.BadParameter(f"{wrong[0]!r}: write ENGINE=PATH, such as llama.cpp=llama/bin/python")
    names = [name.strip() for name in engines.split(",") if name.strip()]
    source = reference if result is None else None  # of a folder of ours the reference is the float model
    rows = hold_against(output, names, pythons=places, reference=source, progress=progress)
    return Engines(model=str(output), rows=rows, verification=result)
