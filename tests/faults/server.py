"""Runs of `quantize` that meet a fault, one after the other, each in a fork of this process: torch is imported once.

Started by `Runs` (runs.py) with faults.so preloaded. A request is a line of JSON on stdin, its reply one on stdout.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import sys
import time
from typing import Any

KINDS = {"kill": 0, "torn": 1, "fail": 2, "short": 3}
NO_ERROR = 0


def main() -> None:
    """Answer requests until stdin ends."""
    import torch  # noqa: F401 - before any fork

    import zeropoint.pipeline  # noqa: F401

    faults = ctypes.CDLL(sys.argv[1])
    faults.faults_count.restype = ctypes.c_long
    for line in sys.stdin:
        sys.stdout.write(json.dumps(run(faults, **json.loads(line))) + "\n")
        sys.stdout.flush()


def run(
    faults: Any,
    *,
    model: str,
    output: str,
    recipe: list[Any],
    below: str,
    call: str = "",
    at: int = 0,
    kind: str = "fail",
    error: int = NO_ERROR,
    kill_after_s: float | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Quantize in a fork, and return what became of it: whether it was killed, how many blocks it had finished, ..."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            faults.faults_arm(below.encode(), call.encode(), ctypes.c_long(at), KINDS[kind], error)
            reply = quantize(model, output, recipe, writing, options)
            tell(writing, reply | {"calls": faults.faults_count()})
        finally:
            os._exit(0)
    os.close(writing)
    lines, killed_s = b"", time.monotonic() + (kill_after_s if kill_after_s is not None else 3600)
    while True:
        ready, _, _ = select.select([reading], [], [], max(0, killed_s - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGKILL)
            killed_s = time.monotonic() + 3600
            continue
        found = os.read(reading, 1 << 16)
        if not found:
            break
        lines += found
    os.close(reading)
    status = os.waitpid(child, 0)[1]
    told = [json.loads(line) for line in lines.splitlines()]
    blocks = max((each["blocks"] for each in told if "blocks" in each), default=0)
    return {"killed": os.WIFSIGNALED(status), "finished": blocks, **(told[-1] if told and "calls" in told[-1] else {})}


def quantize(model: str, output: str, recipe: list[Any], writing: int, options: dict[str, Any]) -> dict[str, Any]:
    """Quantize, say every finished block, and return how it ended."""
    import zeropoint

    def progress(step: Any) -> None:
        if step.stage == "quantize":
            tell(writing, {"blocks": step.done})

    try:
        result = zeropoint.quantize(model, output, recipe=zeropoint.load_recipe(*recipe), progress=progress, **options)
    except BaseException as failure:  # noqa: BLE001 - whatever it is, it is the reply
        notes = getattr(failure, "__notes__", [])
        return {"error": type(failure).__name__, "message": " ".join([str(failure), *notes])}
    return {"resumed": result.resumed_blocks}


def tell(descriptor: int, reply: dict[str, Any]) -> None:
    """Send one line."""
    os.write(descriptor, json.dumps(reply).encode() + b"\n")


if __name__ == "__main__":
    main()
