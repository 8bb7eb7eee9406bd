"""What an export has written."""

from __future__ import annotations

import msgspec


class Written(msgspec.Struct, frozen=True):
    """What a target wrote.

    types: how many tensors it holds of each of its types. checked: values that were read back from it and are those of
    the model, all of them. notes: what has to be said about who runs it, and how.
    """

    types: dict[str, int]
    checked: int
    notes: tuple[str, ...] = ()


class Export(msgspec.Struct, frozen=True, kw_only=True):
    """What `export` wrote, and from what. size_bytes: of all files. The others: as in Written."""

    zeropoint: str
    model: str
    output: str
    format: str
    types: dict[str, int]
    checked: int
    size_bytes: int
    elapsed_s: float
    notes: tuple[str, ...] = ()
