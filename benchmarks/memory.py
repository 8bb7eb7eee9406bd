"""Peak memory of `zeropoint quantize` against the depth of the model. The last line is one JSON document.

    MALLOC_MMAP_THRESHOLD_=65536 PYTHONPATH=src:tests python benchmarks/memory.py [--layers 8 16 32 64] [--repeats 3]

The models are random Llamas that differ in their depth only. Every run has the same calibration text and is a process
of its own that reports VmHWM, the most that was resident. The peak is the median over the repeats, the noise their
spread. A walk that frees its blocks may add one block to the peak of the row above, and the noise; one that kept them
would add the last column. Without the threshold malloc keeps freed memory as it likes: the noise is ten times larger.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

from origin import origin
from rows import zeropoint
from tiny import make_llama

COLUMNS = ("layers", "model MB", "peak MB", "noise MB", "more MB", "block MB", "if kept MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 16, 32, 64])
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--length", type=int, default=128)
    arguments = parser.parse_args()
    print("".join(f"{column:>11}" for column in COLUMNS))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for layers in arguments.layers:
            rows.append(measure(layers, Path(folder), arguments))
            print(table_row(rows[-1], rows[-2] if len(rows) > 1 else None), flush=True)
    print(json.dumps({"arguments": vars(arguments), **origin(), "rows": rows}))


def measure(layers: int, folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    hidden = arguments.hidden
    model = make_llama(folder / str(layers), layers=layers, hidden=hidden, intermediate=3 * hidden)
    text = [f"calibration.samples={arguments.samples}", f"calibration.length={arguments.length}"]
    changes = [part for setting in text for part in ("--set", setting)]
    command = ("quantize", model, "-o", folder / "out", "--overwrite", *changes)
    runs = [zeropoint(*command) for _ in range(arguments.repeats)]
    linears = [rows * cols for rows, cols in (layer["shape"] for layer in runs[0]["layers"])]
    return {
        "layers": layers,
        "model_bytes": runs[0]["source_bytes"],
        "block_bytes": 4 * sum(linears) // layers,  # the walk computes in float32
        "peak_memory_bytes": [run["peak_memory_bytes"] for run in runs],
    }


def table_row(row: dict[str, Any], before: dict[str, Any] | None) -> str:
    peaks = row["peak_memory_bytes"]
    numbers = [row["model_bytes"], statistics.median(peaks), max(peaks) - min(peaks)]
    cells = [str(row["layers"]), *(f"{number / 1e6:.1f}" for number in numbers)]
    if before is None:
        cells += ["-", f"{row['block_bytes'] / 1e6:.1f}", "-"]
    else:
        more = statistics.median(peaks) - statistics.median(before["peak_memory_bytes"])
        kept = (row["layers"] - before["layers"]) * row["block_bytes"]
        cells += [f"{number / 1e6:.1f}" for number in (more, row["block_bytes"], kept)]
    return "".join(f"{cell:>11}" for cell in cells)


if __name__ == "__main__":
    main()
