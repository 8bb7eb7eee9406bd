"""Code in a process of its own, that finds zeropoint where this process did: for imports, exit codes and signals."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

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


@contextmanager
def running(command: Sequence[str], environment: dict[str, str] | None = None, **options: Any) -> Iterator[Any]:
    """Start a process that is spoken with while it runs, in our ENVIRONMENT and what is added to it.

    It does not outlive the block: Popen's own `with` waits, and a test that has failed would wait for ever.
    """
    environment = ENVIRONMENT | (environment or {})
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=environment, **options) as run:
        try:
            yield run
        except BaseException:
            run.kill()
            raise
