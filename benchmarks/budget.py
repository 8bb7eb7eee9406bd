"""Are budgets worth it, and are they kept? Mixed bits at equal bytes, and promises held against text.

    python benchmarks/budget.py MODEL --text FILE [--effort 0] [--bits 3 4 5] [--max-windows 32]
    python benchmarks/budget.py MODEL --text FILE --promises 20 [--effort 0]

The first quantizes with the same bits everywhere, asks for the best model of exactly that size, and judges both on the
same windows of FILE; embeddings stay as they are in both. The second asks for losses, drawn with a seed between those
of 3 and of 8 bits, each time with other calibration windows, and judges what is said to be KEPT on all of FILE, which
no choice has seen. Commands run as a user runs them. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from origin import origin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--effort", type=int, default=0)
    parser.add_argument("--bits", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--max-windows", type=int)
    parser.add_argument("--promises", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = promises if arguments.promises else equal_bytes
        print(json.dumps({"model": str(arguments.model), **origin(), "rows": run(arguments, Path(folder))}))


def equal_bytes(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    rows = []
    print(
        f"{'bits':>4} {'bytes':>12} {'KL uniform':>10} {'KL mixed':>10} {'ratio':>6} {'s uniform':>9} {'s budget':>8}"
    )
    for bits in arguments.bits:
        effort = ("--effort", arguments.effort, "--set", f"weights.bits={bits}")
        uniform = zeropoint("quantize", arguments.model, "-o", folder / "uniform", *effort, "--overwrite")
        size = uniform["size"]["total_bytes"]
        asked = ("--max-size", size, "--embedding-choices", "stored", "--effort", arguments.effort)
        mixed = zeropoint("quantize", arguments.model, "-o", folder / "mixed", *asked, "--overwrite")
        losses = [judged(folder / name, arguments) for name in ("uniform", "mixed")]
        row = {
            "bits": bits,
            "uniform_bytes": size,
            "mixed_bytes": mixed["size"]["total_bytes"],
            "uniform": losses[0],
            "mixed": losses[1],
            "seconds": [uniform["elapsed_s"], mixed["elapsed_s"]],
            "reused": mixed["reused"],
            "forms": mixed["attempts"][-1]["point"]["forms"],
            "expected": mixed["attempts"][-1]["point"]["kl"],
        }
        rows.append(row)
        kl = [loss["kl_mean"] for loss in losses]
        seconds = " ".join(f"{s:9.0f}" for s in row["seconds"])
        print(f"{bits:4} {size:12,} {kl[0]:10.4f} {kl[1]:10.4f} {kl[1] / kl[0]:6.2f} {seconds}", flush=True)
    return rows


def promises(arguments: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    draw = random.Random(0)
    rows: list[dict[str, Any]] = []
    print(f"{'asked KL':>9} {'verdict':>12} {'attempts':>8} {'windows':>7} {'KL':>8} {'on all of the text':>18}")
    for number in range(arguments.promises):
        limit = math.exp(draw.uniform(math.log(0.01), math.log(0.4)))
        asked = ("--max-kl", limit, "--effort", arguments.effort, "--set", f"calibration.seed={number}")
        made = zeropoint("quantize", arguments.model, "-o", folder / "kept", *asked, "--overwrite")
        truth = judged(folder / "kept", arguments)["kl_mean"] if made["verdict"] == "KEPT" else None
        rows.append({"asked": limit, "verdict": made["verdict"], "attempts": made["attempts"], "truth": truth})
        last = made["attempts"][-1] if made["attempts"] else {"windows": 0, "kl": math.nan}
        said = "" if truth is None else f"{truth:.4f}{' BROKEN' if truth > limit else ''}"
        print(
            f"{limit:9.4f} {made['verdict'] or 'not possible':>12} {len(made['attempts']):8} {last['windows']:7} "
            f"{last['kl']:8.4f} {said:>18}",
            flush=True,
        )
    return rows


def judged(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    limit = () if arguments.max_windows is None else ("--max-windows", arguments.max_windows)
    found = zeropoint("evaluate", folder, "--reference", arguments.model, "--text", arguments.text, *limit)
    return {key: found[key] for key in ("kl_mean", "kl_interval95", "perplexity_ratio", "top1_agreement")}


def zeropoint(*arguments: object) -> dict[str, Any]:
    command = [sys.executable, "-m", "zeropoint", *map(str, arguments), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=False)
    if done.returncode not in (0, 1):
        raise SystemExit(f"{' '.join(command)} ended with exit code {done.returncode}")
    result: dict[str, Any] = json.loads(done.stdout)
    return result


if __name__ == "__main__":
    main()
