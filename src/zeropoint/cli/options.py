"""Options that several commands have."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])


def example(*lines: str) -> str:
    """Return the end of a command's help; click keeps the lines of a paragraph that begins with a backspace."""
    return "\n".join(["\b", "Example:", *(f"  {line}" for line in lines)])


recipe_option = click.option(
    "-r", "--recipe", default="w4a16", show_default=True, metavar="NAME|FILE", help="A preset, or your own .toml file."
)

effort_option = click.option(
    "--effort",
    type=click.IntRange(0, 3),
    help="Work for the codes: 0 seconds and no text, 1 GPTQ, 2 better, 3 best. Default: as the recipe says.",
)

set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Replace a value of the recipe; can be given again."
)

calibration_option = click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text (.txt) or conversations (.jsonl) like what the model will read. Default: the bundled text.",
)


def choices_options(command: Command) -> Command:
    """Add --choices and --embedding-choices: what a budget may choose from."""
    choices = click.option(
        "--choices",
        default="3,4,5,6,8,float",
        show_default=True,
        metavar="BITS,...",
        help="Bits that a layer may have; 2 to 6, 8, and float.",
    )
    tables = click.option(
        "--embedding-choices",
        "table_choices",
        default="int8,stored",
        show_default=True,
        metavar="FORM,...",
        help="What embedding and head may be: int4, int8, and stored.",
    )
    return choices(tables(command))


text_option = click.option(
    "--text",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Text (.txt) or conversations (.jsonl) to judge on, not used for calibration. Default: the bundled text.",
)

json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print the result as one JSON document; stdout holds nothing else."
)


def sampling_options(*, max_tokens: int) -> Callable[[Command], Command]:
    """Return the decorator with --max-tokens, --temperature, --top-p and --seed. max_tokens: the default."""
    options = (
        click.option(
            "--max-tokens",
            type=click.IntRange(min=1),
            default=max_tokens,
            show_default=True,
            metavar="N",
            help="At most so many.",
        ),
        click.option(
            "--temperature",
            type=float,
            default=0.0,
            show_default=True,
            metavar="X",
            help="0 takes the likeliest token always.",
        ),
        click.option(
            "--top-p",
            type=float,
            default=1.0,
            show_default=True,
            metavar="X",
            help="Draw from the likeliest tokens that sum to X.",
        ),
        click.option(
            "--seed",
            type=click.IntRange(0, 2**63 - 1),
            default=0,
            show_default=True,
            metavar="N",
            help="Of the drawing.",
        ),
    )

    def decorate(command: Command) -> Command:
        for option in reversed(options):  # the last one applied is the first in the help
            command = option(command)
        return command

    return decorate


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


class Speed(click.ParamType[float]):
    """Tokens per second, written 20tok/s or 20: above 0."""

    name = "speed"

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the tokens per second."""
        text = str(value).strip().lower().removesuffix("/s").removesuffix("tokens").removesuffix("tok").strip()
        try:
            speed = float(text)
        except ValueError:
            speed = math.nan
        if not 0 < speed < math.inf:
            self.fail(f"{value!r} is no speed; write for example 20tok/s", param, ctx)
        return speed


class Bytes(click.ParamType[int]):
    """A number of bytes, written 4GB, 1.5GiB, 500MB or 123456."""

    name = "bytes"
    units: ClassVar[dict[str, int]] = {
        "": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
        "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40,
    }  # fmt: skip

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return the bytes."""
        if isinstance(value, int):
            return value
        text = str(value).strip().upper()
        number = text.rstrip("BKMGTI")
        try:
            size = float(number) * self.units[text[len(number) :].strip()]
        except (ValueError, KeyError):
            size = math.nan
        if not 1 <= size < 2**63:
            self.fail(f"{value!r} is no size; write for example 4GB or 1.5GiB", param, ctx)
        return int(size)


max_memory_option = click.option(
    "--max-memory",
    "max_memory",
    type=Bytes(),
    metavar="SIZE",
    help="Take at most so much, such as 4GB. Default: no limit.",
)

threads_option = click.option(
    "--threads", type=click.IntRange(min=1), metavar="N", help="Processor cores to compute with. Default: all."
)


def limit_torch(threads: int | None) -> None:
    """Let torch compute with so many threads; None leaves it as it is. For commands that compute with torch alone."""
    if threads is None:
        return
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):  # read by torch when it is imported, which is later
        os.environ[name] = str(threads)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)


runtime_option = click.option(
    "--runtime",
    type=click.Choice(["native", "torch"]),
    default="native",
    show_default=True,
    help="What computes: our kernels, or torch in float32.",
)


def native_options(command: Command) -> Command:
    """Add what the runtime rounds besides the weights: --embeddings, --activations and --kv."""
    kv = click.option(
        "--kv",
        "kv_cache",
        type=click.Choice(["float16", "int8"]),
        help="Keep keys and values as float16, or round them to 8 bits. Default: as the recipe of the model says.",
    )
    activations = click.option(
        "--activations",
        type=click.Choice(["int8", "bfloat16", "float"]),
        default="int8",
        show_default=True,
        help="Round what quantized linears read to 8 bits; or what bfloat16 linears read to bfloat16; or neither.",
    )
    embeddings = click.option(
        "--embeddings",
        type=click.Choice(["stored", "int8"]),
        default="stored",
        show_default=True,
        help="Keep embedding and head as they are stored, or round those to 8 bits that are stored as floats.",
    )
    return embeddings(activations(kv(command)))
