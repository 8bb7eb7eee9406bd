"""Results as tables for a terminal, 80 columns and wider; without colour the words alone say everything.

    evaluated(result)       what `zeropoint evaluate` found: the verdict, both models side by side
    quantized(result)       what `zeropoint quantize` made: the layers by kind, the bytes, the fallbacks by name
    inspected(result)       what is in a checkpoint
    benched(result)         how fast `zeropoint bench` found a model, or two side by side
    compared(result)        what each recipe of `zeropoint compare` made of a model, two lines for each

Each returns one renderable; cli/console.py prints it. Names come from files that anybody may have written: they are
shown as text, never as markup, and without control characters.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.results import (
    FALLBACK_LIMIT,
    Bench,
    Comparison,
    ComparisonRow,
    Evaluation,
    Inspection,
    Interval95,
    LayerRow,
    QuantizeResult,
    Ratio,
    Size,
    Spread,
    StageRow,
    TensorRow,
    TransformRow,
    Verdict,
    Verification,
)

VERDICT_STYLES: dict[Verdict, str] = {
    "EQUIVALENT": "bold green",
    "DEGRADED": "bold red",
    "INCONCLUSIVE": "bold yellow",
}
WORST = "bold yellow"
NAMES_SHOWN = 4
FALLBACKS_SHOWN = 10
MANY_OUTLIERS = 0.1
"""Above this share of the columns outliers are no exceptions any more, and the threshold is low."""

Row = TypeVar("Row", LayerRow, StageRow, TensorRow, TransformRow)


# evaluate


def evaluated(result: Evaluation) -> RenderableType:
    """Return the verdict and the numbers it rests on."""
    text = result.text
    how = f"{_plain(result.runtime)}, KV cache {_plain(result.kv_cache)}"
    if result.embeddings != "stored":
        how += f", embeddings {_plain(result.embeddings)}"
    judged = (
        f"{result.tokens:,} tokens, {text.windows:,} windows of {text.length:,}, of {_plain(text.name)}; "
        f"{_duration(result.elapsed_s)}, {how}"
    )
    verdict = Text.assemble((result.verdict, VERDICT_STYLES[result.verdict]), "  ", _plain(result.explanation))
    parts: list[RenderableType] = [verdict, Text(), _comparison(result), Text(), Text(judged, style="dim")]
    if text.note:
        parts.append(Text(_plain(text.note), style="dim"))
    parts += _named_fallbacks("fallbacks:", result.fallbacks)
    return Group(*parts)


def _comparison(result: Evaluation) -> Table:
    table = _table("", "reference", "quantized", "ratio", "95 % interval")
    _add(
        table,
        "perplexity",
        f"{result.perplexity_reference:,.3f}",
        f"{result.perplexity:,.3f}",
        f"x{result.perplexity_ratio:.5g}",
        _interval(result.ratio_interval95, lambda ratio: f"x{ratio:.5g}"),
    )
    _add(table, "KL, nats per token", "", _nats(result.kl_mean), "", _interval(result.kl_interval95, _nats))
    _add(table, "  99th percentile", "", _nats(result.kl_p99), "", "")
    _add(table, "  largest", "", _nats(result.kl_max), "", "")
    if result.activations_kl is not None:
        _add(table, "  of int8 activations", "", _nats(result.activations_kl), "", "")
    _add(table, "top-1 agreement", "", _percent(result.top1_agreement), "", _interval(result.top1_interval95, _percent))
    before, after = result.size_reference, result.size
    sizes = _bytes(before.total_bytes), _bytes(after.total_bytes)
    _add(table, "size", *sizes, f"x{after.total_bytes / before.total_bytes:.3f}", "")
    _add(table, "bits per weight, linears", _bits(_bits_of_linears(before)), _bits(_bits_of_linears(after)), "", "")
    of_model = _bits(before.bits_per_weight_model), _bits(after.bits_per_weight_model)
    _add(table, "bits per weight, model", *of_model, "", "")
    return table


def _bits_of_linears(size: Size) -> float | None:
    """Return the mean over all linears of the blocks, quantized or float; None when there are none."""
    weights = size.linear_weights + size.float_linear_weights
    return 8 * (size.linear_bytes + size.float_linear_bytes) / weights if weights else None


# quantize


def quantized(result: QuantizeResult, *, all_rows: bool = False) -> RenderableType:
    """Return what was made. all_rows: a row for each layer instead of one for each kind."""
    table = _every_layer(result.layers) if all_rows else _layers_by_kind(result.layers)
    fallbacks = [f"{row.name}: {row.fallback}" for row in result.layers if row.fallback is not None]
    dynamic = [f"{row.name}: {row.input_fallback}" for row in result.layers if row.input_fallback is not None]
    recipe = f"recipe {_plain(str(result.recipe.get('name', 'custom')))}, {_calibration(result)}"
    parts: list[RenderableType] = [table, Text()]
    if result.transforms:
        parts += [_transforms(result.transforms), Text()]
    if result.gains:
        parts += [_gains(result), Text()]
    parts += [
        size_table(result.size, source_bytes=result.source_bytes),
        Text(),
        *_named_fallbacks(f"fallbacks in {len(fallbacks):,} of {len(result.layers):,} layers:", fallbacks),
    ]
    if result.fell_back:
        said = f"  more than {FALLBACK_LIMIT:.0%} of the layers are not quantized as asked"
        parts.append(Text.assemble(("NOT AS ASKED", "bold red"), said))
    parts += _named_fallbacks(
        f"dynamic instead of static in {len(dynamic):,} of {len(result.layers):,} layers:", dynamic
    )
    parts += _experts(result)
    many = [
        f"{row.name}: {row.outlier_columns:,} of {row.shape[1]:,}"
        for row in result.layers
        if (row.outlier_columns or 0) > MANY_OUTLIERS * row.shape[1]
    ]
    parts += _named_fallbacks(
        f"more than 10 % outlier columns, in {len(many):,} of {len(result.layers):,} layers:", many
    )
    unmoved = [
        f"{row.block}, {', '.join(stage.linears)}: {stage.fallback}"
        for row in result.transforms
        for stage in row.stages
        if stage.fallback is not None
    ]
    parts += _named_fallbacks(f"not transformed, in {len(unmoved):,} places:", unmoved)
    if result.recipe.get("bias_correction"):
        corrected = sum(row.bias_shift is not None for row in result.layers)
        others = "" if corrected == len(result.layers) else "; the others have none"
        parts.append(Text(f"biases corrected in {corrected:,} of {len(result.layers):,} layers{others}"))
    if result.skipped:
        parts.append(Text(f"copied as they are, being no part of the text model: {_shortened(result.skipped)}"))
    if result.left_out:
        parts.append(
            Text(f"left out, being made anew by whoever runs the model, or stored twice: {_shortened(result.left_out)}")
        )
    for note in (result.format_note, result.transform_note):
        if note is not None:
            parts.append(Text(_plain(note), style=WORST))
    if result.recipe.get("kv_cache", "float16") != "float16":
        asked = _plain(str(result.recipe["kv_cache"]))
        parts.append(
            Text(f"to be run with a KV cache of {asked}, as config.json says; the bytes above are those on disk")
        )
    if result.verification is not None:
        parts.append(Text(f"verified by a fresh process: {checked(result.verification)}"))
    cost = f"{_duration(result.elapsed_s)}, peak memory {_bytes(result.peak_memory_bytes)}"
    if result.resumed_blocks:
        cost += f"; {result.resumed_blocks:,} blocks were done by an earlier run"
    parts.append(Text(f"{_plain(result.model)} -> {_plain(result.output)}\n{recipe}; {cost}", style="dim"))
    return Group(*parts)


def checked(result: Verification) -> str:
    """Return what was looked at to verify a folder, in a few words."""
    logits = "" if result.difference is None else f", logits within {result.difference:.1g} of their spread"
    return f"{result.tensors:,} tensors, {_bytes(result.size_bytes)}{logits}"


def _gains(result: QuantizeResult) -> Table:
    """Return what each stage of the work was worth, on text that no method has learned from."""
    table = _table("stage", "KL", "of the one before", "seconds")
    before: float | None = None
    for row in result.gains:
        share = "" if not before else f"{row.kl / before:.2f}"
        _add(table, row.stage, _nats(row.kl), share, "" if row.seconds is None else f"{row.seconds:,.0f}")
        before = row.kl
    table.caption = f"KL from the float model, nats per token, on {result.held_out_tokens:,} held-out tokens"
    return table


def _transforms(rows: Sequence[TransformRow]) -> Table:
    """Return the strengths that each kind of input got, and what that did to the blocks' outputs."""
    table = _table("layers", "transform", "strength", "0 in", "block error")
    for method, of_method in _grouped(rows, lambda row: row.method).items():
        _add(table, "block outputs", method, "", "", _spread([_gain(row) for row in of_method], _times))
        stages = [stage for row in of_method for stage in row.stages]
        for linears, found in _grouped(stages, lambda stage: stage.linears).items():
            kinds = " ".join(name.rpartition(".")[2] for name in linears)
            strengths = [stage.strength for stage in found]
            untouched = strengths.count(0.0)
            _add(table, f"{kinds} x{len(found)}", method, _spread(strengths, "{:.2g}".format), str(untouched or ""), "")
    table.caption = "lowest, median, highest; 0: left as it was; block error: after over before, squared"
    return table


