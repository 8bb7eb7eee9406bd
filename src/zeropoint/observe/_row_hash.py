"""A number for each row that depends on its values alone: the same token is the same wherever it comes.

Whoever needs a sample or a division of the tokens that no split into batches and no order of merging can change, takes
it from this number. With b_j the 32 bits of column j and a_j odd constants, all modulo 2^64:

    h = mix(sum_j a_j b_j)         a_j = mix(j + 1) | 1

mix is the finalizer of splitmix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators").
"""

from __future__ import annotations

import torch
from torch import Tensor

_CHUNK = 1 << 20  # values whose bits are in int64 at once: 8 MB


def row_hashes(x: Tensor) -> Tensor:
    """Return int64 (tokens,) for activations (tokens, cols) of float32 or bfloat16, of equal numbers the same."""
    tokens, cols = x.shape
    factors = _mix(torch.arange(1, cols + 1)) | 1
    sums = [
        (chunk.float().add(0.0).view(torch.int32).to(torch.int64) * factors).sum(dim=1)  # + 0: -0 counts as 0
        for chunk in torch.split(x.detach(), max(1, _CHUNK // max(1, cols)))
    ]
    return _mix(torch.cat(sums)) if tokens else torch.zeros(0, dtype=torch.int64)


def _mix(z: Tensor) -> Tensor:
    z = z * _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Return z >> bits with zeros coming in, as of an unsigned number."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """Return the int64 with the same 64 bits."""
    return number - (1 << 64) if number >> 63 else number
