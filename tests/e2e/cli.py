"""Runs the command line as a user does: in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from child import ENVIRONMENT

SMALL = ("--set", "calibration.samples=8", "--set", "calibration.length=32", "--set", "weights.group_size=32")
"""Settings with which a model of tests/tiny.py is quantized in a second."""


def zeropoint(*arguments: str | Path, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run `zeropoint ARGUMENTS` and return its exit code and output."""
    command = [sys.executable, "-m", "zeropoint", *map(str, arguments)]
    if arguments[0] == "quantize" and "--calibration" not in command and "--help" not in command:
        from zeropoint.observe.data import bundled_text  # cut short by conftest.py

        command += ["--calibration", str(bundled_text("calibration"))]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=folder, env=ENVIRONMENT, timeout=120
    )
