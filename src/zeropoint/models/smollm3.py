"""SmolLM3: the blocks are Llama's, and every fourth one knows no positions: its queries and keys are not rotated.

Source: Yang et al. 2025, arXiv:2501.18795 (RNoPE), as in the SmolLM3 releases of Hugging Face, 2025.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import llama
from zeropoint.models._layers import layer_types, window_of, with_window
from zeropoint.models._values import flag, whole

DEFAULTS: Mapping[str, Any] = {
    "num_key_value_heads": 4,
    "max_position_embeddings": 32768,
    "rope_theta": 2_000_000.0,
    "tie_word_embeddings": True,
}


class Model(llama.Model):
    """A SmolLM3 decoder; see `zeropoint.models.parts.Model`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        read = llama.read_config({**DEFAULTS, **config})
        rotates = _rotates(config, read.layers)
        window = window_of(config, None) if flag(config, "use_sliding_window") else None
        types = layer_types(config, read.layers, lambda index: window is not None and not rotates[index])
        blocks = with_window(read, types, window)
        return cls(read, tuple(b if turns else replace(b, rope=None) for b, turns in zip(blocks, rotates, strict=True)))


def _rotates(config: Mapping[str, Any], layers: int) -> tuple[bool, ...]:
    """Return of each block whether it rotates: no_rope_layers has a 1 for one that does. Raises: ArchitectureError."""
    interval = whole(config, "no_rope_layer_interval", 4)
    found = config.get("no_rope_layers")
    if found is None:
        return tuple((index + 1) % interval != 0 for index in range(layers))
    if not isinstance(found, list) or len(found) != layers or any(each not in (0, 1) for each in found):
        raise ArchitectureError(f"config.json: no_rope_layers is not a list of {layers} numbers, each 0 or 1")
    return tuple(map(bool, found))
