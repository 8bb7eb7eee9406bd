"""What a budget is made of and what becomes of it: plain structs, saved, printed by --json, shown by report/budget."""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

from zeropoint.evaluation.results import Interval95, Result, Size

BUDGET = "budget.json"
"""The file beside a model's weights that says which budget it was made for, and whether it keeps it: a Budgeted."""

Kept: TypeAlias = Literal["KEPT", "BROKEN", "INCONCLUSIVE"]
"""Whether a promise is kept: the interval of the loss ends within it, begins above it, or holds it."""


class FormCost(Result, frozen=True, kw_only=True):
    """One form of some weights. form: its name, such as "int4 g64 sym" or "float". bits: None for floats.

    size_bytes: in the file, scales and zero points included. kl: nats per token that it costs by itself, expected.
    """

    form: str
    bits: int | None
    size_bytes: int
    kl: float


class UnitCosts(Result, frozen=True, kw_only=True):
    """Weights that have one form: the linears that share an input, all experts, or embedding and head.

    weights: how many numbers they are. forms: by size, smallest first.
    """

    names: tuple[str, ...]
    weights: int
    forms: tuple[FormCost, ...]


class UniformCheck(Result, frozen=True, kw_only=True):
    """All linears in one form, as far as they may have it. expected: the sum of the costs. measured: of the model."""

    form: str
    expected: float
    measured: float


class Sensitivities(Result, frozen=True, kw_only=True):
    """What every form of every weight costs. checks: the sums held against whole models, on windows of their own.

    rest_bytes: of the file, whatever is chosen. fisher_tokens, tokens, check_tokens: that were read for it.
    """

    zeropoint: str
    model: str
    recipe: dict[str, Any]
    units: tuple[UnitCosts, ...]
    tables: UnitCosts | None
    checks: tuple[UniformCheck, ...]
    rest_bytes: int
    source_bytes: int
    fisher_tokens: int
    tokens: int
    check_tokens: int
    elapsed_s: float


class CurvePoint(Result, frozen=True, kw_only=True):
    """The best forms of one size. bits: mean bits of a weight of the linears, scales included.

    kl: expected, nats per token; kl_low, kl_high: as far as the checks were off. forms: weights by form.
    """

    size_bytes: int
    bits: float
    kl: float
    kl_low: float
    kl_high: float
    forms: dict[str, int]
    embeddings: str


class Curve(Result, frozen=True, kw_only=True):
    """`zeropoint budget`: size against loss. knee: the index of the point behind which bytes buy the least.

    reused: whether the costs were found by an earlier run.
    """

    zeropoint: str
    model: str
    sensitivities: Sensitivities
    points: tuple[CurvePoint, ...]
    knee: int
    reused: bool
    elapsed_s: float


class Asked(Result, frozen=True, kw_only=True):
    """What was asked for; None for what was not.

    max_loss: rise of the perplexity, a fraction. max_kl: nats per token. max_size_bytes: of the files. max_bits: of a
    weight of the linears, scales included. min_speed: tokens per second, when decoding.
    """

    max_loss: float | None = None
    max_kl: float | None = None
    max_size_bytes: int | None = None
    max_bits: float | None = None
    min_speed: float | None = None


class Attempt(Result, frozen=True, kw_only=True):
    """A model that was made and judged. factor: by which the sums were taken times before it was chosen.

    windows, tokens: that decided; none of them was used for a choice, or by an attempt before. loss: the rise of the
    perplexity. kept: None where only a size was asked for.
    """

    point: CurvePoint
    factor: float
    windows: int
    tokens: int
    kl: float
    kl_interval95: Interval95 | None
    loss: float
    loss_interval95: Interval95 | None
    kept: Kept | None
    looks: int
    seconds: float


class Budgeted(Result, frozen=True, kw_only=True):
    """`zeropoint quantize` with a budget. possible: whether the choices can keep it. output: None if nothing was made.

    size_limit_bytes: all limits of the size in one, None for none. attempts: in their order; the last is the output.
    text: what it was judged on.
    """

    zeropoint: str
    model: str
    output: str | None
    asked: Asked
    possible: bool
    says: str
    verdict: Kept | None
    size_limit_bytes: int | None
    attempts: tuple[Attempt, ...]
    size: Size | None
    confidence: float
    text: str
    reused: bool
    elapsed_s: float
