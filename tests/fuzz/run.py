"""The runner: cases one after another in child processes with little memory and little time for each.

A case is a number. With the seed it gives the target, the bytes and thereby the outcome, so that what fails can be
run again: `python -m fuzz --seed 0 --replay 4711`.
"""

from __future__ import annotations

import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from mmap import mmap
from pathlib import Path
from random import Random

from fuzz import seeds
from fuzz.mutate import CANARY, mutate
from fuzz.targets import TARGETS, Target, faults

CASE_SECONDS = 5.0
MEMORY_BYTES = 1 << 30
"""Address space that a case may take beyond what the process has at its start."""

LINKS = (
    "/proc/version",
    "/dev/zero",
    "/proc/self/environ",
    f"../{CANARY}.safetensors",
    f"../../{CANARY}.json",
    ".",
    "x",
)
"""What a file is a link to, now and then: nothing that could be changed, but for what is there to be watched."""


@dataclass(frozen=True)
class Failure:
    """A case that did not end as it must. reason: the exception, or the signal that ended the process."""

    case: int
    target: str
    reason: str
    trace: str


@dataclass
class Outcome:
    """What came of many cases. ended: by target, and by how it ended: "read" or the name of the error."""

    failures: list[Failure] = field(default_factory=list)
    ended: Counter[tuple[str, str]] = field(default_factory=Counter)
    seconds: float = 0.0


@dataclass
class Bench:
    """Where cases are run: the seeds, made once, and a copy of each target's folder whose one file is replaced."""

    root: Path
    seed: int
    targets: Sequence[Target] = TARGETS
    known: dict[tuple[str, str], list[bytes]] = field(default_factory=dict)
    changed: dict[Path, str] = field(default_factory=dict)

    def draw(self, case: int) -> tuple[Target, bytes | str]:
        """Return the target of a case, and the bytes that it reads or the path that they are a link to."""
        random = Random(f"{self.seed}.{case}")
        target = random.choices(self.targets, [each.weight for each in self.targets])[0]
        if target.file != "set" and random.random() < 0.002:
            return target, random.choice(LINKS)
        return target, mutate(random, self.seeds_of(target), target.kind)

    def put(self, target: Target, content: bytes | str) -> Path:
        """Return the folder that a target reads, with `content` in its file and the others as they were."""
        folder = self.root / f"{target.base}-{os.getpid()}"
        if target.fresh:
            shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            seeds.copy(self.root, target.base, folder)
        before = self.changed.get(folder, target.file)
        if before != target.file:
            (folder / before).unlink(missing_ok=True)
            shutil.copyfile(self.root / target.base / before, folder / before)
        self.changed[folder] = target.file
        file = folder / target.file
        if isinstance(content, str) or file.is_symlink():
            file.unlink(missing_ok=True)
        if isinstance(content, str):
            file.symlink_to(content)
        else:
            file.write_bytes(content)
        return folder

    def seeds_of(self, target: Target) -> list[bytes]:
        """Return the good contents of a target's file."""
        key = target.base, target.file
        if key not in self.known:
            self.known[key] = seeds.of(self.root, *key)
        return self.known[key]


def run(bench: Bench, cases: range) -> Iterator[tuple[int, Outcome]]:
    """Run cases in children, one after another, each going on behind the case that ended the one before.

    Yields: now and then, and at the end, how many are done and what came of them.
    """
    outcome, started = Outcome(), time.monotonic()
    for target in bench.targets:
        bench.seeds_of(target)  # read once, before the fork
    first = cases.start
    while first < cases.stop:
        last = min(first + 5000, cases.stop)
        first = _run_child(bench, range(first, last), outcome)
        outcome.seconds = time.monotonic() - started
        yield first - cases.start, outcome


def _run_child(bench: Bench, cases: range, outcome: Outcome) -> int:
    """Run cases in a child; return the first one that was not run. What came of them is added to `outcome`."""
    at, reader, writer = mmap(-1, 8), *os.pipe()
    with tempfile.TemporaryFile() as trace:
        child = os.fork()
        if not child:
            os.close(reader)
            _child(bench, cases, at, writer, trace.fileno())
        os.close(writer)
        with os.fdopen(reader, "rb") as lines:
            for line in lines:
                kind, *found = json.loads(line)
                if kind == "failed":
                    outcome.failures.append(Failure(*found))
                else:
                    outcome.ended.update({(target, how): count for target, how, count in found[0]})
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status == 0:
            return cases.stop
        case = int.from_bytes(at[:8], "little")
        trace.seek(0)
        reason = f"took more than {CASE_SECONDS} s" if status == -signal.SIGALRM else f"ended the process: {status}"
        failure = Failure(case, bench.draw(case)[0].name, reason, trace.read()[-6000:].decode(errors="replace"))
        outcome.failures.append(failure)
        return case + 1


