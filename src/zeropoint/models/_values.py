"""The values of a config.json: each of its type, in a range that a model can have, or refused by its key."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zeropoint.errors import ArchitectureError

MOST = (1 << 31) - 1


def whole(config: Mapping[str, Any], key: str, default: int | None = None, *, least: int = 1, most: int = MOST) -> int:
    """Return a whole number from `least` to `most`; `default` where the key is missing or null.

    Raises: ArchitectureError, also where it is missing and there is no default.
    """
    value = default if config.get(key) is None else config[key]
    if type(value) is not int or not least <= value <= most:
        what = "a positive integer" if least == 1 else f"an integer from {least}"
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; {what} up to {most} belongs there")
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


def positive_or_none(config: Mapping[str, Any], key: str) -> float | None:
    """Return a number above 1e-6, or None where the key is missing or null. Raises: ArchitectureError."""
    return None if config.get(key) is None else number(config, key, least=1e-6)  # in float32, too, it is no 0


def flag(config: Mapping[str, Any], key: str) -> bool:
    """Return whether a key says true; it is false where it is missing or null. Raises: ArchitectureError."""
    value = config.get(key)
    if value not in (None, True, False):
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; true or false belongs there")
    return bool(value)


UNCOVERED: Mapping[str, tuple[object, ...]] = {
    "attention_multiplier": (),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
    "logits_scaling": (1.0,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "use_bidirectional_attention": (False,),
    "attention_sinks": (False,),
    "attention_chunk_size": (),
    "clip_qkv": (),
    "qk_layernorm": (False,),
    "use_qk_norm": (False,),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "mup_multiplier": (1.0,),
    "scale_emb": (1.0,),
}
"""Keys that change the result in some architectures, and what they may be where nothing covers them, beside null."""


def require_covered(config: Mapping[str, Any], *covered: str) -> None:
    """Refuse a config with a key of UNCOVERED that would change the result. covered: keys that the caller reads.

    Raises: ArchitectureError.
    """
    for key, allowed in UNCOVERED.items():
        value = config.get(key)
        if key in covered or value is None or value in allowed:
            continue
        raise ArchitectureError(
            f"config.json: {key} is {_shown(value)}, which is not covered for a {config.get('model_type')} model"
        )


def table(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return the table under a key; {} where it is missing or null. Raises: ArchitectureError."""
    value = config.get(key)
    if value is not None and not isinstance(value, dict):
        raise ArchitectureError(f"config.json: {key} is {_shown(value)}; a table of keys and values belongs there")
    return value or {}


def _shown(value: object) -> str:
    return repr(value)[:60]
