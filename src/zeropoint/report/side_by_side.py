"""Several models side by side: their figures, how far each lies from the first one, and their layers by kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from zeropoint.evaluation.results import Evaluation, Interval95, LayerRow
from zeropoint.report import difference
from zeropoint.report.figures import Cell, Column, Table, over, plain, share, words
from zeropoint.report.layers import error_of, has_outputs
from zeropoint.report.made import Made
from zeropoint.report.sections import Said, _run
from zeropoint.report.terminal import _bits, _bytes, _duration, _grouped, _interval, _nats, _percent


def side_by_side(all_made: Sequence[Made]) -> Said:
    """Return the figures of several models, and how far each lies from the first one, with intervals."""
    first = all_made[0]
    columns = [Column("", number=False), *(Column(plain(made.name)) for made in all_made)]
    figures = Table("The same of each", tuple(columns), tuple(_figures(all_made)))
    tables, after = [figures], []
    for made in all_made[1:]:
        title = f"{plain(made.name)} against {plain(first.name)}"
        one, other = first.evaluation, made.evaluation
        rows = [_difference_of_bytes(first, made)]
        if one is None or other is None:
            after.append(f"{title}: only what both were judged by can be subtracted; evaluate both.")
        elif (why := difference.incomparable(one, other)) is not None:
            after.append(f"{title}: {why}")
        else:
            rows += _differences(one, other)
        names = (
            Column("", number=False),
            Column("difference"),
            Column("95 % interval, at least"),
            Column("says", number=False),
        )
        tables.append(Table(title, names, tuple(rows)))
    if any(len(table.rows) > 1 for table in tables[1:]):
        after.append(
            "The intervals of differences are made of those of each model alone, their halves added. They hold in at "
            "least 95 % of the cases however the two models depend on each other; as both were judged on the same "
            "windows, the difference is known better than they say."
        )
    tables.append(_kinds(all_made))
    return Said(tables=tuple(tables), after=tuple(after))


def _figures(all_made: Sequence[Made]) -> Iterable[tuple[Cell, ...]]:
    records, judged = [made.record for made in all_made], [made.evaluation for made in all_made]
    yield words("verdict", *(found.verdict if found else "not judged" for found in judged))
    yield words("recipe", *(str(record.recipe.get("name", "custom")) for record in records))
    yield words("size", *(_bytes(record.size.total_bytes) for record in records))
    yield words("bits per weight, linears", *(_bits(record.size.bits_per_weight) or "-" for record in records))
    yield words("KL, nats per token", *(_with_interval(found, "kl") for found in judged))
    yield words("perplexity, of the float model's", *(_with_interval(found, "ratio") for found in judged))
    yield words("same likeliest token", *(_with_interval(found, "top1") for found in judged))
    speeds = [made.bench.model.decode_tokens_per_s if made.bench else None for made in all_made]
    yield words("decoding, tokens per s", *("not measured" if speed is None else _run(speed) for speed in speeds))
    memory = [made.bench.model.peak_memory_bytes if made.bench else None for made in all_made]
    yield words(
        "memory of running it, at most", *("not measured" if count is None else _bytes(count) for count in memory)
    )
    yield words("time to make it", *(_duration(record.elapsed_s) for record in records))
    yield words("memory to make it, at most", *(_bytes(record.peak_memory_bytes) for record in records))
    yield words(
        "layers with a fallback", *(f"{sum(bool(row.fallbacks) for row in record.layers):,}" for record in records)
    )


def _with_interval(found: Evaluation | None, what: str) -> str:
    if found is None:
        return "not judged"
    if what == "kl":
        return f"{_nats(found.kl_mean)} ({_interval(found.kl_interval95, _nats)})"
    if what == "ratio":
        return f"x{found.perplexity_ratio:.4f} ({_interval(found.ratio_interval95, lambda ratio: f'x{ratio:.4f}')})"
    return f"{_percent(found.top1_agreement)} ({_interval(found.top1_interval95, _percent)})"


def _difference_of_bytes(first: Made, made: Made) -> tuple[Cell, ...]:
    before, after = first.record.size.total_bytes, made.record.size.total_bytes
    sign = "-" if after < before else "+"
    says = "smaller" if after < before else "larger" if after > before else "the same"
    return words("size", f"{sign}{_bytes(abs(after - before))} ({over(after, before)})", "exact", says)


def _differences(one: Evaluation, other: Evaluation) -> Iterable[tuple[Cell, ...]]:
    """Yield the rows of two models judged on the same windows."""
    kl = _between(one.kl_interval95, other.kl_interval95)
    change = other.kl_mean - one.kl_mean
    yield words("KL, nats per token", f"{change:+.4g}", _interval(kl, "{:+.4g}".format), _says(kl, 0.0))
    ratio = _quotient(one.ratio_interval95, other.ratio_interval95)
    times = f"x{other.perplexity_ratio / one.perplexity_ratio:.4f}" if one.perplexity_ratio else "-"
    yield words("perplexity", times, _interval(ratio, "x{:.4f}".format), _says(ratio, 1.0))
    top1 = _between(one.top1_interval95, other.top1_interval95)
    points = 100 * (other.top1_agreement - one.top1_agreement)
    interval = _interval(top1, lambda value: f"{100 * value:+.2f}")
    yield words(
        "same likeliest token, percentage points",
        f"{points:+.2f}",
        interval,
        _says(top1, 0.0, more="better", less="worse"),
    )


def _between(one: Interval95 | None, other: Interval95 | None) -> Interval95 | None:
    return None if one is None or other is None else difference.difference(one, other)


def _quotient(one: Interval95 | None, other: Interval95 | None) -> Interval95 | None:
    if one is None or other is None or min(*one, *other) <= 0:
        return None
    return difference.ratio(one, other)


def _says(interval: Interval95 | None, nothing: float, *, more: str = "worse", less: str = "better") -> str:
    """Return in words what an interval of a difference says."""
    if interval is None:
        return "no interval: one window"
    if interval[0] > nothing:
        return more
    return less if interval[1] < nothing else "cannot be told apart"


def _kinds(all_made: Sequence[Made]) -> Table:
    """Return the median error of each kind of layer, by model."""
    of_output = has_outputs(made.record for made in all_made)
    groups = [_grouped(made.record.layers, lambda row: row.kind) for made in all_made]
    kinds = list(dict.fromkeys(kind for group in groups for kind in group))
    rows = []
    for kind in kinds:
        errors = [_median_error(group.get(kind, []), of_output=of_output) for group in groups]
        cells = [Cell("-", -1.0) if error is None else Cell(share(error), error) for error in errors]
        rows.append((Cell(plain(kind)), *cells))
    what = "output" if of_output else "weight"
    columns = (Column("kind", number=False), *(Column(plain(made.name)) for made in all_made))
    return Table(f"Median over the blocks of the error of the {what}, squared and relative", columns, tuple(rows))


def _median_error(rows: Sequence[LayerRow], *, of_output: bool) -> float | None:
    return median(error_of(row, of_output=of_output) for row in rows) if rows else None
