"""The calibrator's laboratory: what a linear reads, and what every way to give it a static range costs.

    model --walk--> windows at a linear's input --1--> statistics --rules--> ranges --2--> errors, held-out values

Pass 1 takes the statistics of four fifths of the windows, in four parts whose merged halves say how far the ranges
depend on the windows at hand. Pass 2 rounds the same inputs with every range and measures what the output loses; the
last fifth of the windows, which no range has seen, says how many values fall outside. The walk ends with the last layer
asked for. Activations past a small limit wait on disk: memory does not grow with the number of samples.

How many samples are enough: two halves, of n/2 windows each, that are draws from the same text differ by about
2 sigma / sqrt(n), and two whole calibrations by sqrt(2) less. With d the disagreement of halves and t the tolerance of
that between wholes, n (d / (sqrt(2) t))^2 windows would do. The law is that of means: where single values decide, as
for min-max, ranges settle more slowly, and the number is a lower bound.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import torch
from torch import Tensor

import zeropoint
from zeropoint import find
from zeropoint.checkpoint.reader import open_checkpoint
from zeropoint.checkpoint.tokenizer import load_tokenizer
from zeropoint.errors import InputError, NonFiniteError, SchemeError
from zeropoint.evaluation.results import (
    Bar,
    InputInspection,
    InputRow,
    MassiveActivation,
    StaticRange,
    Text,
    machine,
    peak_memory_bytes,
    versions,
)
from zeropoint.models.parts import Model, linear_names
from zeropoint.observe import tokens as tokens_observer
from zeropoint.observe.activations import Activations
from zeropoint.observe.data import Batches, bundled_text, calibration_batches, require_readable
from zeropoint.observe.massive import MassiveActivations
from zeropoint.observe.walk import Visit, walk
from zeropoint.progress import Progress, ProgressCallback
from zeropoint.qparams.choose_input import choose_input_range, load_input_rule, needs
from zeropoint.qparams.input_error import InputError as RoundingError
from zeropoint.qparams.input_error import clipped_values, input_errors
from zeropoint.qparams.input_ranges import auto
from zeropoint.qparams.inputs import input_params
from zeropoint.qparams.statistics import of_type
from zeropoint.recipe import Rule
from zeropoint.runtime.ops_torch import TorchOps
from zeropoint.runtime.weights import Weights
from zeropoint.types import Histogram, InputParams, InputRange, InputScheme, Stats, TokenAbsMax

RULES = auto.RULES
DYNAMIC = "dynamic per token"
TOLERANCE = 0.05
"""Two calibrations whose ranges differ by less agree."""

ACTIVATION_MEMORY_BYTES = 32 << 20
"""Activations above this wait on disk."""

BATCH_TOKENS = 2048
PLACES = 5
PARTS = 4
HALVES = (((0, 2), (1, 3)), ((0, 1), (2, 3)), ((0, 3), (1, 2)))
"""Ways to halve four parts, each window in the part of its number modulo 4: odd and even first."""

SAMPLES, LENGTH, SEED = 64, 512, 0


def inspect_inputs(
    path: str | Path,
    *,
    layer: str,
    calibration: str | Path | None = None,
    rules: Sequence[str] = RULES,
    samples: int = SAMPLES,
    length: int = LENGTH,
    symmetric: bool = False,
    progress: ProgressCallback | None = None,
) -> InputInspection:
    """Run a float model over a text and measure static 8-bit ranges for what its linears read.

    layer: a glob, or "re:" and a regular expression, of full names, as in the rules of a recipe. calibration: a .txt or
    .jsonl file; None is the bundled text. rules: of the ranges to compare. samples: windows of `length` tokens, at
    least 5.
    Raises: InputError, by one of its subclasses, for a quantized model, a pattern that matches nothing, an unknown
    rule, and a text or a checkpoint that cannot be read.
    """
    started_s = time.perf_counter()
    for rule in rules:
        load_input_rule(rule)
    weights = Weights(open_checkpoint(path))
    if any(weights.schemes.values()):
        raise InputError(
            f"{path} is quantized already; --layer takes statistics of the float model that it was made from"
        )
    wanted = _matching(weights.model, layer)
    text = _text(weights, calibration, samples, length)
    held_out = max(1, len(text.tokens) // 5)
    if len(text.tokens) - held_out < PARTS:
        raise InputError(
            f"{len(text.tokens)} windows of {length} tokens are too few: {held_out} are held out, and {PARTS} or more "
            "are needed for ranges; give a longer text, or shorter windows with --length"
        )
    scheme = InputScheme(dynamic=False, symmetric=symmetric)
    with torch.inference_mode():
        rows = _rows(weights, wanted, text, held_out, scheme, rules, progress or (lambda step: None))
    return InputInspection(
        zeropoint=zeropoint.__version__,
        path=str(path),
        layer=layer,
        text=Text(
            name=text.source.name,
            sha256=text.source.sha256,
            windows=len(text.tokens),
            length=length,
            seed=SEED,
            note=text.note,
        ),
        held_out_windows=held_out,
        scheme=scheme.label(),
        tolerance=TOLERANCE,
        layers=tuple(rows),
        elapsed_s=time.perf_counter() - started_s,
        peak_memory_bytes=peak_memory_bytes(),
        versions=versions(),
        machine=machine(),
    )


def _matching(model: Model, pattern: str) -> frozenset[str]:
    names = tuple(linear_names(model))
    matched = frozenset(filter(Rule(layers=(pattern,)).matches, names))
    if not matched:
        endings = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        raise InputError(
            f"--layer {pattern!r} matches none of the {len(names)} layers; their names are like {names[0]!r} and end "
            f"in {endings}: write for example '*.0.mlp.*' or 're:.*[.]down_proj'"
        )
    return matched


def _text(weights: Weights, calibration: str | Path | None, samples: int, length: int) -> Batches:
    text = calibration_batches(
        bundled_text("calibration") if calibration is None else calibration,
        load_tokenizer(weights.checkpoint),
        samples=samples,
        length=length,
        seed=SEED,
        batch=max(1, BATCH_TOKENS // length),
    )
    require_readable(text, weights.model.config)
    return text


def _rows(
    weights: Weights,
    wanted: frozenset[str],
    text: Batches,
    held_out: int,
    scheme: InputScheme,
    rules: Sequence[str],
    report: ProgressCallback,
) -> list[InputRow]:
    """Walk up to the last layer wanted and return a row for each."""
    model, ops, rows = weights.model, TorchOps(), []
    last = max(i for i in range(model.config.layers) if any(n.startswith(f"{model.block_name(i)}.") for n in wanted))
    calibrated = len(text.tokens) - held_out
    with Activations(limit_bytes=ACTIVATION_MEMORY_BYTES) as activations:
        for part in (text.tokens[:calibrated], text.tokens[calibrated:]):
            activations.extend(weights.embed(ops, torch.from_numpy(part).long(), text.batch))
        report(Progress("inspect", 0, last + 1))
        for visit in walk(model, partial(weights.block, ops=ops), activations):
            if visit.index > last:
                break
            prefix = model.block_name(visit.index)
            names = [f"{prefix}.{name}" for name in visit.stage.linears if f"{prefix}.{name}" in wanted]
            if names:
                stage = _Stage(visit, calibrated, scheme, rules)
                rows += [stage.row(name, weights.float_linear(name)) for name in names]
            if visit.stage is model.flow_of(visit.index)[-1]:
                report(Progress("inspect", visit.index + 1, last + 1, prefix))
    return rows


class _Stage:
    """The statistics of one stage's input, and the ranges that the rules make of them. calibrated: windows."""

    def __init__(self, visit: Visit, calibrated: int, scheme: InputScheme, rules: Sequence[str]) -> None:
        self._visit, self._calibrated, self._scheme = visit, calibrated, scheme
        names = frozenset(auto.NEEDS).union({"tokens", "histogram"}, *(needs(rule) for rule in rules))
        self._rules = rules
        self.massive = MassiveActivations()
        parts = self._observe(sorted(names))
        self.stats = _merged(parts)
        self._ranges: dict[str, InputRange] = {}
        self._apart: dict[str, float | None] = {}
        self._halves = [tuple(_merged([parts[i] for i in half]) for half in pair) for pair in HALVES]

    def row(self, name: str, weight: Tensor) -> InputRow:
        """Return what the ranges do to one of the linears. weight: float32 (rows, cols)."""
        ranges: dict[str, tuple[float, float]] = {}
        skipped: list[str] = []
        for rule in self._rules:
            try:
                found = self._range(rule, weight)
                ranges[rule] = found.low, found.high
            except SchemeError as error:
                skipped.append(f"{rule}: {error}")
        params = [input_params(*ends, self._scheme) for ends in ranges.values()]
        every = [*params, InputParams(InputScheme())]
        errors = input_errors(((x.flatten(0, -2), None) for x in self._inputs(held_out=False)), every, [weight])
        held_out = self._outside(params)
        rows = [
            self._static(rule, ends, one, error, outside, [weight])
            for (rule, ends), one, error, outside in zip(ranges.items(), params, errors, held_out, strict=False)
        ]
        best = min(rows, key=lambda one: one.output_error, default=None)
        tokens = of_type(self.stats, "tokens", TokenAbsMax)
        marks = [abs(end) for ends in ranges.values() for end in ends]
        return InputRow(
            name=name,
            shape=(weight.shape[0], weight.shape[1]),
            ranges=(*rows, _row(DYNAMIC, errors[-1])),
            best=None if best is None else best.rule,
            auto=self._auto(weight),
            skipped=tuple(skipped),
            histogram=octave_bars(of_type(self.stats, "histogram", Histogram), marks),
            massive=tuple(
                MassiveActivation(position=at.position, channel=at.channel, value=at.value, ratio=at.ratio)
                for at in self.massive.largest(PLACES)
            ),
            median=self.massive.median(),
            first_token_ratio=self.massive.first_token_ratio(),
            token_median=tokens_observer.quantile(tokens, 0.5),
            token_p99=tokens_observer.quantile(tokens, 0.99),
            token_largest=tokens.largest,
            samples_to_add=0 if best is None else samples_to_add(best.disagreement or 0.0, self._calibrated),
        )

    def _range(self, rule: str, weight: Tensor) -> InputRange:
        """Return the range that a rule gives; only auto's depends on the weights. Raises: SchemeError."""
        if rule not in self._ranges or rule == "auto":
            self._ranges[rule] = choose_input_range(self.stats, rule, None, self._scheme, [weight])
        return self._ranges[rule]

    def _static(
        self,
        rule: str,
        ends: tuple[float, float],
        params: InputParams,
        error: RoundingError,
        outside: float,
        weights: Sequence[Tensor],
    ) -> StaticRange:
        low, high = ends
        return msgspec.structs.replace(
            _row(rule, error),
            low=low,
            high=high,
            scale=params.scale,
            zero_point=params.zero_point,
            held_out=outside,
            disagreement=self._disagreement(rule, high - low, weights),
        )

    def _disagreement(self, rule: str, extent: float, weights: Sequence[Tensor]) -> float | None:
        """Return how far the ranges of two halves lie apart, relative to the range; None if halves have none."""
        if rule not in self._apart or rule == "auto":  # auto's depend on the weights
            self._apart[rule] = self._distance(rule, weights)
        apart = self._apart[rule]
        return None if apart is None else apart / extent if extent > 0 else 0.0

    def _distance(self, rule: str, weights: Sequence[Tensor]) -> float | None:
        """Return the root mean square, over the ways to halve, of the larger distance of two halves' ends."""
        squares = []
        for pair in self._halves:
            try:
                one, other = (choose_input_range(half, rule, None, self._scheme, weights) for half in pair)
            except SchemeError:
                return None
            squares.append(max(abs(one.low - other.low), abs(one.high - other.high)) ** 2)
        return math.sqrt(sum(squares) / len(squares))

    def _auto(self, weight: Tensor) -> str | None:
        try:
            return self._range("auto", weight).rule
        except SchemeError:
            return None

    def _outside(self, params: Sequence[InputParams]) -> list[float]:
        """Return the share of the held-out values outside each grid."""
        outside, count = [0] * len(params), 0
        for x in self._inputs(held_out=True):
            count += x.numel()
            outside = [many + int(clipped_values(x, one).sum()) for many, one in zip(outside, params, strict=True)]
        return [many / count for many in outside]

    def _observe(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """Return the observers of each part of the calibration's windows."""
        parts = [{name: find.load("observe", name).Observer() for name in names} for _ in range(PARTS)]
        window = 0
        try:
            for x in self._inputs(held_out=False):
                self.massive.update(x)
                for index, observers in enumerate(parts):
                    rows = x[(index - window) % PARTS :: PARTS].flatten(0, 1)  # (tokens, cols)
                    for observer in observers.values():
                        observer.update(rows)
                window += len(x)
        except NonFiniteError as error:
            linears = ", ".join(self._visit.stage.linears)
            raise NonFiniteError(f"block {self._visit.index}, input of {linears}: {error}") from error
        return parts

    def _inputs(self, *, held_out: bool) -> Iterator[Tensor]:
        """Yield the windows (batch, time, cols) of one side; no batch holds windows of both."""
        window = 0
        for x in self._visit.inputs():
            if (window >= self._calibrated) == held_out:
                yield x
            window += len(x)


def _merged(parts: Sequence[Mapping[str, Any]]) -> dict[str, Stats]:
    """Return the statistics of several parts together."""
    found: dict[str, Stats] = {}
    for name in parts[0]:
        whole = find.load("observe", name).Observer()
        for part in parts:
            whole.merge(part[name])
        found[name] = whole.result()
    return found


def _row(rule: str, error: RoundingError) -> StaticRange:
    return StaticRange(
        rule=rule,
        low=None,
        high=None,
        scale=None,
        zero_point=None,
        clipped=error.clipped,
        held_out=0.0,
        sqnr_db=error.sqnr_db,
        output_error=error.output,
        clipping_error=error.clipping,
        rounding_error=error.rounding,
        disagreement=None,
    )


def samples_to_add(disagreement: float, samples: int, tolerance: float = TOLERANCE) -> int:
    """Return how many more windows two calibrations need to agree to `tolerance`; 0 if they do already.

    disagreement: of two halves of `samples` windows; that of two wholes is smaller by sqrt(2).
    """
    return max(0, math.ceil(samples * ((disagreement / (math.sqrt(2) * tolerance)) ** 2 - 1)))


def octave_bars(histogram: Histogram, marks: Sequence[float], most: int = 9) -> tuple[Bar, ...]:
    """Return exact counts between powers of two of the unit in which the bins are made, from low to high.

    marks: magnitudes that shall lie outside the middle bar, as far as `most` octaves on each side allow.
    """
    reach, bins = -histogram.low, len(histogram.counts)
    inner = min((mark for mark in marks if mark > 0), default=reach)
    octaves = min(most, round(math.log2(bins / 2)), max(3, math.ceil(math.log2(reach / inner)) + 1))
    positive = [reach * 2.0**-i for i in range(octaves, -1, -1)]
    edges = [*(-edge for edge in reversed(positive)), *positive]
    below = torch.cat([histogram.counts.new_zeros(1), histogram.counts.cumsum(0)])  # values below each edge of a bin
    at = [round((edge - histogram.low) / histogram.width) for edge in edges]
    bars = [
        Bar(low=low, high=high, count=int(below[last] - below[first]))
        for low, high, first, last in zip(edges, edges[1:], at, at[1:], strict=False)
    ]
    filled = [index for index, bar in enumerate(bars) if bar.count]
    return tuple(bars[min(filled) : max(filled) + 1]) if filled else ()
