"""What `zeropoint export` wrote, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.text import Text

from zeropoint.exporting.result import Export
from zeropoint.report.terminal import _plain


def exported(result: Export) -> RenderableType:
    """Return what was written and how it was checked."""
    types = ", ".join(f"{count} {kind}" for kind, count in result.types.items())
    lines: list[RenderableType] = [
        Text.assemble(("EXPORTED", "bold green"), f"  {_plain(result.output)}: {result.format}, {types}"),
        Text(
            f"{result.size_bytes:,} bytes in {result.elapsed_s:.1f} s; all {result.checked:,} values were read back, "
            "and are those of the model"
        ),
    ]
    lines += [Text(_plain(note)) for note in result.notes]
    return Group(*lines)
