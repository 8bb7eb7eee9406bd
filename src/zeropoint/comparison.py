"""Several recipes and the float model side by side: every number is of a written file, read back.

    check every recipe and every text  ->  quantize and evaluate one recipe after the other  ->  all speeds in turns

What a recipe lost is what `evaluate` says of its folder, on the same windows for all; speeds come from rounds in which
every model is measured once (evaluation/speed.py). A recipe that fails is a row that says why, and the others go on.
"""

from __future__ import annotations

import hashlib
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import zeropoint
from zeropoint import _native
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import InputError, OutputError, ZeropointError
from zeropoint.evaluation.results import (
    RECORD,
    Comparison,
    ComparisonRow,
    Evaluation,
    ModelSpeed,
    QuantizeResult,
    Text,
    machine,
    versions,
)
from zeropoint.evaluation.run import evaluate
from zeropoint.evaluation.size import size_of
from zeropoint.evaluation.speed import measure_speeds
from zeropoint.evaluation.speed_process import CONTEXT
from zeropoint.observe.data import bundled_text, calibration_batches, judging_windows, require_readable
from zeropoint.pipeline import quantize, require_fits
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Recipe, load_recipes
from zeropoint.runtime.weights import Weights

LENGTH = 512
"""Tokens of a window that is judged, and of the prompt whose prefill is measured."""

MAX_WINDOWS = 32
"""Windows judged, unless the caller sets another limit."""

TOKENS = 128
"""Decoded one by one in each run."""

_log = logging.getLogger(__name__)


def compare(
    model: str | Path,
    *,
    recipes: Iterable[str | Path | Recipe],
    calibration: str | Path | None = None,
    text: str | Path | None = None,
    max_windows: int = MAX_WINDOWS,
    runs: int = 5,
    speed: bool = True,
    threads: int | None = None,
    keep: str | Path | None = None,
    progress: ProgressCallback | None = None,
) -> Comparison:
    """Quantize a model by every recipe, and return what each lost, its size, its memory and its speed.

    recipes: as `quantize` takes one. calibration: as `quantize` takes it. text, max_windows: as `evaluate` takes them;
    None is the bundled text. runs: times that speeds are measured. speed: whether they are, which takes the memory of
    all models at once. threads: of the native runtime; None is all cores. keep: a folder where the model of each recipe
    stays under the recipe's name, and is used again where it is; None removes them.

    Raises: InputError, by one of its subclasses, before anything is quantized, for what no recipe could do without: a
        wrong recipe, an unreadable model or text, something else in the place of a kept model, or a model that none of
        the recipes fits.
    """
    started_s = time.perf_counter()
    for name, count in (("max_windows", max_windows), ("runs", runs), ("threads", threads)):
        if count is not None and count < 1:
            raise InputError(f"{name} is {count}; it must be 1 or more")
    named = load_recipes(recipes)
    report = progress or (lambda step: None)
    text = bundled_text("judge") if text is None else text
    source = Weights(open_checkpoint(model))
    judged_on = _read_texts(source, named.values(), calibration, text, max_windows)
    job = _Job(Path(model), source, calibration, text, max_windows, threads, keep is not None)
    errors = _refused(model, named)
    kept = {name: job.kept(Path(keep) / name, recipe) for name, recipe in named.items()} if keep is not None else {}
    speed_error = None
    with _folder(keep) as folder:
        made = [
            _Made(ComparisonRow(name=name, recipe=recipe.to_dict(), error=errors[name]), None)
            if name in errors
            else job.make(name, recipe, folder / name, kept.get(name), report)
            for name, recipe in named.items()
        ]
        evaluations = [each.evaluation for each in made if each.evaluation is not None]
        perplexity = evaluations[0].perplexity_reference if evaluations else None
        rows = [_float_row(source, perplexity), *(each.row for each in made)]
        if speed and evaluations:
            try:
                rows = _with_speeds(rows, Path(model), folder, runs, threads, report)
            except ZeropointError as error:  # what was found before is not lost
                speed_error = str(error)
    return Comparison(
        zeropoint=zeropoint.__version__,
        model=str(model),
        rows=tuple(rows),
        text=judged_on,
        tokens=judged_on.windows * (judged_on.length - 1),
        runtime=evaluations[0].runtime if evaluations else None,
        runs=runs if speed else 0,
        prompt_tokens=LENGTH,
        tokens_decoded=TOKENS,
        context_tokens=CONTEXT,
        threads=threads or _native.usable_cores(),
        speed_error=speed_error,
        elapsed_s=time.perf_counter() - started_s,
        versions=versions(),
        machine=machine(),
    )


@dataclass(frozen=True)
class _Made:
    """What became of a recipe. evaluation: None if it failed."""

    row: ComparisonRow
    evaluation: Evaluation | None


