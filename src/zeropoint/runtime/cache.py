"""Keys and values of the tokens seen so far, one cache per block; and what a smaller dtype makes of them.

In int8 each head of each token has one scale (native/program.h): S = max |x| / 127, q = round(x * 127 / max |x|), half
to even, and what is read back is S q.
"""

from __future__ import annotations

import torch
from torch import Tensor


class TorchLayerCache:
    """The keys and values of one block: float32 (batch, kv_heads, length, head_dim) each."""

    def __init__(self) -> None:
        self.length = 0
        self._keys: Tensor | None = None
        self._values: Tensor | None = None

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Append (batch, kv_heads, time, head_dim) and return views of all keys and values."""
        end = self.length + k.shape[-2]
        self._keys, self._values = self._room(self._keys, k, end), self._room(self._values, v, end)
        self._keys[..., self.length : end, :] = k
        self._values[..., self.length : end, :] = v
        self.length = end
        return self._keys[..., :end, :], self._values[..., :end, :]

    def rewind(self, length: int) -> None:
        """Forget all tokens after the first `length`, at most as many as there are."""
        self.length = min(self.length, length)

    def _room(self, held: Tensor | None, new: Tensor, end: int) -> Tensor:
        if held is not None and held.shape[-2] >= end:
            return held
        grown = new.new_empty(*new.shape[:-2], max(64, 1 << (end - 1).bit_length()), new.shape[-1])
        if held is not None:
            grown[..., : self.length, :] = held[..., : self.length, :]
        return grown


def in_halves(x: Tensor) -> Tensor:
    """Return what x is in float16, clamped to its range: float32."""
    most = torch.finfo(torch.float16).max
    return x.clamp(-most, most).half().float()


def in_int8(x: Tensor) -> Tensor:
    """Return S q for float32 (..., head_dim), a scale S for each row; a row of zeros stays as it is."""
    largest = x.abs().amax(-1, keepdim=True)
    inverse = torch.where(largest > 1e-36, 127 / largest, 0)  # 127 / largest would overflow
    return torch.round(x * inverse) * (largest / 127)