def _child(bench: Bench, cases: range, at: mmap, writer: int, trace: int) -> None:
    """Run cases and end the process."""
    os.dup2(trace, 2)  # what panics and crashes print
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    faulthandler.enable(trace)
    faulthandler.register(signal.SIGALRM, trace, chain=True)  # says where it hung, and then ends the process
    ended: Counter[tuple[str, str]] = Counter()
    with os.fdopen(writer, "wb", buffering=0) as lines:
        for case in cases:
            at[:8] = case.to_bytes(8, "little")
            target, content = bench.draw(case)
            how, failure = run_case(bench, target, content)
            ended[target.name, how] += 1
            if failure:
                lines.write(json.dumps(["failed", case, target.name, how, failure]).encode() + b"\n")
            if case % 500 == 499 or case == cases[-1]:
                lines.write(json.dumps(["ended", [[*key, count] for key, count in ended.items()]]).encode() + b"\n")
                ended.clear()
    os._exit(0)


def run_case(bench: Bench, target: Target, content: bytes | str) -> tuple[str, str]:
    """Run one case; return how it ended, and "" or what is wrong with that."""
    folder = bench.put(target, content)
    signal.setitimer(signal.ITIMER_REAL, CASE_SECONDS)
    try:
        how, wrong = faults(target, folder)
    except BaseException as error:  # noqa: BLE001  a panic of Rust is no Exception
        shown = "".join(traceback.format_exception(error, limit=-12))[-4000:]
        how, wrong = f"{type(error).__name__}: {str(error)[:200]}", shown
    signal.setitimer(signal.ITIMER_REAL, 0)
    return how, wrong


def main(arguments: Sequence[str]) -> int:
    """Run cases, and say what came of them; return 1 if any failed."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Read hostile files with every reader.")
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--target", help="only this one; cases have other numbers then")
    parser.add_argument("--replay", type=int, metavar="CASE", help="run one case in this process, and keep its files")
    options = parser.parse_args(arguments)
    targets = [target for target in TARGETS if options.target in (None, target.name)]
    root = Path(tempfile.mkdtemp(prefix="zeropoint-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    bench = Bench(seeds.make(root / "seeds"), options.seed, targets)
    if options.replay is not None:
        target, content = bench.draw(options.replay)
        print(f"{target.name}: {bench.put(target, content) / target.file}")
        print(faults(target, bench.put(target, content)))
        return 0
    done = 0
    for done, outcome in run(bench, range(options.first, options.first + options.cases)):
        rate = done / max(outcome.seconds, 1e-9)
        print(
            f"{done:,} of {options.cases:,} cases, {rate:,.0f} a second, {len(outcome.failures)} failed",
            file=sys.stderr,
        )
    print(summary(outcome))
    for failure in outcome.failures[:50]:
        again = f"python -m fuzz --seed {options.seed} --replay {failure.case}"
        again += f" --target {options.target}" if options.target else ""
        print(f"\n{failure.target}: {failure.reason}\n  again: {again}\n{failure.trace}")
    shutil.rmtree(root)
    return int(bool(outcome.failures) or not done)


def summary(outcome: Outcome) -> str:
    """Return a table: for each target how often it read its file, refused it, and failed."""
    failed = Counter(failure.target for failure in outcome.failures)
    rows = [f"{'target':18}{'cases':>9}{'read':>9}{'refused':>9}{'failed':>8}"]
    for name in dict.fromkeys(target.name for target in TARGETS):
        of = {how: count for (target, how), count in outcome.ended.items() if target == name}
        refused = sum(count for how, count in of.items() if how.endswith("Error"))
        if of or failed[name]:
            rows.append(f"{name:18}{sum(of.values()):9,}{of.get('read', 0):9,}{refused:9,}{failed[name]:8,}")
    return "\n".join(rows)
