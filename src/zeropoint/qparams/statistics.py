"""The statistics that a rule named in its NEEDS, by name and with their type."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from zeropoint.errors import InternalError
from zeropoint.types import Stats

Kind = TypeVar("Kind")


def of_type(stats: Mapping[str, Stats], name: str, kind: type[Kind]) -> Kind:
    """Return the statistics of the observer `name`. Raises: InternalError if they are missing, or of another kind."""
    found = stats.get(name)
    if not isinstance(found, kind):
        raise InternalError(f"a rule needs the statistics {name!r} ({kind.__name__}), and got {type(found).__name__}")
    return found
