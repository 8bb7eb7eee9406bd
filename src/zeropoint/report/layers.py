"""The layers of a model on its page: the map of errors by kind and block, a row for each, and what one layer opens."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from zeropoint.errors import RecipeError
from zeropoint.evaluation.results import LayerRow, QuantizeResult
from zeropoint.recipe import LayerPlan, Recipe, Rule
from zeropoint.report.figures import Cell, Column, Table, plain, share, steps
from zeropoint.report.terminal import _badness, _decibel, _output_db, _schemes, _shape

LEVELS = 10
"""Colours of the map."""

LAYERS_SHOWN = 1000
"""Rows of layers on a page; a model with more shows those that lost most, so that the page stays small."""

LOUD_SHOWN = 8

NOTHING_LOST = 1e308
"""The place of no decibels in a column that is sorted; JavaScript does not read Python's "inf"."""


@dataclass(frozen=True)
class Tile:
    """One place of the map. text: its error, and a mark. level: of the colour, 0 for the least error. label: in words.

    layer: the name of the one that it opens.
    """

    text: str
    level: int
    label: str
    layer: str


@dataclass(frozen=True)
class Map:
    """Errors by kind, a row each, and block, a column each. A place without a layer is None.

    measure: what the errors are. many: whether a place stands for several layers, experts, and shows the worst.
    """

    measure: str
    blocks: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Tile | None, ...]], ...]
    many: bool


@dataclass(frozen=True)
class Scale:
    """The errors of the least and the most intense colour; between them it is logarithmic."""

    low: float
    high: float

    def level(self, error: float) -> int:
        """Return the colour of an error, 0 to LEVELS - 1."""
        if error <= self.low or self.high <= self.low:
            return 0
        part = math.log(error / self.low) / math.log(self.high / self.low)
        return min(LEVELS - 1, int(part * LEVELS))

    def ends(self) -> tuple[float, ...]:
        """Return the errors at which each colour begins."""
        return tuple(self.low * (self.high / self.low) ** (level / LEVELS) for level in range(LEVELS))


def error_of(row: LayerRow, *, of_output: bool) -> float:
    """Return the squared relative error of the layer's output, or of its weight."""
    if of_output and row.output_error is not None:
        return row.output_error
    return 0.0 if row.sqnr_db is None else 10 ** (-row.sqnr_db / 10)


def has_outputs(records: Iterable[QuantizeResult]) -> bool:
    """Return whether the error of every layer's output is known; else that of its weight is shown."""
    return all(row.output_error is not None for record in records for row in record.layers)


def scale_of(records: Sequence[QuantizeResult], *, of_output: bool) -> Scale:
    """Return the colours that all maps of a page share, so that they can be compared."""
    errors = [error_of(row, of_output=of_output) for record in records for row in record.layers]
    known = [error for error in errors if error > 0]
    return Scale(min(known), max(known)) if known else Scale(1.0, 1.0)


def shown(record: QuantizeResult) -> tuple[LayerRow, ...]:
    """Return the layers of a page, in the order of the model: all, or those that lost most."""
    if len(record.layers) <= LAYERS_SHOWN:
        return record.layers
    worst = {row.name for row in sorted(record.layers, key=_badness, reverse=True)[:LAYERS_SHOWN]}
    return tuple(row for row in record.layers if row.name in worst)


def map_of(record: QuantizeResult, scale: Scale, *, of_output: bool) -> Map:
    """Return the map of a model's layers."""
    places: dict[str, dict[str, list[LayerRow]]] = {}
    for row in record.layers:
        block, kind = _place(row)
        places.setdefault(kind, {}).setdefault(block, []).append(row)
    blocks = sorted({block for found in places.values() for block in found}, key=_number)
    worst = max(record.layers, key=lambda row: error_of(row, of_output=of_output), default=None)
    rows = []
    for kind, found in places.items():
        tiles = [_tile(found.get(block, []), worst, scale, of_output=of_output) for block in blocks]
        rows.append((plain(kind), tuple(tiles)))
    measure = "output" if of_output else "weight"
    many = any(len(here) > 1 for found in places.values() for here in found.values())
    return Map(measure, tuple(map(plain, blocks)), tuple(rows), many)


