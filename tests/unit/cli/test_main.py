from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click
import pytest
import torch

from child import ENVIRONMENT, ZEROPOINT, run_python, run_zeropoint
from zeropoint import cli, find
from zeropoint.errors import CheckpointError, InternalError

Streams = pytest.CaptureFixture[str]


@pytest.fixture
def ending_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], int]:
    """Run a command line whose command does what the test says, and return the exit code."""
    monkeypatch.delenv("ZEROPOINT_TRACEBACK", raising=False)

    def run(action: Callable[[], object]) -> int:
        command = click.Command("act", callback=action)
        monkeypatch.setattr(cli.Commands, "get_command", lambda self, ctx, name: command)
        return cli.main(["act"])

    return run


def raises(error: BaseException) -> Callable[[], NoReturn]:
    def action() -> NoReturn:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (CheckpointError("a: no folder; give one"), 2, "a: no folder; give one"),
        (InternalError("the file differs"), 3, "the file differs"),
        (click.ClickException("no"), 2, None),
        (KeyboardInterrupt(), 130, "stopped by Ctrl-C before it was done"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "no space left for /x/y; free some"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), 2, "no space left; free some"),
        (
            OSError(errno.EIO, "Input/output error", "/x/y"),
            3,
            "unexpected OSError: [Errno 5] Input/output error: '/x/y'",
        ),
        (MemoryError(), 3, "out of memory (MemoryError)"),
        (torch.OutOfMemoryError("CUDA out of memory"), 3, "out of memory (OutOfMemoryError)"),
        (RuntimeError("[x] DefaultCPUAllocator: can't allocate memory: you tried"), 3, "out of memory (RuntimeError)"),
        (ValueError("a\nb"), 3, "unexpected ValueError: a b (run with ZEROPOINT_TRACEBACK=1 for the traceback)"),
    ],
    ids=repr,
)
def test_an_error_ends_in_one_sentence_and_its_exit_code(
    error: Exception, code: int, said: str | None, ending_with: Callable[..., int], capfd: Streams
) -> None:
    assert ending_with(raises(error)) == code
    streams = capfd.readouterr()
    assert streams.out == ""
    if said is not None:
        assert streams.err.startswith(f"zeropoint: {said}")
        assert streams.err.count("\n") == 1
    assert "Traceback" not in streams.err


def test_the_cpu_allocator_of_torch_is_recognized(ending_with: Callable[..., int], capfd: Streams) -> None:
    assert ending_with(lambda: torch.empty(1 << 60, dtype=torch.uint8)) == 3
    assert capfd.readouterr().err.startswith("zeropoint: out of memory (RuntimeError)")


def test_a_command_says_its_own_exit_code(ending_with: Callable[..., int]) -> None:
    assert ending_with(lambda: None) == 0
    assert ending_with(lambda: 0) == 0
    assert ending_with(lambda: 1) == 1


def test_the_traceback_is_shown_to_those_who_ask(
    ending_with: Callable[..., int], capfd: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        monkeypatch.setenv("ZEROPOINT_TRACEBACK", "1")
        raise ValueError("why")

    assert ending_with(fail) == 3
    err = capfd.readouterr().err
    assert "Traceback (most recent call last)" in err
    assert "in fail" in err


def test_an_error_message_cannot_play_with_the_terminal(ending_with: Callable[..., int], capfd: Streams) -> None:
    ending_with(raises(CheckpointError("tensor \x1b[31mred\x07\u2028 é 'x'")))
    assert capfd.readouterr().err == "zeropoint: tensor \\x1b[31mred\\x07\\u2028 é 'x'\n"


def test_sigterm_unwinds_what_is_open_and_ends_in_143(
    ending_with: Callable[..., int], capfd: Streams, tmp_path: Path
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work() -> None:
        partial = tmp_path / "partial"
        try:
            partial.touch()
            os.kill(os.getpid(), signal.SIGTERM)
            signal.pause()
        finally:
            partial.unlink()

    assert ending_with(work) == 143
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().err == "zeropoint: stopped by SIGTERM before it was done\n"
    assert signal.getsignal(signal.SIGTERM) == before


def test_ctrl_c_ends_in_130(ending_with: Callable[..., int], capfd: Streams) -> None:
    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        signal.pause()

    assert ending_with(work) == 130
    assert capfd.readouterr().err == "zeropoint: stopped by Ctrl-C before it was done\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["quantise"], "No such command 'quantise'"),
        (["console"], "No such command 'console'"),
        (["quantize", "model"], "Missing option '-o' / '--output'"),
        (["quantize"], "Missing argument 'MODEL'"),
        (["quantize", "m", "-o", "o", "--threads", "0"], "--threads"),
        (["evaluate", "o", "--reference", "m", "--margin", "1"], "'1' is no share; write for example 1% or 0.01"),
        (["evaluate", "o", "--reference", "m", "--fail-on", "equivalent"], "--fail-on"),
        (["evaluate", "o", "--reference", "m", "--length", "1"], "--length"),
        (["inspect", "o", "--headers", "--reference", "m"], "leave one of them out"),
        (["inspect", "o", "--layer", "*", "--headers"], "leave --headers, --reference and --by-kind out"),
        (["inspect", "o", "--samples", "9"], "--samples is about the inputs of layers; name them with --layer"),
        (["inspect", "o", "--layer", "re:("], "'re:(' is no regular expression"),
        (["inspect", "o", "--layer", "*", "--rules", "mse,perzentile"], "did you mean 'percentile'?"),
        (["inspect", "o", "--tensor", "t", "--layer", "*"], "leave --headers, --reference, --by-kind and --layer out"),
        (["inspect", "o", "--tensor", "t", "--headers"], "leave --headers, --reference, --by-kind and --layer out"),
        (["inspect", "o", "--tensor", "t", "--samples", "9"], "--samples is about the inputs of layers"),
        (["inspect", "o", "--group-size", "64"], "--group-size is about one matrix; name it with --tensor"),
        (["inspect", "o", "--range", "mse"], "--range is about one matrix; name it with --tensor"),
        (["inspect", "o", "--row", "0"], "--row is about one matrix; name it with --tensor"),
        (["inspect", "o", "--tensor", "t", "--bits", "9"], "9 is not in the range 2<=x<=8"),
        (["inspect", "o", "--tensor", "t", "--range", "mes"], "did you mean 'mse'?"),
        (["inspect", "o", "--tensor", "t", "--granularity", "channel", "--group-size", "8"], "leave --group-size out"),
        (["generate", "o", "--prompt"], "requires an argument"),
        (["--jsno"], "--jsno"),
        ([], "Usage: zeropoint"),
    ],
    ids=str,
)
def test_a_wrong_command_line_is_the_users_input(arguments: list[str], said: str, capfd: Streams) -> None:
    assert cli.main(arguments) == 2
    streams = capfd.readouterr()
    assert streams.out == ""
    assert said in streams.err


