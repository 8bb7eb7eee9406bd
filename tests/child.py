"""Code in a process of its own, that finds zeropoint where this process did: for imports, exit codes and signals."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import IO

import zeropoint

SOURCES = str(Path(zeropoint.__file__).parents[1])
ENVIRONMENT = {**os.environ, "PYTHONPATH": SOURCES, "ZEROPOINT_TRACEBACK": ""}
ZEROPOINT = (sys.executable, "-m", "zeropoint")


def run_python(code: str) -> str:
    """Run Python code and return what it printed, without the last line break."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.removesuffix("\n")


def run_zeropoint(*arguments: str, stdout: IO[str] | int = subprocess.PIPE) -> subprocess.CompletedProcess[str]:
    """Run the command line as a user does."""
    return subprocess.run(
        [*ZEROPOINT, *arguments],
        stdout=stdout, stderr=subprocess.PIPE, text=True, check=False, env=ENVIRONMENT, timeout=120,
    )  # fmt: skip
