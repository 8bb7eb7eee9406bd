"""Mistral without a sliding window: the blocks are Llama's.

Source: Jiang et al. 2023, arXiv:2310.06825. Releases since v0.2 have `sliding_window: null`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import llama
from zeropoint.models._values import whole

FLOW = llama.FLOW


class Model(llama.Model):
    """A Mistral decoder; see `zeropoint.models.parts.Model`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        # MistralConfig's own default is a window of 4096: a missing key means a window, only null means none
        window = config.get("sliding_window", 4096)
        if window is not None and whole(config, "sliding_window", 4096) < whole(
            config, "max_position_embeddings", 4096 * 32
        ):
            raise ArchitectureError(
                f"config.json: sliding_window is {window}; Mistral is covered without one only (sliding_window: null)"
            )
        return super().from_config(config)
