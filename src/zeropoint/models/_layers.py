"""Blocks that are not all alike: which of them look back over a window only, as config.json has it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from zeropoint.errors import ArchitectureError
from zeropoint.models._values import whole
from zeropoint.models.parts import Config

FULL, SLIDING = "full_attention", "sliding_attention"


def layer_types(config: Mapping[str, Any], layers: int, default: Callable[[int], bool]) -> tuple[str, ...]:
    """Return FULL or SLIDING for each block, of the key layer_types.

    default: says of a block, by its index, whether it is a SLIDING one where the key is missing or null.
    Raises: ArchitectureError for another type, or another number of them.
    """
    found = config.get("layer_types")
    if found is None:
        return tuple(SLIDING if default(index) else FULL for index in range(layers))
    if not isinstance(found, list) or len(found) != layers:
        raise ArchitectureError(f"config.json: layer_types is not a list of {layers} types, one for each block")
    for each in found:
        if each not in (FULL, SLIDING):
            raise ArchitectureError(
                f"config.json: layer_types has {str(each)[:60]!r}; {FULL} and {SLIDING} are covered"
            )
    return tuple(found)


def window_of(config: Mapping[str, Any], default: int | None) -> int | None:
    """Return sliding_window, in tokens; `default` where the key is missing, None where it is null.

    Raises: ArchitectureError for what is no such number.
    """
    if "sliding_window" not in config:
        return default
    return None if config["sliding_window"] is None else whole(config, "sliding_window")


def with_window(read: Config, types: tuple[str, ...], window: int | None) -> tuple[Config, ...]:
    """Return the config of each block: SLIDING ones have the window.

    Raises: ArchitectureError if there are such blocks and no window.
    """
    if window is None and SLIDING in types:
        raise ArchitectureError(f"config.json: there are blocks of {SLIDING}, and sliding_window says no window")
    return tuple(replace(read, window=window) if each == SLIDING else read for each in types)