def _place(row: LayerRow) -> tuple[str, str]:
    """Return the block and the kind of a layer; the number of an expert counts to neither."""
    numbers = re.findall(r"(?<=\.)[0-9]+(?=\.)", row.name)
    kind = re.sub(r"^.*?\.[0-9]+\.", "", row.name, count=1) if numbers else row.name
    return (numbers[0] if numbers else ""), re.sub(r"\.[0-9]+(?=\.)", "", kind)


def _number(block: str) -> tuple[int, str]:
    return (int(block[:9]) if block else -1), block


def _tile(rows: Sequence[LayerRow], worst: LayerRow | None, scale: Scale, *, of_output: bool) -> Tile | None:
    if not rows:
        return None
    row = max(rows, key=lambda each: error_of(each, of_output=of_output))
    error = error_of(row, of_output=of_output)
    mark = ("\u25b2" if row is worst else "") + ("*" if any(each.fallbacks for each in rows) else "")
    said = [
        f"{_brief(error)}{mark}",
        f"{plain(row.name)}: {share(error)} of the {'output' if of_output else 'weight'} lost",
    ]
    said += ["the largest of all"] * (row is worst) + ["with a fallback"] * ("*" in mark)
    said += [f"the worst of {len(rows):,}"] * (len(rows) > 1)
    return Tile(said[0], scale.level(error), "; ".join(said), row.name)


def _brief(error: float) -> str:
    """Return a percentage of at most four characters: 12, 9.1, 0.25, 3e-4."""
    percent = 100 * error
    if percent >= 9.95 or percent == 0:
        return f"{percent:.0f}"
    if percent >= 0.0095:
        return f"{percent:.1f}" if percent >= 0.995 else f"{percent:.2f}"
    mantissa, exponent = f"{percent:.0e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def table_of(record: QuantizeResult) -> Table:
    """Return a row for each layer that is shown."""
    columns = ("layer", "shape", "weights x inputs", "rounding")
    numbers = ("SQNR of the weight, dB", "output SNR, dB", "output error", "clipped", "rounded", "loudest input")
    rows = []
    for row in shown(record):
        spread = row.spreading
        loud = max((channel.ratio for channel in spread.loud), default=None) if spread else None
        output_db = _output_db(row)
        rows.append(
            (
                Cell(plain(row.name), layer=row.name),
                Cell(f"{_shape(row.shape)}", float(row.shape[0]) * row.shape[1]),
                Cell(plain(_schemes(row))),
                Cell(plain(row.rounding) + ("*" if row.fallbacks else "")),
                Cell(_decibel(row.sqnr_db), NOTHING_LOST if row.sqnr_db is None else row.sqnr_db),
                Cell(_decibel(output_db), NOTHING_LOST if output_db is None else output_db),
                _share_cell(row.output_error),
                _share_cell(spread.clipped_error if spread else None),
                _share_cell(spread.rounded_error if spread else None),
                Cell("-" if loud is None else f"x{loud:,.1f}", -1.0 if loud is None else loud),
            )
        )
    return Table(
        "Every layer: what it lost" if len(rows) == len(record.layers) else f"The {len(rows):,} layers that lost most",
        (*(Column(name, number=False) for name in columns), *map(Column, numbers)),
        tuple(rows),
    )


def _share_cell(value: float | None) -> Cell:
    return Cell("-", -1.0) if value is None else Cell(share(value), value)


# What one layer opens


def details(record: QuantizeResult) -> dict[str, dict[str, Any]]:
    """Return by name what the page tells of each layer that is shown: plain values for JSON, texts ready to be read."""
    recipe = _recipe(record)
    return {row.name: _detail(row, record, recipe) for row in shown(record)}


def _recipe(record: QuantizeResult) -> Recipe | None:
    """Return the recipe of a record, or None if this version does not know what it says."""
    try:
        return Recipe.from_dict(record.recipe)
    except RecipeError:
        return None


def _detail(row: LayerRow, record: QuantizeResult, recipe: Recipe | None) -> dict[str, Any]:
    detail: dict[str, Any] = {"facts": [[name, plain(text)] for name, text in _facts(row, record, recipe)]}
    spread = row.spreading
    if spread is not None:
        detail["weights"] = steps(spread.weights)
        detail["codes"] = [spread.code_low, spread.codes]
        lost = (spread.clipped_error, spread.rounded_error)
        detail["lost"] = [list(map(share, lost)), _split(*lost)]
        detail["inputs"] = steps(spread.inputs)
        detail["loud"] = [[f"{channel.index:,}", f"x{channel.ratio:,.1f}"] for channel in spread.loud[:LOUD_SHOWN]]
    return detail