def _gain(row: TransformRow) -> float | None:
    return row.error_after / row.error_before if row.error_before > 0 else None


def _calibration(result: QuantizeResult) -> str:
    text = result.calibration
    if text is None:
        return "no calibration needed"
    return f"calibrated on {text.windows:,} x {text.length:,} tokens of {_plain(text.name)}"


def _layers_by_kind(layers: Sequence[LayerRow]) -> Table:
    outliers = _have_outliers(layers)
    table = _table("layers", "scheme", "rounding", *outliers, "SQNR dB", "output dB", "worst")
    kinds = _grouped(layers, lambda row: (row.kind, _schemes(row), row.rounding))
    worst = max(layers, key=_badness, default=None)
    for (kind, scheme, rounding), rows in kinds.items():
        here = max(rows, key=_badness)
        _add(
            table,
            f"{kind} x{len(rows)}",
            scheme,
            rounding,
            *[_spread([row.outlier_columns for row in rows], "{:,.0f}".format)] * len(outliers),
            _spread([row.sqnr_db for row in rows], _decibel),
            _spread([_output_db(row) for row in rows], _decibel),
            f"{_block(here.name)} *" if here is worst else _block(here.name),
            style=WORST if here is worst else "",
        )
    table.caption = "dB: lowest, median, highest of the weights and of the outputs; worst: block, * of all"
    return table


