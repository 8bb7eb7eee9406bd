"""What `zeropoint budget` found, and what a budget came to, for a terminal."""

from __future__ import annotations

import math
from collections import Counter

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.budgets import Asked, Budgeted, Curve, CurvePoint, Kept
from zeropoint.report.terminal import _add, _bytes, _duration, _plain, _table

BAR = 24
"""Characters of the longest bar."""

KEPT_STYLES: dict[Kept, str] = {"KEPT": "bold green", "BROKEN": "bold red", "INCONCLUSIVE": "bold yellow"}


def curve(result: Curve) -> RenderableType:
    """Return size against loss, what it rests on, and what the choices cost."""
    found = result.sensitivities
    table = _table("size", "bits", "KL, nats per token", "from", "to", "", "linears")
    most = max((math.log10(max(point.kl, 1e-6)) for point in result.points), default=0.0)
    least = min((math.log10(max(point.kl, 1e-6)) for point in result.points), default=0.0)
    for index, point in enumerate(result.points):
        share = (math.log10(max(point.kl, 1e-6)) - least) / (most - least) if most > least else 0.0
        _add(
            table,
            _bytes(point.size_bytes),
            f"{point.bits:.2f}",
            f"{point.kl:.4g}",
            f"{point.kl_low:.3g}",
            f"{point.kl_high:.3g}",
            "#" * round(BAR * share) + (" knee" if index == result.knee else ""),
            _forms(point),
        )
    checks = _table("all linears as", "expected KL", "measured", "measured / expected")
    for check in found.checks:
        ratio = f"x{check.measured / check.expected:.2f}" if check.expected > 0 else ""
        _add(checks, check.form, f"{check.expected:.4g}", f"{check.measured:.4g}", ratio)
    said = (
        f"costs from {found.fisher_tokens + found.tokens:,} tokens of text, held against whole models on "
        f"{found.check_tokens:,} others; {'kept from an earlier run' if result.reused else _duration(found.elapsed_s)}"
    )
    return Group(
        Text(f"{_plain(result.model)}, {_bytes(found.source_bytes)} as it is", style="dim"),
        Text(),
        table,
        Text("the bars are the logarithm of KL; from, to: as far as the checks below were off", style="dim"),
        Text(),
        checks,
        Text(),
        _dearest(result),
        Text(),
        Text(said, style="dim"),
    )


def _forms(point: CurvePoint) -> str:
    """Return the share of the weights that has each kind of codes, without what all of them have in common."""
    total, shares = sum(point.forms.values()), Counter[str]()
    for form, count in point.forms.items():
        shares[_plain(form).partition(" ")[0]] += count
    parts = [f"{form} {count / total:.0%}" for form, count in shares.items()]
    return ", ".join([*parts, f"embeddings {_plain(point.embeddings)}"])


def _dearest(result: Curve) -> Table:
    """Return the weights whose smallest form costs most."""
    table = _table("dearest weights", "as", "KL", "one form up", "KL")
    rows = sorted(result.sensitivities.units, key=lambda unit: -unit.forms[0].kl)[:5]
    for unit in rows:
        up = unit.forms[min(1, len(unit.forms) - 1)]
        name = _plain(unit.names[0]) + (f" and {len(unit.names) - 1} more" if len(unit.names) > 1 else "")
        _add(table, name, unit.forms[0].form, f"{unit.forms[0].kl:.3g}", up.form, f"{up.kl:.3g}")
    return table


def budgeted(result: Budgeted) -> RenderableType:
    """Return the verdict, and what was asked, expected and measured."""
    head = Text(_plain(result.says))
    if result.verdict is not None:
        head = Text.assemble((result.verdict, KEPT_STYLES[result.verdict]), "  ", _plain(result.says))
    elif not result.possible:
        head = Text.assemble(("NOT POSSIBLE", "bold red"), "  ", _plain(result.says.removeprefix("not possible: ")))
    parts: list[RenderableType] = [head, Text(f"asked: {_asked(result.asked)}")]
    if result.attempts:
        table = _table("attempt", "size", "bits", "expected KL", "KL", "95 %", "loss", "95 %", "windows", "")
        for number, attempt in enumerate(result.attempts, start=1):
            _add(
                table,
                str(number),
                _bytes(attempt.point.size_bytes),
                f"{attempt.point.bits:.2f}",
                f"{attempt.point.kl:.4g}",
                f"{attempt.kl:.4g}",
                _range(attempt.kl_interval95, "{:.3g}"),
                f"{attempt.loss:+.2%}",
                _range(attempt.loss_interval95, "{:+.2%}"),
                str(attempt.windows),
                attempt.kept or "",
            )
        parts += [Text(), table, Text(), Text(f"linears: {_forms(result.attempts[-1].point)}")]
    if result.size is not None and result.output is not None:
        parts.append(Text(f"{_plain(result.output)}: {_bytes(result.size.total_bytes)}"))
    costs = "costs kept from an earlier run, " if result.reused else ""
    parts.append(
        Text(
            f"judged on windows of {_plain(result.text)} that had no part in a choice; {costs}"
            f"{_duration(result.elapsed_s)} in all",
            style="dim",
        )
    )
    return Group(*parts)


def _range(interval: tuple[float, float] | None, form: str) -> str:
    return "" if interval is None else f"{form.format(interval[0])} to {form.format(interval[1])}"


def _asked(asked: Asked) -> str:
    parts = []
    if asked.max_loss is not None:
        parts.append(f"perplexity at most {asked.max_loss:.3g} higher ({asked.max_loss:.2%})")
    if asked.max_kl is not None:
        parts.append(f"KL at most {asked.max_kl:g} nats per token")
    if asked.max_size_bytes is not None:
        parts.append(f"at most {_bytes(asked.max_size_bytes)}")
    if asked.max_bits is not None:
        parts.append(f"at most {asked.max_bits:g} bits per weight of the linears")
    if asked.min_speed is not None:
        parts.append(f"at least {asked.min_speed:g} tokens per second")
    return ", ".join(parts)
