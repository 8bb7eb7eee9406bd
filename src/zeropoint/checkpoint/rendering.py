"""Chat templates, rendered by a process of their own that has little time and little memory.

A template comes with the model: it is a stranger's program. jinja2's sandbox keeps it away from files and from Python,
but bounds neither its loops nor the texts it makes: `{% for a in range(99999) %}` inside another one, `'a' * 10**12`,
or a text that is doubled forty times. Only the system can end such a program wherever it is, and only in a process that
nothing else lives in.

The process is started for the first conversation and serves all that follow, a line of JSON each way:

    -> {"source": "{% for message in messages %}...", "variables": {"messages": [...], "bos_token": "<s>", ...}}
    <- {"text": "..."}, or {"refused": "..."} by the template's own raise_exception, or {"broken": "..."}
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeropoint.errors import ProcessError

SECONDS = 10.0
"""What one conversation may take; a usual one takes a millisecond."""

MEMORY_BYTES = 1 << 29
"""What the process may take in all, address space included."""

PROGRAM = Path(__file__).with_name("renderer.py")


class RefusedError(Exception):
    """What a template says when it calls raise_exception."""


class BrokenError(Exception):
    """Why a template cannot be rendered."""


def render(source: str, variables: Mapping[str, Any]) -> str:
    """Return what a template makes of `variables`, which are JSON.

    Raises: RefusedError, BrokenError; ProcessError if no process can be started.
    """
    try:
        request = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise BrokenError(f"the messages are not JSON: {error}") from error
    with _lock:
        reply = _ask(request)
    if "refused" in reply:
        raise RefusedError(reply["refused"])
    if "broken" in reply:
        raise BrokenError(reply["broken"])
    return reply["text"]


_lock = threading.Lock()
_running: dict[int, subprocess.Popen[bytes]] = {}
"""The process that renders for this one, by the number of this one: a fork must not talk to that of its parent."""


def _ask(request: bytes) -> dict[str, str]:
    process = _running.get(os.getpid()) or _start()
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        process.stdin.flush()
        line = process.stdout.readline()
    except BrokenPipeError:
        line = b""
    except BaseException:  # Ctrl-C: half of an answer is nothing to go on from
        _stop()
        raise
    if line.endswith(b"\n"):
        reply: dict[str, str] = json.loads(line)
        return reply
    code = _stop()
    if code == -signal.SIGALRM:
        return {"broken": f"it takes more than {SECONDS:g} s"}
    return {"broken": f"the process that renders it ended with exit code {code}"}


def _start() -> subprocess.Popen[bytes]:
    _running.clear()
    path = json.dumps([path for path in sys.path if path])  # where jinja2 is; never the current folder
    command = [sys.executable, "-I", "-S", str(PROGRAM), path, str(SECONDS), str(MEMORY_BYTES)]
    try:
        process = subprocess.Popen(  # in a session of its own: Ctrl-C reaches this process alone
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
    except OSError as error:
        raise ProcessError(f"the process that renders chat templates cannot be started: {error.strerror}") from error
    _running[os.getpid()] = process
    return process


@atexit.register
def _stop() -> int | None:
    """End the process; return its exit code, None if there is none."""
    process = _running.pop(os.getpid(), None)
    if process is None:
        return None
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            try:
                pipe.close()
            except BrokenPipeError:  # a request that it never read
                continue
    try:
        return process.wait(timeout=1.0)  # it ends by itself when nothing can be asked any more
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()
