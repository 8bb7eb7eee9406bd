"""Gemma: Llama's blocks with gains that are stored less 1, and an embedding that is multiplied by sqrt(hidden).

    x = embed(tokens) * sqrt(hidden)        rms_norm(x) = x / sqrt(mean(x^2) + eps) * (1 + gain)

The factor is rounded to the dtype of config.json, as transformers rounds it to that of the weights: sqrt(2048) is 45.25
in bfloat16. Source: Gemma Team 2024, arXiv:2403.08295.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Self

import numpy as np

from zeropoint.models import llama
from zeropoint.models.parts import Config

DEFAULTS: Mapping[str, Any] = {
    "hidden_act": "gelu_pytorch_tanh",
    "head_dim": 256,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


class Model(llama.Model):
    """A Gemma decoder; see `zeropoint.models.parts.Model`."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        config = {**DEFAULTS, **config}
        if config["hidden_act"] == "gelu":  # what the first releases say, and transformers takes for this as well
            config["hidden_act"] = "gelu_pytorch_tanh"
        return cls(scaled(config, llama.read_config(config)))


def scaled(config: Mapping[str, Any], read: Config) -> Config:
    """Return the config with what all Gemmas have: gains less 1, the factor of the embedding, no bias in an MLP."""
    factor = np.float32(read.hidden_size**0.5)
    dtype = str(config.get("dtype") or config.get("torch_dtype")).removeprefix("torch.")
    if dtype == "float16":
        factor = np.float32(np.float16(factor))
    if dtype == "bfloat16":  # the upper 16 bits, half to even
        bits = int(factor.view(np.uint32))
        factor = np.uint32((bits + 0x7FFF + (bits >> 16 & 1)) & 0xFFFF0000).view(np.float32)
    return replace(read, norm_offset=1.0, embedding_factor=float(factor), mlp_bias=False)
