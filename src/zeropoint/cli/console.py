"""The only file that prints. Results go to stdout, progress and complaints to stderr."""

from __future__ import annotations

import logging
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import TextIOWrapper
from typing import TYPE_CHECKING, Any, TextIO

from zeropoint.progress import Progress, ProgressCallback

if TYPE_CHECKING:
    from rich.console import RenderableType

WIDTH_IN_A_FILE = 120
"""Columns of a table when stdout is no terminal."""

SECONDS_BETWEEN_LINES = 2.0
"""Progress lines of one stage are at least this far apart, but for its first and its last."""


def prepare() -> None:
    """Make the streams take any text, and show the library's warnings on stderr."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a file name may hold bytes that are no text
            stream.reconfigure(errors="backslashreplace")
    logger = logging.getLogger("zeropoint")
    logger.handlers = [_Warnings(logging.WARNING)]
    logger.propagate = False


class _Warnings(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}")


# Results, to stdout


def show(*renderables: RenderableType) -> None:
    """Print tables and text that rich renders."""
    from rich.console import Console

    width = None if sys.stdout.isatty() else WIDTH_IN_A_FILE
    console = Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
    for renderable in renderables:
        console.print(renderable)


def show_json(result: object) -> None:
    """Print a result, made of dataclasses, structs and plain values, as one JSON document."""
    import msgspec

    text = msgspec.json.format(msgspec.json.encode(result, enc_hook=str), indent=2)
    show_text(text.decode() + "\n")


def show_json_line(result: object) -> None:
    """Print a result as one line of JSON: what follows a table, for whoever reads the last line."""
    import msgspec

    show_text(msgspec.json.encode(result, enc_hook=str).decode() + "\n")


def show_text(text: str) -> None:
    """Print text as it is, at once. A terminal gets no control characters: a model or a file could make them up."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else "\ufffd" for c in text)
    sys.stdout.write(text)
    sys.stdout.flush()


def asks() -> bool:
    """Say whether somebody sits at a terminal and types what `ask` returns."""
    return sys.stdin.isatty()


def ask(prompt: str) -> str | None:
    """Return the next line of stdin, or None at its end. A terminal shows `prompt`, and lets the line be edited."""
    if sys.stdin.isatty() and sys.stdout.isatty():
        with suppress(ImportError):  # not every system has it
            import readline  # noqa: F401 - gives input() its keys and its history
        try:
            return input(prompt)
        except EOFError:
            show_text("\n")
            return None
    if asks():
        _to_stderr(prompt)
    line = sys.stdin.readline()
    return line.removesuffix("\n") if line else None


def flush() -> None:
    """Write out what is buffered, so that a full disk or a closed pipe is noticed while it can be reported."""
    sys.stdout.flush()


def abandon_stdout() -> None:
    """Let what is still buffered go nowhere: stdout cannot be written, and Python would try once more at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (OSError, ValueError):  # a stream in memory
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)


# Complaints, and what is about to be done, to stderr


def tell(text: str) -> None:
    """Say a few lines before long work begins."""
    _to_stderr(f"{text}\n")


def complain(sentence: str) -> None:
    """Print "zeropoint: ..." as one line, whatever stands in the sentence."""
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in sentence.replace("\n", " "))
    _to_stderr(f"zeropoint: {line}\n")


def show_traceback(error: BaseException) -> None:
    """Print where an error came from, if ZEROPOINT_TRACEBACK=1 asks for it."""
    if os.environ.get("ZEROPOINT_TRACEBACK") == "1":
        _to_stderr("".join(traceback.format_exception(error)))


def _to_stderr(text: str) -> None:
    try:
        sys.stderr.write(text)
        sys.stderr.flush()
    except OSError:  # nobody reads it; the exit code still says what happened
        pass


# Progress, to stderr


@contextmanager
def progress() -> Iterator[ProgressCallback]:
    """Yield what the library reports its progress to: a bar in a terminal, lines in a file."""
    if sys.stderr.isatty():
        with _bar() as callback:
            yield callback
    else:
        yield Lines(sys.stderr)


class _Clock:
    """The time that a stage has left, from the time that its finished steps took.

    A stage begins with its report of 0 steps; one that reports after its first step began when the one before it ended.
    """

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._stage = ""
        self._started_s = self._last_s = now()

    def left(self, progress: Progress) -> str:
        """Return "3:20 left", or "" while nothing can be known or the stage is done."""
        if progress.stage != self._stage:
            self._stage, self._started_s = progress.stage, self._last_s
        self._last_s = self._now()
        if progress.done == 0:
            self._started_s = self._last_s
        if not 0 < progress.done < progress.total:
            return ""
        return f"{_duration((self._last_s - self._started_s) / progress.done * (progress.total - progress.done))} left"


class Lines:
    """Progress as lines: "quantize 3/30, model.layers.2, 3:20 left"."""

    def __init__(self, stream: TextIO, now: Callable[[], float] = time.monotonic) -> None:
        self._stream = stream
        self._now = now
        self._clock = _Clock(now)
        self._stage = ""
        self._written_s = 0.0

    def __call__(self, progress: Progress) -> None:
        """Write a line, unless the last one was a moment ago."""
        left = self._clock.left(progress)
        now_s = self._now()
        soon = now_s - self._written_s < SECONDS_BETWEEN_LINES
        if soon and progress.stage == self._stage and progress.done < progress.total:
            return
        self._stage, self._written_s = progress.stage, now_s
        parts = [f"{progress.stage} {progress.done}/{progress.total}", progress.detail, left]
        self._stream.write(", ".join(part for part in parts if part) + "\n")
        self._stream.flush()


@contextmanager
def _bar() -> Iterator[ProgressCallback]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
    from rich.progress import Progress as Bars

    clock = _Clock(time.monotonic)
    columns: Any = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Bars(*columns, console=Console(file=sys.stderr), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def callback(progress: Progress) -> None:
            detail = ", ".join(part for part in (progress.detail, clock.left(progress)) if part)
            if progress.stage not in tasks:
                tasks[progress.stage] = bars.add_task(progress.stage, total=progress.total, detail=detail)
            bars.update(tasks[progress.stage], completed=progress.done, total=progress.total, detail=detail)

        yield callback


def _duration(seconds: float) -> str:
    """Return 3:20, or 1:03:20 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
