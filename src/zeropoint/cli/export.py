"""`zeropoint export`: a quantized folder becomes a model of another engine."""

from __future__ import annotations

from pathlib import Path

import click

from zeropoint import find
from zeropoint.cli import console
from zeropoint.cli.options import example, json_option


@click.command(
    epilog=example(
        "zeropoint export SmolLM2-q4 --format gguf --output SmolLM2-q4_0.gguf",
        "zeropoint export SmolLM2-w4 --format awq --output SmolLM2-awq",
    )
)
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-f",
    "--format",
    "target",
    type=click.Choice(find.names("exporting")),
    required=True,
    help="gguf: llama.cpp. gptq, awq: transformers, vLLM and others. onnx: ONNX Runtime.",
)
@click.option(
    "-o", "--output", type=click.Path(path_type=Path), required=True, help="The .gguf file, or the folder, to make."
)
@click.option("--overwrite", is_flag=True, help="Replace OUTPUT if it exists, once the new one is complete.")
@json_option
def command(*, model: Path, target: str, output: Path, overwrite: bool, as_json: bool) -> None:
    """Write MODEL, a folder that `quantize` has made, as another engine loads it: the same integers and scales.

    What the format cannot hold exactly is refused with what would fit; nothing is rounded a second time. The recipes
    gguf_* fit gguf. OUTPUT appears when it is complete and all of it has been read back.
    """
    from zeropoint.exporting.run import export

    with console.progress() as progress:
        result = export(model, output, format=target, overwrite=overwrite, progress=progress)
    if as_json:
        console.show_json(result)
    else:
        from zeropoint.report.exported import exported

        console.show(exported(result))