def _schemes(row: LayerRow) -> str:
    return row.scheme if row.input_scheme is None else f"{row.scheme} x {row.input_scheme}"


def _every_layer(layers: Sequence[LayerRow]) -> Table:
    outliers = _have_outliers(layers)
    table = _table("layer", "shape", "scheme", "rounding", *outliers, "SQNR dB", "output dB")
    worst = max(layers, key=_badness, default=None)
    for row in layers:
        name, style = (f"{row.name} *", WORST) if row is worst else (row.name, "")
        sqnr, output = _decibel(row.sqnr_db), _decibel(_output_db(row))
        count = [_count(row.outlier_columns)] * len(outliers)
        _add(table, name, _shape(row.shape), _schemes(row), row.rounding, *count, sqnr, output, style=style)
    table.caption = "dB: of the weight and of the layer's output; * the worst"
    return table


def _have_outliers(rows: Sequence[LayerRow] | Sequence[TensorRow]) -> list[str]:
    """Return the heading of a column for how many columns stay float, if any row says so."""
    return ["outliers"] * any(row.outlier_columns is not None for row in rows)


def _count(count: int | None) -> str:
    return "" if count is None else f"{count:,}"


def _shortened(names: Sequence[str]) -> str:
    """Return names of tensors, or where they are many how many there are under the first parts of their names."""
    if len(names) <= NAMES_SHOWN:
        return ", ".join(map(_plain, names))
    counts = Counter(".".join(name.split(".")[:2]) for name in names)
    return ", ".join(f"{count:,} of {_plain(part)}" for part, count in counts.most_common())


