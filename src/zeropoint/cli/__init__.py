"""The command line: one file per command, found by listing this folder.

    exit code 0   done
              1   a promise not kept: a verdict that --fail-on asked about, a recipe of compare that failed, a folder
                  that is not as it was computed, too many layers that are not as asked
              2   the user's input, its message one sentence on stderr
              3   a fault of ours or of the machine
            130   stopped by Ctrl-C; 143 by SIGTERM; 141 because nobody reads stdout any more

A command's file has `command`, a click command that calls the Python API and gives the result to console.py, the
only file that prints. It returns its exit code, or None for 0. Nothing here imports torch, numpy or rich before it is
needed: `--help` is instant.
"""

from __future__ import annotations

import contextlib
import errno
import signal
import sys
from collections.abc import Iterator, Sequence
from types import FrameType

import click

from zeropoint import find
from zeropoint.cli import console
from zeropoint.cli.options import example
from zeropoint.errors import ZeropointError

NOT_CAPABILITIES = ("console", "options")

STOPPED_BY_CTRL_C = 128 + signal.SIGINT
STOPPED_BY_SIGTERM = 128 + signal.SIGTERM
NOBODY_READS = 128 + 13  # SIGPIPE, which not every system has


class Commands(click.Group):
    """The files of this folder as commands, each imported when it is asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands, sorted."""
        return list(find.names("cli"))

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command of that name, or None."""
        if cmd_name not in find.names("cli"):
            return None
        command: click.Command = find.load("cli", cmd_name).command
        return command


class Terminated(BaseException):
    """SIGTERM, raised where the program was, so that a half-written output is removed on the way out."""


def _print_version(ctx: click.Context, parameter: click.Parameter, value: bool) -> None:
    if value:
        import zeropoint

        console.show_text(f"zeropoint {zeropoint.__version__}\n")
        ctx.exit()


@click.command(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=example(
        "zeropoint quantize SmolLM2-135M --output SmolLM2-w4",
        "zeropoint evaluate SmolLM2-w4 --reference SmolLM2-135M --text held-out.txt",
        'zeropoint generate SmolLM2-w4 --prompt "The capital of France is"',
    ),
)
@click.option(
    "--version", is_flag=True, is_eager=True, expose_value=False, callback=_print_version, help="Print the version."
)
def zeropoint() -> None:
    """Quantize a language model, and measure what it lost."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line, by default the program's own, and return the exit code. All errors end here."""
    try:
        with _sigterm_raises():
            console.prepare()
            code = _run(list(sys.argv[1:] if arguments is None else arguments))
            console.flush()
    except BaseException as error:  # noqa: BLE001 - the one place where any error becomes a sentence and an exit code
        console.show_traceback(error)
        return _explain(error)
    return code


def _run(arguments: list[str]) -> int:
    try:
        with zeropoint.make_context("zeropoint", arguments) as context:
            code = zeropoint.invoke(context)
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    return code if isinstance(code, int) else 0


def _explain(error: BaseException) -> int:
    """Say in one sentence what ended the command and return the exit code."""
    name = type(error).__name__
    match error:
        case click.ClickException():
            error.show()  # the usage and the message
            return 2
        case BrokenPipeError():
            console.abandon_stdout()
            return NOBODY_READS
        case ZeropointError():
            code, sentence = error.exit_code, str(error)
        case KeyboardInterrupt() | click.Abort():
            code, sentence = STOPPED_BY_CTRL_C, "stopped by Ctrl-C before it was done"
        case Terminated():
            code, sentence = STOPPED_BY_SIGTERM, "stopped by SIGTERM before it was done"
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            console.abandon_stdout()
            where = f" for {error.filename}" if error.filename else ""
            code, sentence = 2, f"no space left{where}; free some, or write the output to another disk"
        case Exception() if _out_of_memory(error):
            code, sentence = 3, f"out of memory ({name}); close other programs, or lower calibration.batch"
        case Exception():
            code, sentence = 3, f"unexpected {name}: {error} (run with ZEROPOINT_TRACEBACK=1 for the traceback)"
        case _:  # SystemExit and the like are nobody's error
            raise error
    console.complain("; ".join([sentence, *getattr(error, "__notes__", ())]))
    return code


def _out_of_memory(error: Exception) -> bool:
    """Say whether memory ran out. torch has a class for devices; its CPU allocator raises a bare RuntimeError."""
    torch = sys.modules.get("torch")
    of_torch = torch is not None and isinstance(error, torch.OutOfMemoryError)
    return isinstance(error, MemoryError) or of_torch or "DefaultCPUAllocator: can't allocate memory" in str(error)


@contextlib.contextmanager
def _sigterm_raises() -> Iterator[None]:
    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a second one ends at once
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever embeds us owns the signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
