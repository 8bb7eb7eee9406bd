"""Embedding and head -> integers: some rows at a time, to nearest, in the ranges of the recipe.

    int8   a symmetric scale for each row, a token's: what the native runtime looks up and multiplies without unpacking
    int4   a symmetric scale for each 64 columns of a row, or as many fewer as divide them

A tied table is one object: it is rounded once and stored once. GPTQ is not for them: what the embedding reads has no
second moment, and the head's would have to be held against what every token is looked up as.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from types import ModuleType

import torch
from torch import Tensor

from zeropoint.errors import NonFiniteError, SchemeError
from zeropoint.evaluation.layers import error_of_slabs
from zeropoint.evaluation.results import LayerRow
from zeropoint.models.parts import Table
from zeropoint.qparams.affine import quantize, restore
from zeropoint.qparams.choose import choose_qparams
from zeropoint.recipe import Choice
from zeropoint.runtime.weights import Weights
from zeropoint.types import QParams, QTensor, Scheme

SLAB_VALUES = 1 << 21
"""Values of a table that are in float32 at once."""


@dataclass(frozen=True)
class QuantizedTable:
    """One table after rounding: the tensors that the file has for it, and what it lost.

    looked_up: the rows that were asked for, as they are looked up: float32 (rows, cols).
    """

    tensors: dict[str, Tensor]
    row: LayerRow
    looked_up: Tensor


def quantize_table(
    weights: Weights, table: Table, scheme: Scheme, choice: Choice, file_format: ModuleType, *, rows: Sequence[int]
) -> QuantizedTable:
    """Return a table as integers. choice: the recipe's range rule. rows: those to return as floats beside.

    Raises: NonFiniteError or SchemeError, with the name, for a value or a range that no scale can be found for.
    """
    slabs: list[QTensor] = []

    def pairs() -> Iterator[tuple[Tensor, Tensor]]:
        for slab in _float_slabs(weights, table.name):
            slabs.append(_rounded(slab, scheme, choice))
            yield slab, restore(slabs[-1])

    try:
        error = error_of_slabs(pairs())
    except (NonFiniteError, SchemeError) as failure:
        raise type(failure)(f"{table.name}.weight: {failure}") from failure
    row = LayerRow(
        name=table.name,
        kind=table.name.rpartition(".")[2],
        shape=(weights.model.config.vocab_size, weights.model.config.hidden_size),
        scheme=scheme.label(),
        rounding="rtn",
        fallback=None,
        sqnr_db=error.sqnr_db,
        cosine=error.cosine,
        output_error=None,
    )
    looked_up = torch.cat([_row(slabs, index) for index in rows])
    return QuantizedTable(file_format.pack_table(table.name, slabs, table.also), row, looked_up)


def restored_table(weights: Weights, name: str, scheme: Scheme, choice: Choice) -> Tensor:
    """Return what a table would stand for as integers: float32 (rows, cols), in memory as a whole."""
    return torch.cat([restore(_rounded(slab, scheme, choice)) for slab in _float_slabs(weights, name)])


def _row(slabs: Sequence[QTensor], index: int) -> Tensor:
    """Return what one row of a table stands for: float32 (1, cols)."""
    slab, at = slabs[index // slabs[0].shape[0]], index % slabs[0].shape[0]
    scale, zero_point = (
        None if each is None else each[at : at + 1] for each in (slab.qparams.scale, slab.qparams.zero_point)
    )
    assert scale is not None
    return restore(replace(slab, codes=slab.codes[at : at + 1], qparams=QParams(scale, zero_point)))


def _rounded(slab: Tensor, scheme: Scheme, choice: Choice) -> QTensor:
    qparams = choose_qparams(slab, scheme, choice.method, choice.load_options("qparams.ranges"))
    return QTensor(quantize(slab, qparams, scheme), qparams, scheme)


def _float_slabs(weights: Weights, name: str) -> Iterator[Tensor]:
    """Yield the rows of a float table, some after others: float32 (rows, cols)."""
    rows, cols = weights.model.config.vocab_size, weights.model.config.hidden_size
    step = max(1, SLAB_VALUES // cols)
    for start in range(0, rows, step):
        yield weights.float_rows(f"{name}.weight", start, min(rows, start + step))
