"""--max-memory under a ceiling that the system keeps: RLIMIT_DATA, which counts what a process may write to."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from child import ENVIRONMENT
from tiny import make_llama

SIZES = {"hidden": 256, "intermediate": 1024, "layers": 3}
CHANGES = ["calibration.tokens=random", "calibration.samples=320", "calibration.length=128", "calibration.batch=2"]

CHILD = """
import resource, sys
from pathlib import Path
import torch
import zeropoint, zeropoint.pipeline
from zeropoint.evaluation.results import resident_bytes

torch.set_num_threads(1)
torch.randn(600, 600) @ torch.randn(600, 600)  # what a product needs once
model, output, spared, recipe = sys.argv[1], sys.argv[2], int(sys.argv[3]), zeropoint.load_recipe("w4a16", sys.argv[4:])
plan = zeropoint.plan(model, recipe=recipe, threads=1, bench_s=0)
limit = plan.peak_memory_bytes - spared
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
ceiling = int(status["VmData"].split()[0]) * 1024 + limit - resident_bytes()
resource.setrlimit(resource.RLIMIT_DATA, (ceiling, ceiling))
asked = None if output.endswith("unasked") else limit
print(zeropoint.quantize(model, output, recipe=recipe, max_memory_bytes=asked).spilled_bytes)
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_llama(tmp_path_factory.mktemp("memory") / "model", **SIZES)  # type: ignore[arg-type]


def quantize(model: Path, output: Path, spared: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", CHILD, str(model), str(output), str(spared), *CHANGES]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)


def test_a_limit_below_what_the_texts_take_is_kept_under_a_ceiling(model: Path, tmp_path: Path) -> None:
    spared = 150_000_000
    done = quantize(model, tmp_path / "asked", spared)
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout) >= spared
    # without the limit the same ceiling is met: it is a real one
    done = quantize(model, tmp_path / "unasked", spared)
    assert done.returncode != 0
    assert "can't allocate memory" in done.stderr or "MemoryError" in done.stderr