@dataclass(frozen=True)
class _Job:
    """What all recipes have in common. stays: the models are kept."""

    model: Path
    source: Weights
    calibration: str | Path | None
    text: str | Path
    max_windows: int
    threads: int | None
    stays: bool

    def make(
        self, name: str, recipe: Recipe, folder: Path, kept: QuantizeResult | None, report: ProgressCallback
    ) -> _Made:
        """Quantize into the folder, unless the record of what is there is given, and judge it."""
        row = ComparisonRow(name=name, recipe=recipe.to_dict(), reused=kept is not None)
        report = _named(name, report)
        try:
            record = kept or quantize(self.model, folder, recipe=recipe, calibration=self.calibration, progress=report)
            judged = evaluate(
                folder,
                reference=self.model,
                text=self.text,
                length=LENGTH,
                max_windows=self.max_windows,
                threads=self.threads,
                progress=report,
            )
        except ZeropointError as error:
            _log.warning("recipe %s: %s", name, error)
            return _Made(msgspec.structs.replace(row, error=str(error)), None)
        return _Made(_with_loss(row, record, judged, str(folder) if self.stays else None), judged)

    def kept(self, folder: Path, recipe: Recipe) -> QuantizeResult | None:
        """Return the record of the model that is there, made by this recipe of this model; None if nothing is there.

        Raises: OutputError if something else is there, which is not for us to replace.
        """
        if not folder.exists():
            return None
        try:
            record = QuantizeResult.load(folder / RECORD)
            different = self._difference(record, (folder / RECORD).stat().st_mtime, recipe)
        except InputError as error:
            different = f"has no record ({error})"
        if different is not None:
            raise OutputError(f"{folder}: {different}; remove it, or keep the models in another folder")
        return record

    def _difference(self, record: QuantizeResult, made_s: float, recipe: Recipe) -> str | None:
        """Return how a record is not what would be made now, or None."""
        if _settings(record.recipe) != _settings(recipe.to_dict()):
            return "was made by another recipe"
        files = {info.file for info in self.source.checkpoint.tensors.values()}
        if (
            Path(record.model).resolve() != self.model.resolve()
            or record.source_bytes != size_of(self.source).total_bytes
        ):
            return f"was made of another model, {record.model}"
        if max(file.stat().st_mtime for file in files) > made_s:
            return f"is older than the model {self.model}"
        if record.calibration is not None:
            text = bundled_text("calibration") if self.calibration is None else Path(self.calibration)
            with text.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != record.calibration.sha256:
                    return f"was calibrated on another text, {record.calibration.name}"
        return None


def _settings(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Return what decides about the integers: all but how a recipe calls itself."""
    return {key: value for key, value in recipe.items() if key not in ("name", "description")}


def _read_texts(
    source: Weights, recipes: Iterable[Recipe], calibration: str | Path | None, text: str | Path, max_windows: int
) -> Text:
    """Read both texts once, so that one which cannot be used is not found after the first recipe; describe the second.

    Raises: TextError.
    """
    tokenizer = load_tokenizer(source.checkpoint)
    windows = judging_windows(text, tokenizer, length=LENGTH, max_windows=max_windows)
    require_readable(windows, source.model.config)
    if calibration is not None:
        shortest = min(recipe.calibration.length for recipe in recipes)
        calibration_batches(calibration, tokenizer, samples=1, length=shortest, seed=0, batch=1)
    return Text(
        name=windows.source.name,
        sha256=windows.source.sha256,
        windows=len(windows.tokens),
        length=LENGTH,
        note=windows.note,
    )


def _refused(model: str | Path, recipes: Mapping[str, Recipe]) -> dict[str, str]:
    """Return why recipes cannot be applied to the model, by their names. Raises: InputError if none can."""
    found: dict[str, InputError] = {}
    for name, recipe in recipes.items():
        try:
            require_fits(model, recipe)
        except InputError as error:
            found[name] = error
    if len(found) == len(recipes):
        raise next(iter(found.values()))
    sentences = {name: str(error) for name, error in found.items()}
    for name, sentence in sentences.items():
        _log.warning("recipe %s: %s", name, sentence)
    return sentences


@contextmanager
def _folder(keep: str | Path | None) -> Iterator[Path]:
    """Yield the folder for the models: the one that is kept, or one that is removed whatever happens."""
    if keep is not None:
        yield Path(keep)
        return
    with tempfile.TemporaryDirectory(prefix="zeropoint-compare-") as folder:
        yield Path(folder)


def _named(name: str, report: ProgressCallback) -> ProgressCallback:
    """Return a callback that says which recipe is at work."""
    return lambda step: report(Progress(f"{name}: {step.stage}", step.done, step.total, step.detail))


def _float_row(source: Weights, perplexity: float | None) -> ComparisonRow:
    return ComparisonRow(name=source.checkpoint.path.resolve().name, size=size_of(source), perplexity=perplexity)


def _with_loss(row: ComparisonRow, made: QuantizeResult, judged: Evaluation, folder: str | None) -> ComparisonRow:
    """Return the row with what `quantize` and `evaluate` said."""
    return msgspec.structs.replace(
        row,
        folder=folder,
        size=judged.size,
        kl_mean=judged.kl_mean,
        kl_interval95=judged.kl_interval95,
        perplexity=judged.perplexity,
        perplexity_ratio=judged.perplexity_ratio,
        ratio_interval95=judged.ratio_interval95,
        top1_agreement=judged.top1_agreement,
        top1_interval95=judged.top1_interval95,
        quantize_s=made.elapsed_s,
        fallbacks=judged.fallbacks,
    )


def _with_speeds(
    rows: list[ComparisonRow], model: Path, folder: Path, runs: int, threads: int | None, report: ProgressCallback
) -> list[ComparisonRow]:
    """Return the rows with what all models, measured in turns, reached."""
    paths = [model if row.recipe is None else folder / row.name for row in rows if row.error is None]
    found = measure_speeds(paths, prompt_tokens=LENGTH, tokens=TOKENS, runs=runs, threads=threads, progress=report)
    speeds = iter(found.models)
    return [row if row.error is not None else _with_speed(row, next(speeds)) for row in rows]


def _with_speed(row: ComparisonRow, speed: ModelSpeed) -> ComparisonRow:
    return msgspec.structs.replace(
        row,
        prefill_tokens_per_s=speed.prefill_tokens_per_s,
        decode_tokens_per_s=speed.decode_tokens_per_s,
        peak_memory_bytes=speed.peak_memory_bytes,
    )