def _experts(result: QuantizeResult) -> list[RenderableType]:
    """Return how many of the calibration's tokens the experts were sent, and which were sent too few."""
    sent = [row.sent_tokens for row in result.layers if row.sent_tokens is not None]
    if not sent:
        return []
    text = f"tokens sent to an expert: {min(sent):,} at least, {median(sent):,.0f} in the middle, {max(sent):,} at most"
    few = [f"{row.name}: {row.sent_tokens:,}" for row in result.layers if row.from_all]
    return [Text(text), *_named_fallbacks(f"calibrated from all tokens, being sent few, {len(few):,} layers:", few)]


def _named_fallbacks(title: str, fallbacks: Sequence[str]) -> list[RenderableType]:
    """Return a paragraph that names the first of them and counts the others; nothing when there are none."""
    if not fallbacks:
        return []
    lines = [title, *(f"  {_plain(fallback)}" for fallback in fallbacks[:FALLBACKS_SHOWN])]
    if len(fallbacks) > FALLBACKS_SHOWN:
        lines.append(f"  and {len(fallbacks) - FALLBACKS_SHOWN:,} more; --json names them all")
    return [Text("\n".join(lines), style=WORST)]


def _badness(row: LayerRow) -> tuple[float, float]:
    """Return what orders layers by their output error, and without statistics by their SQNR."""
    return row.output_error or 0.0, -math.inf if row.sqnr_db is None else -row.sqnr_db


def _output_db(row: LayerRow) -> float | None:
    """Return the signal-to-noise ratio of the layer's output: 20 dB is a squared relative error of 1 %."""
    return -10 * math.log10(row.output_error) if row.output_error is not None and row.output_error > 0 else None


def _block(name: str) -> str:
    """Return the number of the block in a layer's name, or the name where there is none."""
    numbers = [word for word in name.split(".") if word.isdecimal()]
    return numbers[0] if numbers else name


# inspect


def inspected(result: Inspection, *, all_rows: bool = False) -> RenderableType:
    """Return the linears by kind, or every tensor of the checkpoint with all_rows, and where the bytes are."""
    compared = any(row.cosine is not None for row in result.tensors)
    measured = any(row.outlier_ratio is not None for row in result.tensors)
    table = _every_tensor if all_rows else _tensors_by_kind
    title = f"{_plain(result.path)}, a {_plain(result.model_type)} model"
    if result.reference is not None:
        title += f", against {_plain(result.reference)}"
    layers = table(result.tensors, measured, compared)
    return Group(Text(title, style="dim"), Text(), layers, Text(), size_table(result.size))


def _tensors_by_kind(tensors: Sequence[TensorRow], measured: bool, compared: bool) -> Table:
    outliers = _have_outliers(tensors)
    table = _table("layers", "shape", "stored as", "bytes", *outliers, *_measures(measured, compared))
    kinds = _grouped(filter(_in_overview, tensors), lambda row: (row.kind, row.shape, row.stored))
    for (kind, shape, stored), rows in kinds.items():
        cells = [f"{kind} x{len(rows)}", _shape(shape), stored, _bytes(sum(row.size_bytes for row in rows))]
        cells += [_spread([row.outlier_columns for row in rows], "{:,.0f}".format)] * len(outliers)
        if measured:
            cells.append(_spread([row.outlier_ratio for row in rows], _outlier))
        if compared:
            cells.append(_spread([row.sqnr_db for row in rows], _decibel))
        _add(table, *cells)
    if measured:
        table.caption = "lowest, median, highest; outlier: the largest magnitude over the root mean square"
    return table


