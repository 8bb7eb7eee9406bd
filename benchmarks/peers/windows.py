"""The calibration windows that every peer gets: as many of 512 tokens, spread evenly over the text."""

from __future__ import annotations

import argparse
from pathlib import Path

from tokenizers import Tokenizer

LENGTH = 512


def parser(description: str) -> argparse.ArgumentParser:
    """Return a parser of what every script takes."""
    made = argparse.ArgumentParser(description=description.splitlines()[0])
    made.add_argument("model")
    made.add_argument("out")
    made.add_argument("--calibration", type=Path, required=True)
    made.add_argument("--samples", type=int, default=128)
    return made


def windows(arguments: argparse.Namespace) -> list[list[int]]:
    """Return the tokens of `arguments.samples` windows of `arguments.calibration` for `arguments.model`."""
    tokenizer = Tokenizer.from_file(f"{arguments.model}/tokenizer.json")
    tokens = tokenizer.encode(arguments.calibration.read_text(encoding="utf-8"), add_special_tokens=False).ids
    count = len(tokens) // LENGTH
    chosen = [k * count // arguments.samples for k in range(min(arguments.samples, count))]
    return [tokens[i * LENGTH : (i + 1) * LENGTH] for i in chosen]
