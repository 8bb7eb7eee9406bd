"""Rotation as QuaRot writes it, arXiv:2404.00456, section 4, in float64 with whole matrices, one head at a time."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def rotate_block(tensors: Mapping[str, Array], q: Array, r: Array) -> dict[str, Array]:
    """Return the tensors of a Llama block, by local name, whose stream is x Q and whose values are v R."""
    new = dict(tensors)
    for norm, readers in {
        "input_layernorm": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "post_attention_layernorm": ("mlp.gate_proj", "mlp.up_proj"),
    }.items():
        gain = np.diag(tensors[f"{norm}.weight"])
        for name in readers:
            new[f"{name}.weight"] = tensors[f"{name}.weight"] @ gain @ q
        new[f"{norm}.weight"] = np.ones(len(gain))
    for name in ("self_attn.o_proj", "mlp.down_proj"):
        new[f"{name}.weight"] = q.T @ tensors[f"{name}.weight"]
        if f"{name}.bias" in tensors:
            new[f"{name}.bias"] = tensors[f"{name}.bias"] @ q
    rotate_heads(new, r)
    return new


def rotate_heads(tensors: dict[str, Array], r: Array) -> None:
    """Rotate in place the values of every head, and the columns of the output projection that read them."""
    size = len(r)
    for name in ("self_attn.v_proj.weight", "self_attn.v_proj.bias"):
        if name in tensors:
            values = tensors[name].copy()
            for first in range(0, len(values), size):
                values[first : first + size] = r.T @ values[first : first + size]
            tensors[name] = values
    output = tensors["self_attn.o_proj.weight"].copy()
    for first in range(0, output.shape[1], size):
        output[:, first : first + size] = output[:, first : first + size] @ r
    tensors["self_attn.o_proj.weight"] = output


def rotate_outer(embedding: Array, gain: Array, head: Array, q: Array) -> tuple[Array, Array]:
    """Return embedding and head of the rotated stream; the gain of the last norm is 1 then."""
    return embedding @ q, head @ np.diag(gain) @ q


def sylvester(order: int) -> Array:
    """Return the Hadamard matrix of order 2^k: (-1)^(number of ones that the bits of i and j share)."""
    return np.array([[(-1.0) ** (i & j).bit_count() for j in range(order)] for i in range(order)])
