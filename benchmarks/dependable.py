"""Is it dependable? Kills, failing disks, a model larger than the memory, and plans held against what came.

    PYTHONPATH=src:tests python benchmarks/dependable.py --model SmolLM2-135M [--only kills faults large plans]

kills    quantize is killed at evenly spread calls to the system and at random moments, and then started again
faults   each write, fsync, rename, ... of a run fails once, with EIO and with ENOSPC; then it is started again
large    the shape of Llama 3.1 8B, random weights in bfloat16, by GPTQ within --max-memory; ended after some blocks
plans    peak memory, size and time of a plan against those of the run, on three models, one of them with experts

A run is wrong if its output is there and is not, byte for byte, what an undisturbed run makes; unfinished if the same
call does not end in that output; lost are the blocks that it had finished and did again. Peaks are VmHWM of the process
that quantizes. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import errno
import itertools
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from architectures import make
from faults.runs import Runs
from origin import origin
from random_model import Shape, write_llama
from rows import zeropoint
from tiny import make_llama

LLAMA_8B = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, intermediate=14336, vocab=128256)
MIDDLE = Shape(hidden=1024, layers=8, heads=16, kv_heads=4, intermediate=2816, vocab=32000)
MIXTURE = {
    "hidden_size": 512,
    "intermediate_size": 1024,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "num_local_experts": 8,
    "vocab_size": 16000,
    "max_position_embeddings": 2048,
}
RECIPE = ("w4a16", ["calibration.samples=8", "calibration.length=32", "weights.group_size=32"])
CALLS = ("write", "fsync", "rename", "unlink", "mkdir", "open", "ftruncate", "read", "mmap")
RANDOM = ["--set", "calibration.tokens=random"]


def main() -> None:
    parts = {"kills": kills, "faults": faults, "large": large, "plans": plans}
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a real model, for the plans")
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--jobs", type=int, default=1, help="runs with faults at once")
    parser.add_argument("--max-memory", default="4GB", help="of the large model")
    parser.add_argument("--blocks", type=int, default=4, help="of the large model")
    parser.add_argument("--folder", type=Path, help="where the large model is kept; by default it is removed")
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.only:
            print(f"--- {name}", flush=True)
            place = Path(folder) / name
            place.mkdir()
            found[name] = parts[name](place, arguments)
    given = {name: str(value) for name, value in vars(arguments).items()}
    print(json.dumps({"arguments": given, **origin(), **found}))


def kills(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    chance, half = random.Random(0), arguments.kills // 2
    with Runs(make_llama(folder / "model", layers=3), RECIPE, folder) as runs:
        at_calls: list[dict[str, Any]] = [
            {"at": 1 + index * runs.calls // half, "kind": "torn" if index % 3 == 0 else "kill"}
            for index in range(half)
        ]
        started_s = time.monotonic()
        shutil.rmtree(runs.outputs / "undisturbed")
        runs.run("undisturbed")
        once_s = time.monotonic() - started_s
        at_random = ({"kill_after_s": chance.uniform(0, once_s)} for _ in itertools.count())  # some come too late
        return count(runs, itertools.chain(at_calls, at_random), kills=arguments.kills)


def faults(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    model = make_llama(folder / "model", layers=3)
    with Runs(model, RECIPE, folder) as runs:
        calls = {call: runs.calls_of(call) for call in CALLS}
        print(f"calls of an undisturbed run: {calls}", flush=True)
        asked: list[dict[str, Any]] = [
            {"call": "write", "at": at, "kind": "short"} for at in range(1, calls["write"] + 1)
        ]
        asked += [
            {"call": call, "at": at, "kind": "fail", "error": error}
            for call in CALLS
            for error in (errno.EIO, errno.ENOSPC)
            for at in range(1, calls[call] + 1)
        ]

    def share(job: int) -> dict[str, Any]:
        place = folder / f"job-{job}"
        place.mkdir()
        with Runs(model, RECIPE, place) as runs:
            return count(runs, asked[job :: arguments.jobs])

    with ThreadPoolExecutor(arguments.jobs) as pool:
        shares = list(pool.map(share, range(arguments.jobs)))
    summed = {name: sum((each[name] for each in shares), start=type(shares[0][name])()) for name in shares[0]}
    return {"calls": calls, **summed, "most_lost": max(each["most_lost"] for each in shares)}


def count(runs: Runs, asked: Iterable[dict[str, Any]], kills: int | None = None) -> dict[str, Any]:
    """Disturb a run in each way, or until so many were killed, and count what came of it."""
    disturbed = killed = refused = 0
    lost, problems = [], []
    for fault in asked:
        if killed == kills:
            break
        disturbed += 1
        try:
            came = runs.disturb(**fault)
        except AssertionError as problem:
            problems.append(str(problem))
            shutil.rmtree(runs.outputs / "out", ignore_errors=True)
            shutil.rmtree(runs.outputs / ".out.partial", ignore_errors=True)
            continue
        killed += came["killed"]
        refused += "error" in came
        lost.append(came["lost"])
        if disturbed % 25 == 0:
            print(f"{disturbed}: {killed} killed, {len(problems)} wrong or unfinished, last {fault}", flush=True)
    most = max(lost, default=0)
    print(
        f"{disturbed} disturbed: {killed} killed, {refused} ended with an error, {len(problems)} wrong or unfinished, "
        f"at most {most} blocks lost",
        *problems[:5],
        sep="\n",
        flush=True,
    )
    return {"disturbed": disturbed, "killed": killed, "errors": refused, "problems": problems, "most_lost": most}


def large(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    place = arguments.folder or folder
    model = write_llama(place / "llama-8b", LLAMA_8B)
    stored = sum(file.stat().st_size for file in model.glob("*.safetensors"))
    print(f"{stored / 1e9:.1f} GB in {model}", flush=True)
    changes = [*RANDOM, "--set", "calibration.samples=32", "--set", "calibration.length=512"]
    options = [*changes, "--max-memory", arguments.max_memory]
    plan = zeropoint("plan", model, *options)
    print(f"planned peak {plan['peak_memory_bytes'] / 1e9:.2f} GB, time {plan['elapsed_s'] / 3600:.2f} h", flush=True)
    command = [sys.executable, "-m", "zeropoint", "quantize", str(model), "-o", str(folder / "out"), *options]
    blocks: list[float] = []
    peak = 0
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as run:
        assert run.stderr is not None
        for line in run.stderr:
            print(line, end="", flush=True)
            peak = max(peak, peak_of(run.pid))
            if line.startswith("quantize "):
                blocks.append(time.monotonic())
                if len(blocks) > arguments.blocks:
                    run.send_signal(signal.SIGTERM)
                    break
        run.stderr.read()
    each = (blocks[-1] - blocks[0]) / (len(blocks) - 1)
    whole_s = each * LLAMA_8B.layers
    print(
        f"{len(blocks) - 1} blocks, {each:.0f} s each: {whole_s / 3600:.2f} h for {LLAMA_8B.layers} (extrapolated); "
        f"peak {peak / 1e9:.2f} GB, planned {plan['peak_memory_bytes'] / 1e9:.2f}",
        flush=True,
    )
    return {
        "stored_bytes": stored,
        "planned_peak_bytes": plan["peak_memory_bytes"],
        "peak_bytes": peak,
        "block_s": each,
        "planned_s": plan["elapsed_s"],
        "extrapolated_s": whole_s,
    }


def plans(folder: Path, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    middle, mixture = write_llama(folder / "middle", MIDDLE), folder / "mixture"
    make(mixture, "mixtral", "plain", **MIXTURE)
    asked = [
        ("real", arguments.model, []),
        ("real, effort 1", arguments.model, ["--effort", "1"]),
        ("random, 1024 wide", middle, [*RANDOM, "--set", "calibration.samples=64"]),
        ("real, 3 bits, texts on disk", arguments.model, ["-r", "w3a16", "--max-memory", "1GB"]),
        ("mixture of 8 experts", mixture, [*RANDOM, "--set", "calibration.samples=64"]),
        ("mixture, 8 bits to nearest", mixture, ["-r", "w8a16", "--effort", "0"]),
    ]
    rows = []
    print(f"{'':>40}{'peak':>8}{'size':>8}{'time':>8}   real / planned")
    for name, model, options in asked:
        result = zeropoint("quantize", model, "-o", folder / "out", "--overwrite", *options)
        plan = result["plan"]
        row = {
            "name": name,
            "peak": result["peak_memory_bytes"] / plan["peak_memory_bytes"],
            "size": result["size"]["total_bytes"] / plan["size"]["total_bytes"],
            "time": result["elapsed_s"] / plan["elapsed_s"],
            "peak_bytes": result["peak_memory_bytes"],
            "elapsed_s": result["elapsed_s"],
        }
        print(f"{name:>40}{row['peak']:>8.2f}{row['size']:>8.4f}{row['time']:>8.2f}", flush=True)
        rows.append(row)
    return rows


def peak_of(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines()
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
