"""The values of a config.json: each of its type, in a range that a model can have, or refused by its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropoint.errors import ArchitectureError

MOST = (1 << 31) - 1


def whole(config: Mapping[str, Any], key: str, default: int | None = None, *, most: int = MOST) -> int:
    """Return a whole number from 1 to `most`; `default` where the key is missing or null.

    Raises: ArchitectureError, also where it is missing and there is no default.
    """
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not 1 <= value <= most:
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; a positive integer up to {most} belongs there")
    return value


def number(config: Mapping[str, Any], key: str, default: float | None = None, *, least: float = 0.0) -> float:
    """Return a finite number above `least`; `default` where the key is missing or null.

    Raises: ArchitectureError, also where it is missing and there is no default.
    """
    value = default if config.get(key) is None else config[key]
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not least < value <= 1e30
    ):  # float32, which computes, ends at 3e38
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; a number above {least:g} belongs there")
    return float(value)


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Return whether a key says true; it is false where it is missing or null. Raises: ArchitectureError."""
    value = config.get(key)
    if value not in (None, True, False):
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; true or false belongs there")
    return bool(value)


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table under a key; {} where it is missing or null. Raises: ArchitectureError."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; a table of keys and values belongs there")
    return value or {}


def _shown(value: object) -> str:
    return repr(value)[:60]
