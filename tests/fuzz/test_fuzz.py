"""Every reader on 20,000 hostile files, and whether the runner would notice what it looks for."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from child import SOURCES

TESTS = Path(__file__).parents[1]
PATH = os.pathsep.join((SOURCES, str(TESTS)))
ENVIRONMENT = {**os.environ, "PYTHONPATH": PATH, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run_fuzz(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=900
    )


def test_no_reader_fails_on_20_000_hostile_files() -> None:
    done = run_fuzz("-m", "fuzz", "--cases", "20000", "--seed", "0")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    assert len(rows) == 22
    for name, _, read, refused, _ in rows:  # not all stopped at the first check
        assert read != "0", f"{name} was never read"
        assert refused != "0", f"{name} was never refused"


FAULTS = """
import os, time, sys
from pathlib import Path
from fuzz import run
from fuzz.targets import Target
from zeropoint.errors import InputError

def fine(folder): raise InputError("a sentence")
def crash(folder): os.kill(os.getpid(), 11)
def hang(folder): time.sleep(60)
def hoard(folder): bytearray(1 << 40)
def raw(folder): {}["x"]
def silent(folder): raise InputError(" ")

run.CASE_SECONDS = 0.3
root = Path(sys.argv[1])
(root / "base").mkdir()
(root / "base" / "file").write_text("3")
for read in (fine, crash, hang, hoard, raw, silent):
    bench = run.Bench(root, 0, [Target(read.__name__, "base", "file", "json", read)])
    for done, outcome in run.run(bench, range(3)):
        pass
    print(read.__name__, done, len(outcome.failures), *(outcome.failures[0].reason.split() if outcome.failures else ()))
"""


def test_the_runner_notices_crashes_hangs_hoards_and_foreign_exceptions(tmp_path: Path) -> None:
    done = run_fuzz("-c", FAULTS, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "fine 3 0",
        "crash 3 3 ended the process: -11",
        "hang 3 3 took more than 0.3 s",
        "hoard 3 3 MemoryError:",
        "raw 3 3 KeyError: 'x'",
        "silent 3 3 InputError",
    ]


def test_a_case_depends_on_the_seed_and_its_number_alone(tmp_path: Path) -> None:
    from fuzz.run import Bench
    from fuzz.targets import Target

    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "file").write_text('{"a": [1, 2, {"b": "text"}], "c": null}')
    target = Target("any", "base", "file", "json", len)
    drawn = [Bench(tmp_path, seed, [target]).draw(case)[1] for seed in (1, 1, 2) for case in range(50)]
    assert drawn[:50] == drawn[50:100] != drawn[100:]
    assert len(set(drawn[:50])) > 40
