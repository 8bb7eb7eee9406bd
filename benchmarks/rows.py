"""What a benchmark of recipes has in common: quantize, judge, one row each. The last line is one JSON document.

Every row runs `zeropoint quantize` and `zeropoint evaluate` as processes of their own, so that seconds and peak memory
are those a user sees. KL is in nats per token, with the 95 % interval over windows.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from origin import origin

Rows: TypeAlias = Mapping[str, tuple[str, Sequence[str]]]
"""By the row's name: a preset, and what differs from it: settings KEY=VALUE, or an option such as --effort=1."""


def run(description: str, rows: Rows) -> None:
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--rows", nargs="+", choices=rows, default=list(rows))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="for every row")
    arguments = parser.parse_args()
    print(f"{'row':14} {'bits/w':>6} {'KL':>7} {'95 % interval':>17} {'ppl':>7} {'top-1':>6} {'seconds':>7} {'MB':>7}")
    results = []
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.rows:
            recipe, settings = rows[name]
            output = Path(folder) / name
            results.append({"row": name, **measure(recipe, [*settings, *arguments.set], output, arguments)})
            print(table_row(results[-1]), flush=True)
    print(json.dumps({"model": str(arguments.model), **origin(), "rows": results}))


def measure(recipe: str, settings: Sequence[str], output: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    changes = [part for s in settings for part in ([s] if s.startswith("--") else ["--set", s])]
    text = [] if "--effort=0" in settings else ["--calibration", arguments.calibration]
    made = zeropoint("quantize", arguments.model, "-o", output, "-r", recipe, *text, *changes)
    limit = [] if arguments.max_windows is None else ["--max-windows", arguments.max_windows]
    judged = zeropoint("evaluate", output, "--reference", arguments.model, "--text", arguments.text, *limit)
    return {"quantize": made, "evaluate": judged}


def zeropoint(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "zeropoint", *map(str, arguments), "--json"]
    result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    return result


def table_row(result: dict[str, Any]) -> str:
    made, judged = result["quantize"], result["evaluate"]
    low, high = judged["kl_interval95"]
    return (
        f"{result['row']:14} {made['size']['bits_per_weight']:6.3f} {judged['kl_mean']:7.4f} [{low:7.4f}, {high:7.4f}] "
        f"x{judged['perplexity_ratio']:6.4f} {judged['top1_agreement']:6.1%} {made['elapsed_s']:7.0f} "
        f"{made['peak_memory_bytes'] / 1e6:7.0f}"
    )
