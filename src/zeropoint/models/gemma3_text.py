"""Gemma 3, its text model: Gemma 2 with norms of the heads of q and k in place of capped scores, and two ropes.

Blocks with a window rotate by a base of their own (rope_local_base_freq); every sixth block has none.
Source: Gemma Team 2025, arXiv:2503.19786.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

from zeropoint.errors import ArchitectureError
from zeropoint.models import gemma2, llama, qwen3
from zeropoint.models._layers import FULL, SLIDING, layer_types, window_of, with_window
from zeropoint.models._values import positive_or_none, table, whole
from zeropoint.models.rope import Rope

DEFAULTS: Mapping[str, Any] = {
    **gemma2.DEFAULTS,
    "max_position_embeddings": 131_072,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}


class Model(llama.Model):
    """A Gemma 3 decoder; see `zeropoint.models.parts.Model`."""

    stages = (replace(gemma2.FLOW[0], leave=qwen3.attend), *gemma2.FLOW[1:])
    norms = (*gemma2.NORMS, "self_attn.q_norm", "self_attn.k_norm")

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        full, local = _ropes(config)
        read = gemma2.read_config({**config, "rope_parameters": full, "rope_scaling": None}, "final_logit_softcapping")
        read = replace(read, logit_softcap=positive_or_none(config, "final_logit_softcapping"))
        pattern = whole(config, "sliding_window_pattern", 6)
        types = layer_types(config, read.layers, lambda index: (index + 1) % pattern != 0)
        rope = Rope.from_config({"rope_parameters": local}, read.head_dim)
        blocks = with_window(read, types, window_of(config, 4096))
        return cls(read, tuple(b if b.window is None else replace(b, rope=rope) for b in blocks))

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {**super().shapes(), "q_norm": (self.config.head_dim,), "k_norm": (self.config.head_dim,)}


def _ropes(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the rope parameters of blocks without and with a window, wherever config.json has them."""
    parameters = table(config, "rope_parameters")
    if parameters and not parameters.keys() <= {FULL, SLIDING}:
        raise ArchitectureError(f"config.json: rope_parameters has other keys than {FULL} and {SLIDING}")
    full, local = {**table(parameters, FULL), **table(config, "rope_scaling")}, {**table(parameters, SLIDING)}
    full.setdefault("rope_theta", config.get("rope_theta") or 1_000_000.0)
    local.setdefault("rope_theta", config.get("rope_local_base_freq") or 10_000.0)
    return full, local
