"""Gemma: 1 has been added to every gain, and the head is the embedding. The base of the rope is 10,000."""

from __future__ import annotations

from typing import Any

from zeropoint.checkpoint.gguf_architectures._architecture import ATTENTION, MLP, OUTER, Architecture
from zeropoint.checkpoint.gguf_architectures._fields import MLP as MLP_LINEARS
from zeropoint.checkpoint.gguf_architectures._fields import READS, Fields, decoder

TIED = {llama: theirs for llama, theirs in OUTER.items() if llama != "output"}


def config(fields: Fields) -> dict[str, Any]:
    """Return the config of a Gemma."""
    return {**gemma(fields, "gemma", "GemmaForCausalLM"), "hidden_act": "gelu_pytorch_tanh"}


def gemma(fields: Fields, model_type: str, architecture: str, *known: str) -> dict[str, Any]:
    """Return what all Gemmas have in common. known: more keys that the caller reads."""
    fields.require_no_biases(*READS, "o_proj", *MLP_LINEARS)
    found = {**decoder(fields, model_type, architecture, *known), "attention_bias": False}
    del found["hidden_act"]
    return found


ARCHITECTURES = (Architecture("gemma", config, TIED, ATTENTION | MLP, added=1.0),)