def _in_overview(row: TensorRow) -> bool:
    """Say whether a weight is a linear, or an embedding or a head that is stored as integers."""
    return row.role == "linear" or (row.role in ("embedding", "head") and row.stored.startswith("int"))


def _every_tensor(tensors: Sequence[TensorRow], measured: bool, compared: bool) -> Table:
    outliers = _have_outliers(tensors)
    measures = (*_measures(measured, compared), *["cosine"] * compared)
    table = _table("tensor", "shape", "stored as", "bytes", *outliers, *measures)
    worst = max(tensors, key=lambda row: row.outlier_ratio or 0.0, default=None) if measured else None
    for row in tensors:
        name, style = (f"{row.name} *", WORST) if row is worst else (row.name, "")
        cells = [name, _shape(row.shape), row.stored, _bytes(row.size_bytes)]
        cells += [_count(row.outlier_columns)] * len(outliers)
        if measured:
            cells.append(_outlier(row.outlier_ratio))
        if compared:
            cells += [_decibel(row.sqnr_db), "" if row.cosine is None else f"{row.cosine:.5f}"]
        _add(table, *cells, style=style)
    if measured:
        table.caption = "outlier: the largest magnitude over the root mean square; * the largest"
    return table


def _measures(measured: bool, compared: bool) -> list[str]:
    return ["outlier"] * measured + ["SQNR dB"] * compared


# bench


def benched(result: Bench) -> RenderableType:
    """Return the speeds and what limits them, of one model, or of two with the ratio of the first to the second."""
    speeds = [result.model] if result.against is None else [result.model, result.against]
    table = _table("", *(Path(speed.model).name for speed in speeds), *["ratio"] * (len(speeds) - 1))
    prefill, decode = ([getattr(speed, f"{what}_tokens_per_s") for speed in speeds] for what in ("prefill", "decode"))
    _add_spread(table, "prefill, tokens per s", prefill, result.prefill_ratio, _speed)
    _add_spread(table, "decode, tokens per s", decode, result.decode_ratio, _speed)
    _add_spread(table, "  of the bandwidth", [speed.bandwidth_share for speed in speeds], None, _percent)
    sizes = {
        "bytes read per token": [speed.token_bytes for speed in speeds],
        "weights in memory": [speed.weight_bytes for speed in speeds],
        "KV cache per token": [speed.cache_token_bytes for speed in speeds],
        "peak memory": [speed.peak_memory_bytes for speed in speeds],
    }
    _add(table, "embeddings", *(speed.embeddings for speed in speeds))
    _add(table, "KV cache", *(speed.kv_cache for speed in speeds))
    for name, counts in sizes.items():
        _add(table, name, *map(_bytes, counts), *_quotient(counts))
    times = {
        "loading": [speed.load_s for speed in speeds],
        "start to first token": [speed.first_token_s for speed in speeds],
    }
    for name, seconds in times.items():
        _add(table, name, *(f"{second:.2f} s" for second in seconds), *_quotient(seconds))
    limit = result.bandwidth_bytes_per_s
    lines = (
        f"prompt of {result.prompt_tokens:,} tokens; {result.tokens:,} tokens after {result.context_tokens}; "
        f"median, lowest and highest of {result.runs:,}",
        f"bandwidth {_rate(limit.median)} ({_rate(limit.low)} to {_rate(limit.high)}); {_duration(result.elapsed_s)}",
        f"{result.threads} thread{'s' * (result.threads != 1)}, {result.isa}, activations {result.activations}",
        _plain(result.machine),
    )
    return Group(table, Text(), Text("\n".join(lines), style="dim"))


