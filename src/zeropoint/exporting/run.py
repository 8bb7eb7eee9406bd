"""`export`: a folder that zeropoint quantized becomes a model of another engine, with the same integers.

zeropoint.export("SmolLM2-q4", "SmolLM2-q4.gguf", format="gguf")
"""

from __future__ import annotations

import time
from pathlib import Path

import zeropoint
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.errors import InputError
from zeropoint.exporting.result import Export, Written
from zeropoint.progress import ProgressCallback
from zeropoint.runtime.weights import Weights


def export(
    model: str | Path,
    output: str | Path,
    *,
    format: str,  # noqa: A002 - the word that everybody has for it
    overwrite: bool = False,
    progress: ProgressCallback | None = None,
) -> Export:
    """Write a quantized folder as another engine reads it: the same integers and scales, nothing rounded.

    model: a folder that `quantize` made. output: a .gguf file, or the folder to make; it appears when it is complete
    and every value in it has been read back. format: a file in exporting/, "gguf" for one.
    Raises: InputError, by one of its subclasses, for a model that is not quantized, for what the format cannot hold
    exactly, and for an output that is there already; nothing is under the output's name then.
    """
    started_s = time.perf_counter()
    target = find.load("exporting", format)
    weights = Weights(open_checkpoint(model))
    if not weights.is_quantized:
        raise InputError(f"{model} is not quantized; quantize it first: zeropoint quantize {model} --output OUTPUT")
    planned = target.plan(weights)
    output = Path(output)
    written: Written = target.write(planned, output, overwrite=overwrite, report=progress or (lambda step: None))
    files = [output] if output.is_file() else [file for file in output.iterdir() if file.is_file()]
    return Export(
        zeropoint=zeropoint.__version__,
        model=str(model),
        output=str(output),
        format=format,
        types=written.types,
        checked=written.checked,
        size_bytes=sum(file.stat().st_size for file in files),
        elapsed_s=time.perf_counter() - started_s,
        notes=written.notes,
    )
