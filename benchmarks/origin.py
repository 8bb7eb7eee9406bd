"""What a number was measured on: the machine and the commit. Every benchmark's last line of JSON has them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from zeropoint.evaluation.results import machine, versions


def origin() -> dict[str, object]:
    return {"machine": machine(), "commit": commit(), "versions": versions()}


def commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True, text=True, check=False, cwd=Path(__file__).parent,
    )  # fmt: skip
    return done.stdout.strip()