def _add_spread(
    table: Table, name: str, spreads: Sequence[Spread], ratio: Ratio | None, cell: Callable[[float], str]
) -> None:
    """Add a row of medians, and one of where the runs lay."""
    between = len(table.columns) - 1 - len(spreads)
    above = [_times(ratio.of_medians)] if ratio else [""] * between
    below = [f"{_times(ratio.low)} to {_times(ratio.high)}"] if ratio else [""] * between
    _add(table, name, *(cell(spread.median) for spread in spreads), *above)
    ranges = (f"{cell(spread.low)} to {cell(spread.high)}" for spread in spreads)
    _add(table, "", *ranges, *below, style="dim")


def _quotient(values: Sequence[float]) -> list[str]:
    """Return the cell of the first over the second, or none where there is one value alone."""
    if len(values) < 2:
        return []
    return [_times(values[0] / values[1]) if values[1] else "-"]


# compare


def compared(result: Comparison) -> RenderableType:
    """Return a row for the float model and each recipe; every row has two lines, so that all fits 80 columns."""
    table = _table(
        "recipe\n  time", "KL, nats\n95 %", "perplexity\n95 %", "top-1\n95 %", "file\nbits", "memory", "prefill\ndecode"
    )
    for column in table.columns[1:]:
        column.no_wrap = True  # a long name is broken, numbers are not
    for row in result.rows:
        first, second = _compared_row(row)
        _add(table, *first)
        if second:
            _add(table, *second, style="dim")
    notes = [
        *(f"{_plain(row.name)} failed: {_plain(row.error)}" for row in result.rows if row.error is not None),
        *([] if result.speed_error is None else [f"speeds could not be measured: {_plain(result.speed_error)}"]),
    ]
    fallbacks = [f"{row.name}: {fallback}" for row in result.rows for fallback in row.fallbacks]
    return Group(
        table,
        Text(),
        *(Text(note, style=WORST) for note in notes),
        *_named_fallbacks("fallbacks:", fallbacks),
        Text("\n".join(_compared_how(result)), style="dim"),
    )


def _compared_row(row: ComparisonRow) -> tuple[list[str], list[str]]:
    """Return the cells of the two lines."""
    if row.error is not None:
        return [row.name, "failed"], []
    is_float = row.recipe is None
    ratio = row.perplexity if is_float else row.perplexity_ratio
    speeds = [row.prefill_tokens_per_s, row.decode_tokens_per_s]
    prefill, decode = ("-" if speed is None else _speed(speed.median) for speed in speeds)
    made = "" if row.quantize_s is None else f"  {_duration(row.quantize_s)}"
    first = [
        f"{row.name}*" if row.reused else row.name,
        "-" if row.kl_mean is None else _nats(row.kl_mean),
        "-" if ratio is None else f"{ratio:,.3f}" if is_float else f"x{ratio:,.3f}",
        "-" if row.top1_agreement is None else _percent(row.top1_agreement),
        "-" if row.size is None else _bytes(row.size.total_bytes),
        "-" if row.peak_memory_bytes is None else _bytes(row.peak_memory_bytes),
        prefill,
    ]
    bits = _bits(None if row.size is None else _bits_of_linears(row.size))
    top1 = _range(row.top1_interval95, 1, factor=100)
    return first, [made, _range(row.kl_interval95, 4), _range(row.ratio_interval95, 3), top1, bits, "", decode]


def _range(interval: Interval95 | None, digits: int, *, factor: int = 1) -> str:
    return "" if interval is None else "-".join(f"{factor * bound:,.{digits}f}" for bound in interval)


def _compared_how(result: Comparison) -> Iterator[str]:
    """Yield the lines that say what the numbers are."""
    text = result.text
    yield (
        f"{result.tokens:,} tokens, {text.windows:,} windows of {text.length:,}, of {_plain(text.name)}"
        f"{'' if result.runtime is None else f'; {_plain(result.runtime)}'}"
    )
    if text.note:
        yield _plain(text.note)
    yield "x: times the float model's; 95 %: intervals; bits: of a weight in the linears"
    if any(row.prefill_tokens_per_s is not None for row in result.rows):
        yield (
            f"prefill of {result.prompt_tokens:,}, decoding of {result.tokens_decoded:,} after "
            f"{result.context_tokens}: tokens per s, median of {result.runs:,} in turns"
        )
    if any(row.reused for row in result.rows):
        yield "* made earlier and used again"
    yield f"{_plain(result.model)}; {result.threads} thread{'s' * (result.threads != 1)}; {_duration(result.elapsed_s)}"
    yield _plain(result.machine)


