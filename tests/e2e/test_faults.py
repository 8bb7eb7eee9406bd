"""Runs that are killed, and disks that fail: nothing wrong is ever left, and the same run, started again, ends well."""

from __future__ import annotations

import errno
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from faults.runs import Runs
from tiny import make_llama

RECIPE = ("w4a16", ["calibration.samples=8", "calibration.length=32", "weights.group_size=32"])
TUNED = (
    "w4a16",
    [
        *RECIPE[1],
        "transforms=['smoothquant']",
        "rounding=gptaq",
        "refine=[{method='learned', steps=4, every=2}, {method='distill', steps=2, every=1}]",
    ],
)
CALLS = ("write", "fsync", "rename", "unlink", "mkdir", "open", "ftruncate", "read")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    folder = tmp_path_factory.mktemp("faults")
    with Runs(make_llama(folder / "model", layers=3), RECIPE, folder) as found:
        yield found


@pytest.mark.parametrize("tenth", range(10))
def test_a_run_that_is_killed_loses_at_most_a_block(runs: Runs, tenth: int) -> None:
    at = 1 + (2 * tenth + 1) * runs.calls // 20
    found = runs.disturb(at=at, kind="torn" if tenth % 2 else "kill")
    assert found["killed"]
    assert found["lost"] <= 1


@pytest.mark.parametrize("call", CALLS)
def test_a_disk_that_fails_once_is_named_and_nothing_wrong_is_left(runs: Runs, call: str) -> None:
    calls = runs.calls_of(call)
    found = runs.disturb(call=call, at=1 + calls // 2, kind="fail", error=errno.EIO)
    assert not found["killed"]
    assert found["error"] in ("OutputError", "CheckpointError", "InternalError")
    assert found["lost"] <= 1


def test_a_disk_that_fails_at_the_very_end_costs_nothing(runs: Runs) -> None:
    found = runs.disturb(call="read", at=runs.calls_of("read"), kind="fail", error=errno.EIO)
    assert (found["error"], found["finished"], found["lost"]) == ("OutputError", 3, 0)


def test_a_write_that_is_cut_short_is_gone_on_with(runs: Runs) -> None:
    found = runs.disturb(call="write", at=runs.calls_of("write") // 2, kind="short")
    assert found["resumed"] == 0
    assert "error" not in found


@pytest.mark.slow
@pytest.mark.parametrize("part", range(4))
def test_kills_at_every_third_call(runs: Runs, part: int) -> None:
    for at in range(1 + 3 * part, runs.calls + 1, 12):
        assert runs.disturb(at=at, kind="kill")["lost"] <= 1


@pytest.mark.slow
def test_kills_at_random_moments(runs: Runs) -> None:
    chance = random.Random(0)
    for _ in range(60):
        assert runs.disturb(kill_after_s=chance.uniform(0, 1.5))["lost"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("call", CALLS)
def test_every_call_that_fails(runs: Runs, call: str) -> None:
    for at in range(1, runs.calls_of(call) + 1, 3 if call == "write" else 1):
        assert runs.disturb(call=call, at=at, kind="fail", error=(errno.EIO, errno.ENOSPC)[at % 2])["lost"] <= 1


@pytest.mark.slow
def test_a_run_that_tunes_the_whole_model_goes_on_too(tmp_path: Path) -> None:
    with Runs(make_llama(tmp_path / "model", layers=3), TUNED, tmp_path) as tuned:
        for at in range(1, tuned.calls + 1, tuned.calls // 12):
            assert tuned.disturb(at=at, kind="kill")["killed"]
