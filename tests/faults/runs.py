"""The parent's end of server.py: runs that are killed, or whose disk fails, and what they leave behind."""

from __future__ import annotations

import hashlib
import json
import select
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from child import ENVIRONMENT
from zeropoint.observe.data import bundled_text

HERE = Path(__file__).parent
RUN_SECONDS = 600
MEASURED = ("zeropoint.json",)
"""Files of an output that hold times, and so differ from run to run."""


class Runs:
    """Quantizes one model with one recipe, again and again. Use it as a context manager.

    model: a folder. recipe: what `load_recipe` takes. folder: one of ours, for outputs.
    """

    def __init__(self, model: Path, recipe: tuple[Any, ...], folder: Path) -> None:
        self._model, self._recipe, self._folder = model, recipe, folder
        self.outputs = folder / "outputs"
        self.outputs.mkdir()

    def __enter__(self) -> Self:
        library = self._folder / "faults.so"
        compiler = ["c++", "-shared", "-fPIC", "-O1", "-o", str(library), str(HERE / "faults.cpp"), "-ldl"]
        subprocess.run(compiler, check=True, timeout=120)
        environment = {**ENVIRONMENT, "LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        self._server = subprocess.Popen(
            [sys.executable, "-m", "faults.server", str(library)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=HERE.parent,
        )
        undisturbed = self.run("undisturbed")
        assert "resumed" in undisturbed, undisturbed
        self.calls: int = undisturbed["calls"]
        """How many calls of any kind an undisturbed run makes."""
        self.expected = contents(self.outputs / "undisturbed")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        if error is not None:
            self._server.kill()
        self._server.wait(60)
        if self._server.stdout is not None:
            self._server.stdout.close()

    def run(self, output: str, **fault: Any) -> dict[str, Any]:
        """Quantize to `output`, with a fault or without, and return what server.py says of it."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        paths = {
            "calibration": str(bundled_text("calibration")),
            "model": str(self._model),
            "output": str(self.outputs / output),
            "below": str(self.outputs),
        }
        self._server.stdin.write(json.dumps({**paths, "recipe": self._recipe, **fault}) + "\n")
        self._server.stdin.flush()
        ready = select.select([self._server.stdout], [], [], RUN_SECONDS)[0]
        assert ready, f"a run does not end: {fault}"
        reply: dict[str, Any] = json.loads(self._server.stdout.readline())
        return reply

    def calls_of(self, name: str) -> int:
        """Return how many calls of one name an undisturbed run makes."""
        counted: int = self.run("counted", call=name, at=0)["calls"]
        shutil.rmtree(self.outputs / "counted")
        return counted

    def disturb(self, **fault: Any) -> dict[str, Any]:
        """Quantize with a fault, see that nothing wrong is left, go on without, and see that the output is right.

        Returns what became of the first run, with "lost": how many blocks that it had finished were done again.
        """
        first = self.run("out", **fault)
        self.require_absent_or_right(fault)
        there = (self.outputs / "out").exists()
        second = {"resumed": first["finished"]} if there else self.run("out")
        assert "resumed" in second, (fault, first, second)
        self.require_absent_or_right(fault)
        left = sorted(file.name for file in self.outputs.iterdir() if file.name not in ("out", "undisturbed"))
        assert left in ([], [".out.partial"]), (fault, left)
        if left:  # killed while it was tidying up: the next run does it
            refused = self.run("out")
            assert refused["error"] == "OutputError", (fault, refused)
            left = sorted(file.name for file in self.outputs.iterdir() if file.name not in ("out", "undisturbed"))
        assert left == [], (fault, left)
        shutil.rmtree(self.outputs / "out")
        return {**first, "lost": first["finished"] - second["resumed"]}

    def require_absent_or_right(self, fault: dict[str, Any]) -> None:
        """Fail unless the output is either not there, or what an undisturbed run makes."""
        out = self.outputs / "out"
        if out.exists():
            found = contents(out)
            wrong = {name for name in found.keys() | self.expected.keys() if found.get(name) != self.expected.get(name)}
            assert not wrong, (fault, wrong)


def contents(folder: Path) -> dict[str, str]:
    """Return the hash of every file that is the same in every run, and what the others say of layers and inputs."""
    files = (file for file in sorted(folder.iterdir()) if file.name not in MEASURED)
    found = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}
    for name in MEASURED:
        record = json.loads((folder / name).read_bytes())
        assert all(row["spreading"] for row in record["layers"])
        found |= {f"{name}, {field}": json.dumps(record[field]) for field in ("layers", "sufficiency")}
    return found
