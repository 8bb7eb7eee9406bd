from __future__ import annotations

import io
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeropoint.cli import console
from zeropoint.progress import Progress

Streams = pytest.CaptureFixture[str]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Time:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def lines_of(steps: list[tuple[float, Progress]]) -> list[str]:
    """What Lines writes when the steps finish after so many seconds each."""
    time, stream = Time(), io.StringIO()
    lines = console.Lines(stream, time)
    for seconds, progress in steps:
        time.now_s += seconds
        lines(progress)
    return stream.getvalue().splitlines()


def test_progress_in_a_file_is_lines_with_the_time_left() -> None:
    steps = [(10.0, Progress("quantize", done, 30, f"model.layers.{done - 1}")) for done in (1, 2)]
    steps += [(3600.0, Progress("quantize", 3, 30)), (5.0, Progress("quantize", 30, 30, "model.layers.29"))]
    assert lines_of(steps) == [
        "quantize 1/30, model.layers.0, 4:50 left",
        "quantize 2/30, model.layers.1, 4:40 left",
        "quantize 3/30, 9:03:00 left",
        "quantize 30/30, model.layers.29",
    ]


def test_the_time_left_counts_from_the_end_of_the_stage_before() -> None:
    steps = [(100.0, Progress("read", 1, 1)), (10.0, Progress("judge", 1, 3)), (10.0, Progress("judge", 2, 3))]
    assert lines_of(steps) == ["read 1/1", "judge 1/3, 0:20 left", "judge 2/3, 0:10 left"]


def test_what_came_before_a_stage_began_is_not_in_the_time_left() -> None:
    steps = [(60.0, Progress("quantize", 0, 3)), (10.0, Progress("quantize", 1, 3))]
    assert lines_of(steps) == ["quantize 0/3", "quantize 1/3, 0:20 left"]


def test_quick_steps_do_not_flood_the_file_but_the_first_and_the_last_are_there() -> None:
    steps = [(0.1, Progress("judge", done, 100)) for done in range(1, 101)]
    lines = lines_of(steps)
    assert lines[0].startswith("judge 1/100")
    assert lines[-1] == "judge 100/100"
    assert len(lines) == 6  # 10 seconds, one line in 2 of them


def test_nothing_is_known_before_the_first_step() -> None:
    assert lines_of([(5.0, Progress("quantize", 0, 30)), (5.0, Progress("quantize", 0, 0))]) == [
        "quantize 0/30",
        "quantize 0/0",
    ]


@given(
    steps=st.lists(
        st.builds(
            lambda s, t, d, e: (e, Progress(s, min(d, t), t)),
            st.sampled_from("ab"),
            *[st.integers(0, 9)] * 2,
            st.floats(0, 1e7),
        )
    )
)
def test_any_progress_can_be_shown(steps: list[tuple[float, Progress]]) -> None:
    assert len(lines_of(steps)) <= len(steps)


def test_progress_goes_to_stderr_only(capfd: Streams) -> None:
    with console.progress() as report:
        report(Progress("quantize", 1, 2))
    streams = capfd.readouterr()
    assert streams.out == ""
    assert streams.err.startswith("quantize 1/2")


def test_progress_in_a_terminal_is_a_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capfd: Streams) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    with console.progress() as report:
        report(Progress("quantize", 3, 30, "[red]model.layers.2"))
        report(Progress("pack", 1, 1))
    shown = terminal.getvalue()
    for part in ("quantize", "━", "3/30", "[red]model.layers.2", "0:00 left", "pack", "1/1"):
        assert part in shown
    assert capfd.readouterr().out == ""


@dataclass(frozen=True)
class Result:
    path: Path
    value: float
    missing: float
    rows: tuple[int, ...]


def test_a_result_is_one_json_document(capfd: Streams) -> None:
    console.show_json(Result(Path("a/b"), 0.5, float("nan"), (1, 2)))
    streams = capfd.readouterr()
    assert json.loads(streams.out) == {"path": "a/b", "value": 0.5, "missing": None, "rows": [1, 2]}
    assert streams.out.endswith("}\n")
    assert streams.err == ""


def test_a_table_in_a_file_is_plain_text_and_wide(capfd: Streams, monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    monkeypatch.setenv("COLUMNS", "20")
    table = Table("layer", box=None)
    name = "model.layers.0.self_attn.q_proj [bold] " * 2
    table.add_row(name)
    console.show(table, "[red]as it is[/red] :smile:")
    lines = [line.rstrip() for line in capfd.readouterr().out.splitlines()]
    assert lines[1].strip() == name.strip()
    assert lines[2] == "[red]as it is[/red] :smile:"


def test_text_goes_out_as_it_is_but_a_terminal_gets_no_control_characters(
    capfd: Streams, monkeypatch: pytest.MonkeyPatch
) -> None:
    console.show_text("a\x1b[31m\r\n\tß\n")
    assert capfd.readouterr().out == "a\x1b[31m\r\n\tß\n"
    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    console.show_text("a\x1b[31m\r\n\tß\n")
    assert terminal.getvalue() == "a\ufffd[31m\ufffd\n\tß\n"


def test_warnings_of_the_library_are_shown_on_stderr(capfd: Streams) -> None:
    console.prepare()
    console.prepare()
    logging.getLogger("zeropoint.rounding").warning("model.layers.0: took %s", "rtn")
    logging.getLogger("zeropoint.rounding").info("not this")
    streams = capfd.readouterr()
    assert streams.err == "zeropoint: warning: model.layers.0: took rtn\n"
    assert streams.out == ""
