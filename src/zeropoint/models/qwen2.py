"""Qwen2 and Qwen2.5: the blocks are Llama's with a bias on q, k and v; late blocks may have a window.

Source: Yang et al. 2024, arXiv:2407.10671. Released models have `use_sliding_window: false`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.models import llama
from zeropoint.models._layers import layer_types, window_of, with_window
from zeropoint.models._values import flag, whole
from zeropoint.models.parts import Config

DEFAULTS: Mapping[str, Any] = {"num_key_value_heads": 32, "max_position_embeddings": 32768}


class Model(llama.Model):
    """A Qwen2 decoder; see `zeropoint.models.parts.Model`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        read = replace(llama.read_config({**DEFAULTS, **config}), attention_bias=True, mlp_bias=False)
        return cls(read, windowed(config, read))

    def has_bias(self, linear: str) -> bool:
        return linear in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")


def windowed(config: Mapping[str, Any], read: Config) -> tuple[Config, ...]:
    """Return the config of each block: from `max_window_layers` on, or where `layer_types` says so, it has a window.

    Raises: ArchitectureError.
    """
    window = window_of(config, 4096) if flag(config, "use_sliding_window") else None
    first = whole(config, "max_window_layers", 28, least=0)
    types = layer_types(config, read.layers, lambda index: window is not None and index >= first)
    return with_window(read, types, window)
