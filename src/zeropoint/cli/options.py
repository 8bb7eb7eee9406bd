"""Options that several commands have."""

from __future__ import annotations

import os
import sys

import click


def example(*lines: str) -> str:
    """Return the end of a command's help; click keeps the lines of a paragraph that begins with a backspace."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON document; stdout holds nothing else."
)


class Share(click.ParamType[float]):
    """A fraction of one, written 1% or 0.01: above 0 and below 1."""

    name = "share"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the fraction."""
        text = str(value).strip()
        try:
            share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        except ValueError:
            share = 0.0
        if not 0 < share < 1:
            self.fail(f"{value!r} is no share; write for example 1% or 0.01", param, ctx)
        return share


def _use_threads(ctx: click.Context, parameter: click.Parameter, count: int | None) -> None:
    if count is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read by torch when it is imported, which is later
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    expose_value=False,
    callback=_use_threads,
    help="Processor cores to compute with. Default: all.",
)
