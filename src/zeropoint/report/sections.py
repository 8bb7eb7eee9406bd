"""What each section of a page says of one model, and of several side by side: words and tables, laid out by templates/.

What was not measured is said in a sentence that names the command which measures it.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from zeropoint import toml
from zeropoint.errors import RecipeError
from zeropoint.evaluation.budgets import Budgeted
from zeropoint.evaluation.results import (
    BENCH,
    Bench,
    Passage,
    QuantizeResult,
    Ratio,
    Spread,
)
from zeropoint.report.budget import _asked, _forms
from zeropoint.report.figures import Cell, Column, Table, counted, lines, over, passage, plain, share, token, words
from zeropoint.report.layers import LAYERS_SHOWN
from zeropoint.report.made import Made
from zeropoint.report.planned import outcome_rows
from zeropoint.report.terminal import (
    _bits,
    _bits_of_linears,
    _bytes,
    _calibration,
    _duration,
    _interval,
    _nats,
    _percent,
    _speed,
    checked,
)

SYMBOLS = {
    "EQUIVALENT": "\u2714",
    "DEGRADED": "\u2718",
    "INCONCLUSIVE": "?",
    "KEPT": "\u2714",
    "BROKEN": "\u2718",
    "NOT JUDGED": "\u2013",
}
"""A sign for each verdict, so that its colour says nothing that cannot be read."""

BUNDLED = "calibration.txt"
"""The name of the text that is calibrated on where none is given."""

PASSAGES_SHOWN = 12
WINDOWS_TIMES = 4
"""Times as many windows halve what two halves of a calibration disagree."""


@dataclass(frozen=True)
class Verdict:
    """word: the verdict. sentence: what it rests on. notes: what else is to be known, a sentence each."""

    word: str
    sentence: str
    notes: tuple[str, ...] = ()

    @property
    def symbol(self) -> str:
        """The sign beside the word."""
        return SYMBOLS[self.word]


@dataclass(frozen=True)
class Card:
    """One figure at the top. note: beside what it stands, or its interval."""

    name: str
    figure: str
    note: str


@dataclass(frozen=True)
class Said:
    """A part of a page: tables, and sentences before and after them."""

    before: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    after: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """One passage, ready to be read. where: in the text. reference, quantized: how each goes on, or None."""

    where: str
    kl: str
    before: str
    actual: str
    successors: Table
    reference: str | None
    quantized: str | None


@dataclass(frozen=True)
class Recipe:
    """How a model can be made again. command: of a shell. text: the recipe as TOML."""

    command: str
    text: str
    tables: tuple[Table, ...]


# At the top


def verdict(made: Made) -> Verdict:
    """Return what the evaluation says, or how to have one."""
    found = made.evaluation
    if found is None:
        command = shlex.join(
            ["zeropoint", "evaluate", str(made.folder), "--reference", made.record.model, "--text", "HELD-OUT.txt"]
        )
        return Verdict("NOT JUDGED", f"What this model lost has not been measured: {plain(command)}")
    text = found.text
    how = [plain(found.runtime), f"inputs of the linears as {found.activations}", f"KV cache {plain(found.kv_cache)}"]
    how += [f"embeddings {plain(found.embeddings)}"] * (found.embeddings != "stored")
    notes = [
        f"{found.tokens:,} tokens in {text.windows:,} windows of {text.length:,}, of {plain(text.name)}; "
        f"{', '.join(how)}; {_duration(found.elapsed_s)}."
    ]
    if text.note is not None:
        notes.append(plain(text.note))
    return Verdict(found.verdict, plain(found.explanation), tuple(notes))


def budget(made: Made) -> tuple[Verdict, Table] | None:
    """Return what was asked of the model and whether it keeps it; None where no budget was given.

    A model of which only a size was asked is not made unless it keeps that.
    """
    found = made.budget
    if found is None:
        return None
    word = found.verdict or "KEPT"
    notes = [f"Asked: {_asked(found.asked)}."]
    if found.attempts:
        notes.append(f"Chosen: linears {plain(_forms(found.attempts[-1].point))}.")
    notes.append(
        f"Judged on windows of {plain(found.text)} that had no part in the choice, "
        f"with {_percent(found.confidence)} confidence."
    )
    return Verdict(word, plain(found.says), tuple(notes)), _attempts(found)


def _attempts(found: Budgeted) -> Table:
    columns = ("attempt", "size", "bits per weight", "expected KL, nats", "measured KL, nats", "95 % interval")
    more = ("rise of perplexity", "95 % interval", "windows")
    rows = [
        (
            Cell(f"{number}", number),
            Cell(_bytes(attempt.point.size_bytes), attempt.point.size_bytes),
            Cell(f"{attempt.point.bits:.2f}", attempt.point.bits),
            Cell(_nats(attempt.point.kl), attempt.point.kl),
            Cell(_nats(attempt.kl), attempt.kl),
            Cell(_interval(attempt.kl_interval95, _nats)),
            Cell(f"{attempt.loss:+.2%}", attempt.loss),
            Cell(_interval(attempt.loss_interval95, "{:+.2%}".format)),
            Cell(f"{attempt.windows:,}", attempt.windows),
            Cell(attempt.kept or "-"),
        )
        for number, attempt in enumerate(found.attempts, start=1)
    ]
    return Table(
        "What was tried for the budget", (*map(Column, columns + more), Column("kept", number=False)), tuple(rows)
    )


def cards(made: Made) -> tuple[Card, ...]:
    """Return the figures that are looked at first."""
    record, found, bench = made.record, made.evaluation, made.bench
    size, before = record.size.total_bytes, record.source_bytes
    shown = [Card("size", _bytes(size), f"{over(size, before)} of {_bytes(before)}")]
    if record.size.bits_per_weight is not None:
        shown.append(
            Card("bits per weight, linears", _bits(record.size.bits_per_weight), "scales and zero points counted")
        )
    if found is not None:
        ratio = _interval(found.ratio_interval95, lambda value: f"x{value:.4f}")
        top1 = _interval(found.top1_interval95, _percent)
        shown += [
            Card("KL, nats per token", _nats(found.kl_mean), f"95 %: {_interval(found.kl_interval95, _nats)}"),
            Card("perplexity", f"x{found.perplexity_ratio:.4f}", f"95 %: {ratio}"),
            Card("same likeliest token", _percent(found.top1_agreement), f"95 %: {top1}"),
        ]
    if bench is not None:
        against = ""
        if bench.against is not None and bench.decode_ratio is not None:
            against = f"x{bench.decode_ratio.of_medians:.2f} of {plain(Path(bench.against.model).name)}"
        shown.append(Card("decoding, tokens per s", _speed(bench.model.decode_tokens_per_s.median), against))
    return tuple(shown)


# Size, memory and speed


def beside(made: Made) -> Said:
    """Return size, losses, memory and speed beside the float model."""
    record, found, bench = made.record, made.evaluation, made.bench
    columns = (Column("", number=False), Column("float"), Column("quantized"), Column("quantized / float"))
    rows = [_two("size of the files", record.source_bytes, record.size.total_bytes)]
    if found is not None:
        before, after = found.size_reference, found.size
        for name, one, other in (
            ("bits per weight, linears", _bits_of_linears(before), _bits_of_linears(after)),
            ("bits per weight, whole model", before.bits_per_weight_model, after.bits_per_weight_model),
        ):
            rows.append(words(name, _bits(one), _bits(other), over(other, one) if one and other else "-"))
        perplexities = f"{found.perplexity_reference:,.3f}", f"{found.perplexity:,.3f}"
        rows.append(words("perplexity", *perplexities, f"x{found.perplexity_ratio:.4f}"))
    after_tables: tuple[str, ...] = ()
    if bench is None:
        command = shlex.join(["zeropoint", "bench", str(made.folder), "--against", record.model, "--json"])
        target = shlex.quote(str(made.folder / BENCH))
        after_tables = (f"Speed and memory of running it have not been measured: {plain(command)} > {plain(target)}",)
        if record.plan is not None and record.plan.decode_tokens_per_s is not None:
            after_tables += (
                "Before it was made, the memory of the machine was seen to allow at most "
                f"{record.plan.decode_tokens_per_s:,.0f} tokens per second of decoding.",
            )
    else:
        rows += _speeds(bench)
        after_tables = (
            f"Prompt of {bench.prompt_tokens:,} tokens; {bench.tokens:,} decoded after {bench.context_tokens:,}; "
            f"medians of {bench.runs:,} runs in turns, {bench.threads:,} threads, {plain(bench.isa)}, "
            f"{plain(bench.machine)}.",
        )
    table = Table("Beside the float model", columns, tuple(rows))
    return Said(tables=(table, _bytes_of(record)), after=after_tables)


def _two(name: str, before: int, after: int) -> tuple[Cell, ...]:
    return words(name, _bytes(before), _bytes(after), over(after, before))


def _speeds(bench: Bench) -> Iterable[tuple[Cell, ...]]:
    mine, other = bench.model, bench.against
    prefill, decode = (None, None) if other is None else (other.prefill_tokens_per_s, other.decode_tokens_per_s)
    speeds: list[tuple[str, Spread, Spread | None, Ratio | None]] = [
        ("prefill, tokens per s", mine.prefill_tokens_per_s, prefill, bench.prefill_ratio),
        ("decoding, tokens per s", mine.decode_tokens_per_s, decode, bench.decode_ratio),
    ]
    for name, here, there, ratio in speeds:
        times = "-" if ratio is None else f"x{ratio.of_medians:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
        yield words(name, "-" if there is None else _run(there), _run(here), times)
    memory = "memory of running it, at most"
    if other is None:
        yield words(memory, "-", _bytes(mine.peak_memory_bytes), "-")
        yield words("start to first token", "-", f"{mine.first_token_s:.2f} s", "-")
    else:
        yield _two(memory, other.peak_memory_bytes, mine.peak_memory_bytes)
        seconds = f"{other.first_token_s:.2f} s", f"{mine.first_token_s:.2f} s"
        yield words("start to first token", *seconds, over(mine.first_token_s, other.first_token_s))


def _run(spread: Spread) -> str:
    return f"{_speed(spread.median)} ({_speed(spread.low)} to {_speed(spread.high)})"


def _bytes_of(record: QuantizeResult) -> Table:
    size = record.size
    parts = (
        ("codes of the linears", size.code_bytes),
        ("their scales", size.scale_bytes),
        ("their zero points", size.zero_point_bytes),
        ("columns that stay float", size.outlier_bytes),
        ("linears that stay float", size.float_linear_bytes),
        ("embedding", size.embedding_bytes),
        ("head", size.head_bytes),
        ("norms, biases and others", size.other_bytes),
        ("headers and shapes", size.overhead_bytes),
    )
    total = size.total_bytes or 1
    rows = [
        (
            Cell(name),
            Cell(_bytes(count), count),
            Cell(_percent(count / total), count, bar=min(1.0, abs(count) / abs(total))),
        )
        for name, count in parts
        if count
    ]
    return Table("Where the bytes are", (Column("", number=False), Column("bytes"), Column("share")), tuple(rows))


# Layers


def about_layers(made: Made) -> Said:
    """Return what the map of errors cannot show: fallbacks, and how the layers were made, by kind."""
    record = made.record
    fallbacks = [why for row in record.layers for why in row.fallbacks]
    after = ["No fallbacks: every layer is as it was asked to be."]
    if fallbacks:
        after = [f"{counted(len(fallbacks), 'fallback')} in {counted(len(record.layers), 'layer')}:"]
    after += [plain(why) for why in fallbacks[:LAYERS_SHOWN]]
    missing = [row.name for row in record.layers if row.spreading is None]
    if missing:
        after.append(
            f"{counted(len(missing), 'layer')} without histograms: of embeddings, heads and the experts of models with "
            "very many none are kept; earlier versions kept none at all."
        )
    notes = [plain(note) for note in (record.format_note, record.transform_note) if note is not None]
    return Said(before=tuple(notes), after=tuple(after))


# KL over tokens


def divergence(made: Made) -> Said:
    """Return the distribution of KL over the tokens, in figures."""
    found = made.evaluation
    if found is None:
        return Said(before=("Not measured yet: `zeropoint evaluate` measures it.",))
    rows = [
        words("mean", f"{_nats(found.kl_mean)} nats", _interval(found.kl_interval95, _nats)),
        words("99 % of the tokens are below", f"{_nats(found.kl_p99)} nats", ""),
        words("largest", f"{_nats(found.kl_max)} nats", ""),
    ]
    if found.activations_kl is not None:
        rows.append(words("of it by rounding inputs to int8, mean", f"{_nats(found.activations_kl)} nats", ""))
    columns = (Column("", number=False), Column("KL(float || quantized)"), Column("95 % interval"))
    summary = Table("KL of a token", columns, tuple(rows))
    if not found.kl_bars:
        return Said(("It was evaluated before the distribution was kept; evaluate again to see it.",), (summary,))
    total = sum(bar.count for bar in found.kl_bars) or 1
    bars, below = [], 0
    for bar in found.kl_bars:
        below += bar.count
        bars.append(
            (
                Cell(f"{bar.low:.3g}", bar.low),
                Cell(f"{bar.high:.3g}", bar.high),
                Cell(f"{bar.count:,}", bar.count),
                Cell(share(bar.count / total), bar.count),
                Cell(_percent(below / total), below),
            )
        )
    names = ("from, nats", "to, nats", "tokens", "share", "up to here")
    return Said(tables=(summary, Table("Tokens by their KL", tuple(map(Column, names)), tuple(bars))))


def passages(made: Made) -> tuple[Shown, ...]:
    """Return the worst passages, the worst first."""
    found = made.evaluation
    return () if found is None else tuple(_passage(each) for each in found.passages[:PASSAGES_SHOWN])


def _passage(found: Passage) -> Shown:
    rows = [
        (
            Cell(token(each.token)),
            Cell(_percent(each.reference), each.reference, bar=_part(each.reference)),
            Cell(_percent(each.quantized), each.quantized, bar=_part(each.quantized)),
        )
        for each in found.likeliest
    ]
    columns = (Column("next token", number=False), Column("float"), Column("quantized"))
    return Shown(
        where=f"window {found.window:,}, token {found.position:,}",
        kl=f"{found.kl:.3g} nats",
        before=passage(found.before),
        actual=token(found.actual),
        successors=Table("Likeliest next tokens", columns, tuple(rows)),
        reference=None if found.reference is None else passage(found.reference),
        quantized=None if found.quantized is None else passage(found.quantized),
    )


def _part(value: float) -> float:
    return min(1.0, max(0.0, value))


# Calibration, plan, gains


def sufficiency(made: Made) -> Said:
    """Return whether the calibration was long enough for the statistics not to depend on it."""
    record = made.record
    before = [f"{_sentence(_calibration(record))}."]
    if record.calibration is not None and record.calibration.note:
        before.append(plain(record.calibration.note))
    if not record.sufficiency:
        why = "it takes two windows, and a version that keeps it"
        if record.calibration is None:
            why = "no method read a text"
        return Said((*before, f"How far the statistics depend on the windows that were drawn is not known: {why}."))
    found = sorted(row.disagreement for row in record.sufficiency)
    before.append(
        f"The mean squares of the inputs in the even and in the odd windows differ by {share(median(found))} in the "
        f"median input and by {share(found[-1])} in the worst. {WINDOWS_TIMES} times as many windows would halve that."
    )
    most = found[-1] or 1.0
    rows = [
        (Cell(plain(row.layer)), Cell(share(row.disagreement), row.disagreement, bar=_part(row.disagreement / most)))
        for row in sorted(record.sufficiency, key=lambda row: -row.disagreement)[:LAYERS_SHOWN]
    ]
    columns = (Column("input of", number=False), Column("two halves differ by"))
    return Said(tuple(before), (Table("How far two halves of the calibration disagree", columns, tuple(rows)),))


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def plan(made: Made) -> Said:
    """Return what was planned beside what became of it."""
    record = made.record
    names = (Column("", number=False), Column("planned"), Column("real"), Column("real / planned"))
    after = []
    if record.resumed_blocks:
        after.append(f"Done by an earlier run, whose time counts too: {counted(record.resumed_blocks, 'block')}.")
    if record.verification is not None:
        problems = record.verification.problems
        what = f"a fresh process read it back: {checked(record.verification)}"
        after += (
            [f"{len(problems):,} problems were found: {what}", *map(plain, problems)]
            if problems
            else [f"Verified: {what}."]
        )
        if record.verification.loads is not None:
            after.append(f"{_sentence(plain(record.verification.loads))}.")
    if record.plan is None:
        memory = f"{_bytes(record.peak_memory_bytes)} of memory at most"
        took = f"It took {_duration(record.elapsed_s)} and {memory}; nothing was planned."
        return Said((took,), after=tuple(after))
    rows = tuple(words(*row) for row in outcome_rows(record, record.plan))
    stages = [(Cell(plain(each.stage)), Cell(_duration(each.seconds), each.seconds)) for each in record.plan.stages]
    tables = [Table("The plan and the outcome", names, rows)]
    if stages:
        columns = (Column("stage", number=False), Column("planned time"))
        tables.append(Table("What the time was planned for", columns, tuple(stages)))
    return Said(tables=tuple(tables), after=(*after, *map(plain, record.plan.notes)))


def gains(made: Made) -> Said:
    """Return what each stage of the work was worth."""
    record = made.record
    if not record.gains:
        return Said(("The stages were not told apart: this recipe holds no windows out, or it has one stage.",))
    most = max(row.kl for row in record.gains) or 1.0
    rows, before = [], None
    for row in record.gains:
        of = "-" if not before else f"x{row.kl / before:.2f}"
        took = "-" if row.seconds is None else _duration(row.seconds)
        rows.append(
            (
                Cell(plain(row.stage)),
                Cell(f"{_nats(row.kl)} nats", row.kl, bar=_part(row.kl / most)),
                Cell(of, row.kl / before if before else 0.0),
                Cell(took, row.seconds or 0.0),
            )
        )
        before = row.kl
    columns = (Column("stage", number=False), Column("KL after it"), Column("of the one before"), Column("time"))
    return Said(
        (f"KL from the float model on {record.held_out_tokens:,} tokens that no method has learned from.",),
        (Table("What each stage was worth", columns, tuple(rows)),),
    )


# How to reproduce


def reproduce(made: Made) -> Recipe:
    """Return the command, the recipe, and the hashes and versions that must be the same."""
    record = made.record
    try:
        text = toml.write(record.recipe)
    except RecipeError:  # a record that holds what no recipe does
        text = "# this record's recipe cannot be written as TOML"
    command = ["zeropoint", "quantize", record.model, "--output", record.output, "--recipe", "recipe.toml"]
    calibration = record.calibration
    if (
        calibration is not None
        and calibration.name.endswith((".txt", ".jsonl"))
        and calibration.name != "calibration.txt"
    ):
        command += ["--calibration", calibration.name]
    what = (Column("what", number=False), Column("sha256", number=False))
    hashes = [words(f"calibration: {calibration.name}", calibration.sha256)] if calibration else []
    if made.evaluation is not None:
        hashes.append(words(f"judged on: {made.evaluation.text.name}", made.evaluation.text.sha256))
    if made.manifest is not None:
        hashes += [words(f"read: {name}", digest) for name, digest in made.manifest.source.items()]
        hashes += [words(f"written: {name}", digest) for name, digest in made.manifest.files.items()]
    facts = [words("made on", record.machine)]
    if made.evaluation is not None:
        facts.append(words("judged on", made.evaluation.machine))
    facts += [words(f"version of {name}", version) for name, version in record.versions.items()]
    both = (Column("", number=False), Column("value", number=False))
    tables = [Table("Machine and versions", both, tuple(facts))]
    if hashes:
        tables.append(Table("Hashes", what, tuple(hashes)))
    if record.skipped or record.left_out:
        rest = [words(name, "copied, though no part of the text model") for name in record.skipped]
        rest += [words(name, "left out: made anew by whoever runs it, or stored twice") for name in record.left_out]
        tables.append(
            Table("Tensors apart", (Column("tensor", number=False), Column("what", number=False)), tuple(rest))
        )
    return Recipe(plain(shlex.join(command)), lines(text), tuple(tables))
