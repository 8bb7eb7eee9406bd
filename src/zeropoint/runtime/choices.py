"""What the runtime may round besides the weights: keys and values, and an embedding that is stored as floats.

For keys and values a recipe chooses, and the output's config.json keeps it:

    "zeropoint": {"kv_cache": "int8"}          # only what differs from the defaults

That changes no stored tensor: the runtime rounds as tokens come. So a folder says how it wants to be run, whoever runs
it may say otherwise, and readers that do not know the key lose nothing. What a recipe chooses for embeddings is in the
file itself (formats/_tables.py); whoever runs a float one may have it rounded while it is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec

from zeropoint.errors import CheckpointError, InputError
from zeropoint.types import KVCache

CONFIG_KEY = "zeropoint"

CacheDtype = Literal["float16", "float32", "int8"]
"""What a cache of keys and values can be; float32 is for comparing."""


class Choices(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """How a checkpoint wants to be run. kv_cache: dtype of keys and values."""

    kv_cache: KVCache = "float16"

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Choices:
        """Return what a config.json says.

        Raises: CheckpointError for a key or a value that is none, naming what is allowed.
        """
        try:
            return msgspec.convert(config.get(CONFIG_KEY, {}), cls)
        except msgspec.ValidationError as error:
            raise CheckpointError(
                f"config.json: {CONFIG_KEY!r} is {config[CONFIG_KEY]!r}, and it may hold kv_cache, 'float16' or "
                "'int8'; correct it or take it out"
            ) from error

    def to_config(self) -> dict[str, Any]:
        """Return what goes into config.json: nothing where all is as it is without."""
        section: dict[str, Any] = msgspec.to_builtins(self)
        return {CONFIG_KEY: section} if section else {}


def require_possible(runtime: str, *, activations: str, embeddings: str) -> None:
    """Raise InputError for a runtime that there is not, or for a choice that it does not have."""
    if runtime not in ("native", "torch"):
        raise InputError(f"runtime is {runtime!r}; it must be 'native' or 'torch'")
    if runtime == "torch" and (activations != "int8" or embeddings == "int8"):
        raise InputError("activations and embeddings are choices of the native runtime; leave them out for torch")
