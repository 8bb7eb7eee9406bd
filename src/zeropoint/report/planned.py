"""What `zeropoint plan` expects of a run, for a terminal, and how it came out."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.results import Plan, QuantizeResult
from zeropoint.heap import as_limit
from zeropoint.report.terminal import _add, _bits, _bytes, _duration, _plain, _shape, _table


def planned(plan: Plan) -> RenderableType:
    """Return what becomes of the tensors, and what the run takes and gives."""
    tensors = _table("tensors", "shape", "stored as", "rounding", "bytes")
    for row in plan.rows:
        how = row.rounding or f"float: {row.why}"
        _add(tensors, f"{row.kind} x{row.count}", _shape(row.shape), row.stored, how, _bytes(row.size_bytes))
    title = f"{_plain(plan.model)}, a {_plain(plan.model_type)} model, recipe {_plain(str(plan.recipe.get('name')))}"
    facts = _table("expected", "figure", "what for")
    for name, figure, more in _facts(plan):
        _add(facts, name, figure, more)
    parts: list[RenderableType] = [Text(title, style="dim"), Text(), tensors, Text(), facts, Text(), Text(plan.loads)]
    parts += [Text(_plain(note)) for note in plan.notes]
    return Group(*parts)


def _facts(plan: Plan) -> list[tuple[str, str, str]]:
    size, needs = plan.size, sorted(plan.peak_needs.items(), key=lambda item: -item[1])
    share = f"x{size.total_bytes / plan.source_bytes:.3f} of {_bytes(plan.source_bytes)}"
    bits = f"{_bits(size.bits_per_weight)} bits per weight in linears, {_bits(size.bits_per_weight_model)} in the model"
    held = ", ".join(f"{name} {_bytes(need)}" for name, need in needs)
    least = f"--max-memory {as_limit(plan.least_memory_bytes)} is the least"
    spilled = f"; {_bytes(plan.spilled_bytes)} of the texts wait on disk" if plan.spilled_bytes else ""
    rows = [
        ("output", _bytes(size.total_bytes), f"{share}; {bits}"),
        ("peak memory", _bytes(plan.peak_memory_bytes), f"while it does {plan.peak_phase!r}: {held}{spilled}"),
        ("", "", least),
        ("disk", _bytes(plan.disk_bytes), "at most, beside the output's name, while it runs"),
    ]
    if plan.elapsed_s is not None:
        stages = ", ".join(f"{_plain(stage.stage)} {_duration(stage.seconds)}" for stage in plan.stages)
        rows.append(("time", _duration(plan.elapsed_s), f"about: {stages}"))
    if plan.decode_tokens_per_s is not None and plan.bandwidth_bytes_per_s is not None:
        read = f"{_bytes(plan.token_bytes)} read for each at {plan.bandwidth_bytes_per_s / 1e9:.1f} GB/s"
        rows.append(("decoding", f"{plan.decode_tokens_per_s:,.0f} tokens/s", f"at most: {read}"))
    if plan.elapsed_s is None:
        rows.append(("time, speed", "-", "not measured (--no-bench)"))
    return rows


def short(plan: Plan) -> str:
    """Return a plan in two lines, before the work begins."""
    size = plan.size
    spilled = f", {_bytes(plan.spilled_bytes)} of the texts on disk" if plan.spilled_bytes else ""
    first = (
        f"plan: output {_bytes(size.total_bytes)} ({_bits(size.bits_per_weight)} bits per weight in linears), "
        f"peak memory {_bytes(plan.peak_memory_bytes)}{spilled}, disk {_bytes(plan.disk_bytes)}"
    )
    if plan.elapsed_s is None:
        return first
    stages = ", ".join(f"{_plain(stage.stage)} {_duration(stage.seconds)}" for stage in plan.stages)
    return f"{first}\n      {stages}; about {_duration(plan.elapsed_s)} in all"


def outcome(result: QuantizeResult) -> Table | None:
    """Return the plan's figures beside the real ones; None where there was no plan."""
    if result.plan is None:
        return None
    table = _table("", "planned", "real", "real / planned")
    for row in outcome_rows(result, result.plan):
        _add(table, *row)
    return table


def outcome_rows(result: QuantizeResult, plan: Plan) -> list[tuple[str, str, str, str]]:
    """Return what was planned, what became of it and the ratio, as texts; a ratio that says nothing is empty."""
    figures = [
        ("output", plan.size.total_bytes, result.size.total_bytes),
        ("peak memory", plan.peak_memory_bytes, result.peak_memory_bytes),
        ("on disk of the texts", plan.spilled_bytes, result.spilled_bytes),
    ]
    rows = [
        (name, _bytes(expected), _bytes(real), f"x{real / expected:.2f}" if expected else "")
        for name, expected, real in figures
        if expected or real
    ]
    if plan.elapsed_s is not None:
        ratio = f"x{result.elapsed_s / plan.elapsed_s:.2f}" if plan.elapsed_s and not result.resumed_blocks else ""
        rows.append(("time", _duration(plan.elapsed_s), _duration(result.elapsed_s), ratio))
    return rows
