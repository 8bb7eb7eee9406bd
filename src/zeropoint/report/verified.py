"""What `zeropoint verify` found, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zeropoint.evaluation.results import Engines, Verification
from zeropoint.report.terminal import _plain, checked

SHOWN = 10


def compared(result: Engines) -> RenderableType:
    """Return what the engines compute, a row for each."""
    table = Table(box=None, pad_edge=False)
    table.add_column("engine")
    for title in ("KL(ours || engine)", "top-1 agreement", "largest difference"):
        table.add_column(title, justify="right")
    table.add_column("")
    for row in result.rows:
        numbers = ("-", "-", "-")
        if row.kl is not None and row.top1 is not None and row.largest is not None:
            numbers = (f"{row.kl:.2e}", f"{row.top1:.1%}", f"{row.largest:.2e}")
        verdict = ("as ours", "green") if row.problem is None else (_plain(row.problem), "red")
        table.add_row(_plain(row.version or row.engine), *numbers, Text(*verdict))
    tokens = max((row.tokens for row in result.rows), default=0)
    said = f"the next token's distribution after each of {tokens:,} tokens; log-probabilities in nats"
    return Group(table, Text(said)) if tokens else table


def verified(result: Verification, name: str) -> RenderableType:
    """Return the outcome in a word, and what it rests on. name: of the folder."""
    parts: list[RenderableType] = []
    if result.problems:
        parts.append(Text.assemble(("NOT AS COMPUTED", "bold red"), f"  {_plain(name)}"))
        parts += [Text(f"  {_plain(problem)}") for problem in result.problems[:SHOWN]]
        if len(result.problems) > SHOWN:
            parts.append(Text(f"  and {len(result.problems) - SHOWN:,} more; --json names them all"))
        parts.append(Text("quantize the model again, or get the folder again from where it came from"))
        return Group(*parts)
    parts.append(
        Text.assemble(("VERIFIED", "bold green"), f"  {_plain(name)}: {checked(result)}, as they were computed")
    )
    if result.loads is not None:
        parts.append(Text(_plain(result.loads)))
    if result.reference is not None:
        found = result.reference
        made = "made from this reference" if found.made_from_it else "NOT made from this reference: its files differ"
        parts.append(
            Text(
                f"{made}; KL {found.kl:.3g} nats per token, top-1 agreement {found.top1:.1%} on {found.tokens:,} tokens"
            )
        )
    return Group(*parts)
