"""Mistral: the blocks are Llama's, and each token may see a window of the last ones only.

Source: Jiang et al. 2023, arXiv:2310.06825. Releases since v0.2 have `sliding_window: null`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import llama
from zeropoint.models._layers import window_of

DEFAULTS: Mapping[str, Any] = {"num_key_value_heads": 8, "max_position_embeddings": 4096 * 32}


class Model(llama.Model):
    """A Mistral decoder; see `zeropoint.models.parts.Model`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        # MistralConfig's own default is a window of 4096: a missing key means a window, only null means none
        window = window_of(config, 4096)
        return cls(replace(llama.read_config({**DEFAULTS, **config}), window=window))
