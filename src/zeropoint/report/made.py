"""What is kept beside the weights of a model, read for its page: no weight, no text, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from zeropoint.errors import InputError
from zeropoint.evaluation.budgets import BUDGET, Budgeted
from zeropoint.evaluation.results import (
    BENCH,
    MANIFEST,
    RECORD,
    RESULTS,
    Bench,
    Evaluation,
    Manifest,
    QuantizeResult,
    Result,
)

Kind = TypeVar("Kind", bound=Result)


@dataclass(frozen=True)
class Made:
    """One model and all that is known of it; None for what nobody has measured.

    name: what the page calls it, another one for each model of a page.
    """

    name: str
    folder: Path
    record: QuantizeResult
    evaluation: Evaluation | None = None
    bench: Bench | None = None
    budget: Budgeted | None = None
    manifest: Manifest | None = None


def read(folders: Sequence[str | Path]) -> tuple[Made, ...]:
    """Return what is kept in each folder.

    Raises: InputError for no folder, one that is not there, one without a record, and a file that is damaged.
    """
    if not folders:
        raise InputError("no folder is given; give one that `zeropoint quantize` has made")
    paths = [Path(folder) for folder in folders]
    return tuple(_read(path, name) for path, name in zip(paths, _names(paths), strict=True))


def _read(folder: Path, name: str) -> Made:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give one that `zeropoint quantize` has made")
    if not (folder / RECORD).is_file():
        raise InputError(f"{folder} has no {RECORD}; a report is of a folder that `zeropoint quantize` has made")
    return Made(
        name=name,
        folder=folder,
        record=QuantizeResult.load(folder / RECORD),
        evaluation=_load(folder / RESULTS, Evaluation),
        bench=_load(folder / BENCH, Bench),
        budget=_load(folder / BUDGET, Budgeted),
        manifest=_load(folder / MANIFEST, Manifest),
    )


def _load(file: Path, kind: type[Kind]) -> Kind | None:
    return kind.load(file) if file.exists() else None


def _names(paths: Sequence[Path]) -> list[str]:
    """Return the names of the folders, with a number where two have the same one."""
    stems = [path.resolve().name or str(path) for path in paths]
    return [
        stem if stems.count(stem) == 1 else f"{stem} ({stems[: index + 1].count(stem)})"
        for index, stem in enumerate(stems)
    ]
