"""Every command and every Python block of the pages is run, and does what its page says.

All pages are run in one folder, where SmolLM2-135M.gguf is the demo model; a command that another page has had before
is not run again. See docs/pages.py for what counts as the same output.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import demo_model
from child import ENVIRONMENT
from docs.pages import Step, missing, steps

PROJECT = Path(__file__).parents[2]
PAGES = [*sorted((PROJECT / "docs").rglob("*.md")), PROJECT / "README.md"]
RUN = [page for page in PAGES if any(steps(page.read_text(encoding="utf-8")))]
SECONDS = 600

Known = dict[tuple[str, str], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the demo model, and with a text to judge on that no calibration has seen."""
    made = tmp_path_factory.mktemp("pages")
    (made / "SmolLM2-135M.gguf").symlink_to(demo_model.fetched().resolve())
    judged = PROJECT / "src" / "zeropoint" / "texts" / "judge.txt"
    (made / "held-out.txt").write_bytes(judged.read_bytes())
    return made


@pytest.fixture(scope="session")
def known() -> Known:
    return {}


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(PROJECT)))
def test_a_page_does_not_lie(page: Path, folder: Path, known: Known) -> None:
    for step in steps(page.read_text(encoding="utf-8")):
        done = known.get((step.kind, step.text)) or run(step, folder)
        where = f"{page.name}:{step.line}: {step.text}\n\nstdout:\n{done.stdout}\nstderr:\n{done.stderr}"
        assert done.returncode == step.exit_code, f"exit code {done.returncode}: {where}"
        lost = missing(step.shown, f"{done.stderr}\n{done.stdout}")
        assert lost is None, f"the page shows {lost!r}, the program does not: {where}"
        known[step.kind, step.text] = done


def run(step: Step, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a step as a reader does who has installed zeropoint."""
    command = [sys.executable, "-c", step.text] if step.kind == "python" else ["bash", "-ec", step.text]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    return subprocess.run(
        command, cwd=folder, env={**ENVIRONMENT, "PATH": path}, capture_output=True, text=True, check=False,
        timeout=SECONDS,
    )  # fmt: skip