# size


def size_table(size: Size, *, source_bytes: int | None = None) -> Table:
    """Return where the bytes are. source_bytes: of the model that this one was made from."""
    table = _table("size", "bytes", "share", "bits per weight")
    parts = (
        ("quantized linears", size.linear_bytes, size.bits_per_weight),
        ("  codes", size.code_bytes, None),
        ("  scales", size.scale_bytes, None),
        ("  zero points", size.zero_point_bytes, None),
        ("  outlier columns", size.outlier_bytes, None),
        ("float linears", size.float_linear_bytes, None),
        ("embedding", size.embedding_bytes, None),
        ("head", size.head_bytes, None),
        ("norms, biases and others", size.other_bytes, None),
        ("headers and shapes", size.overhead_bytes, None),
    )
    for name, count, bits in parts:
        if count:
            _add(table, name, _bytes(count), _percent(count / size.total_bytes), _bits(bits))
    _add(table, "total", _bytes(size.total_bytes), "", _bits(size.bits_per_weight_model), style="bold")
    if source_bytes:
        _add(table, "before", _bytes(source_bytes), f"x{size.total_bytes / source_bytes:.3f}", "")
    return table


# Cells

WORDS = (
    "",
    "recipe\n  time",
    "layers",
    "layer",
    "tensor",
    "shape",
    "scheme",
    "rounding",
    "transform",
    "stored as",
    "size",
    "tensors",
    "expected",
    "what for",
)
"""Columns of words, aligned to the left; numbers are aligned to the right."""


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold", caption_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column in WORDS else "right", overflow="fold")
    return table


def _add(table: Table, *cells: str, style: str = "") -> None:
    table.add_row(*(Text(_plain(cell)) for cell in cells), style=style)


def _grouped(rows: Iterable[Row], key: Callable[[Row], Any]) -> dict[Any, list[Row]]:
    """Return the rows with an equal key together, in the order in which the keys come first."""
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def _plain(text: str) -> str:
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _spread(values: Sequence[float | None], cell: Callable[[float], str]) -> str:
    """Return the lowest, the median and the highest of the values that are known; one number where all look alike."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    cells = [cell(min(known)), cell(median(known)), cell(max(known))]
    return cells[0] if len(set(cells)) == 1 else " ".join(cells)


def _interval(interval: Interval95 | None, cell: Callable[[float], str]) -> str:
    return "-" if interval is None else f"{cell(interval[0])} to {cell(interval[1])}"


def _shape(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))


def _decibel(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _outlier(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _bits(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _nats(value: float) -> str:
    return f"{value:.4f}" if value >= 0.001 or value == 0 else f"{value:.1e}"


def _times(ratio: float) -> str:
    return f"x{ratio:.3g}" if ratio < 100 else f"x{ratio:,.0f}"


def _speed(tokens_per_s: float) -> str:
    return f"{tokens_per_s:,.1f}"


def _rate(bytes_per_s: float) -> str:
    return f"{bytes_per_s / 1e9:.1f} GB/s"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", " %")


def _bytes(count: int) -> str:
    """Return 999 B, 1.5 kB, 269.1 MB: powers of 1000, as disks are sold."""
    if count < 1000:
        return f"{count} B"
    power = next((power for power in (1, 2, 3) if count < 999.95 * 1000**power), 4)
    return f"{count / 1000**power:,.1f} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def _duration(seconds: float) -> str:
    """Return 8.3 s, 2 min 05 s, 1 h 03 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"