def test_help_and_version_go_to_stdout(capfd: Streams) -> None:
    import zeropoint

    assert cli.main(["--version"]) == 0
    assert capfd.readouterr().out == f"zeropoint {zeropoint.__version__}\n"
    assert cli.main(["--help"]) == 0
    out = capfd.readouterr().out
    assert all(f"\n  {name} " in out for name in find.names("cli"))


@pytest.mark.parametrize(
    "arguments",
    [[], *([name] for name in find.names("cli")), ["recipes", "show"]],
    ids=lambda a: " ".join(a) or "zeropoint",
)
def test_every_help_has_an_example_that_parses(arguments: list[str], capfd: Streams) -> None:
    assert cli.main([*arguments, "--help"]) == 0
    out = capfd.readouterr().out
    _, _, rest = out.partition("  Example:\n")
    examples = [line.strip() for line in rest.splitlines() if line.startswith("    zeropoint ")]
    assert examples
    assert all(line.startswith(" ".join(["zeropoint", *arguments])) for line in examples)
    for line in examples:
        name, *given = _words(line)
        command = find.load("cli", name).command
        context = command.make_context(name, given, resilient_parsing=False)  # raises UsageError for a wrong option
        context.close()


def _words(example: str) -> list[str]:
    import shlex

    return shlex.split(example.partition(" > ")[0])[1:]


@pytest.mark.parametrize("arguments", [["--help"], ["quantize", "--help"], ["--version"], ["quantize"]], ids=str)
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys, io, contextlib\n"
        "from zeropoint.cli import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
        f"    main({arguments})\n"
        "print(sorted({'torch', 'numpy', 'rich', 'msgspec', 'safetensors', 'tokenizers', 'jinja2'} & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_the_program_runs_and_returns_its_exit_code() -> None:
    done = run_zeropoint("recipes", "show", "w4a17")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("zeropoint: no recipe is called 'w4a17'")
    assert done.stderr.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
@pytest.mark.parametrize("arguments", [["recipes", "show", "w4a16"], ["recipes"], ["--help"]], ids=str)
def test_a_full_disk_under_stdout_is_said(arguments: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_zeropoint(*arguments, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "zeropoint: no space left; free some, or write the output to another disk\n"


@pytest.mark.parametrize("arguments", [["recipes", "show", "w4a16"], ["--help"]], ids=str)
def test_a_reader_who_goes_away_ends_it_quietly(arguments: list[str]) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*ZEROPOINT, *arguments], stdout=write, stderr=subprocess.PIPE, env=ENVIRONMENT, check=False, timeout=120
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")


def test_file_names_that_are_no_text_can_be_complained_about(tmp_path: Path) -> None:
    done = run_zeropoint("recipes", "show", os.fsdecode(os.fsencode(tmp_path) + b"/\xff.toml"))
    assert done.returncode == 2
    assert "\\udcff.toml: not a readable recipe" in done.stderr