def _split(clipped: float, rounded: float) -> float:
    """Return the part of the error that is clipping, in [0, 1]."""
    return clipped / (clipped + rounded) if clipped + rounded > 0 else 0.0


def _facts(row: LayerRow, record: QuantizeResult, recipe: Recipe | None) -> list[tuple[str, str]]:
    facts = [("shape", f"{_shape(row.shape)}, outputs x inputs"), ("weights", row.scheme)]
    facts.append(("input", row.input_scheme or "stays float"))
    facts += _choices(row, recipe)
    facts.append(("SQNR of the weight", "nothing was lost" if row.sqnr_db is None else f"{row.sqnr_db:.1f} dB"))
    facts.append(("cosine of the weight", f"{row.cosine:.5f}"))
    output_db = _output_db(row)
    if row.output_error is not None:
        db = "" if output_db is None else f", a signal-to-noise ratio of {output_db:.1f} dB"
        facts.append(("error of the output", f"{share(row.output_error)} of its square{db}"))
    if row.input_error is not None:
        facts.append(("error of a static input", f"{share(row.input_error)} of the output's square"))
    if row.bias_shift is not None:
        facts.append(("bias corrected", f"by {row.bias_shift:.3g} at most"))
    if row.outlier_columns is not None:
        facts.append(("columns that stay float", f"{row.outlier_columns:,} of {row.shape[1]:,}"))
    if row.sent_tokens is not None:
        whose = "; its statistics are of all tokens, as these are too few" if row.from_all else ""
        facts.append(("calibration tokens sent to it", f"{row.sent_tokens:,}{whose}"))
    facts += _worked(row, record)
    facts += [("fallback", why) for why in (row.fallback, row.input_fallback) if why is not None]
    if not row.fallbacks:
        facts.append(("fallback", "none"))
    return facts


def _choices(row: LayerRow, recipe: Recipe | None) -> list[tuple[str, str]]:
    """Return the range rule and the rounding, and what in the recipe decided on them."""
    if recipe is None:
        return [("rounding", row.rounding)]
    rule = next((each for each in reversed(recipe.rules) if each.matches(row.name)), None)
    plan, whose = _planned(recipe, rule)
    if plan is None:
        return [("rounding", row.rounding)]
    asked = plan.rounding.method
    rounding = (
        f"{row.rounding}, {whose}" if row.rounding == asked else f"{row.rounding} instead of {asked}; see fallback"
    )
    found = [("range rule", f"{_method(plan.range.method, plan.range.options)}, {whose}"), ("rounding", rounding)]
    if plan.activations is not None and not plan.activations.dynamic:
        rule_of_inputs = _method(plan.activation_range.method, plan.activation_range.options)
        found.append(("range rule of the input", f"{rule_of_inputs}, {whose}"))
    return found


def _planned(recipe: Recipe, rule: Rule | None) -> tuple[LayerPlan | None, str]:
    """Return what decides about a layer, and where that stands. None for a rule that leaves the layer float."""
    if rule is None:
        return recipe.plan(), "as the recipe says for all layers"
    return (None if rule.keep_float else recipe.plan(rule)), f"as the recipe's rule for {' or '.join(rule.layers)} says"


def _method(name: str, options: dict[str, Any]) -> str:
    given = ", ".join(f"{key} {value}" for key, value in options.items())
    return f"{name} ({given})" if given else name


def _worked(row: LayerRow, record: QuantizeResult) -> list[tuple[str, str]]:
    """Return what transforms and refinements did to the block of a layer."""
    found = []
    for transform in record.transforms:
        if not row.name.startswith(f"{transform.block}."):
            continue
        local = row.name.removeprefix(f"{transform.block}.")
        for stage in transform.stages:
            if local in stage.linears:
                why = f", left as it was: {stage.fallback}" if stage.fallback is not None else ""
                found.append((f"transform {transform.method}", f"strength {stage.strength:.2g}{why}"))
    for refined in record.refined:
        if refined.block is None or row.name == refined.block or row.name.startswith(f"{refined.block}."):
            of = "whole model" if refined.block is None else "block"
            change = f"from {refined.error_before:.3g} to {refined.error_after:.3g} in {refined.steps:,} steps"
            found.append((f"refinement {refined.method}", f"error of the {of} {change}"))
    return found
