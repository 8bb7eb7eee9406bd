"""`budget` and `quantize_within`: from what may be lost, or how large it may be, to the model that keeps it.

    costs of every form  ->  the choice  ->  quantize  ->  judged on windows of their own  ->  kept, or the next choice

The costs are found once for a model, a recipe and a text, and kept in the user's cache. Windows that decide about a
promise have no part in a choice, and those of a broken attempt are not used again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch

import zeropoint
from zeropoint import _native
from zeropoint.budget import promise
from zeropoint.budget.costs import Costs, Limits, knee
from zeropoint.budget.forms import Unit, parse, parse_embeddings, recipe_of, units
from zeropoint.budget.promise import Bound, Look
from zeropoint.budget.sensitivity import Reading, measure
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import InputError, OutputError, RecipeError, TextError
from zeropoint.evaluation.budgets import BUDGET, Asked, Attempt, Budgeted, Curve, CurvePoint, FormCost, Sensitivities
from zeropoint.evaluation.perplexity import perplexity
from zeropoint.evaluation.results import RECORD, QuantizeResult, Size, versions
from zeropoint.evaluation.run import scores_of_window
from zeropoint.observe.data import bundled_text, calibration_batches, judging_windows, require_readable
from zeropoint.pipeline import quantize
from zeropoint.planning.output import planned_size, planned_tensors
from zeropoint.planning.plan import STREAM_BYTES, STREAM_TRIES, Prepared, prepare
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.recipe import Recipe, load_recipe
from zeropoint.runtime.native_runner import NativeRunner
from zeropoint.runtime.weights import Weights

CHOICES = "3,4,5,6,8,float"
EMBEDDINGS = "int8,stored"

LENGTH = 512
FISHER_WINDOWS, WALK_WINDOWS, CHECK_WINDOWS = 8, 24, 4
"""Of the calibration text, each read for one thing: gradients, second moments, whole models."""

ATTEMPTS = 3

UNPROMISED = 32
"""Windows that a model is judged on of which no loss was asked."""

ROOM = 0.9
"""Of a limit of the loss, the part that the first choice aims at: the rest is for the interval."""


def budget(
    model: str | Path,
    *,
    like: str | Path | Recipe = "w4a16",
    choices: str = CHOICES,
    embeddings: str = EMBEDDINGS,
    calibration: str | Path | None = None,
    again: bool = False,
    progress: ProgressCallback | None = None,
) -> Curve:
    """Return what every form of every weight costs, and the best sizes and losses that come of it; nothing is written.

    model: a folder or a .gguf file. like: the recipe that bounds the choices: all but the bits is as it says, and what
    its rules speak of is not chosen. choices: bits, and "float". embeddings: what embedding and head may be.
    calibration: a .txt or .jsonl file; None is the bundled text. again: find the costs anew where they are known.
    Raises: InputError, by one of its subclasses, for what cannot be read or stored.
    """
    started_s = time.perf_counter()
    search = _Search.begin(model, like, choices, embeddings, calibration, again=again, report=progress)
    costs = Costs(search.found)
    points = costs.curve()
    return Curve(
        zeropoint=zeropoint.__version__,
        model=str(model),
        sensitivities=search.found,
        points=points,
        knee=knee(points),
        reused=search.reused,
        elapsed_s=time.perf_counter() - started_s,
    )


def quantize_within(
    model: str | Path,
    output: str | Path,
    asked: Asked,
    *,
    like: str | Path | Recipe = "w4a16",
    choices: str = CHOICES,
    embeddings: str = EMBEDDINGS,
    calibration: str | Path | None = None,
    text: str | Path | None = None,
    max_windows: int | None = None,
    overwrite: bool = False,
    max_memory_bytes: int | None = None,
    threads: int | None = None,
    progress: ProgressCallback | None = None,
) -> Budgeted:
    """Quantize a model so that it keeps what is asked, as small as possible; or, within a size, as well as possible.

    asked: one limit at least. text: what the loss is judged on; None is the bundled text. max_windows: of it, for all
    attempts; None is all. threads: of the native runtime. The others: as `budget` and `quantize` take them.
    The output is there where a model was made, whether its promise is kept or not; the result says which.
    Raises: InputError, by one of its subclasses, as `budget` and `quantize`.
    """
    started_s = time.perf_counter()
    _require_sense(asked)
    output = Path(output)
    if output.exists() and not overwrite:
        raise OutputError(f"{output} exists; remove it, give another name, or ask to overwrite it")
    report = progress or (lambda step: None)
    search = _Search.begin(model, like, choices, embeddings, calibration, again=False, report=progress)
    windows = _JudgingWindows.read(search.prepared.weights, text, max_windows, sure=_asks_loss(asked))
    job = _Job(search, Costs(search.found), asked, windows, calibration, max_memory_bytes, threads, report)
    size_limit = job.size_limit()
    attempts: list[Attempt] = []
    size: Size | None = None
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=_parent(output)) as folder:
        best: Path | None = None
        for number in range(ATTEMPTS):
            forms = job.choose(size_limit, attempts)
            if forms is None or (attempts and job.point(forms, attempts) == attempts[-1].point):
                break
            made = Path(folder) / str(number)
            attempt, made_size = job.attempt(forms, made, number, attempts)
            attempts.append(attempt)
            best, size = made, made_size
            if attempt.kept in (None, "KEPT") or windows.left < 2 * promise.FIRST:
                break
        if best is not None:
            _put(best, output)
    verdict = attempts[-1].kept if attempts else None
    result = Budgeted(
        zeropoint=zeropoint.__version__,
        model=str(model),
        output=str(output) if attempts else None,
        asked=asked,
        possible=bool(attempts),
        says=job.sentence(attempts, size_limit),
        verdict=verdict,
        size_limit_bytes=size_limit,
        attempts=tuple(attempts),
        size=size,
        confidence=1 - promise.ALPHA,
        text=windows.name,
        reused=search.reused,
        elapsed_s=time.perf_counter() - started_s,
    )
    if attempts:
        result.save(output / BUDGET)
    return result


def _asks_loss(asked: Asked) -> bool:
    return asked.max_loss is not None or asked.max_kl is not None


def _require_sense(asked: Asked) -> None:
    given = {name: value for name, value in msgspec.structs.asdict(asked).items() if value is not None}
    if not given:
        raise InputError("nothing is asked for; give --max-loss, --max-kl, --max-size, --max-bits or --min-speed")
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{name} is {value}; it must be above 0")


def _parent(output: Path) -> Path:
    parent = output.absolute().parent
    if not parent.is_dir():
        raise OutputError(f"{parent} is not there; make it, or write the output elsewhere")
    return parent


def _put(made: Path, output: Path) -> None:
    """Give a finished folder the name of the output, in its record too."""
    record = msgspec.structs.replace(QuantizeResult.load(made / RECORD), output=str(output))
    record.save(made / RECORD)
    if output.exists():
        shutil.rmtree(output) if output.is_dir() else output.unlink()
    made.replace(output)


@dataclass(frozen=True)
class _Search:
    """A model, what bounds its forms, and what they cost. reused: whether an earlier run has found it."""

    prepared: Prepared
    units: tuple[Unit, ...]
    found: Sensitivities
    reused: bool

    @classmethod
    def begin(
        cls,
        model: str | Path,
        like: str | Path | Recipe,
        choices: str,
        embeddings: str,
        calibration: str | Path | None,
        *,
        again: bool,
        report: ProgressCallback | None,
    ) -> _Search:
        recipe = like if isinstance(like, Recipe) else load_recipe(like)
        recipe.check()
        if any(choice.method == "rotate" for choice in recipe.transforms):
            raise RecipeError(f"recipe {recipe.name}: costs are found for what is not rotated; leave the rotation out")
        if recipe.fallback is not None:
            raise RecipeError(
                f"recipe {recipe.name}: has a fallback for what its own bits do not fit: no bits to choose; "
                "take another one, such as w4a16"
            )
        bits = parse(choices)
        prepared = prepare(Weights(open_checkpoint(model)), recipe)
        found_units = units(prepared, bits)
        _require_mixed(prepared, found_units)
        tables = (recipe.embeddings,) if recipe.embeddings != "stored" else parse_embeddings(embeddings)
        file = bundled_text("calibration") if calibration is None else Path(calibration)
        digest = _digest(file)  # before it is tokenized, which takes longer than all else that is left
        if digest is not None and not again:
            known = _known(_cache(prepared, recipe, choices, tables, digest))
            if known is not None:
                return cls(prepared, found_units, known, reused=True)
        batches = calibration_batches(
            file,
            load_tokenizer(prepared.weights.checkpoint),
            samples=FISHER_WINDOWS + WALK_WINDOWS + CHECK_WINDOWS,
            length=min(LENGTH, prepared.weights.model.config.max_positions),
            seed=recipe.calibration.seed,
            batch=recipe.calibration.batch,
        )
        require_readable(batches, prepared.weights.model.config)
        tokens = torch.from_numpy(batches.tokens).long()
        count = len(tokens)
        if count < 3:
            raise TextError(f"{file}: {count} windows; finding costs needs 3 at least: give a longer text")
        checks = max(1, min(CHECK_WINDOWS, count // 8))
        minds = max(1, min(FISHER_WINDOWS, (count - checks) // 4))
        reading = Reading(tokens[:minds], tokens[minds : count - checks], tokens[count - checks :])
        found = measure(
            prepared, found_units, reading, embeddings=tables, seed=recipe.calibration.seed, progress=report
        )
        _remember(_cache(prepared, recipe, choices, tables, batches.source.sha256), found)
        return cls(prepared, found_units, found, reused=False)


def _require_mixed(prepared: Prepared, found: Sequence[Unit]) -> None:
    """Refuse forms that the format cannot have beside one another."""
    freest = max(found, key=lambda unit: len(unit.forms))
    for form in freest.forms:
        mixed = recipe_of(prepared.recipe, {freest.names: form}, prepared.recipe.embeddings)
        prepare(prepared.weights, mixed)


def _cache(prepared: Prepared, recipe: Recipe, choices: str, embeddings: Sequence[str], text: str) -> Path:
    """Return the file of the costs of a model, as it is now, under all that decides over them."""
    files = sorted({info.file.resolve() for info in prepared.weights.checkpoint.tensors.values()})
    facts: dict[str, Any] = {
        "files": [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
        "recipe": {key: value for key, value in recipe.to_dict().items() if key not in ("name", "description")},
        "choices": parse(choices),
        "embeddings": list(embeddings),
        "text": text,
        "windows": (LENGTH, FISHER_WINDOWS, WALK_WINDOWS, CHECK_WINDOWS),
        "versions": versions(),
    }
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "zeropoint" / "budget" / f"{digest[:32]}.json"


def _digest(text: Path) -> str | None:
    """Return the sha256 of a text; None for what cannot be read, of which whoever reads it says more."""
    try:
        with text.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return None


def _known(cache: Path) -> Sensitivities | None:
    """Return costs that are kept; None where there are none, or none that can be read."""
    if not cache.is_file():
        return None
    try:
        return Sensitivities.load(cache)
    except InputError:
        return None


def _remember(cache: Path, found: Sensitivities) -> None:
    """Keep costs; who cannot write there finds them anew each time."""
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        found.save(cache)
    except (OSError, OutputError):
        return


class _JudgingWindows:
    """The windows of a text in an order of their own, each handed out once."""

    def __init__(self, tokens: np.ndarray[Any, Any], name: str) -> None:
        self._tokens, self.name = tokens, name
        self._at = 0

    @classmethod
    def read(cls, weights: Weights, text: str | Path | None, max_windows: int | None, *, sure: bool) -> _JudgingWindows:
        file = bundled_text("judge") if text is None else Path(text)
        length = min(LENGTH, weights.model.config.max_positions)
        windows = judging_windows(file, load_tokenizer(weights.checkpoint), length=length, max_windows=max_windows)
        require_readable(windows, weights.model.config)
        if sure and len(windows.tokens) < 2 * promise.FIRST:
            raise TextError(
                f"{file}: {len(windows.tokens)} windows of {length} tokens; a promise needs {2 * promise.FIRST} at "
                "least: give a longer text"
            )
        order = np.random.PCG64(0).random_raw(len(windows.tokens)).argsort()
        return cls(windows.tokens[order], windows.source.name)

    @property
    def left(self) -> int:
        return len(self._tokens) - self._at

    @property
    def length(self) -> int:
        return int(self._tokens.shape[1])

    def take(self) -> Iterator[np.ndarray[Any, Any]]:
        """Yield windows that nobody has had."""
        while self._at < len(self._tokens):
            self._at += 1
            yield self._tokens[self._at - 1]


@dataclass(frozen=True)
class _Job:
    """One search with its promise."""

    search: _Search
    costs: Costs
    asked: Asked
    windows: _JudgingWindows
    calibration: str | Path | None
    max_memory_bytes: int | None
    threads: int | None
    report: ProgressCallback

    def size_limit(self) -> int | None:
        """Return the bytes that the files may have: the least of what was asked for."""
        limits = [] if self.asked.max_size_bytes is None else [self.asked.max_size_bytes]
        if self.asked.min_speed is not None:
            bandwidth = _native.Pool(self.threads or _native.usable_cores()).stream(STREAM_BYTES, STREAM_TRIES)
            limits.append(int(bandwidth / self.asked.min_speed))
        return min(limits, default=None)

    def limits(self, size_limit: int | None, attempts: Sequence[Attempt]) -> Limits:
        """Return the limits of the next choice, with what attempts have taught."""
        asked = self.asked
        aims = [] if asked.max_kl is None else [asked.max_kl]
        if asked.max_loss is not None:
            last = attempts[-1] if attempts else None
            per_nat = 1.0 if last is None or last.kl <= 0 else max(0.2, math.log(max(1e-9, 1 + last.loss)) / last.kl)
            aims.append(math.log1p(asked.max_loss) / per_nat)
        room = ROOM ** (len(attempts) + 1)
        return Limits(min(aims) * room if aims else None, size_limit, asked.max_bits)

    def factor(self, attempts: Sequence[Attempt]) -> float:
        """Return by what forecasts are taken times: what the last attempt was measured to be of its own."""
        if not attempts:
            return 1.0
        last = attempts[-1]
        return last.factor * last.kl / last.point.kl if last.point.kl > 0 else last.factor

    def choose(self, size_limit: int | None, attempts: Sequence[Attempt]) -> tuple[FormCost, ...] | None:
        """Return the next choice; None if nothing within the limits is left."""
        limits, factor = self.limits(size_limit, attempts), self.factor(attempts)
        find = self.costs.best if limits.kl is None else self.costs.smallest
        while True:
            forms = find(limits, factor=factor)
            if forms is None or all(form.bits is None for _, form in zip(self.search.units, forms, strict=False)):
                return None
            if size_limit is None or limits.size_bytes is None:
                return forms
            excess = self.real_size(forms) - size_limit  # headers depend on the names in them
            if excess <= 0:
                return forms
            limits = Limits(limits.kl, limits.size_bytes - excess, limits.bits)

    def point(self, forms: Sequence[FormCost], attempts: Sequence[Attempt]) -> CurvePoint:
        return self.costs.point(forms, factor=self.factor(attempts))

    def recipe(self, forms: Sequence[FormCost]) -> Recipe:
        """Return the recipe of a choice."""
        own = self.search.units
        chosen = {
            unit.names: next(form for form in unit.forms if form.name == cost.form)
            for unit, cost in zip(own, forms, strict=False)
        }
        embeddings = forms[-1].form if self.search.found.tables is not None else self.search.prepared.recipe.embeddings
        return recipe_of(self.search.prepared.recipe, chosen, embeddings)

    def real_size(self, forms: Sequence[FormCost]) -> int:
        """Return the bytes of the files that a choice will have."""
        made = prepare(self.search.prepared.weights, self.recipe(forms))
        tensors = planned_tensors(made.weights, made.plans, made.tables, made.file_format, unties=False)
        return planned_size(made.weights, made.plans, made.tables, tensors).total_bytes

    def attempt(
        self, forms: Sequence[FormCost], folder: Path, number: int, attempts: Sequence[Attempt]
    ) -> tuple[Attempt, Size]:
        """Make the model of a choice and judge it."""
        started_s = time.perf_counter()
        model = self.search.prepared.weights.checkpoint.path
        made = quantize(
            model,
            folder,
            recipe=self.recipe(forms),
            calibration=self.calibration,
            max_memory_bytes=self.max_memory_bytes,
            progress=self.report,
        )
        found = self.judge(folder, number)
        kl, loss = found
        promised = [each for each, limit in ((kl, self.asked.max_kl), (loss, self.asked.max_loss)) if limit is not None]
        attempt = Attempt(
            point=self.point(forms, attempts),
            factor=self.factor(attempts),
            windows=kl.windows,
            tokens=kl.windows * (self.windows.length - 1),
            kl=max(0.0, kl.mean),
            kl_interval95=(max(0.0, kl.low), max(0.0, kl.high)),
            loss=perplexity(loss.mean) - 1,
            loss_interval95=(perplexity(loss.low) - 1, perplexity(loss.high) - 1),
            kept=promise.verdict(promised) if promised else None,
            looks=kl.looks,
            seconds=time.perf_counter() - started_s,
        )
        return attempt, made.size

    def judge(self, folder: Path, number: int) -> tuple[Look, Look]:
        """Return what windows say of KL and of the difference of the losses; without a promise, the first few."""
        reference = NativeRunner(
            self.search.prepared.weights,
            threads=self.threads,
            activations="float",
            embeddings="stored",
            cache="float32",
        )
        judged = NativeRunner(
            Weights(open_checkpoint(folder)), threads=self.threads, activations="int8", embeddings="stored", cache=None
        )
        asked = self.asked
        bounds = [
            Bound("KL", math.inf if asked.max_kl is None else asked.max_kl),
            Bound("loss", math.inf if asked.max_loss is None else math.log1p(asked.max_loss)),
        ]
        attempts_left = ATTEMPTS - number
        most = self.windows.left if attempts_left == 1 else max(2 * promise.FIRST, self.windows.left // 2)
        if not _asks_loss(asked):
            most = min(UNPROMISED, self.windows.left)

        def read() -> Iterator[tuple[float, float]]:
            for index, window in enumerate(self.windows.take()):
                self.report(Progress("judge", index, most))
                scores = scores_of_window([reference], judged, window)[0]
                differences = scores.nll_quantized.double() - scores.nll_reference.double()
                yield float(scores.kl.double().mean()), float(differences.mean())

        alpha = promise.ALPHA / 2 ** (number + 1)
        if _asks_loss(asked):
            kl, loss = promise.decide(read(), bounds, most, alpha=alpha)
        else:
            seen = list(islice(read(), most))
            kl, loss = (promise.look(seen, column, math.inf, alpha=alpha) for column in (0, 1))
        self.report(Progress("judge", most, most))
        return kl, loss

    def sentence(self, attempts: Sequence[Attempt], size_limit: int | None) -> str:
        """Return what came out, in words."""
        if attempts:
            last = attempts[-1]
            return {
                "KEPT": "the promise is kept",
                "BROKEN": "the promise is broken, by the best of what was tried",
                "INCONCLUSIVE": "this text cannot tell whether the promise is kept: judge on more of it",
                None: "the best within the size",
            }[last.kept]
        best = self.costs.best(Limits(size_bytes=size_limit, bits=self.asked.max_bits))
        if best is None:
            smallest = self.costs.smallest(Limits())
            assert smallest is not None
            point = self.costs.point(smallest)
            return (
                f"not possible: the smallest within these choices is {point.size_bytes:,} bytes, {point.bits:.2f} bits "
                "per weight; allow fewer bits (--choices), or embeddings in integers"
            )
        point = self.costs.point(best)
        if point.kl == 0:
            return "not possible: only the model as it is loses as little; allow a larger loss"
        return (
            f"not possible: the best within these choices is expected to lose KL {point.kl:.3g} nats per token at "
            f"{point.size_bytes:,} bytes; allow more bits (--choices), or a larger loss"
        )
